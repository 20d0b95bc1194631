"""Parsing a prompted LLM's answer into statements about a user, and splitting prose into sentences.

A statement is one whole sentence, line or list item of the answer. It is accepted or dropped, never cut or reworded, so
no statement says anything that the answer didn't. Used by the inference model, the profiles and the client; imports
none of them.
"""

from popi.profiles.statements.form import storable, without_thoughts
from popi.profiles.statements.phrases import normal, says_nothing
from popi.profiles.statements.reading import SCHEMA, Bounds, read, request
from popi.profiles.statements.sentences import ended, lines, sentences

__all__ = [
    "SCHEMA",
    "Bounds",
    "ended",
    "lines",
    "normal",
    "read",
    "request",
    "says_nothing",
    "sentences",
    "storable",
    "without_thoughts",
]
