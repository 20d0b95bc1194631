"""Roleplay: 1,500 personas, one user each.

Set: `sher222/persona-iterative-responses` (columns as read from FSPO's loader, arXiv 2502.19312, and from code that
reads the persona's description): `x` question, `yw` preferred, `yl` dispreferred, `level` the persona's UUID,
`score_persona.persona_description` the oracle's words. Splits are the set's own; a persona of the test that stands
in train is dropped (`unseen_users`).
"""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import Loaded, Options, Split
from popi.data.benchmarks.rows import PairRow, good_rows
from popi.data.benchmarks.splits import own_splits
from popi.signals.types import TargetPair, Text

VERSION = "roleplay/1"
HUB = "sher222/persona-iterative-responses"
COLUMNS = Columns(("x", "yw", "yl", "level"), ("score_persona",))
OTHER_PERSONA = "score_persona is another persona than level"


class Persona(BaseModel):
    """Who judged."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    persona_uuid: str | None = None
    persona_description: str | None = None


class RoleplayRow(BaseModel):
    """One row."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    x: Text
    yw: Text
    yl: Text
    level: Text
    score_persona: Persona | None = None


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train` and `test` (`validation`, if that is what `test_split` names)."""

    def rows(split: Split, place: str, name: str, own_file: bool) -> Iterator[PairRow]:
        for row in good_rows(place, name, RoleplayRow, COLUMNS, split, options, loaded.problems, own_file=own_file):
            persona = row.score_persona or Persona()
            if persona.persona_uuid not in (None, row.level):  # whose words would the oracle's be?
                split.dropped[OTHER_PERSONA] += 1
                continue
            told = (persona.persona_description or "").strip() or None
            yield PairRow(row.level, TargetPair(prompt=row.x, chosen=row.yw, rejected=row.yl), told)

    own_splits(
        loaded,
        options,
        rows,
        options.path or HUB,
        unseen_prompts=bool(options.unseen_prompts),
        unseen_users=options.unseen_users,
        seed=options.seed,
        apart=True,
    )
