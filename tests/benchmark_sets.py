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


def movielens(users: int = 40, films: int = 80) -> tuple[list[Row], list[Row]]:
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


def prism(people: int = 15, conversations: int = 6) -> list[Row]:
    """Two turns each; every seventh opening has no answer that was scored lower than the chosen one."""

    def said(turn: int, role: str, content: str, score: int | None = None, chosen: bool | None = None) -> Row:
        return {"turn": turn, "role": role, "content": content, "score": score, "if_chosen": chosen, "model_name": "m"}

    rows = []
    for u in range(people):
        for c in range(conversations):
            scores = [40, 40, 40, 40] if (u + c) % 7 == 6 else [90, 30, 20, 50]
            opening = [said(0, "user", f"why {text('q', u, c, words=3)}")]
            opening += [said(0, "model", text("a", u, c, m), score, m == 0) for m, score in enumerate(scores)]
            later = [said(1, "user", text("later", u, c)), said(1, "model", text("more", u, c), 70, True)]
            rows.append({"user_id": f"user{u}", "conversation_id": f"c{c}", "conversation_history": opening + later})
    return rows


def personamem(personas: int = 10, questions: int = 4) -> tuple[list[Row], list[Row]]:
    """questions_32k.csv and its contexts; one question is asked of each persona before anything was said."""
    contexts: Row = {}
    rows = []
    for p in range(personas):
        chat = [{"role": "system", "content": f"secret persona {p}"}]
        for i in range(12):
            chat += [{"role": "user", "content": f"User: {text('said', p, i)}"}, {"role": "assistant", "content": "ok"}]
        contexts[f"context{p}"] = chat
        for q in range(questions):
            named = [f"({'abcd'[n]}) {text('option', p, q, n)}" for n in range(4)]
            rows.append(
                {
                    "persona_id": p,
                    "question_id": f"{p}-{q}",
                    "user_question_or_message": f"what now {text('question', p, q, words=3)}",
                    "correct_answer": f"({'abcd'[q]})",
                    "all_options": json.dumps(named) if q % 2 else repr(named),
                    "shared_context_id": f"context{p}",
                    "end_index_in_shared_context": 8 * q,
                }
            )
    return rows, [{name: chat} for name, chat in contexts.items()]


def psoups(preference: str, n: int = 40) -> list[Row]:
    return [
        {
            "user_input": f"tell {text('psoups', i, words=3)}",
            "completion_a": text("a", preference, i),
            "completion_b": text("b", preference, i),
        }
        for i in range(n)
    ]


def lamp(split: str, n: int = 20) -> tuple[list[Row], Row]:
    """LaMP-3: reviews with scores; one question has no output, and one profile no words."""
    questions = [
        {
            "id": f"{split}{i}",
            "input": f"which score {text('lamp', split, i)}",
            "profile": [
                {"id": f"{i}{j}", "text": text("review", split, i, j), "score": str(j % 5 + 1)} for j in range(6)
            ],
        }
        for i in range(n)
    ]
    questions[3]["profile"] = [{"id": "x", "text": ""}]
    golds = [{"id": row["id"], "output": str(i % 5 + 1)} for i, row in enumerate(questions) if i != 5]
    return questions, {"task": "LaMP_3", "golds": golds}


def mind(people: int = 30, stories: int = 40) -> tuple[list[Row], list[Row]]:
    """behaviors.tsv and news.tsv, two impressions a person; every seventh person clicked on nothing."""
    news = [
        {"id": f"N{n}", "category": WORDS[n % 5], "subcategory": "x", "title": f"{text('news', n, words=4)}", "url": ""}
        for n in range(stories)
    ]
    behaviors = [
        {
            "id": str(2 * p + i),
            "user": f"U{p}",
            "time": "11/11/2019 9:05:58 AM",
            "history": " ".join(f"N{(p + 3 * n) % stories}" for n in range(5)),
            "impressions": " ".join(f"N{(p + 3 * n + 1 + i) % stories}-{int(n == i and p % 7 < 6)}" for n in range(5)),
        }
        for p in range(people)
        for i in range(2)
    ]
    return behaviors, news


def amazon(people: int = 30, products: int = 8) -> tuple[list[Row], list[Row]]:
    """Reviews and products: everybody wrote of all but one, some without words; the last product has no title."""
    reviews = [
        {
            "user_id": f"A{p}",
            "parent_asin": f"B{n}",
            "rating": 5.0 - (n + p) % 2,
            "title": "t",
            "text": "" if (p + n) % 11 == 10 else text("wrote", p, n),
            "timestamp": 1000 * n + p,
        }
        for p in range(people)
        for n in range(products)
        if n != p % products
    ]
    titles = [text("product", n, words=2) for n in range(products)]
    return reviews, [{"parent_asin": f"B{n}", "title": t if n < products - 1 else None} for n, t in enumerate(titles)]


def hicupid(people: int = 30) -> tuple[list[Row], list[Row]]:
    """qa and dialogue; one answer is the same for all, and one person never spoke."""
    asked = [
        {
            "user_id": p,
            "dialogue_id": [p],
            "question": f"what for {text('for', p, q, words=3)}",
            "personalized_answer": text("own", p, q),
            "general_answer": text("own" if p == q == 2 else "any", p, q),
            "metadata": [{"entity": "secret"}],
        }
        for p in range(people)
        for q in range(6)
    ]
    spoken = [
        {"user_id": p, "dialogue_id": p, "user": text("told", p, t), "assistant": "ok"}
        for p in range(people - 1)
        for t in range(7)
    ]
    return asked, spoken


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
    folder.mkdir(parents=True, exist_ok=True)
    if source in ("polis", "mtbench", "preferences"):
        return str(write(folder / f"pairs{suffix}", preferences()))
    if source == "movielens":
        for name, rows in zip(("ratings", "movies"), movielens(), strict=True):
            write(folder / f"{name}.csv", rows)
        return str(folder)
    if source == "prism":
        return str(write(folder / f"conversations{suffix}", prism()))
    if source == "personamem":
        questions, contexts = personamem()
        write(folder / "questions_32k.csv", questions)
        write(folder / "shared_contexts_32k.jsonl", contexts)
        return str(folder)
    if source == "psoups":
        for preference in ("P1A", "pref2B"):
            write(folder / f"{preference}{suffix}", psoups(preference))
        return str(folder)
    if source == "lamp":
        for split in ("train", "dev"):
            questions, outputs = lamp(split)
            (folder / f"{split}_questions.json").write_text(json.dumps(questions), encoding="utf-8")
            (folder / f"{split}_outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
        return str(folder)
    if source == "mind":
        for name, rows in zip(("behaviors.tsv", "news.tsv"), mind(), strict=True):
            lines = ["\t".join(row.values()) for row in rows]
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(folder)
    if source == "amazon":
        for name, rows in zip(("raw_review_Tea", "raw_meta_Tea"), amazon(), strict=True):
            write(folder / f"{name}{suffix}", rows)
        return str(folder)
    if source == "hicupid":
        for name, rows in zip(("qa", "dialogue"), hicupid(), strict=True):
            write(folder / f"{name}{suffix}", rows)
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
