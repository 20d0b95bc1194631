"""Training of the inference model and the generator, on transformers' Trainer."""
