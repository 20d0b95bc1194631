"""The nano base's training tasks, as tree rows: the behaviours that popi expects of an instruction-tuned LLM.

- *follow*: answer under stated preferences; without any, answer at random.
- *imitate*: answer as the user's raw signals suggest.
- *read*: name each attribute's most frequent value among the chosen (or the rejected) responses.
- *compare*: name each attribute's most preferred value, with the number of pairs for and against it.
- *tally*: name the value of each attribute that the user cares about. This makes the base go through the evidence
  attribute by attribute, as "step by step" does for an LLM.
- *describe*: write a summary of the user's preferences, either going through all attributes or *in short*.
- *rewrite*: describe a user whose only signals are a few rewritten answers, as a chat's first feedback is.
- *kind*: classify a topic as indoors or outdoors, which some preferences depend on.

The base is taught every task as well as it can learn it, on users whose evidence is mostly right. A popi run teaches it
to weigh evidence that is often wrong (`popi.nano.hard`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerBase

from popi.engine.tree import Segment
from popi.nano.attributes import ATTRIBUTES, Preference
from popi.nano.grammar import TEST_TOPICS, kind_of, random_values, realise, task_prompt, topics
from popi.nano.world import (
    PairFacts,
    active,
    draw_preferences,
    draw_scopes,
    make_user,
    profile,
    scoped,
    split_of,
    state,
)
from popi.signals.render import Templates
from popi.signals.types import InteractionSignal, Signal

SHORT = "describe in short what this user prefers."
KIND = "is {} indoors or outdoors?"
READ = "what does the {} have?"
COMPARE = "compare the two."
TALLY = "what does this user care about?"
SAME, UNCARED = "same", "nothing"

HOW_MANY = (1, 2, 2, 2, 3, 3, 3, 4)
"""Numbers of attributes that the base's users care about. They vary more than the world's, so that the base can't infer
from the attributes named so far that a combination reserved for the test users does not occur."""
REWRITTEN = (1, 1, 2)
"""Numbers of attributes that users who only rewrite answers care about."""
SCOPED = 0.25
"""Share of the base's users, and of the stated preferences to follow, in which one preference is limited to one kind of
topic."""


@dataclass(frozen=True)
class Asked:
    """The tasks about one user's signals."""

    reads: bool = True
    """Include the *read* tasks."""
    compares: bool = True
    """Include *compare*."""
    imitations: int = 2
    """Number of task prompts to answer from the raw signals."""
    descriptions: int = 1
    """Number of summaries to write that go through all attributes."""
    short: int = 0
    """Number of summaries to write that only name the preferences."""


def each(value_of: Mapping[str, str]) -> str:
    """ "tone formal level same ...": every attribute's name, in order, followed by its text."""
    return " ".join(f"{a} {value_of[a]}" for a in ATTRIBUTES) + "."


def _most(responses: Sequence[Mapping[str, str]]) -> str:
    """Each attribute's most frequent value among the responses."""
    return each({a: max(values, key=[r[a] for r in responses].count) for a, values in ATTRIBUTES.items()})


def _counts(pairs: Sequence[PairFacts]) -> str:
    """Each attribute's most preferred value, with the number of pairs where only the chosen response has it, and only
    the rejected one.

    "tone formal 3 1 level same 0 0 ...": the value with the largest lead; the first one in case of a tie.
    """
    counts = {}
    for a, values in ATTRIBUTES.items():
        won = {v: sum(p.better[a] == v != p.worse[a] for p in pairs) for v in values}
        lost = {v: sum(p.worse[a] == v != p.better[a] for p in pairs) for v in values}
        best = max(values, key=lambda v: won[v] - lost[v])
        counts[a] = f"{best if won[best] else SAME} {won[best]} {lost[best]}"
    return each(counts)


def stated(rng: Random) -> list[Preference]:
    """Up to seven preferences to follow, excluding combinations reserved for the test split."""
    while True:
        cared = rng.sample(sorted(ATTRIBUTES), rng.choice((0, 1, 2, 2, 3, 3, 4, 5, 6, 7)))
        drawn = {a: rng.choice(ATTRIBUTES[a]) for a in cared}
        if len(drawn) not in (2, 3) or split_of(drawn) == "train":
            return list(drawn.items())


