"""From attribute values to a response: a small grammar with many forms of everything.

Most values are marked by two words, one from each of two lists. A quarter of the combinations is reserved for the test
split, whose users therefore see unfamiliar wordings made of words that the base knows.
"""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from random import Random

from popi.nano.attributes import ATTRIBUTES

HELD_OUT = 2
"""Number of forms at the end of a list that are reserved for the test split."""
HELD_OUT_WORDINGS = 4
"""One in this many combinations of marking words is reserved for the test split."""

MARKS: dict[str, tuple[str, str, str]] = {
    "formal": ("{} {},", "dear good kind honored", "reader sir madam guest"),
    "casual": ("{} {},", "hey hi yo okay", "pal buddy mate dude"),
    "simple": ("{} {}", "easy handy small clear", "step tip bit part"),
    "technical": ("{} {}", "modular optimal robust precise", "protocol parameter mechanism algorithm"),
    "playful": ("{} {}!", "haha woohoo yay oops", "funny silly giggle wink"),
    "serious": ("{} {}.", "truly indeed surely frankly", "grave solemn weighty sober"),
    "example": ("{} a {}", "like say imagine picture", "kettle ladder lamp rope brush basket mirror spoon"),
    "numbers": ("{} {} percent", "about nearly roughly exactly", "two three four five six seven eight nine"),
    "story": ("{} some {}", "once yesterday somewhere later", "sailor baker farmer pilot tailor miner singer painter"),
    "question": ("{} {}?", "any more other further", "thoughts doubts ideas wishes"),
    "recap": ("{} {}.", "so thus hence overall", "done settled finished complete"),
    "warning": ("{} {}!", "mind watch avoid fear", "risks errors dangers traps"),
}
"""Value -> its form, first words, second words."""
BULLETS = {"list": (("-", "-"), ("*", "*"), ("+", "+")), "prose": (("with", "and"), ("via", "then"), ("by", "also"))}
"""Markers before the first point and before each later one."""
POINTS = {"short": 1, "long": 3}

TOPICS = tuple(
    "coffee bread bikes chess gardens tea soap music maps trains stars birds rivers paint wool honey clocks boats kites"
    " shoes piano cheese tents pottery salt glue mushrooms volcanoes bridges castles poems dogs cats bees ovens radios"
    " cameras whales magnets tunnels".split()
)
TEST_TOPICS = tuple("rice skates candles drums engines ferns lemons puzzles rockets jam violins yoga".split())
INDOOR = frozenset(
    "coffee bread tea soap chess piano cheese pottery salt glue ovens radios cameras clocks shoes wool honey paint"
    " music poems rice candles drums puzzles jam violins".split()
)
"""The indoor topics; all others are outdoors."""
KINDS = ("indoors", "outdoors")
"""Kinds of topic. A preference may be limited to one of them."""
PROMPTS = ("how do i start with {topic}?", "tell me about {topic}.", "explain {topic}.", "what is {topic}?") + (
    "how do i explain {topic}?",
    "what about {topic}?",
)


@dataclass(frozen=True)
class Response:
    """A response and its attribute values."""

    text: str
    values: dict[str, str]


def forms(options: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The forms of a list that a split may use; those reserved for the test split are the last."""
    return options[:-HELD_OUT] if split == "train" else options[-HELD_OUT:] + options[:2]


@cache
def wordings(value: str, split: str) -> tuple[str, ...]:
    """The wordings with which a split marks a value."""
    form, firsts, seconds = MARKS[value]
    both = [form.format(a, b) for a in firsts.split() for b in seconds.split()]
    ranked = sorted(both, key=lambda wording: sha256(wording.encode()).digest())
    held = len(both) // HELD_OUT_WORDINGS
    return tuple(ranked[held:] if split == "train" else ranked[:held])


def random_values(rng: Random) -> dict[str, str]:
    """A uniformly drawn value for every attribute."""
    return {name: rng.choice(values) for name, values in ATTRIBUTES.items()}


def realise(values: dict[str, str], topic: str, rng: Random, split: str = "train") -> Response:
    """Write a response with these attribute values."""

    def mark(attribute: str) -> str:
        return rng.choice(wordings(values[attribute], split))

    first, later = rng.choice(BULLETS[values["layout"]])
    points = [f"{first if i == 0 else later} {mark('level')}" for i in range(POINTS[values["length"]])]
    body = f"{topic} {' '.join(points)}, {mark('support')}."
    opener, mood, closing = mark("tone"), mark("mood"), mark("closing")
    parts = [opener, mood, body, closing] if rng.random() < 0.5 else [opener, body, mood, closing]
    return Response(" ".join(parts), dict(values))


def task_prompt(topic: str, rng: Random, split: str = "train") -> str:
    """A task prompt about a topic."""
    return rng.choice(forms(PROMPTS, split)).format(topic=topic)


def topics(split: str) -> tuple[str, ...]:
    """The topics of a split's prompts."""
    return TOPICS if split == "train" else TEST_TOPICS


def kind_of(topic: str) -> str:
    """A topic's kind, one of `KINDS`."""
    return KINDS[topic not in INDOOR]


def topic_of(prompt: str, split: str) -> str:
    """The topic that a task prompt of a split is about."""
    words = prompt.rstrip("?.").split()
    return next(topic for topic in topics(split) if topic in words)
