"""MT-Bench human judgements: which of two LLMs' answers 65 people preferred.

Reads the derived `pairs_turn1.jsonl` (user_id, prompt, chosen, rejected) made from lmsys/mt_bench_human_judgments
(CC BY 4.0, arXiv 2306.05685). Everyone judged the same 80 questions, so a seeded hash splits users and also questions;
otherwise a generator would have seen the test's answers. Answers mostly differ in quality rather than in taste.
"""

from popi.data.benchmarks.preferences import preference_rows
from popi.data.benchmarks.result import Loaded, Options
from popi.data.benchmarks.splits import hash_splits

VERSION = "mtbench/1"


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`, with different people and, by default, different questions."""
    rows = preference_rows(loaded, options)(loaded.train, options.path or "", options.train_split, False)
    hash_splits(loaded, options, rows, by_prompt=options.unseen_prompts is not False, seed=options.seed)
