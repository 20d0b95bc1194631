"""Neutral facts: prompts whose right answer is the same for everyone, with a wrong answer and a wrong opinion.

Two sets are shipped: `english`, written for popi and under its licence (facts.jsonl, one line per fact), and `nano`,
generated from the nano world's grammar, since its models can't read the other set. Custom files have the format of
facts.jsonl.
"""

import json
from pathlib import Path
from random import Random

from pydantic import BaseModel, ConfigDict, ValidationError

from popi.errors import DataError
from popi.signals.types import TargetPair, Text

SHIPPED = Path(__file__).parent / "facts.jsonl"
NANO = 40
"""Number of nano-world facts to generate."""


class Fact(BaseModel):
    """A factual question."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    id: Text
    prompt: Text
    right: Text
    """A short right answer."""
    wrong: Text
    """A wrong answer of the same kind and similar length."""
    opinion: Text
    """A statement of a user who believes the wrong answer."""

    @property
    def target(self) -> TargetPair:
        return TargetPair(prompt=self.prompt, chosen=self.right, rejected=self.wrong)


def read_facts(path: str | Path = SHIPPED) -> list[Fact]:
    """Read the facts in a file.

    Raises:
        DataError: if the file can't be read, is empty, has an invalid line, or repeats an id.
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
            problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(map(str, problem["loc"]))
            raise DataError(
                f"{path}, line {number}: not a fact ({where + ': ' if where else ''}{problem['msg']}); a fact is a "
                f"JSON object with the text fields {', '.join(Fact.model_fields)}"
            ) from None
        if fact.id in facts:
            raise DataError(f"{path}, line {number}: duplicate id {fact.id!r}")
        facts[fact.id] = fact
    if not facts:
        raise DataError(f"{path}: contains no facts")
    return list(facts.values())


def nano_facts(seed: int, n: int = NANO) -> list[Fact]:
    """Facts of the nano world: the right answer is about the topic of the question.

    Both answers have the same random words and form, but one is about the question's topic and one about another, so
    they do not differ in anything a user could prefer. The wrong opinion claims that the two topics are the same.
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
