"""What the nano base is taught, as tree rows: the behaviours that popi expects of an instruction-tuned LLM.

- *follow*: answer under stated preferences; without any, answer at random.
- *imitate*: answer as the user's raw signals suggest.
- *compare*: say of each attribute, in order, what the chosen response of a pair has that the other has not.
- *tally*: say of each attribute, in order, what the user cares about (the base can read evidence when made to go
  through it one by one; "step by step" is to an LLM what this is to the base).
- *describe*: write a summary, badly chosen: what differs inside one random pair, whoever it is about.

The describe task is what a popi run improves; the base never sees it done well.
"""

from collections.abc import Iterable
from random import Random

from transformers import PreTrainedTokenizerBase

from popi.nano.attributes import ATTRIBUTES, KEYWORDS, Preference
from popi.nano.grammar import TEST_TOPICS, random_values, realise, task_prompt, topics
from popi.nano.world import NanoUser, PairFacts, make_user, split_of, state
from popi.signals.render import Templates
from popi.signals.types import PostSignal, StatementSignal
from popi.tree import Segment

COMPARE = "compare the two."
COMPARE_ABOUT = "compare the two about {}."
TALLY = "what does this user care about?"
SAME, NOTHING = "same", "nothing"


def poor_summary(user: NanoUser, rng: Random) -> str:
    """One to four differences inside one random pair, or something said about anyone."""
    seen: dict[str, str] = {}
    if user.pairs:
        pair = rng.choice(user.pairs)
        seen = {a: v for a, v in pair.better.items() if pair.worse[a] != v}
    for signal in user.user.signals:
        if isinstance(signal, StatementSignal | PostSignal) and rng.random() < 0.3:
            words = signal.text.lower().replace(".", "").split()
            seen |= dict(KEYWORDS[word] for word in words if word in KEYWORDS)
    items = sorted(seen.items())
    return state(rng.sample(items, min(len(items), rng.choice((1, 2, 3, 4)))), rng)


def _list(words: Iterable[str]) -> str:
    return " ".join(words) + "."


def _differences(pair: PairFacts) -> str:
    return _list(v if pair.worse[a] != v else SAME for a, v in pair.better.items())


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
        return self._row(self._system(state(preferences, rng)), tasks, score_system=False)

    def plain(self, rng: Random, branches: int = 3) -> list[Segment]:
        """Answers without a summary; the only place where the base meets the test users' topics."""
        tasks = []
        for _ in range(branches):
            topic = rng.choice(topics("train") + TEST_TOPICS)
            tasks.append((task_prompt(topic, rng), realise(random_values(rng), topic, rng).text))
        return self._row(None, tasks, score_system=False)

    def user(
        self, rng: Random, pairs: int, others: bool = True, descriptions: int = 2, compared: int = 0
    ) -> list[Segment]:
        """A user's signals, and tasks about them; a lone pair is compared, all else is tallied.

        Of several pairs, `compared` are compared too, each asked for by its topic.
        """
        user = make_user("x", rng, "train", targets=0, pairs=pairs, others=others)
        messages = self.templates.inference_messages(user.user.signals)
        tasks = [(str(messages[1]["content"]), poor_summary(user, rng)) for _ in range(descriptions)]
        topic = rng.choice(topics("train"))
        response = realise({**random_values(rng), **user.preferences}, topic, rng)
        tasks.append((task_prompt(topic, rng), response.text))
        if (pairs, others) == (1, False):
            tasks.append((COMPARE, _differences(user.pairs[0])))
        else:
            tasks.append((TALLY, _list(user.preferences.get(a, NOTHING) for a in ATTRIBUTES)))
            for pair in rng.sample(user.pairs, min(compared, len(user.pairs))):
                tasks.append((COMPARE_ABOUT.format(pair.topic), _differences(pair)))
        return self._row(str(messages[0]["content"]), tasks, score_system=True)

    def _system(self, summary: str) -> str:
        return str(self.templates.generator_messages("x", summary)[0]["content"])
