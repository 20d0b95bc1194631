"""Texts that share prefixes, computed once: tree rows, attention, the LM head, decoding, scoring.

Knows no user and no run.
"""
