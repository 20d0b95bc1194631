"""Roleplay: 1,500 personas, one user each.

Dataset: `sher222/persona-iterative-responses` (columns follow FSPO's loader, arXiv 2502.19312, and code that reads the
persona's description): `x` question, `yw` preferred, `yl` dispreferred, `level` the persona's UUID,
`score_persona.persona_description` the oracle's text. Splits are the dataset's own; test personas that also appear in
train are dropped (`unseen_users`).
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
OTHER_PERSONA = "score_persona and level are different personas"


class Persona(BaseModel):
    """The persona that judged the pair."""

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
    """Load the splits `train` and `test` (`validation` if `test_split` is set to that)."""

    def rows(split: Split, place: str, name: str, own_file: bool) -> Iterator[PairRow]:
        for row in good_rows(place, name, RoleplayRow, COLUMNS, split, options, loaded.problems, own_file=own_file):
            persona = row.score_persona or Persona()
            if persona.persona_uuid not in (None, row.level):  # the description would be another user's
                split.dropped[OTHER_PERSONA] += 1
                continue
            oracle = (persona.persona_description or "").strip() or None
            yield PairRow(row.level, TargetPair(prompt=row.x, chosen=row.yw, rejected=row.yl), oracle)

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