class Writer:
    """Turns tasks into tree rows of token ids under the nano templates and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, templates: Templates) -> None:
        self.tokenizer, self.templates = tokenizer, templates

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _row(self, system: str | None, branches: list[tuple[str, str]], score_system: bool) -> list[Segment]:
        """The system turn, then one branch per (question, answer); answers are scored."""
        if system is None:
            row = [Segment(self._ids("<|user|>"))]  # no system turn: the branches share the role token
            opening = ""
        else:
            ids = self._ids(f"<|system|>{system}<|end|>")
            row = [Segment(ids[:1]), Segment(ids[1:], 0, score_system)]
            opening = "<|user|>"
        root = len(row) - 1
        for asked, answer in branches:
            row.append(Segment(self._ids(f"{opening}{asked}<|end|><|assistant|>"), root))
            row.append(Segment(self._ids(f"{answer}<|end|>"), len(row) - 1, True))
        return row

    def follow(self, rng: Random, branches: int = 3) -> list[Segment]:
        preferences = stated(rng)
        scopes = draw_scopes(dict(preferences), SCOPED, rng)
        tasks = []
        for _ in range(branches):
            topic = rng.choice(topics("train"))
            values = {**random_values(rng), **active(dict(preferences), scopes, topic)}
            tasks.append((task_prompt(topic, rng), realise(values, topic, rng).text))
        short = rng.random() < 0.5
        summary = state(preferences, rng, scopes) if short else profile(dict(preferences), rng, scopes)
        return self._row(self._system(summary), tasks, score_system=False)

    def plain(self, rng: Random, branches: int = 3) -> list[Segment]:
        """Answers without a summary; the only tasks in which the base sees the test users' topics."""
        tasks = []
        for _ in range(branches):
            topic = rng.choice(topics("train") + TEST_TOPICS)
            tasks.append((task_prompt(topic, rng), realise(random_values(rng), topic, rng).text))
        topic = rng.choice(topics("train") + TEST_TOPICS)
        tasks.append((KIND.format(topic), f"{kind_of(topic)}."))
        return self._row(None, tasks, score_system=False)

    def user(self, rng: Random, pairs: int, asked: Asked = Asked()) -> list[Segment]:
        """A user's signals and tasks about them. With a single pair there are no other signals and no tally task."""
        several = pairs > 1
        share = SCOPED if several else 0.0
        user = make_user("x", rng, "train", 0, pairs, others=several, how_many=HOW_MANY, scoped_share=share)
        messages = self.templates.inference_messages(user.user.signals)
        describe = str(messages[1]["content"])
        tasks = [(describe, profile(user.preferences, scopes=user.scopes)) for _ in range(asked.descriptions)]
        named = sorted(user.preferences.items())
        tasks += [(SHORT, state(named, rng, user.scopes)) for _ in range(asked.short)]
        for _ in range(asked.imitations):
            topic = rng.choice(topics("train"))
            response = realise({**random_values(rng), **active(user.preferences, user.scopes, topic)}, topic, rng)
            tasks.append((task_prompt(topic, rng), response.text))
        if asked.reads:
            tasks.append((READ.format("chosen"), _most([pair.better for pair in user.pairs])))
            tasks.append((READ.format("rejected"), _most([pair.worse for pair in user.pairs])))
        if asked.compares:
            tasks.append((COMPARE, _counts(user.pairs)))
        if pairs > 1:
            wanted = {a: scoped(v, user.scopes.get(a)) for a, v in user.preferences.items()}
            tasks.append((TALLY, each({a: wanted.get(a, UNCARED) for a in ATTRIBUTES})))
        return self._row(str(messages[0]["content"]), tasks, score_system=True)

    def rewriter(self, rng: Random) -> list[Segment]:
        """A user whose only signals are rewritten answers: one to five, alike but for the topic, as a chat's are."""
        preferences = draw_preferences(rng, "train", REWRITTEN)
        usual = random_values(rng)
        for attribute, value in preferences.items():
            usual[attribute] = rng.choice([other for other in ATTRIBUTES[attribute] if other != value])
        wording = rng.random() if rng.random() < 0.5 else None
        signals: list[Signal] = []
        for topic in rng.sample(topics("train"), rng.randint(1, 5)):
            seed = rng.random() if wording is None else wording  # the same words except for what the user changes
            response, edit = (realise(v, topic, Random(seed)).text for v in (usual, {**usual, **preferences}))
            signals.append(InteractionSignal(prompt=task_prompt(topic, rng), response=response, edit=edit))
        messages = self.templates.inference_messages(signals)
        topic = rng.choice(topics("train"))
        answer = realise({**random_values(rng), **preferences}, topic, rng).text
        tasks = [
            (str(messages[1]["content"]), profile(preferences)),
            (SHORT, state(sorted(preferences.items()), rng)),
            (TALLY, each({a: preferences.get(a, UNCARED) for a in ATTRIBUTES})),
            (task_prompt(topic, rng), answer),
        ]
        return self._row(str(messages[0]["content"]), tasks, score_system=True)

    def _system(self, summary: str) -> str:
        return self.templates.summary_text(summary)
