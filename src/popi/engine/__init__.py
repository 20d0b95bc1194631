"""Computes texts that share prefixes once: tree rows, attention, the LM head, decoding, scoring.

Knows nothing about users or runs.
"""
