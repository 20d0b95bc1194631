"""Signals that come in batches: summaries renewed with each, against summaries written from scratch."""
