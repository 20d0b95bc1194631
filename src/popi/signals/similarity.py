"""Decide whether two texts are the same or nearly the same, to find targets among the signals."""

import re
import unicodedata
from functools import lru_cache

from popi.signals.types import PairSignal, Prompt, Signal, TargetPair, message_text

NEAR = 0.8
"""Two texts are nearly the same if their shingles have at least this Jaccard similarity."""
SHINGLE = 3
"""Consecutive tokens per shingle; shorter texts are only near if equal."""
LONG = 8
"""Posts and statements with fewer tokens are not compared with responses: short texts match by chance."""

# A word, or one character of a script written without spaces.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Normal:
    """A text normalised for comparison: NFKC, no case, no punctuation, single spaces."""

    __slots__ = ("_shingles", "length", "text", "tokens")

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())
        # Text with only punctuation is compared unchanged; otherwise all such texts would be equal.
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
        """Whether the texts are equal, or have a shingle similarity of at least `NEAR`."""
        if self.text == other.text:
            return True
        short, long = sorted((self.length, other.length))
        if short < SHINGLE or short < NEAR * (long - SHINGLE):
            return False
        shared = len(self.shingles & other.shingles)
        return shared >= NEAR * (len(self.shingles) + len(other.shingles) - shared)


@lru_cache(maxsize=4096)
def normal(text: str) -> Normal:
    """`Normal(text)`, cached because a user's texts are compared many times."""
    return Normal(text)


def prompt_text(prompt: Prompt) -> str:
    """A task prompt as one text."""
    return prompt if isinstance(prompt, str) else "\n".join(map(message_text, prompt))


def leak(target: TargetPair, signal: Signal) -> str | None:
    """How `signal` reveals `target`, if it does.

    Returns:
        None, or a description for a report: the same pair, the same pair swapped, nearly the same pair, one of its
        responses to (nearly) the same prompt, or a response as the user's own text.
    """
    if not isinstance(signal, PairSignal) and signal.type != "interaction":
        text = normal(signal.text)
        if text.length >= LONG and any(text.near(normal(response)) for response in (target.chosen, target.rejected)):
            return "a response of this target is the text of"
        return None
    # Compare prompts first: they are short, and if they differ the responses need not be compared.
    prompt, other = normal(prompt_text(target.prompt)), normal(prompt_text(signal.prompt))
    if not prompt.near(other):
        return None
    chosen, rejected = normal(target.chosen), normal(target.rejected)
    responses = (chosen, rejected)
    if isinstance(signal, PairSignal):
        signal_texts = [normal(signal.chosen), normal(signal.rejected)]
        if prompt.text == other.text:
            texts = [text.text for text in signal_texts]
            if texts == [chosen.text, rejected.text]:
                return "this target is the same as"
            if texts == [rejected.text, chosen.text]:
                return "this target, swapped, is the same as"
        if chosen.near(signal_texts[0]) and rejected.near(signal_texts[1]):
            return "this target is nearly the same as"
        if chosen.near(signal_texts[1]) and rejected.near(signal_texts[0]):
            return "this target, swapped, is nearly the same as"
    else:
        signal_texts = [normal(text) for text in (signal.response, signal.edit) if text]
    if any(response.near(text) for response in responses for text in signal_texts):
        return "a response of this target, to nearly the same prompt, appears in"
    return None
