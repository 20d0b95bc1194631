"""P-Soups: eight preferences (simple or expert, short or rich, four tones), each a user who judged pairs of answers.

Dataset: the folder `data/rm_training` of Personalized Soups (arXiv 2310.11564, repository joeljang/RLPHF), or a copy
of it, with one JSON or JSONL file per preference, named after it (`P1A`, `pref3C`, …). Columns follow that repository's
training_reward_model.py: `user_input`, `completion_a` preferred over `completion_b`.

Each preference is a user of both splits, like a level in ELIX; the splits differ in their prompts, assigned by a seeded
hash. The oracle is the preference as worded in the repository's prompts.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import Loaded, Options, share
from popi.data.benchmarks.rows import PairRow, by_user, fill, good_rows, usable
from popi.data.places import SUFFIXES
from popi.errors import DataError
from popi.signals.types import TargetPair, Text

VERSION = "psoups/1"
COLUMNS = Columns(("user_input", "completion_a", "completion_b"))
ORACLES = {
    "1A": "This user prefers answers that an elementary school student can easily understand.",
    "1B": "This user prefers answers that only an expert in the field can understand.",
    "2A": "This user prefers answers that are concise and to the point.",
    "2B": "This user prefers answers that are very informative, without missing any background.",
    "3A": "This user prefers answers that are friendly, witty, funny and humorous, like a close friend's.",
    "3B": "This user prefers answers in an unfriendly manner.",
    "3C": "This user prefers answers in a sassy manner.",
    "3D": "This user prefers answers in a sarcastic manner.",
}
_NAMED = re.compile(r"(?:^|[^0-9a-z])(?:p|pref)[-_]?([123][a-d])(?:[^0-9a-z]|$)", re.IGNORECASE)


class Judged(BaseModel):
    """One row."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user_input: Text
    completion_a: Text
    completion_b: Text


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`: the same eight users, with different prompts."""
    train, test = loaded.train, loaded.others["test"]
    rows = usable(_rows(options, loaded), train)
    for split, held_out in ((train, False), (test, True)):
        chosen = [row for row in rows if (share(options.seed, "prompt", row.prompt) < options.test_share) is held_out]
        if held_out:
            train.rows -= len(chosen)
            test.rows += len(chosen)
        fill(split, by_user(chosen, options.seed), options, apart=True)


def _rows(options: Options, loaded: Loaded) -> Iterator[PairRow]:
    folder = Path(options.path or "")
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES) if folder.is_dir() else []
    named = [(file, match[1].upper()) for file in files if (match := _NAMED.search(file.stem))]
    named = [(file, name) for file, name in named if name in ORACLES]
    if not named:
        raise DataError(
            f"{folder}: must be a folder with one file per preference, named after it (P1A.json to P3D.json); it "
            f"holds: {', '.join(file.name for file in files) or 'none'}"
        )
    for file, name in named:
        for row in good_rows(str(file), "train", Judged, COLUMNS, loaded.train, options, loaded.problems):
            pair = TargetPair(prompt=row.user_input, chosen=row.completion_a, rejected=row.completion_b)
            yield PairRow(name, pair, ORACLES[name])
