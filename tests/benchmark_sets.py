"""Small made-up sets in the public benchmarks' layouts, of words that the nano base reads; deterministic."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from popi.config import resolve
from popi.data.benchmarks.persona import TRAITS
from popi.data.benchmarks.registry import load
from popi.data.benchmarks.result import Loaded
from popi.data.users import options

Row = dict[str, Any]
WORDS = "tea rice bees puzzles soup cats engines roses bread rain the a with and some near sea more small clear".split()
LEVELS = ("child", "preteen", "teenager", "young adult", "expert")
REVIEWS = ("negative", "positive", "concise", "verbose", "positive+concise", "negative+verbose")


def text(*key: object, words: int = 6) -> str:
    """A short text that its key fixes."""
    drawn = hashlib.sha256(repr(key).encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in drawn[:words]) + f" {drawn.hex()[:4]}"


def elix(split: str, n: int = 60) -> list[Row]:
    """Both public variants' columns; every scorer has a level of the two, but for every tenth row."""
    rows = []
    for i in range(n):
        scorer = LEVELS[i % 5]
        other = LEVELS[(i + 1 + i // 5) % 5] if i % 25 else LEVELS[(i + 1) % 5]
        other = other if other != scorer else LEVELS[(i + 2) % 5]
        levels = [scorer, other] if i % 2 else [other, scorer]
        if i % 10 == 7:
            levels = [level for level in LEVELS if level != scorer][:2]
        label = i // 2 % 2
        rows.append(
            {
                "prompt": f" why {text('elix', split, i, words=3)} ",
                "level_x": levels[0],
                "level_y": levels[1],
                "response_x": text("x", split, i) + "\n",
                "response_y": text("y", split, i),
                "label": label,
                "scorer_level": scorer,
                "model_name_x": "a",
                "level_id_x": 1,
                "scorer_level_id": LEVELS.index(scorer) + 1,
                "det_choice": 1 - label,
                "__index_level_0__": i,
            }
        )
    return rows


def review(split: str, n: int = 72) -> list[Row]:
    return [
        {
            "prompt": f"review {text('review', split, i, words=3)}",
            "level_x": "positive",
            "level_y": "negative",
            "response_x": text("x", split, i),
            "response_y": text("y", split, i),
            "label": i // 6 % 2,
            "scorer_level": REVIEWS[i % 6],
        }
        for i in range(n)
    ]


def roleplay(split: str, personas: int = 4, n: int = 20) -> list[Row]:
    return [
        {
            "x": f"what about {text('roleplay', split, i, words=3)}",
            "yw": text("w", split, p, i),
            "yl": text("l", split, p, i),
            "level": f"{split}-{p}",
            "score_persona": {"persona_uuid": f"{split}-{p}", "persona_description": f" likes {WORDS[p]}. "},
        }
        for p in range(personas)
        for i in range(n)
    ]


def alignx(split: str, n: int = 24) -> list[Row]:
    """Lists of none to five entries, demographics now and then."""

    def direction(*key: object) -> list[float]:
        return [(byte % 3) / 2 for byte in (hashlib.sha512(repr(key).encode()).digest() * 2)[:90]]

    return [
        {
            "prompt": text("post", split, i),
            "chosen": text("c", split, i),
            "rejected": text("r", split, i),
            "Preference Direction": direction(split, i),
            "Demographic Information": f"works near {text('demo', split, i, words=2)}" if i % 3 else "",
            "User-Generated Content": [
                {
                    "prompt": text("up", split, i, j),
                    "comment": text("uc", split, i, j),
                    "Preference Direction": direction(i, j),
                }
                for j in range(i % 6)
            ],
            "Pair-wise Comparative Feedback": [
                {
                    "prompt": text("pp", split, i, j),
                    "chosen": text("pc", split, i, j),
                    "rejected": text("pr", split, i, j),
                    "Preference Direction": direction(j, i),
                }
                for j in range((i + 3) % 6)
            ],
        }
        for i in range(n)
    ]


def preferences(users: int = 30, n: int = 12, prompts: int = 30, user: str = "user_id") -> list[Row]:
    """Users who judged the same prompts: `n` of `prompts` each."""
    return [
        {
            user: f"judge {u}",
            "prompt": f"tell {text('prompt', (u + 7 * i) % prompts, words=3)}",
            "chosen": text("c", u, i),
            "rejected": text("r", u, i),
            "question_id": i,
        }
        for u in range(users)
        for i in range(n)
    ]


def persona(trait: str, n: int = 200) -> list[Row]:
    """Statements with and without a trait, of six to eight words; every tenth is nearly an earlier one."""
    rows = []
    for i in range(n):
        of, more = (i - 2, " so") if i % 10 == 9 else (i, "")
        rows.append(
            {
                "question": "unread",
                "statement": f"i {text(trait, of, words=4 + of // 2 % 3)}{more}",
                "label_confidence": 0.9,
                "answer_matching_behavior": " No" if i % 2 else " Yes",
            }
        )
    return rows


def movielens(users: int = 24, films: int = 80) -> tuple[list[Row], list[Row]]:
    """ratings.csv and movies.csv: everyone rated half of the films, and liked two of three of those."""
    ratings = [
        {"userId": u, "movieId": f, "rating": 4.5 if (u * 5 + f) % 3 else 2.0, "timestamp": 1}
        for u in range(users)
        for f in range(films)
        if hashlib.sha256(f"{u} {f}".encode()).digest()[0] % 2
    ]
    genres = ("Comedy|Drama", "(no genres listed)", "Sci-Fi")
    movies = [
        {"movieId": f, "title": f"{text(f, words=2)} ({1950 + f})", "genres": genres[f % 3]} for f in range(films)
    ]
    return ratings, movies


def write(path: Path, rows: list[Row]) -> Path:
    """Parquet, CSV or JSONL, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make(source: str, folder: Path, suffix: str = ".jsonl") -> str:
    """The set of a benchmark in a folder; returns the place that `data.benchmark.path` names."""
    if source in ("polis", "mtbench", "preferences"):
        return str(write(folder / f"pairs{suffix}", preferences()))
    if source == "movielens":
        for name, rows in zip(("ratings", "movies"), movielens(), strict=True):
            write(folder / f"{name}.csv", rows)
        return str(folder)
    if source == "persona":
        for trait in TRAITS:
            write(folder / f"{trait}{suffix}", persona(trait))
        return str(folder)
    rows = {"elix": elix, "review": review, "roleplay": roleplay, "alignx": alignx}[source]
    for split in ("train", "test"):
        name = f"{split}-00000-of-00001.parquet" if suffix == ".parquet" else f"{split}.jsonl"
        write(folder / name, rows(split))
    return str(folder)


def loaded(source: str, path: object, data: Row | None = None, *, whole: bool = True, **settings: Any) -> Loaded:
    """A set through the settings, as commands read it."""
    benchmark = {"path": str(path), **settings}
    return load(
        source, options(resolve({"data": {"source": source, "benchmark": benchmark, **(data or {})}}).data, whole)
    )
