"""What the gateway put into a request never comes back as a signal: it is taken out of messages, answers and edits."""

import re
from collections.abc import Iterable
from typing import Any

from popi.serving.capture.texts import CUT, LONGEST_TEXT, has_words
from popi.serving.proxy.block import DEFAULT_BLOCK

VERBATIM = 4
"""Words from which on a statement of the summary is looked for in texts; shorter ones meet by chance."""
RUN = 64
"""Words that are looked for in one go; longer statements are looked for in pieces."""
_WORD = re.compile(r"\w+")
_END = ""
_Tree = dict[str, Any]
_NAME = re.compile(r"</?([A-Za-z][\w.-]*)")


class Injected:
    """The block that summaries go upstream in.

    Args:
        block: its template, as `[proxy] block` has it.
    """

    def __init__(self, block: str = DEFAULT_BLOCK) -> None:
        tags = [rf"(?:<|&lt;)\s*(?:/\s*)?{re.escape(name)}\b[^>&\n]*(?:>|&gt;)" for name in _names(block)]
        self._blocks = [re.compile(rf"{tag}.*?(?:{tag}|\Z)", re.DOTALL | re.IGNORECASE) for tag in tags]
        self._around = [part.strip() for part in block.split("{summary}") if len(part.split()) > 1]

    def out_of(self, text: str, said: Iterable[str]) -> str:
        """A text without the block, and without statements that stand in it word for word; empty if nothing is left.

        Args:
            text: of a message, an answer or an edit; what is beyond its first `LONGEST_TEXT` characters is cut off.
            said: the statements of the summary; those of fewer than `VERBATIM` words are not looked for.
        """
        text = text[: 2 * LONGEST_TEXT]
        for block in self._blocks:
            text = block.sub(CUT, text)
        text = _without(text, [*self._around, *said])[:LONGEST_TEXT].strip()
        return text if has_words(text) else ""


def _names(block: str) -> list[str]:
    return list(dict.fromkeys(_NAME.findall(block)))


def _without(text: str, statements: Iterable[str]) -> str:
    """In time that grows with the text alone, however many and long the statements are."""
    tree = _tree(statements)
    places = [(match.start(), match.end()) for match in _WORD.finditer(text)]
    words = [text[start:end].casefold() for start, end in places]
    kept, at, i = [], 0, 0
    while i < len(words):
        last = _last_word(tree, words, i)
        if last is None:
            i += 1
            continue
        kept += [text[at : places[i][0]], CUT]
        at, i = places[last][1], last + 1
    return "".join([*kept, text[at:]])


def _tree(statements: Iterable[str]) -> _Tree:
    """The statements word by word; where one ends there is a branch `_END`."""
    tree: _Tree = {}
    for statement in statements:
        words = [word.casefold() for word in _WORD.findall(statement)]
        for start in range(0, len(words), RUN):
            run = words[start : start + RUN]
            if len(run) < VERBATIM:
                continue
            branch = tree
            for word in [*run, _END]:
                branch = branch.setdefault(word, {})
    return tree


def _last_word(tree: _Tree, words: list[str], first: int) -> int | None:
    """The last word of the longest statement that begins with the word `first`; None where none does."""
    last, branch = None, tree
    for i in range(first, len(words)):
        if words[i] not in branch:
            break
        branch = branch[words[i]]
        last = i if _END in branch else last
    return last
