"""What the studies share: which methods, rows that are kept, the table."""

import json

import pytest
from exact import nearly
from rich.console import Console

from popi.errors import ConfigError, RunError
from popi.evaluation.job import read_rows
from popi.evaluation.methods import METHODS
from popi.evaluation.metrics import Estimate
from popi.evaluation.runner import evaluate
from popi.studies.study import Study, interval, reads_signals, result_table, with_signals

STUDIED = ["raw_signals", "untrained_summary", "popi_plug_and_play", "popi_alternating"]


def test_methods_that_read_signals(run, tiny) -> None:
    assert [name for name in METHODS if reads_signals(name)] == [
        "raw_signals",
        "copy",
        "untrained_summary",
        "fspo",
        "copy_dpo",
        "untrained_summary_copy_dpo",
        "user_embedding_from_signals",
        "popi_plug_and_play",
        "popi_alternating",
        "popi_simultaneous",
    ]
    assert Study.open(run, models=tiny(run)).names == STUDIED
    assert Study.open(run, models=tiny(run), summaries_only=True).names == STUDIED[1:]
    assert Study.open(run, models=tiny(run), methods=["raw_signals"], test_users=2).names == ["raw_signals"]
    assert len(Study.open(run, models=tiny(run), test_users=2).people) == 2
    with pytest.raises(RunError, match="fspo: can't be studied here; choose from raw_signals, untr"):
        Study.open(run, models=tiny(run), methods=["fspo"])
    for name in ("oracle", "nobody"):
        with pytest.raises(ConfigError, match=f"--method {name}"):
            Study.open(run, models=tiny(run), methods=[name])


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a near tie may fall either way in float32
def test_rows_are_those_of_the_evaluation(precision, run, tiny) -> None:
    models = tiny(run)
    evaluate(run, models=models)
    study = Study.open(run, models=models)
    for name in STUDIED:
        wanted = read_rows(run.path / "evaluation" / f"{name}.jsonl")
        for row, other in zip(study.rows(name, study.people, "held out"), wanted, strict=True):
            assert row["margin"] == nearly(other["margin"], of=abs(other["chosen_logp"]))
            assert {key: row[key] for key in ("user_id", "window", "target", "summary")} == {
                key: other[key] for key in ("user_id", "window", "target", "summary")
            }


def test_kept_rows_are_not_scored_again(run, tiny) -> None:
    told: list[str] = []
    models = tiny(run)
    study = Study.open(run, models=models, report=told.append)
    rows = study.rows("popi_alternating", study.people, "held out")
    asked = list(models.asked)
    assert told == ["POPI alternating: held out", "No personalisation: plain"] or len(told) == 2
    again = Study.open(run, models=models, report=told.append)
    assert again.rows("popi_alternating", again.people, "held out") == rows
    assert (models.asked, len(told)) == (asked, 2)
    fewer = [with_signals(person, person.user.signals[:3]) for person in again.people]
    assert again.rows("popi_alternating", fewer, "held out") != rows  # other users: another file, though of one name
    assert len(told) == 3


def test_a_conditioned_model_writes_for_each_target(run, tiny) -> None:
    run.config = run.config.model_copy(
        update={"summary": run.config.summary.model_copy(update={"conditioned_on_prompt": True})}
    )
    study = Study.open(run, models=tiny(run), methods=["untrained_summary"], test_users=1)
    rows = study.rows("untrained_summary", study.people, "held out")
    model = tiny(run).inference_model("nano")
    user = study.people[0].user
    assert [row["summary"] for row in rows] == [
        model.summarize(user.signals, prompt=t.prompt).text for t in user.targets
    ]
    nothing = study.plain_rows("untrained_summary", study.people)
    assert [(row["margin"], row["abstained"]) for row in nothing] == [(0.0, True)] * 2


def test_result_is_written_with_what_made_it(run, tiny) -> None:
    study = Study.open(run, models=tiny(run), test_users=2)
    result = study.write("x.json", {"title": "t", "rows": []})
    assert json.loads((run.path / "evaluation" / "x.json").read_text()) == result
    assert result["test_users"] == 2 and result["seed"] == 0 and result["commit"]


def test_interval_and_table() -> None:
    assert interval(Estimate(0.5, 0.4, 0.6)) == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert interval(Estimate(1.0), "gain") == {"gain": 1.0, "gain_low": None, "gain_high": None}
    row = {"method": "m", "label": "M (long)", "value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    result = {
        "title": "T",
        "columns": ["label", "value", "low", "high", "n", "none"],
        "labels": {"label": "method"},
        "percent": ["value"],
        "rows": [row, row | {"value": None}],
        "notes": ["a note"],
    }
    console = Console(width=60)
    with console.capture() as shown:
        console.print(result_table(result))
    lines = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert "method value n none" in lines and "M 50.0 ± 10.0 3 –" in lines and "– 3 –" in lines and "a note" in lines


def test_figures_are_whole_where_the_terminal_is_narrow() -> None:
    names = [f"figure{n}" for n in range(5)]
    figures = {name: 0.25 for name in names} | {
        f"{name}_{end}": end == "high" for name in names for end in ("low", "high")
    }
    row = {"method": "User embedding from signals", "users": "without evidence", "check": "own pairs"} | figures
    result = {"title": "t", "columns": list(row), "labels": {}, "percent": names, "rows": [row], "notes": []}
    console = Console(width=80)
    with console.capture() as shown:
        console.print(result_table(result))
    assert shown.get().count("25.0 ± 50.0") == 5 and "…" not in shown.get()
