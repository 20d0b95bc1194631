"""Restates the nano base's answers to its reading tasks as summaries: what prompting alone achieves."""

from collections.abc import Callable
from functools import partial

from popi.nano.attributes import ATTRIBUTES, PHRASES
from popi.nano.grammar import KINDS
from popi.nano.world import state


def _parse(answer: str) -> dict[str, list[str]]:
    """Attribute → the words after its name, up to the next attribute's."""
    result: dict[str, list[str]] = {}
    words: list[str] = []
    for word in answer.replace(".", " ").split():
        if word in ATTRIBUTES and word not in result:
            words = result[word] = []
        else:
            words.append(word)
    return result


def tally(answer: str) -> str:
    """The values in "tone formal level nothing support example indoors …" other than "nothing", with their kinds of
    topic.
    """
    named = {a: words for a, words in _parse(answer).items() if words and (a, words[0]) in PHRASES}
    scopes = {a: words[1] for a, words in named.items() if len(words) > 1 and words[1] in KINDS}
    return state(sorted((a, words[0]) for a, words in named.items()), scopes=scopes)


def leading(lead: int, answer: str) -> str:
    """The values in "tone formal 4 1 level simple 2 2 …" that won at least `lead` pairs more than they lost."""
    named = []
    for attribute, words in _parse(answer).items():
        if len(words) > 2 and (attribute, words[0]) in PHRASES and words[1].isdigit() and words[2].isdigit():
            if int(words[1]) - int(words[2]) >= lead:
                named.append((attribute, words[0]))
    return state(sorted(named))


READ_AS: dict[str, Callable[[str], str]] = {
    "tally": tally,
    "values": tally,
    "lead of 1": partial(leading, 1),
    "lead of 2": partial(leading, 2),
    "lead of 3": partial(leading, 3),
}
"""The allowed values of `read_as` in a template set's prompts.toml."""
