"""Training of the inference model and of the generator, on TRL's trainers through small hooks."""
