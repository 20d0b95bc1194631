"""Prevent users' text from imitating special tokens or prompt structure. This is the only place that does so.

A user's text reaches a model inside a structured prompt: chat turns and a block of signals. Text that contains a chat
template's special tokens, or the tags of that block, could close its block and pose as another part of the prompt.
`neutralise` breaks such strings with a space, so they stay readable but are no longer special. It also breaks
lookalikes (zero-width characters, full-width letters, other alphabets), which some tokenizers and all models read the
same way.
"""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from popi.signals.lookalikes import fold, fold_with_places, hides, without_hidden

_NAMES = (
    "s|bos|eos|bot|eot|eom|eod|bop|eop|sop|pad|unk|sep|cls|mask|start|end|system|developer|user|human|assistant|model|"
    "tool|tools|function|observation|think|thinking|image|audio|video"
)
# Each pattern matches only the first character, after which a space is inserted; the rest may contain further matches.
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
    """Break strings that imitate a chat template's special tokens or would close the surrounding block.

    Args:
        text: any text written by a user or a model.
        delimiters: further strings that must not appear: the block's tags (``</user_signals``, without the closing
            bracket, so that attributes and white space don't matter) and the tokenizer's special tokens. Case does not
            matter.
        single_line: collapse white space to single spaces, for templates where a line break ends a signal.

    Returns:
        The text with a space inserted after the first character of each such string. Idempotent.
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
    """Patterns for the first character of a delimiter; white space after a closing tag's slash is ignored."""
    rests: dict[str, list[str]] = {}
    for token in delimiters:
        if len(token) > 1:
            rest = re.escape(token[1:])
            rests.setdefault(token[0], []).append(rest.replace("/", r"/\s*", 1) if token[:2] == "</" else rest)
    tokens = [f"{re.escape(first)}(?={'|'.join(alternatives)})" for first, alternatives in rests.items()]
    return (re.compile("|".join(tokens), re.IGNORECASE),) if tokens else ()


def _is_token(match: re.Match[str], written: str) -> bool:
    """Whether a match is a token: words in square brackets must be in capitals, except for the first letter."""
    name = match.groupdict().get("capitals")
    return name is None or not any(
        letter.islower() for letter in written[match.start("capitals") + 1 : match.end("capitals")]
    )


def _broken(text: str, places: Collection[int]) -> str:
    """Insert a space after the characters at these indices."""
    parts: list[str] = []
    start = 0
    for place in sorted(places):
        parts += (text[start : place + 1], " ")
        start = place + 1
    return "".join((*parts, text[start:]))


def _broken_alike(text: str, pattern: re.Pattern[str]) -> str:
    """Insert a space into lookalikes of the strings that `pattern` matches."""
    folded, places = fold_with_places(text)
    written = "".join(text[place] for place in places)  # the original characters, aligned with `folded`
    return _broken(text, {places[match.start()] for match in pattern.finditer(folded) if _is_token(match, written)})
