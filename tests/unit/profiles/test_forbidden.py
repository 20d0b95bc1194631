import tomllib
from pathlib import Path
from typing import Any

import pytest

from popi.profiles.forbidden import THRESHOLD, similarity

DATA = Path(__file__).parents[2] / "data" / "paraphrases.toml"


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("Prefers short answers.", "prefers SHORT answers", 1.0),
        ("Prefers short answers.", "Likes brief replies.", 1.0),  # {brief} and {brief}
        ("Prefers short answers.", "Prefers long answers.", 0.0),
        ("Likes emojis.", "Avoid emojis.", 0.0),  # the opposite
        ("Don't use emojis.", "Avoid emojis.", 1.0),  # both deny
        ("Lives in Berlin with a dog.", "Has a dog.", 1.0),  # {live, berlin, dog} holds {dog}
        ("Works as a nurse in Leeds.", "A nurse in York.", 0.5),  # {job, nurse, leed} and {nurse, york}: 1 of 2
        ("Likes it.", "Wants it.", 0.0),  # no content to compare
        ("Prefers short answers.", "Wants brief replies without filler.", 1.0),  # {+brief} of {+brief, -filler}
        ("Prefers short answers.", "Avoid jargon, be concise.", 1.0),  # the comma ends what is avoided
        ("Prefers long answers.", "Wants short answers rather than long ones.", 0.0),  # {+long} and {+brief, -long}
        ("No jokes.", "Avoid tables and jokes.", 1.0),  # "and" may go on denying
        ("Likes jokes.", "Not only tables but also jokes.", 1.0),
    ],
)
def test_numbers_by_hand(one: str, other: str, wanted: float) -> None:
    assert similarity(one, other) == similarity(other, one) == wanted


def found(part: str) -> list[tuple[int, int]]:
    """How many of how many: paraphrases caught; near things taken wrongly; things about something else altogether."""
    entries: list[dict[str, Any]] = tomllib.loads(DATA.read_text(encoding="utf-8"))[part]
    same = [similarity(text, one["forbidden"]) >= THRESHOLD for one in entries for text in one["same"]]
    near = [similarity(text, one["forbidden"]) >= THRESHOLD for one in entries for text in one["other"]]
    far = [
        similarity(text, one["forbidden"]) >= THRESHOLD
        for one in entries
        for stranger in entries
        if stranger is not one
        for text in (*stranger["same"], *stranger["other"], stranger["forbidden"])
    ]
    return [(sum(hits), len(hits)) for hits in (same, near, far)]


def test_paraphrases_as_docs_state() -> None:
    """docs/profiles.md has these numbers: of held-out ones, and of clauses that affirm one thing and deny another."""
    assert THRESHOLD == 0.5
    assert found("held_out") == [(35, 41), (5, 42), (5, 837)]
    assert found("mixed") == [(22, 22), (2, 21), (1, 245)]
    caught, of = found("tuned")[0]
    assert caught == of
