"""The nano base's training tasks, as tree rows: the behaviours that popi expects of an instruction-tuned LLM.

- *follow*: answer under stated preferences; without any, answer at random.
- *imitate*: answer as the user's raw signals suggest.
- *read*: name each attribute's most frequent value among the chosen (or the rejected) responses.
- *compare*: name each attribute's most preferred value, with the number of pairs for and against it.
- *tally*: name the value of each attribute that the user cares about. This makes the base go through the evidence
  attribute by attribute, as "step by step" does for an LLM.
- *describe*: write a summary; mostly poorly chosen, sometimes well.

A popi run improves the describe task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerBase

from popi.engine.tree import Segment
from popi.nano.attributes import ATTRIBUTES, KEYWORDS, Preference
from popi.nano.grammar import TEST_TOPICS, random_values, realise, task_prompt, topics
from popi.nano.world import NanoUser, PairFacts, make_user, profile, split_of, state
from popi.signals.render import Templates
from popi.signals.types import PairSignal, PostSignal, StatementSignal

READ = "what does the {} have?"
COMPARE = "compare the two."
TALLY = "what does this user care about?"
SAME, UNCARED = "same", "nothing"

HOW_MANY = (1, 2, 2, 2, 3, 3, 3, 4)
"""Numbers of attributes that the base's users care about. They vary more than the world's, so that the base can't infer
from the attributes named so far that a combination reserved for the test users does not occur."""
HABIT = 0.6
"""Share of poor summaries that describe the opening of the newest chosen response, whether cared about or not."""
HABIT_NAMES = (2, 3)
"""Numbers of its attributes that such summaries name."""


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
    """Number of summaries to write."""
    well: float = 0.0
    """Share of well-chosen summaries."""


def written_summary(user: NanoUser, rng: Random, well: float = 0.0) -> str:
    """A summary as the base writes it, attribute by attribute: well chosen with probability `well`, else poor.

    Poor summaries describe, by habit, the opening of the newest chosen response, or else the differences within one
    random pair and hearsay.
    """
    if well and rng.random() < well:
        return profile(user.preferences, rng)
    newest = next((s for s in reversed(user.user.signals) if isinstance(s, PairSignal)), None)
    if newest and rng.random() < HABIT:
        words = str(newest.prompt).rstrip("?.").split()
        facts = next(pair for pair in user.pairs if pair.topic in words)
        return profile(dict(list(facts.better.items())[: rng.choice(HABIT_NAMES)]), rng)
    seen: dict[str, str] = {}
    if user.pairs:
        pair = rng.choice(user.pairs)
        seen = {a: v for a, v in pair.better.items() if pair.worse[a] != v}
    for signal in user.user.signals:
        if isinstance(signal, StatementSignal | PostSignal) and rng.random() < 0.3:
            words = signal.text.lower().replace(".", "").split()
            seen |= dict(KEYWORDS[word] for word in words if word in KEYWORDS)
    items = sorted(seen.items())
    return profile(dict(rng.sample(items, min(len(items), rng.choice((1, 2, 3, 4))))), rng)


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
    """Up to five preferences to follow, excluding combinations reserved for the test split."""
    while True:
        cared = rng.sample(sorted(ATTRIBUTES), rng.choice((0, 1, 1, 2, 2, 3, 3, 4, 5)))
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
        tasks = []
        for _ in range(branches):
            topic = rng.choice(topics("train"))
            values = {**random_values(rng), **dict(preferences)}
            tasks.append((task_prompt(topic, rng), realise(values, topic, rng).text))
        summary = state(preferences, rng) if rng.random() < 0.5 else profile(dict(preferences), rng)
        return self._row(self._system(summary), tasks, score_system=False)

    def plain(self, rng: Random, branches: int = 3) -> list[Segment]:
        """Answers without a summary; the only tasks in which the base sees the test users' topics."""
        tasks = []
        for _ in range(branches):
            topic = rng.choice(topics("train") + TEST_TOPICS)
            tasks.append((task_prompt(topic, rng), realise(random_values(rng), topic, rng).text))
        return self._row(None, tasks, score_system=False)

    def user(self, rng: Random, pairs: int, asked: Asked = Asked()) -> list[Segment]:
        """A user's signals and tasks about them. With a single pair there are no other signals and no tally task."""
        user = make_user("x", rng, "train", targets=0, pairs=pairs, others=pairs > 1, how_many=HOW_MANY)
        messages = self.templates.inference_messages(user.user.signals)
        describe = str(messages[1]["content"])
        tasks = [(describe, written_summary(user, rng, asked.well)) for _ in range(asked.descriptions)]
        for _ in range(asked.imitations):
            topic = rng.choice(topics("train"))
            response = realise({**random_values(rng), **user.preferences}, topic, rng)
            tasks.append((task_prompt(topic, rng), response.text))
        if asked.reads:
            tasks.append((READ.format("chosen"), _most([pair.better for pair in user.pairs])))
            tasks.append((READ.format("rejected"), _most([pair.worse for pair in user.pairs])))
        if asked.compares:
            tasks.append((COMPARE, _counts(user.pairs)))
        if pairs > 1:
            tasks.append((TALLY, each({a: user.preferences.get(a, UNCARED) for a in ATTRIBUTES})))
        return self._row(str(messages[0]["content"]), tasks, score_system=True)

    def _system(self, summary: str) -> str:
        return self.templates.summary_text(summary)
