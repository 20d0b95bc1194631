"""ELIX (explain like I'm X): users prefer a level of explanation; five levels, one user each.

Datasets: `Asap7772/elix_generations_autolabel` and, from the FSPO release, `Asap7772/elix_generations_gpt4omini_pref`
(columns follow FSPO's loaders, arXiv 2502.19312; any level names are accepted). Those loaders pass over both splits
several times, in an unseeded order; here each row counts once, and the order is determined by content. The levels are
users of both splits, so the splits differ in their prompts.
"""

from popi.data.benchmarks.result import Loaded, Options
from popi.data.benchmarks.splits import own_splits
from popi.data.benchmarks.steered import SteeredRow, steered_rows

VERSION = "elix/1"
HUB = "Asap7772/elix_generations_autolabel"
NO_MATCH = "scorer_level is neither level_x nor level_y (scorer_match)"


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`: non-overlapping windows of each level."""

    def reason_to_drop(row: SteeredRow) -> str | None:
        mismatch = options.scorer_match and row.scorer_level not in (row.level_x, row.level_y)
        return NO_MATCH if mismatch else None

    own_splits(
        loaded,
        options,
        steered_rows(loaded, options, oracle, reason_to_drop),
        options.path or HUB,
        unseen_prompts=options.unseen_prompts is not False,
        unseen_users=False,
        seed=options.seed,
        apart=True,
    )


def oracle(level: str) -> str:
    """FSPO's description of the user for its judge."""
    return f"The user is {level}."
