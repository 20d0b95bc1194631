"""LaMP: what a person would write next, from what they wrote before: a rating, a tag, a headline, a title, a tweet.

Set: a folder of one LaMP task (arXiv 2304.11406) with `train_questions.json`, `train_outputs.json` and the same of
`dev`, the published test's outputs being held back. Columns as read from the repository LaMP-Benchmark/LaMP (data/
datasets.py, prompts/prompts.py): questions of `id`, `input`, `profile`, a list of items with `text`, `abstract` or
`description` and `score`, `tag`, `category` or `title`; outputs {"golds": [{`id`, `output`}]}.

A question is a user of one target: the person's own output against that of another question of the split, drawn by a
hash: another label in the tasks that have few (LaMP-1 to 3), somebody else's words in the others. Signals are items of
the profile, the last `signals_per_user`. LaMP tells no person: two questions of one may stand in both splits.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import EQUAL, Loaded, Options, Split, digest
from popi.data.benchmarks.rows import good_rows
from popi.errors import DataError
from popi.signals.types import PostSignal, Signal, TargetPair, Text

VERSION = "lamp/1"
COLUMNS = Columns(("id", "input", "profile"))
NO_OUTPUT = "it has no output"
MADE = ("tag", "category", "title", "score")
"""What the person made of a text; `score` is told beside their review."""
OF = ("text", "abstract", "description")


class Question(BaseModel):
    """One row."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    id: Text | int
    input: Text
    profile: list[dict[str, Any]] = Field(min_length=1)


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train` and `test` (LaMP's `dev`)."""
    folder = Path(options.path or "")
    for split, name in ((loaded.train, options.train_split), (loaded.others["test"], options.test_split or "dev")):
        questions = folder / f"{name}_questions.json"
        if split is not loaded.train and not questions.is_file() and not options.need_test:
            continue
        golds = _golds(folder / f"{name}_outputs.json")
        labels = sorted(set(golds.values()))
        for row in good_rows(str(questions), "train", Question, COLUMNS, split, options, loaded.problems):
            _add(row, golds.get(str(row.id)), labels, split, options)
            if split.full and not options.read_all:
                break


def _add(row: Question, gold: str | None, labels: list[str], split: Split, options: Options) -> None:
    draw = Random(digest("popi-lamp", options.seed, row.id))
    other = next((label for label in draw.sample(labels, min(len(labels), 20)) if label != gold), None)
    signals = [signal for item in row.profile if (signal := _signal(item))][-options.signals_per_user :]
    if gold is None:
        split.dropped[NO_OUTPUT] += 1
    elif other is None:
        split.dropped[EQUAL] += 1
    else:
        target = TargetPair(prompt=row.input, chosen=gold, rejected=other)
        split.add(f"lamp-{split.name}-{row.id}", signals, [target], None, rows=1)


def _signal(item: dict[str, Any]) -> Signal | None:
    """An item of a profile: what the person made, and of which text; None where it has no words."""
    made = next((str(item[name]).strip() for name in MADE if item.get(name) not in (None, "")), "")
    of = next((str(item[name]).strip() for name in OF if item.get(name)), "")
    if of and item.get("score") not in (None, ""):
        return PostSignal(text=f"{of} ({made} of 5)")
    if made:
        return PostSignal(text=made, context=of or None)
    return PostSignal(text=of) if of else None


def _golds(file: Path) -> dict[str, str]:
    """Question id → output."""
    try:
        golds = json.loads(file.read_text(encoding="utf-8"))["golds"]
        return {str(gold["id"]): str(gold["output"]).strip() for gold in golds if str(gold["output"]).strip()}
    except OSError as error:
        raise DataError(
            f"{file}: can't be read ({error.strerror or error}); name the folder of one LaMP task, with "
            "train_questions.json, train_outputs.json and the same of dev"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file}: must be {{"golds": [{{"id": …, "output": …}}]}} ({error!r})') from None
