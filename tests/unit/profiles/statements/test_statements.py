"""What LLMs answer, and the statements that are read off it; tests/data/llm_summaries.jsonl holds the corpus."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi.errors import DataError
from popi.profiles.statements import Bounds, lines, normal, read, request, sentences, storable
from popi.signals.render import Templates

CORPUS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parents[3] / "data" / "llm_summaries.jsonl").read_text(encoding="utf-8").splitlines()
]
OWN = "\n".join(message["content"] for message in Templates.load("default").inference_messages([]))


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(CORPUS) >= 150 and len({row["lang"] for row in CORPUS}) >= 12
    kinds = Counter(row["kind"] for row in CORPUS)
    assert kinds.keys() >= {
        "prose",
        "lines",
        "list",
        "markdown",
        "json",
        "think",
        "refusal",
        "repeats",
        "recites",
        "cut",
    }


@pytest.mark.parametrize("row", CORPUS, ids=[f"{n}-{row['lang']}-{row['kind']}" for n, row in enumerate(CORPUS, 1)])
def test_the_corpus_is_read_as_expected(row: dict[str, Any]) -> None:
    if "problem" in row:
        with pytest.raises(DataError, match=row["problem"]):
            read(row["answer"], cut=row.get("cut", False), own=OWN)
    else:
        assert read(row["answer"], cut=row.get("cut", False), own=OWN) == row["clauses"]


def flat(text: str) -> str:
    """Without decoration, escapes and white space."""
    return normal(text.replace("\\n", "\n").replace("**", "").replace("*", ""))


@pytest.mark.parametrize("row", [row for row in CORPUS if row["clauses"]], ids=lambda row: row["answer"][:40])
def test_no_clause_says_what_the_summary_did_not(row: dict[str, Any]) -> None:
    """Each is there word for word and in one piece; an item of a list may stand behind its heading."""
    answer = flat(storable(row["answer"]))
    for clause in read(row["answer"], cut=row.get("cut", False), own=OWN):
        heading, colon, item = clause.partition(": ")
        whole = flat(clause) in answer
        assert whole or (colon and flat(heading) in answer and flat(item) in answer)


@pytest.mark.parametrize(
    "text",
    [
        "Likes neither jargon, emojis, nor filler.",
        "Prefers short, friendly, and clear answers.",
        "Wants tea, cake, and bread in French, not English.",
        "Likes tea; hates coffee.",
        "If it is short, read it; otherwise skip it.",
        "Uses e.g. the U.S. system, i.e. Fahrenheit.",
        "Likes long answers. But only when asked.",
        "Emojis? Never.",
    ],
)
def test_one_statement_stays_one(text: str) -> None:
    assert sentences(text) == lines(text) == [text]


@given(st.text(max_size=300))
def test_prose_is_cut_and_never_changed(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@given(st.text(alphabet='ab .?!"“”\n-*#:[]{}<>/think`,\\1', max_size=200))
def test_any_answer_is_read_or_refused(answer: str) -> None:
    try:
        found = read(answer, own=OWN)
    except DataError:
        return
    assert len(found) <= 8 and all(part.strip() == part and 0 < len(part) <= 500 for part in found)


def test_few_statements_each_within_a_bound() -> None:
    answer = "\n".join(f"Likes the colour {name} best of all." for name in "abcdefghijkl")
    assert len(read(answer)) == 8 and len(read(answer, bounds=Bounds(clauses=3))) == 3
    long = f"Likes {'very ' * 3 + 'dry '} jokes. Wants {' '.join(f'w{n}' for n in range(200))}."
    assert len(read(long)) == 1
    with pytest.raises(DataError, match="more than 20 characters"):
        read("Likes very long statements.", bounds=Bounds(characters=20))


def test_a_piece_of_an_answer_is_no_statement() -> None:
    answers = ["A drink made from leaves. It is hot.", "Tea."]
    assert read("A drink made from leaves.\nLikes drinks made from leaves.", quotable=answers) == [
        "Likes drinks made from leaves."
    ]
    with pytest.raises(DataError, match="quotations"):
        read("it is HOT", quotable=answers)


def test_what_is_asked_for_is_no_statement() -> None:
    asked = request(Bounds())
    with pytest.raises(DataError, match="its own prompt"):
        read(asked, own=asked)


@pytest.mark.parametrize(
    "answer",
    [
        "x" * 5_000_000,
        "“a. “a" * 8_000,
        "「" * 50_000,
        '["' * 25_000,
        '["' + '\\"' * 24_000,
        '{"a":' * 10_000,
        "<think>" * 9_000,
        "<think " * 7_000,
        "a?\n" * 16_000,
        "here is " * 6_000,
        "**" * 25_000,
        "a. " * 17_000,
    ],
    ids=lambda answer: answer[:8],
)
def test_no_answer_takes_long_to_read(answer: str) -> None:
    began = time.process_time()
    try:
        read(answer, own=OWN)
    except DataError:
        pass
    assert time.process_time() - began < 5
