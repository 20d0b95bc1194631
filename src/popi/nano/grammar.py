"""From attribute values to a response: a small grammar with several forms of everything.

Forms at the end of a list, behind `HELD_OUT`, are new arrangements of known words; only test users meet them.
"""

from dataclasses import dataclass
from hashlib import sha256
from random import Random

from popi.nano.attributes import ATTRIBUTES

HELD_OUT = 2
"""How many of the last forms of each list belong to the test split."""

OPENERS = {
    "formal": ("greetings,", "good day,", "dear reader,", "certainly,", "respectfully,", "kindly note,")
    + ("good day, dear reader,", "greetings, reader,"),
    "casual": ("hey,", "hi there,", "sure thing,", "yo friend,", "okay so,", "no worries,")
    + ("hey there,", "hi friend,"),
}
ADJECTIVES = {"simple": ("easy", "handy", "small", "clear"), "technical": ("modular", "optimal", "robust", "precise")}
NOUNS = {"simple": ("step", "tip", "bit", "part"), "technical": ("protocol", "parameter", "mechanism", "algorithm")}
MARKS = {"list": (("-", "-"), ("*", "*"), ("+", "+")), "prose": (("with", "and"), ("via", "then"), ("through", "also"))}
POINTS = {"short": 1, "long": 3}
MOODS = {
    "playful": ("haha!", "just kidding!", "woo hoo!", "what fun!") + ("haha what fun!", "woo hoo haha!"),
    "serious": ("truly.", "in earnest.", "this matters.", "no nonsense.")
    + ("truly in earnest.", "this truly matters."),
}
SUPPORTS = {
    "example": ("like a {thing}", "such as a {thing}", "say a {thing}") + ("such like a {thing}", "say such a {thing}"),
    "numbers": ("in {number} percent", "{number} times out of ten", "up to {number} units")
    + ("up to {number} percent", "{number} units out of ten"),
    "story": ("once a {person} tried it", "a {person} told me", "long ago a {person} did it")
    + ("once a {person} told me", "long ago a {person} tried it"),
}
CLOSINGS = {
    "question": ("any thoughts?", "what else?", "does it help?") + ("any else?", "what thoughts?"),
    "recap": ("in sum it works.", "all told fine.", "to repeat, fine.") + ("in sum, fine.", "all told it works."),
    "warning": ("but take care.", "watch out though.", "mind the risk.") + ("but mind the risk.", "take care though."),
}
THINGS = ("kettle", "ladder", "lamp", "rope", "brush", "basket", "mirror", "spoon")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
PEOPLE = ("sailor", "baker", "farmer", "pilot", "tailor", "miner", "singer", "painter")

TOPICS = tuple(
    "coffee bread bikes chess gardens tea soap music maps trains stars birds rivers paint wool honey clocks boats kites"
    " shoes piano cheese tents pottery salt glue mushrooms volcanoes bridges castles poems dogs cats bees ovens radios"
    " cameras whales magnets tunnels".split()
)
TEST_TOPICS = tuple("rice skates candles drums engines ferns lemons puzzles rockets jam violins yoga".split())
PROMPTS = ("how do i start with {topic}?", "tell me about {topic}.", "explain {topic}.", "what is {topic}?") + (
    "how do i explain {topic}?",
    "what about {topic}?",
)


@dataclass(frozen=True)
class Response:
    """A response and the attribute values that it has."""

    text: str
    values: dict[str, str]


def forms(options: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The forms of a list that a split may use."""
    return options[:-HELD_OUT] if split == "train" else options[-HELD_OUT:] + options[:2]


def _pairs(level: str, split: str) -> list[str]:
    """Adjective and noun; a quarter of the combinations belongs to the test split."""
    both = [f"{a} {n}" for a in ADJECTIVES[level] for n in NOUNS[level]]
    held = [sha256(pair.encode()).digest()[0] % 4 == 0 for pair in both]
    return [pair for pair, out in zip(both, held, strict=True) if out == (split == "test")]


def random_values(rng: Random) -> dict[str, str]:
    """A value for every attribute, uniformly."""
    return {name: rng.choice(values) for name, values in ATTRIBUTES.items()}


def realise(values: dict[str, str], topic: str, rng: Random, split: str = "train") -> Response:
    """Write a response with these attribute values."""

    def one(options: tuple[str, ...]) -> str:
        return rng.choice(forms(options, split))

    first, later = rng.choice(MARKS[values["layout"]])
    phrases = _pairs(values["level"], split)
    points = [f"{first if i == 0 else later} {rng.choice(phrases)}" for i in range(POINTS[values["length"]])]
    support = one(SUPPORTS[values["support"]]).format(
        thing=rng.choice(THINGS), number=rng.choice(NUMBERS), person=rng.choice(PEOPLE)
    )
    mood = one(MOODS[values["mood"]])
    body = f"{topic} {' '.join(points)}, {support}."
    opener, closing = one(OPENERS[values["tone"]]), one(CLOSINGS[values["closing"]])
    parts = [opener, mood, body, closing] if rng.random() < 0.5 else [opener, body, mood, closing]
    return Response(" ".join(parts), dict(values))


def task_prompt(topic: str, rng: Random, split: str = "train") -> str:
    """A task prompt about a topic."""
    return rng.choice(forms(PROMPTS, split)).format(topic=topic)


def topics(split: str) -> tuple[str, ...]:
    """What a split's prompts are about."""
    return TOPICS if split == "train" else TEST_TOPICS
