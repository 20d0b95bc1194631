"""Remove what the gateway injected from messages, answers and edits, so that it never comes back as a signal."""

import re
from collections.abc import Iterable
from typing import Any

from popi.serving.capture.texts import CUT, MAX_TEXT_CHARS, has_words
from popi.serving.proxy.block import DEFAULT_BLOCK

MIN_WORDS = 4
"""Minimum words of a clause to search for in texts; shorter ones match by chance."""
MAX_WORDS = 64
"""Maximum words to search for at once; longer clauses are split."""
_WORD = re.compile(r"\w+")
_END = ""
_PrefixTree = dict[str, Any]
_NAME = re.compile(r"</?([A-Za-z][\w.-]*)")


class Injected:
    """The block that carries summaries upstream.

    Args:
        block: its template, from `[proxy] block`.
    """

    def __init__(self, block: str = DEFAULT_BLOCK) -> None:
        tags = [rf"(?:<|&lt;)\s*(?:/\s*)?{re.escape(name)}\b[^>&\n]*(?:>|&gt;)" for name in _names(block)]
        self._blocks = [re.compile(rf"{tag}.*?(?:{tag}|\Z)", re.DOTALL | re.IGNORECASE) for tag in tags]
        self._around = [part.strip() for part in block.split("{summary}") if len(part.split()) > 1]

    def remove_from(self, text: str, clauses: Iterable[str]) -> str:
        """Remove the block and all verbatim clauses from a text; empty if nothing is left.

        Args:
            text: a message, an answer or an edit; truncated to `MAX_TEXT_CHARS` characters.
            clauses: the summary's clauses; those with fewer than `MIN_WORDS` words are ignored.
        """
        text = text[: 2 * MAX_TEXT_CHARS]
        for block in self._blocks:
            text = block.sub(CUT, text)
        text = _without(text, [*self._around, *clauses])[:MAX_TEXT_CHARS].strip()
        return text if has_words(text) else ""


def _names(block: str) -> list[str]:
    return list(dict.fromkeys(_NAME.findall(block)))


def _without(text: str, clauses: Iterable[str]) -> str:
    """Remove clauses in time that depends only on the text's length, not on the number or length of the clauses."""
    tree = _prefix_tree(clauses)
    places = [(match.start(), match.end()) for match in _WORD.finditer(text)]
    words = [text[start:end].casefold() for start, end in places]
    pieces, at, i = [], 0, 0
    while i < len(words):
        last = _match_end(tree, words, i)
        if last is None:
            i += 1
            continue
        pieces += [text[at : places[i][0]], CUT]
        at, i = places[last][1], last + 1
    return "".join([*pieces, text[at:]])


def _prefix_tree(clauses: Iterable[str]) -> _PrefixTree:
    """A prefix tree of the clauses' words; `_END` marks the end of a clause."""
    tree: _PrefixTree = {}
    for clause in clauses:
        words = [word.casefold() for word in _WORD.findall(clause)]
        for start in range(0, len(words), MAX_WORDS):
            run = words[start : start + MAX_WORDS]
            if len(run) < MIN_WORDS:
                continue
            branch = tree
            for word in [*run, _END]:
                branch = branch.setdefault(word, {})
    return tree


def _match_end(tree: _PrefixTree, words: list[str], first: int) -> int | None:
    """The index of the last word of the longest clause that starts at word `first`; None if none does."""
    last, branch = None, tree
    for i in range(first, len(words)):
        if words[i] not in branch:
            break
        branch = branch[words[i]]
        last = i if _END in branch else last
    return last
