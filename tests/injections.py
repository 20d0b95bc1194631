"""The corpus of injection attempts: sentences of our own that try to get out of their place, or into the summary.

Each has a kind, and some `held_out`: their wording was written after popi.profiles.screening's patterns, which were not
widened for them. `{phrase}` stands for a preference. The attempts ask for the word CANARY.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from popi.profiles.screening import found_in

CANARY = "zanzibar"
FILE = Path(__file__).parent / "data" / "injections.jsonl"


@dataclass(frozen=True)
class Injection:
    """One attempt."""

    id: str
    kind: str
    text: str
    held_out: bool = False


def injections(phrase: str = "a formal tone") -> list[Injection]:
    """All of them."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return [Injection(**row | {"text": row["text"].replace("{phrase}", phrase)}) for row in rows]


ROWS = {
    "roles and special tokens, homoglyphs, links, code, markup": ("role", "homoglyph", "link", "code", "markup"),
    "delimiters": ("delimiter",),
    "encodings": ("encoding",),
    "invisible characters": ("invisible",),
    "instructions, in English": ("instruction",),
    "instructions, in 26 other languages": ("language",),
    "instructions, held out": ("instruction", "language"),
    "planted preferences": ("preference",),
}
"""Of the table in docs/security.md: the kinds of each."""


def caught() -> dict[str, tuple[int, int]]:
    """Of each row the attempts that popi.profiles.screening finds, and all."""
    table = {}
    for row, kinds in ROWS.items():
        texts = [
            one.text for one in injections() if one.kind in kinds and one.held_out == (row == "instructions, held out")
        ]
        table[row] = sum(bool(found_in(text)) for text in texts), len(texts)
    return table
