"""LaMP: predict what a person writes next from earlier texts: a rating, a tag, a headline, a title, a tweet.

Dataset: a folder of one LaMP task (arXiv 2304.11406) with `train_questions.json`, `train_outputs.json` and the same for
`dev`, since the outputs of the published test split are not public. Columns follow the repository LaMP-Benchmark/LaMP
(data/datasets.py, prompts/prompts.py): questions with `id`, `input`, `profile`, a list of items with `text`, `abstract`
or `description` and `score`, `tag`, `category` or `title`; outputs {"golds": [{`id`, `output`}]}.

A question is a user with one target: the person's own output against that of another question of the split, chosen by a
hash: a different label in tasks with few of them (LaMP-1 to 3), somebody else's text in the others. Signals are the
last `signals_per_user` items of the profile. LaMP does not identify people: a person may have questions in both splits.
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
WRITTEN = ("tag", "category", "title", "score")
"""Fields that hold what the person wrote about a text; a `score` is added to their review."""
ABOUT = ("text", "abstract", "description")


class Question(BaseModel):
    """One row."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    id: Text | int
    input: Text
    profile: list[dict[str, Any]] = Field(min_length=1)


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test` (LaMP's `dev`)."""
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
    """A profile item as a signal: what the person wrote, and about which text. None if it has no text."""
    written = next((str(item[name]).strip() for name in WRITTEN if item.get(name) not in (None, "")), "")
    about = next((str(item[name]).strip() for name in ABOUT if item.get(name)), "")
    if about and item.get("score") not in (None, ""):
        return PostSignal(text=f"{about} ({written} of 5)")
    if written:
        return PostSignal(text=written, context=about or None)
    return PostSignal(text=about) if about else None


def _golds(file: Path) -> dict[str, str]:
    """Question id → output."""
    try:
        golds = json.loads(file.read_text(encoding="utf-8"))["golds"]
        return {str(gold["id"]): str(gold["output"]).strip() for gold in golds if str(gold["output"]).strip()}
    except OSError as error:
        raise DataError(
            f"{file}: can't be read ({error.strerror or error}); set the path to the folder of one LaMP task, with "
            "train_questions.json, train_outputs.json and the same for dev"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file}: must be {{"golds": [{{"id": …, "output": …}}]}} ({error!r})') from None
