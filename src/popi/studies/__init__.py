"""Experiments with the rest of popi: evidence, streaming, abstention, side effects. Nothing imports them."""
