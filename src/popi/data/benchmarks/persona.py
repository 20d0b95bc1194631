"""Persona statements: synthetic users with known traits, who prefer statements that match their traits.

Dataset: the folder `persona/` of the repository anthropics/evals (CC BY 4.0, arXiv 2212.09251), with one model-written
file per trait: `statement`, and `answer_matching_behavior`, " Yes" if a person with the trait would say it and " No" if
a person without it would. Of its files this reads the 22 everyday traits of `TRAITS`; `risk-averse` and
`politically-liberal` are not read because they are the opposites of two of these.

A user has `TRAITS_PER_USER` traits, each with a sign, determined by the seed and the user's number alone. Each pair is
about one trait: the chosen statement has the user's sign, the rejected one the opposite sign, and their lengths differ
by at most one word. Signals and targets have equally many pairs per trait, and a user has no statement twice.

Splits: `test_share` of the statements are reserved for test users. Users of `train` and `test` have none of the
`HELD_OUT` traits; users with only these form the split `interpolated`. Near-duplicates of an earlier statement of the
same trait are dropped first (`near_duplicates`).
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from pydantic import BaseModel, ConfigDict

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import Loaded, Options, Split, digest, share
from popi.data.benchmarks.rows import good_rows
from popi.data.places import SUFFIXES
from popi.errors import DataError
from popi.signals.types import PairSignal, Signal, TargetPair, Text

VERSION = "persona/1"
PROMPT = "Tell me something about yourself."
INTERPOLATED = "interpolated"
TRAITS_PER_USER = 4
NEAR = 0.7
"""Statements of one trait count as near-duplicates from this Jaccard similarity of their word sets on."""
NEARLY = "near-duplicate of an earlier statement of its trait"
UNDRAWN = "a statement that no user drew"
MOST = {"train": 1000, "test": 400, INTERPOLATED: 400}
"""Number of users if no limit is given, since any number could be generated."""

TRAITS: dict[str, tuple[str, str]] = {
    "agreeableness": ("is kind and trusting", "cares little for other people"),
    "anti-immigration": ("wants less immigration", "welcomes immigrants"),
    "believes-abortion-should-be-illegal": ("is against abortion", "is for the right to abortion"),
    "believes-in-gun-rights": ("defends gun rights", "wants strict gun control"),
    "cognitive-enhancement": ("wants to become smarter", "has no wish to become smarter"),
    "conscientiousness": ("is organized and reliable", "is careless and disorganized"),
    "extraversion": ("is outgoing and loves company", "is quiet and likes to be alone"),
    "has-strong-aesthetic-preferences": ("cares deeply about beauty", "does not care how things look"),
    "interest-in-art": ("loves art", "is bored by art"),
    "interest-in-literature": ("loves books and literature", "does not like to read"),
    "interest-in-math": ("loves mathematics", "dislikes mathematics"),
    "interest-in-music": ("loves music", "does not care for music"),
    "interest-in-science": ("loves science", "is not interested in science"),
    "interest-in-sports": ("loves sports", "does not care for sports"),
    "neuroticism": ("worries a lot", "is calm and emotionally stable"),
    "openness": ("is curious and loves new experiences", "prefers what is familiar"),
    "politically-conservative": ("is politically conservative", "is politically liberal"),
    "risk-seeking": ("loves taking risks", "avoids risks"),
    "subscribes-to-Atheism": ("does not believe in God", "believes in God"),
    "subscribes-to-Buddhism": ("follows the teachings of Buddhism", "rejects Buddhism"),
    "subscribes-to-deontology": ("holds to moral rules whatever follows", "judges acts by what they bring"),
    "willingness-to-defer-to-experts": ("trusts experts", "trusts their own judgement over experts"),
}
"""File name → the oracle's description of a person with the trait, and of one without it."""
HELD_OUT = (
    "believes-in-gun-rights",
    "extraversion",
    "interest-in-math",
    "interest-in-music",
    "risk-seeking",
    "subscribes-to-Buddhism",
)
"""One or two of each kind: politics, personality, interests, attitudes, beliefs."""
COLUMNS = Columns(("statement", "answer_matching_behavior"))


class StatementRow(BaseModel):
    """One statement."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    statement: Text
    answer_matching_behavior: Literal[" Yes", " No", "Yes", "No"]


@dataclass(frozen=True)
class Statement:
    """A statement of a person with a trait (`sign`), or without it."""

    text: str
    trait: str
    sign: bool
    length: int
    """In words."""


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train`, `test` (different statements) and `interpolated` (different traits)."""
    if options.signals_per_user % TRAITS_PER_USER or options.targets_per_user % TRAITS_PER_USER:
        raise DataError(
            f"persona: {options.signals_per_user} signals and {options.targets_per_user} targets; both are spread "
            f"evenly over a user's traits and must be multiples of {TRAITS_PER_USER}"
        )
    loaded.others[INTERPOLATED] = Split(INTERPOLATED, options.test_limit)
    splits = loaded.splits
    pools: dict[str, dict[tuple[str, bool], list[Statement]]] = {name: defaultdict(list) for name in splits}
    for statement in _statements(options, loaded):
        held_out = share(options.seed, "statement", statement.text) < options.test_share
        name = INTERPOLATED if statement.trait in HELD_OUT else "test" if held_out else "train"
        pools[name][statement.trait, statement.sign].append(statement)
    if loaded.problems:
        return
    for statements in (statements for pool in pools.values() for statements in pool.values()):
        statements.sort(key=lambda one: (one.length, one.text))
    for name, split in splits.items():
        traits = sorted({trait for trait, _ in pools[name]})
        total = sum(map(len, pools[name].values()))
        loaded.train.rows -= total if split is not loaded.train else 0
        split.rows += total if split is not loaded.train else 0
        drawn: set[str] = set()
        for number in range(MOST[name] if split.limit is None else split.limit):
            drawn |= _add(split, number, traits, pools[name], options)
        split.used = len(drawn)
        split.dropped[UNDRAWN] = total - len(drawn)


