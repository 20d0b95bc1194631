"""Signals that arrive in batches: renewing summaries with each batch, against writing them from scratch."""
