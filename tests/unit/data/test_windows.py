import json
from pathlib import Path
from typing import Any

import pytest

from popi.data.jsonl import read_users
from popi.data.windows import PreferenceRow, cut_windows
from popi.errors import DataError
from popi.signals.types import Message, PairSignal, TargetPair


def chat(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def row(user_id: str, number: int) -> PreferenceRow:
    return PreferenceRow(user_id=user_id, prompt=f"p{number}", chosen=f"c{number}", rejected=f"r{number}")


def test_windows_do_not_overlap_and_keep_order() -> None:
    rows = [row("a", i) for i in range(7)] + [row("b", i) for i in range(2)] + [row("a", 7)]
    windows, left = cut_windows(rows, signals=2, targets=1)
    assert [window.user_id for window in windows] == ["a", "a"]
    prompts = [[s.prompt for s in (*w.signals, *w.targets)] for w in windows]  # type: ignore[union-attr]
    assert prompts == [["p0", "p1", "p2"], ["p3", "p4", "p5"]]
    assert left == 4  # a's last two and b's two


def test_a_window_is_signals_then_targets() -> None:
    [window], _ = cut_windows([row("a", 0), row("a", 1)], signals=1, targets=1)
    assert window.signals == [PairSignal(prompt="p0", chosen="c0", rejected="r0")]
    assert window.targets == [TargetPair(prompt="p1", chosen="c1", rejected="r1")]


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 9.5},
        {"prompt": chat("p"), "chosen": said("c"), "rejected": said("r")},
        {"chosen": chat("p", "c"), "rejected": chat("p", "r")},
    ],
)
def test_every_form_of_trl_rows(columns: dict[str, Any]) -> None:
    pair = PreferenceRow.model_validate({"user_id": "a", **columns}).pair()
    assert (pair.chosen, pair.rejected) == ("c", "r")
    assert pair.prompt in ("p", [Message(role="user", content="p")])


def test_an_implicit_prompt_is_all_that_both_share() -> None:
    columns = {"chosen": chat("p", "a", "q", "c"), "rejected": chat("p", "a", "q", "r")}
    pair = PreferenceRow.model_validate({"user_id": "a", **columns}).pair()
    assert [message.content for message in pair.prompt] == ["p", "a", "q"]  # type: ignore[union-attr]


def test_an_implicit_prompt_never_takes_equal_responses() -> None:
    pair = PreferenceRow.model_validate({"user_id": "a", "chosen": chat("p", "c"), "rejected": chat("p", "c")}).pair()
    assert (pair.chosen, pair.rejected) == ("c", "c")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen": "c", "rejected": "r"}, "prompt: missing; required if"),
        ({"prompt": "p", "chosen": "c", "rejected": said("r")}, "both"),
        ({"chosen": chat("p", "c"), "rejected": chat("q", "r")}, "do not begin with the same"),
        ({"chosen": chat("p", "c", "x"), "rejected": chat("p", "r")}, "chosen: must be one assistant message"),
        ({"prompt": "p", "chosen": chat("c"), "rejected": said("r")}, "chosen: must be one assistant message"),
    ],
)
def test_rows_that_make_no_pair_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"user_id": "a", **columns}))
    with pytest.raises(DataError, match=message) as error:
        read_users(path)
    assert "line 1" in str(error.value)


def test_a_file_of_rows_is_read_as_windows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(row("a", i).model_dump_json(exclude_none=True) for i in range(5)))
    [window] = read_users(path, signals_per_user=3, targets_per_user=2)
    assert (len(window.signals), len(window.targets)) == (3, 2)


def test_too_few_rows_for_any_window(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(row("a", 0).model_dump_json(exclude_none=True))
    with pytest.raises(DataError, match="no user has the 8 rows"):
        read_users(path)


def test_rows_without_a_user_and_mixed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    with pytest.raises(DataError, match="line 1, user_id: required"):
        read_users(path)
    path.write_text('{"user_id": "b", "signals": []}\n' + row("a", 0).model_dump_json(exclude_none=True))
    with pytest.raises(DataError, match="put each kind in a separate file"):
        read_users(path)
