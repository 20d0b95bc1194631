"""From what a prompted LLM answered to statements about a user; and from prose to sentences.

A statement is one whole sentence, line or list item of the answer: it is taken or dropped, never cut and never
reworded. So no statement says what the answer did not. Used by the inference model, the profiles and the client;
imports nothing of them.
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
