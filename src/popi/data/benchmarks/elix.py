"""ELIX (explain like I'm X): the level of explanation is the user's preference; five levels, one user each.

Sets: `Asap7772/elix_generations_autolabel` and, of the FSPO release, `Asap7772/elix_generations_gpt4omini_pref`
(columns as read from FSPO's loaders, arXiv 2502.19312; the level names are not fixed here). Where this departs from
those loaders, which pass several times over both splits in an order that no seed fixes: each row counts once, and
the order is fixed by content. The levels are users of both splits, so prompts are what keeps the splits apart.
"""

from popi.data.benchmarks.result import Loaded, Options
from popi.data.benchmarks.splits import own_splits
from popi.data.benchmarks.steered import SteeredRow, steered_rows

VERSION = "elix/1"
HUB = "Asap7772/elix_generations_autolabel"
NO_MATCH = "scorer_level is neither level_x nor level_y (scorer_match)"


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train` and `test`: windows without overlap for each level."""

    def keep(row: SteeredRow) -> str | None:
        off = options.scorer_match and row.scorer_level not in (row.level_x, row.level_y)
        return NO_MATCH if off else None

    own_splits(
        loaded,
        options,
        steered_rows(loaded, options, oracle, keep),
        options.path or HUB,
        unseen_prompts=options.unseen_prompts is not False,
        unseen_users=False,
        seed=options.seed,
        apart=True,
    )


def oracle(level: str) -> str:
    """What FSPO tells its judge of the user."""
    return f"The user is {level}."