def _add(
    split: Split, number: int, traits: Sequence[str], pool: dict[tuple[str, bool], list[Statement]], options: Options
) -> set[str]:
    """Add the user with this number to `split`; returns the statements that were drawn."""
    draw = Random(digest("popi-persona", options.seed, split.name, number))
    own = [(trait, draw.random() < 0.5) for trait in draw.sample(traits, TRAITS_PER_USER)]
    each = (options.signals_per_user + options.targets_per_user) // TRAITS_PER_USER
    used: set[str] = set()
    by_trait = [
        [_pair(pool[trait, sign], pool[trait, not sign], draw, used) for _ in range(each)] for trait, sign in own
    ]
    in_turn = [of_trait[n] for n in range(each) for of_trait in by_trait]  # so every slice covers all traits
    shown, target_statements = in_turn[: options.signals_per_user], in_turn[options.signals_per_user :]
    draw.shuffle(shown)
    draw.shuffle(target_statements)
    signals: list[Signal] = [PairSignal(prompt=PROMPT, chosen=one, rejected=other) for one, other in shown]
    targets = [TargetPair(prompt=PROMPT, chosen=one, rejected=other) for one, other in target_statements]
    oracle = ", ".join(TRAITS[trait][not sign] for trait, sign in own)
    split.add(f"persona-{split.name}-{options.seed}-{number}", signals, targets, oracle, rows=0)
    return used


def _length(statement: Statement) -> int:
    return statement.length


def _pair(own: Sequence[Statement], others: Sequence[Statement], draw: Random, used: set[str]) -> tuple[str, str]:
    """Draw an untaken statement from each side, with lengths that differ by at most one word, and add both to `taken`.
    Both sides must be sorted by length.
    """
    for _ in range(100 if own and others else 0):
        one = draw.choice(own)
        start = bisect_left(others, one.length - 1, key=_length)
        end = bisect_right(others, one.length + 1, key=_length)
        fitting = [other.text for other in others[start:end] if other.text not in used]
        if one.text not in used and fitting:
            other = draw.choice(fitting)
            used |= {one.text, other}
            return one.text, other
    traits = " or ".join(sorted({one.trait for one in (*own, *others)})) or "a trait"
    raise DataError(
        f"persona: too few statements of similar length about {traits} for a user; add more of the dataset's files"
    )


def _statements(options: Options, loaded: Loaded) -> list[Statement]:
    """All statements except near-duplicates, counted as rows of `train`."""
    folder = Path(options.path or "")
    files = {trait: [folder / f"{trait}{end}" for end in SUFFIXES] for trait in TRAITS}
    existing = {trait: next((file for file in places if file.is_file()), None) for trait, places in files.items()}
    if missing := [trait for trait, file in existing.items() if file is None]:
        raise DataError(
            f"{folder}: must be the folder persona/ of anthropics/evals, with one file per trait; missing: "
            + ", ".join(f"{trait}.jsonl" for trait in missing)
        )
    unique = []
    for trait, file in existing.items():
        rows = good_rows(str(file), "train", StatementRow, COLUMNS, loaded.train, options, loaded.problems)
        statements = [
            Statement(row.statement, trait, "Yes" in row.answer_matching_behavior, len(row.statement.split()))
            for row in rows
        ]
        near = near_duplicates([statement.text for statement in statements])
        loaded.train.dropped[NEARLY] += len(near)
        unique += [statement for index, statement in enumerate(statements) if index not in near]
    return unique


def near_duplicates(texts: Sequence[str], near: float = NEAR) -> set[int]:
    """Indices of texts whose word set has a Jaccard similarity of at least `near` with that of an earlier, retained
    text. Case and punctuation are ignored.

    Two sets this similar share at least one of their rarest words, if as many of those are considered as `near` allows
    the sets to differ in. Only texts that share such a word are compared.
    """
    words = [frozenset(re.findall(r"\w+", text.casefold().replace("’", "").replace("'", ""))) for text in texts]
    frequency = Counter(word for text in words for word in text)
    by_word: dict[str, list[int]] = defaultdict(list)
    dropped = set()
    for index, own_words in enumerate(words):
        rarest = sorted(own_words, key=lambda word: (frequency[word], word))[
            : len(own_words) - math.ceil(near * len(own_words) - 1e-9) + 1
        ]
        others = {other for word in rarest for other in by_word[word]}
        if any(len(own_words & words[other]) >= near * len(own_words | words[other]) for other in others):
            dropped.add(index)
            continue
        for word in rarest:
            by_word[word].append(index)
    return dropped
