import json
from pathlib import Path
from typing import Any

import pytest

from popi.data.users import Person
from popi.errors import DataError
from popi.evaluation.judge.alpaca_eval import annotations, model_outputs, read_annotations, read_model_outputs
from popi.evaluation.judge.comparisons import Comparison
from popi.evaluation.judge.responses import responses_of_file
from popi.evaluation.judge.result import figures, figures_of_annotations
from popi.evaluation.judge.run import write_alpaca_eval
from popi.signals.types import TargetPair, User

COMPARISONS = [
    Comparison((0, 0), "a", "tea?", "hot water", "no", ("first", "second")),
    Comparison((0, 1), "a", "jam?", "x", "sugar", ("second", "tie")),
    Comparison((1, 0), "b", "tea?", "leaves", "no", (None, "first"), (("failed", "503"),)),
    Comparison((1, 1), "b", "fog?", None, "grey", (None, None)),
]


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_exported_fields_are_those_of_alpaca_eval() -> None:
    rows = annotations(COMPARISONS, "popi", "plain", "judge")
    assert rows[0] == {
        "instruction": "tea?",
        "output_1": "no",  # the reference's is always the first
        "generator_1": "plain",
        "output_2": "hot water",
        "generator_2": "popi",
        "annotator": "judge",
        "preference": 2.0,
        "user_id": "a",
    }
    assert [row["preference"] for row in rows] == [2.0, 1.25, None]
    ours = model_outputs(COMPARISONS, "popi", of_reference=False)
    assert ours[0] == {"instruction": "tea?", "output": "hot water", "generator": "popi", "user_id": "a"}
    assert len(ours) == 3 and len(model_outputs(COMPARISONS, "plain", of_reference=True)) == 4


def test_what_is_exported_reads_back_with_the_same_win_rates(tmp_path: Path) -> None:
    write_alpaca_eval(tmp_path / "a", COMPARISONS, "popi", "plain", "judge")
    rows = read_annotations(tmp_path / "a" / "annotations.json")
    own, read = figures(COMPARISONS), figures_of_annotations(rows)
    for key in ("win_rate", "length_controlled_win_rate", "length", "length_difference", "wins", "losses"):
        assert read[key] == own[key], key
    assert read["missing_verdicts"] == {"no preference": 1}
    assert [o.output for o in read_model_outputs(tmp_path / "a" / "model_outputs.json")] == ["hot water", "x", "leaves"]


def test_their_own_annotations_are_read(tmp_path: Path) -> None:
    row = {"instruction": "i", "output_1": "a", "output_2": "b", "generator_1": "ref", "generator_2": "m"}
    more = {"annotator": "weighted_alpaca_eval_gpt4_turbo", "raw_completion": {"x": 1}, "time_per_example": 0.3}
    rows = [row | more | {"preference": p} for p in (1, 2, 1.5, 0, 1.0003, None)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([*rows, row | {"preference": float("nan")}]))  # as pandas may write it
    found = read_annotations(path)
    assert [a.outcome for a in found] == [0, 1, 0.5, 0.5, pytest.approx(0.0003), None, None]
    result = figures_of_annotations(found)
    assert (result["users"], result["judged"], result["missing_verdicts"]) == (7, 5, {"no preference": 2})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"instruction": "i"}, "must be a JSON array of objects"),
        ([], "must be a JSON array of objects"),
        (
            [{"instruction": "i", "output_1": "a", "output_2": 3, "preference": 1}],
            "row 0: output_2 must be text",
        ),
        ([{"instruction": "i", "output_1": "a", "output_2": "b", "preference": 3}], "between 1 and 2.*got 3"),
        ([{"instruction": "i", "output_1": "a", "output_2": "b", "preference": True}], "got True"),
        ([{"output_1": "a", "output_2": "b", "preference": 1}], "row 0: instruction must be text; got None"),
    ],
)
def test_faulty_annotations_are_refused(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_annotations(write(tmp_path / "a.json", rows))


def test_faulty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_model_outputs(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_model_outputs(tmp_path / "bad.json")
    twice = [{"instruction": "i", "output": "a"}, {"instruction": "i", "output": "b"}]
    with pytest.raises(DataError, match="row 1: a second output for instruction 'i'"):
        read_model_outputs(write(tmp_path / "twice.json", twice))


def test_imported_outputs_are_found_by_user_and_prompt_else_by_prompt(tmp_path: Path) -> None:
    targets = [TargetPair(prompt=prompt, chosen="c", rejected="r") for prompt in ("tea?", "jam?")]
    people = [Person(User(user_id=name, signals=[], targets=targets)) for name in ("a", "b")]
    rows = [
        {"instruction": "tea?", "output": "for all"},
        {"instruction": "tea?", "output": "for b", "user_id": "b"},
        {"instruction": "jam?", "output": "sweet"},
    ]
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    found = responses_of_file(write(tmp_path / "o.json", rows), keys, people)
    assert list(found.values()) == ["for all", "sweet", "for b", "sweet"]
    with pytest.raises(DataError, match="no output for user 'a' and instruction 'jam\\?'"):
        responses_of_file(write(tmp_path / "o.json", rows[:2]), keys, people)
