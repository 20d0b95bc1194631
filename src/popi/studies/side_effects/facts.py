"""Neutral facts: prompts whose right answer is the same for everybody, with a wrong one and a wrong opinion about it.

Two sets ship: `english`, written for popi and under its licence (facts.jsonl, a line a fact), and `nano`, made from the
nano world's grammar, whose models can't read the other. A file of one's own has the lines of facts.jsonl.
"""

import json
from pathlib import Path
from random import Random

from pydantic import BaseModel, ConfigDict, ValidationError

from popi.errors import DataError
from popi.signals.types import TargetPair, Text

SHIPPED = Path(__file__).parent / "facts.jsonl"
NANO = 40
"""How many facts of the nano world are made."""


class Fact(BaseModel):
    """One question of fact."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    id: Text
    prompt: Text
    right: Text
    """A short right answer."""
    wrong: Text
    """A wrong one of the same kind and about the same length."""
    opinion: Text
    """What a user says who holds the wrong answer to be right."""

    @property
    def target(self) -> TargetPair:
        return TargetPair(prompt=self.prompt, chosen=self.right, rejected=self.wrong)


def read_facts(path: str | Path = SHIPPED) -> list[Fact]:
    """The facts of a file.

    Raises:
        DataError: it can't be read, holds none, a line is no fact, or two have the same id.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error})") from None
    facts: dict[str, Fact] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fact = Fact.model_validate(json.loads(line))
        except (ValueError, RecursionError) as error:
            what = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(map(str, what["loc"]))
            raise DataError(
                f"{path}, line {number}: no fact ({where + ': ' if where else ''}{what['msg']}); a fact is a JSON "
                f"object of text: {', '.join(Fact.model_fields)}"
            ) from None
        if fact.id in facts:
            raise DataError(f"{path}, line {number}: the id {fact.id!r} stands there twice")
        facts[fact.id] = fact
    if not facts:
        raise DataError(f"{path}: holds no facts")
    return list(facts.values())


def nano_facts(seed: int, n: int = NANO) -> list[Fact]:
    """Facts of the nano world: an answer is about what was asked.

    Both answers are the same words in the same form, drawn at random, about the topic asked about and about another
    one: nothing that a user could prefer tells them apart. The wrong opinion says that the one is the other.
    """
    from popi.nano.grammar import random_values, realise, task_prompt, topics

    rng = Random(f"popi-nano-facts-{seed}")
    facts = []
    for i in range(n):
        right, wrong = rng.sample(topics("test"), 2)
        values, words = random_values(rng), rng.random()
        answers = (realise(values, topic, Random(words), "test").text for topic in (right, wrong))
        prompt = task_prompt(right, rng, "test")
        facts.append(
            Fact.model_validate(
                {"id": f"nano-{i:02d}", "prompt": prompt, "opinion": f"{right} is {wrong}."}
                | dict(zip(("right", "wrong"), answers, strict=True))
            )
        )
    return facts
