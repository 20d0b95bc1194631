"""Polis votes: statements that real people agreed with, against ones they disagreed with, on one question.

Reads the derived `pairs.jsonl` (user_id, prompt, chosen, rejected) made from the open data of The Computational
Democracy Project (github.com/compdemocracy/openData, CC BY 4.0). Each pair is an agreed and a disagreed statement.
Users are split by a seeded hash. A conversation has a single prompt, so the splits can't have different prompts.
"""

from popi.data.benchmarks.preferences import preference_rows
from popi.data.benchmarks.result import Loaded, Options
from popi.data.benchmarks.splits import hash_splits

VERSION = "polis/1"


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`, with different people."""
    rows = preference_rows(loaded, options)(loaded.train, options.path or "", options.train_split, False)
    hash_splits(loaded, options, rows, by_prompt=False, seed=options.seed)
