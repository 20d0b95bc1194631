"""Review: users prefer a sentiment or a length of reviews; four levels, and four combined levels held out.

Dataset: `Asap7772/steered_reviews_full_autolabel_gpt4o_pref` (columns, levels and oracle texts follow FSPO's loaders,
arXiv 2502.19312). The combined levels (`positive+concise`, ...) are the *interpolated* users: they are never trained on
and form a separate split, made from the rows of the test split. As in ELIX, each row counts once.
"""

from popi.data.benchmarks.result import Loaded, Options, Split
from popi.data.benchmarks.rows import PairRow
from popi.data.benchmarks.splits import own_splits
from popi.data.benchmarks.steered import steered_rows

VERSION = "review/1"
HUB = "Asap7772/steered_reviews_full_autolabel_gpt4o_pref"
INTERPOLATED = "interpolated"
LEVELS = ("negative", "positive", "concise", "verbose")
HELD_OUT = "interpolated user: never trained on"
UNKNOWN = f"scorer_level is neither one of {', '.join(LEVELS)} nor two of them joined by +"


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train`, `test` (single levels) and `interpolated` (combined levels)."""
    loaded.others[INTERPOLATED] = Split(INTERPOLATED, options.test_limit)

    def route(row: PairRow, split: Split) -> Split | str:
        if "+" not in row.user_id:
            return split
        return HELD_OUT if split is loaded.train else loaded.others[INTERPOLATED]

    own_splits(
        loaded,
        options,
        steered_rows(loaded, options, oracle, lambda row: None if oracle(row.scorer_level) else UNKNOWN),
        options.path or HUB,
        unseen_prompts=options.unseen_prompts is not False,
        unseen_users=False,
        seed=options.seed,
        apart=True,
        route=route,
    )


def oracle(level: str) -> str | None:
    """FSPO's description of the user for its judge; None for an unknown level."""
    parts = level.split("+")
    if len(parts) > 2 or not all(part in LEVELS for part in parts):
        return None
    return f"This user prefers {' and '.join(parts)} reviews."
