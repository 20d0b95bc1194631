"""Polis votes: what real people agreed with preferred over what they disagreed with, on one question.

Reads the derived `pairs.jsonl` (user_id, prompt, chosen, rejected) made from the open data of The Computational
Democracy Project (github.com/compdemocracy/openData, CC BY 4.0): one pair an agreed and a disagreed statement. Users
are split by a seeded hash. A conversation has one prompt for all, so prompts can't be kept apart.
"""

from popi.data.benchmarks.preferences import preference_rows
from popi.data.benchmarks.result import Loaded, Options
from popi.data.benchmarks.splits import hash_splits

VERSION = "polis/1"


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train` and `test`: people of their own."""
    rows = preference_rows(loaded, options)(loaded.train, options.path or "", options.train_split, False)
    hash_splits(loaded, options, rows, by_prompt=False, seed=options.seed)
