"""Experiments upon the rest: evidence, streaming, abstention, side effects. Nothing imports them."""
