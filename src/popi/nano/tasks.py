"""What the nano base is taught, as tree rows: the behaviours that popi expects of an instruction-tuned LLM.

- *follow*: answer under stated preferences; without any, answer at random.
- *imitate*: answer as the user's raw signals suggest.
- *read*: say of each attribute which value most of the chosen (or of the rejected) responses have.
- *compare*: say of each attribute which value is most preferred, in how many pairs for and in how many against.
- *tally*: say of each attribute what the user cares about (the base can read evidence when made to go through it
  attribute by attribute; "step by step" is to an LLM what this is to the base).
- *describe*: write a summary; mostly badly chosen, at times well.

The describe task is what a popi run improves.
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
"""How many attributes the base's users care about: more various than the world's, so that it can't tell from those
named already that a combination kept for the test users does not occur."""
HABIT = 0.6
"""Share of poor summaries that say how the newest chosen response opens, cared about or not."""
HABIT_NAMES = (2, 3)
"""How many of its attributes those name."""


@dataclass(frozen=True)
class Asked:
    """What is asked about one user's signals."""

    reads: bool = True
    """Whether the *read* tasks are asked."""
    compares: bool = True
    """Whether *compare* is asked."""
    imitations: int = 2
    """Task prompts to answer with the raw signals in view."""
    descriptions: int = 1
    """Summaries to write."""
    well: float = 0.0
    """Share of summaries that are well chosen."""


def written_summary(user: NanoUser, rng: Random, well: float = 0.0) -> str:
    """A summary as the base writes it, attribute by attribute: well chosen with probability `well`, else poor.

    Poor is, by habit, how the newest chosen response opens; else differences inside one random pair, and hearsay.
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
            said = signal.text.lower().replace(".", "").split()
            seen |= dict(KEYWORDS[word] for word in said if word in KEYWORDS)
    items = sorted(seen.items())
    return profile(dict(rng.sample(items, min(len(items), rng.choice((1, 2, 3, 4))))), rng)


def each(value_of: Mapping[str, str]) -> str:
    """ "tone formal level same ...": every attribute by name, in order, with what is said of it."""
    return " ".join(f"{a} {value_of[a]}" for a in ATTRIBUTES) + "."


def _most(responses: Sequence[Mapping[str, str]]) -> str:
    """Of each attribute the value that most of the responses have."""
    return each({a: max(values, key=[r[a] for r in responses].count) for a, values in ATTRIBUTES.items()})


def _counts(pairs: Sequence[PairFacts]) -> str:
    """Of each attribute the value most preferred, the pairs where only the chosen response has it, and only the other.

    "tone formal 3 1 level same 0 0 ...": most preferred is what leads by most; the first in order where several do.
    """
    found = {}
    for a, values in ATTRIBUTES.items():
        won = {v: sum(p.better[a] == v != p.worse[a] for p in pairs) for v in values}
        lost = {v: sum(p.worse[a] == v != p.better[a] for p in pairs) for v in values}
        best = max(values, key=lambda v: won[v] - lost[v])
        found[a] = f"{best if won[best] else SAME} {won[best]} {lost[best]}"
    return each(found)


def stated(rng: Random) -> list[Preference]:
    """Up to five preferences to follow, of no combination that is kept for the test split."""
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
        """The system turn, then each (asked, answer) as a branch of its own; answers are scored."""
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
        """Answers without a summary; the only place where the base meets the test users' topics."""
        tasks = []
        for _ in range(branches):
            topic = rng.choice(topics("train") + TEST_TOPICS)
            tasks.append((task_prompt(topic, rng), realise(random_values(rng), topic, rng).text))
        return self._row(None, tasks, score_system=False)

    def user(self, rng: Random, pairs: int, asked: Asked = Asked()) -> list[Segment]:
        """A user's signals, and tasks about them. A lone pair stands without other signals, and is not tallied."""
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
