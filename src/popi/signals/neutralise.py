"""The one place where a user's text is kept from posing as something other than text.

A user's words reach a model inside a prompt that has a structure: chat turns, and a block of signals. Text
that spells a chat template's special tokens, or the tags of that block, could end its own place and speak
from another. `neutralise` breaks such strings with a space: still readable, no longer special. Lookalikes (zero-width
characters inside, full-width letters, other alphabets) are broken too: some tokenizers, and any model, read them alike.
"""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from popi.signals.lookalikes import fold, fold_with_places, hides, without_hidden

_NAMES = (
    "s|bos|eos|bot|eot|eom|eod|bop|eop|sop|pad|unk|sep|cls|mask|start|end|system|developer|user|human|assistant|model|"
    "tool|tools|function|observation|think|thinking|image|audio|video"
)
# Matched at the first character, which a space is put after; what follows may hold another one.
_SPECIAL = re.compile(
    "|".join(
        (
            r"<(?=[|｜][^<>\n]{1,64}[|｜]>)",  # <|im_start|>, <|eot_id|>, <｜User｜>
            r"<(?=[|｜]/?\w{1,64}>|/?\w{1,64}[|｜]>)",  # <|turn>, <turn|>
            rf"<(?=(?:/\s*)?(?:{_NAMES})\s*/?>)",  # </s>, </ s>, <think>
            # <extra_id_0>, <start_of_turn>, <unused7>; not <h1>, <T1>, <size_t>, <int32>
            r"<(?=(?:/\s*)?(?=\w*[\d_])(?![a-z]\d+\b|\w+_t\b|u?int\d+\b|float\d+\b)[a-z]\w{2,64}\s*/?>)",
            r"<(?=</?SYS>>)",
            r"\[(?=[|｜][\w /-]{1,64}[|｜]\])",  # [|system|]
            r"\[(?=/?(?:INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CLS|SEP|MASK|PAD|UNK"
            r"|BOS|EOS|unused\d+|control_\d+)\])",
            # [/THINK], [TOOL_CALLS], [gMASK]; not [note], [TODO]
            r"\[(?=(?P<capitals>/[a-z]\w{2,64}|[a-z]\w{0,32}_\w{1,32}|[gsd]MASK|ARGS|IMG|AUDIO|PREFIX|MIDDLE|SUFFIX)\])",
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
    patterns = [_SPECIAL, *_pattern(tuple(delimiters))]
    for pattern in patterns:
        text = _broken(text, [match.start() for match in pattern.finditer(text) if _is_token(match, match.string)])
    if hides(text):
        for pattern in patterns:
            if pattern.search(fold(text)):
                text = _broken_alike(text, pattern)
    return text


@lru_cache(maxsize=64)
def _pattern(delimiters: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """What finds the first character of a delimiter; blanks behind the slash of a tag that closes do not hide it."""
    rests: dict[str, list[str]] = {}
    for token in delimiters:
        if len(token) > 1:
            rest = re.escape(token[1:])
            rests.setdefault(token[0], []).append(rest.replace("/", r"/\s*", 1) if token[:2] == "</" else rest)
    tokens = [f"{re.escape(first)}(?={'|'.join(several)})" for first, several in rests.items()]
    return (re.compile("|".join(tokens), re.IGNORECASE),) if tokens else ()


def _is_token(match: re.Match[str], written: str) -> bool:
    """Whether words in square brackets are written in capitals, the first letter apart; all else is a token."""
    name = match.groupdict().get("capitals")
    return name is None or not any(
        letter.islower() for letter in written[match.start("capitals") + 1 : match.end("capitals")]
    )


def _broken(text: str, places: Collection[int]) -> str:
    """A space behind the characters at these places."""
    parts: list[str] = []
    at = 0
    for place in sorted(places):
        parts += (text[at : place + 1], " ")
        at = place + 1
    return "".join((*parts, text[at:]))


def _broken_alike(text: str, pattern: re.Pattern[str]) -> str:
    """The same for all that looks like what `pattern` finds."""
    folded, places = fold_with_places(text)
    written = "".join(text[place] for place in places)  # as long as what was folded
    return _broken(text, {places[match.start()] for match in pattern.finditer(folded) if _is_token(match, written)})
