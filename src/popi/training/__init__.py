"""Training of the inference model and of the generator, on transformers' Trainer."""
