import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from popi.evaluation.report import compare
from popi.evaluation.report.compare import Compared

Make = Callable[..., Path]


def change(run: Path, edit: Callable[[dict[str, Any]], None]) -> Compared:
    metrics = json.loads((run / "metrics.json").read_text())
    edit(metrics)
    (run / "metrics.json").write_text(json.dumps(metrics))
    return Compared.read(run)


def test_the_same_pairs_are_compared_pair_by_pair(make_run: Make) -> None:
    first, second = Compared.read(make_run("first")), Compared.read(make_run("second"))
    rows = (second.path / "evaluation" / "popi_alternating.jsonl").read_text().splitlines()
    lost = json.loads(rows[0]) | {"margin": -3.0}  # of three pairs one is lost
    (second.path / "evaluation" / "popi_alternating.jsonl").write_text("\n".join([json.dumps(lost), *rows[1:]]) + "\n")
    table = compare.side_by_side([first, second])
    assert table.heads == ["Method", "first: accuracy, %", "first: tokens", "second: accuracy, %", "second: tokens"] + [
        "second minus first, points"
    ]
    cells = {row.head: row.cells for row in table.rows}
    assert cells["POPI alternating"][4].text == "−33.3" and cells["Oracle (true preferences)"][4].text == "0.0"


def test_other_users_are_not_paired(make_run: Make) -> None:
    first = Compared.read(make_run("first"))
    seeded = change(make_run("seeded"), lambda m: m.update(seed=1))
    more = change(make_run("more"), lambda m: m["config"]["data"].update(train_users=7))
    assert (
        "Evaluated on different users than first, so differences are not paired: seeded."
        in compare.side_by_side([first, seeded]).notes
    )
    assert len(compare.side_by_side([first, seeded]).heads) == 5
    assert len(compare.side_by_side([first, more]).heads) == 6  # trained on others, tested on the same
    (more.path / "evaluation" / "no_personalization.jsonl").write_text("")
    assert len(compare.side_by_side([first, more]).heads) == 5


def test_settings_that_differ(make_run: Make) -> None:
    first = Compared.read(make_run("first"))
    other = change(make_run("other"), lambda m: m["config"]["training"]["inference"].update(length_target=8, steps=3))
    assert compare.settings([first, first]) is None
    table = compare.settings([first, other])
    assert table is not None
    found = {row.head: [cell.text for cell in row.cells] for row in table.rows}
    assert found == {"training.inference.length_target": ["unset", "8"], "training.inference.steps": ["60", "3"]}


def test_points_of_the_frontier(make_run: Make) -> None:
    first = Compared.read(make_run("first"))
    other = change(make_run("other"), lambda m: m["config"]["training"]["inference"].update(length_target=8))
    found = compare.points([first, other])
    assert [(p.label, p.line) for p in found if p.method == "popi_alternating"] == [
        ("alternating · no target", "popi_alternating"),
        ("alternating · target 8", "popi_alternating"),
    ]
    untrained = [p for p in found if not p.line]
    assert [p.method for p in untrained] == ["no_personalization", "raw_signals", "untrained_summary", "oracle"]
    assert {p.label for p in compare.points([first, first]) if p.line} == {
        f"{kind} · {first.path}" for kind in ("plug-and-play", "alternating")
    }
