"""The one place where a user's text is kept from posing as something other than text.

A user's words reach a model inside a prompt that has a structure: chat turns, and a block of signals. Text
that spells a chat template's special tokens, or the tags of that block, could end its own place and speak
from another. `neutralise` breaks such strings with a space: still readable, no longer special. Lookalikes (zero-width
characters inside, full-width letters, other alphabets) are broken too: some tokenizers, and any model, read them alike.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from popi.signals.lookalikes import fold, fold_with_places, hides, without_hidden

_NAMES = (
    "s|bos|eos|pad|unk|sep|cls|mask|end|start_of_turn|end_of_turn|start_of_image|end_of_image|begin_of_text|end_of_text|"
    "system|user|assistant|tool|think|tool_call|tool_response|tools"
)
_SPECIAL = re.compile(
    "|".join(
        (
            r"<[|｜][^<>\n]{1,64}[|｜]>",  # <|im_start|>, <|eot_id|>, <｜User｜>, …
            rf"</?(?:{_NAMES})>",  # </s>, <end_of_turn>, …
            r"<</?SYS>>",
            r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CLS|SEP|MASK|PAD|UNK|BOS|EOS)\]",
        )
    ),
    re.IGNORECASE,
)


def neutralise(text: str, delimiters: Sequence[str] = (), *, single_line: bool = False) -> str:
    """Text that can neither fake a chat template's special tokens nor close the block it stands in.

    Args:
        text: anything that a user, or a model, wrote.
        delimiters: further strings that must not appear: the block's tags (``</user_signals``: everything up
            to the name, so that attributes and blanks don't matter) and the tokenizer's own special tokens.
            Case does not matter.
        single_line: fold all white space to single spaces, where a line's end is what ends a signal.

    Returns:
        The text with a space put after the first character of each such string; other text as it is.
        Applying it twice changes nothing more.
    """
    if single_line:
        text = " ".join(text.split())
    text = without_hidden(text)
    # Breaking one string can't complete another (a space is in none of them), save where a delimiter holds one.
    text = _SPECIAL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    tokens = _pattern(tuple(delimiters))
    if tokens is not None:
        text = tokens.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    if hides(text):
        for pattern in (_SPECIAL, tokens):
            if pattern is not None and pattern.search(fold(text)):
                text = _broken_alike(text, pattern)
    return text


@lru_cache(maxsize=64)
def _pattern(delimiters: tuple[str, ...]) -> re.Pattern[str] | None:
    tokens = sorted((re.escape(token) for token in delimiters if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(tokens), re.IGNORECASE) if tokens else None


def _broken_alike(text: str, pattern: re.Pattern[str]) -> str:
    """A space behind the first character of all that looks like what `pattern` finds."""
    folded, places = fold_with_places(text)
    for start in sorted({places[match.start()] for match in pattern.finditer(folded)}, reverse=True):
        text = f"{text[: start + 1]} {text[start + 1 :]}"
    return text
