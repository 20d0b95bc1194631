"""When two texts are the same, and when nearly: how targets are looked for among the signals."""

import re
import unicodedata
from functools import lru_cache

from popi.signals.types import PairSignal, Prompt, Signal, TargetPair, said

NEAR = 0.8
"""Two texts are nearly the same from this Jaccard similarity of their shingles on."""
SHINGLE = 3
"""Tokens in a row that make a shingle; shorter texts are near only when the same."""
LONG = 8
"""Posts and statements of fewer tokens are not compared with responses: short texts meet by chance."""

# A word; or one character of a script that is written without spaces.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Normal:
    """A text folded for comparison: NFKC, no case, no punctuation, single spaces."""

    __slots__ = ("_shingles", "length", "text", "tokens")

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
        # Text of punctuation alone is compared as it stands, or all of it would be the same.
        self.text = " ".join(self.tokens) or text.strip()
        self.length = len(self.tokens)
        self._shingles: frozenset[tuple[str, ...]] | None = None

    @property
    def shingles(self) -> frozenset[tuple[str, ...]]:
        if self._shingles is None:
            tokens = self.tokens
            self._shingles = frozenset(zip(*(tokens[start:] for start in range(SHINGLE)), strict=False))
        return self._shingles

    def near(self, other: "Normal") -> bool:
        """The same, or of a shingle similarity of at least `NEAR`."""
        if self.text == other.text:
            return True
        short, long = sorted((self.length, other.length))
        if short < SHINGLE or short < NEAR * (long - SHINGLE):
            return False
        mine, others = self.shingles, other.shingles
        shared = len(mine & others)
        return shared >= NEAR * (len(mine) + len(others) - shared)


@lru_cache(maxsize=4096)
def normal(text: str) -> Normal:
    """`Normal(text)`, kept for the texts that come again: a user's are compared many times."""
    return Normal(text)


def prompt_text(prompt: Prompt) -> str:
    """A task prompt as one text."""
    return prompt if isinstance(prompt, str) else "\n".join(map(said, prompt))


def leak(target: TargetPair, signal: Signal) -> str | None:
    """How `target` stands in `signal`, if it does.

    Returns:
        None; or what a report says: the same pair, the same pair swapped, nearly so, one of its responses to
        (nearly) the same prompt, or a response inside of what the user wrote.
    """
    if not isinstance(signal, PairSignal) and signal.type != "interaction":
        text = normal(signal.text)
        if text.length >= LONG and any(text.near(normal(response)) for response in (target.chosen, target.rejected)):
            return "a response of this target is the text of"
        return None
    # Prompts first: they are short, and where they differ the responses need not be looked at.
    prompt, other = normal(prompt_text(target.prompt)), normal(prompt_text(signal.prompt))
    if not prompt.near(other):
        return None
    chosen, rejected = normal(target.chosen), normal(target.rejected)
    responses = (chosen, rejected)
    if isinstance(signal, PairSignal):
        theirs = [normal(signal.chosen), normal(signal.rejected)]
        if prompt.text == other.text:
            texts = [text.text for text in theirs]
            if texts == [chosen.text, rejected.text]:
                return "this target is the same as"
            if texts == [rejected.text, chosen.text]:
                return "this target, swapped, is the same as"
        if chosen.near(theirs[0]) and rejected.near(theirs[1]):
            return "this target is nearly the same as"
        if chosen.near(theirs[1]) and rejected.near(theirs[0]):
            return "this target, swapped, is nearly the same as"
    else:
        theirs = [normal(text) for text in (signal.response, signal.edit) if text]
    if any(mine.near(text) for mine in responses for text in theirs):
        return "a response of this target, to nearly the same prompt, stands in"
    return None
