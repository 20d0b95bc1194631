"""side_effects.json: facts with and without a context, behind wrong opinions, and copied spans."""

import json

import pytest

from popi.studies.side_effects import run as module
from popi.studies.side_effects.facts import nano_facts
from popi.studies.side_effects.run import side_effects
from popi.studies.study import Study


def test_side_effects_json(run, tiny) -> None:
    models = tiny(run)
    study = Study.open(run, models=models, methods=["raw_signals", "popi_plug_and_play"], test_users=2)
    result = side_effects(study, nano_facts(0, 3), opinions=2)
    assert json.loads((run.path / "evaluation" / "side_effects.json").read_text()) == result
    rows = {(r["method"], r["measure"]): r for r in result["rows"]}
    assert [measure for method, measure in rows if method == "raw_signals"] == [
        "facts right, %",
        "after a wrong opinion, %",
    ]
    facts, opinions = (rows["popi_plug_and_play", m] for m in ("facts right, %", "after a wrong opinion, %"))
    assert (facts["items"], opinions["items"]) == (6, 4)
    for r in (facts, opinions):
        assert r["difference"] == pytest.approx(r["value"] - r["against"])
    words = rows["popi_plug_and_play", "longest copy, words"]
    assert words["items"] == 2 and words["most"] >= words["value"]
    assert all(set(r) >= {"method", "label", "measure", "value"} for r in result["rows"])
    asked = len(models.asked)
    side_effects(Study.open(run, models=models, methods=["popi_plug_and_play"], test_users=2), nano_facts(0, 3), 2)
    assert len(models.asked) == asked


def test_wrong_opinions_stand_at_the_end_of_the_signals(run, tiny) -> None:
    study = Study.open(run, models=tiny(run), methods=["raw_signals"], test_users=1)
    [fact] = nano_facts(0, 1)
    about = module._about(study.people[0], [fact], [fact])
    assert [signal.type for signal in about.user.signals[-2:]] == ["statement", "post"]
    assert {signal.text for signal in about.user.signals[-2:]} == {fact.opinion}
    assert about.user.signals[:-2] == study.people[0].user.signals and about.user.targets == [fact.target]


def test_shares_and_differences_by_hand() -> None:
    def row(window: int, chosen: float, rejected: float) -> dict:
        return {
            "user_id": f"u{window}",
            "window": window,
            "target": 0,
            "chosen_logp": chosen,
            "rejected_logp": rejected,
        }

    mine, plain = [row(0, -1, -2), row(1, -2, -1), row(2, -1, -1)], [row(1, -1, -2), row(0, -1, -2)]
    kept, others = module._pair_up(mine, plain)
    assert [r["window"] for r in kept] == [r["window"] for r in others] == [0, 1]
    assert module._right(mine) == [1.0, 0.0, 0.5]
    found = module._compared("facts", module._right(kept), module._right(others), ["u0", "u1"])
    assert (found["value"], found["against"], found["difference"], found["users"]) == (50.0, 100.0, -50.0, 2)


def test_a_summary_that_copies_is_flagged(run, tiny, monkeypatch) -> None:
    study = Study.open(run, models=tiny(run), methods=["untrained_summary"], test_users=2)
    copied = (
        study.people[0].user.signals[0].prompt
        + " "
        + next(s.chosen for s in study.people[0].user.signals if s.type == "pair")
    )

    def rows(name, people, what):
        texts = [copied, "likes tea."]
        return [{"user_id": f"u{w}", "window": w, "target": 0, "summary": texts[w]} for w in range(2)]

    monkeypatch.setattr(study, "rows", rows)
    measures, exceeding = module._copies(study, "untrained_summary")
    assert [(e["user_id"], set(e["exceeds"])) for e in exceeding] == [("u0", {"words", "characters"})]
    by_name = {m["measure"]: m for m in measures}
    assert by_name["copies of 8+ words, %"]["value"] == 50.0
    assert by_name["copies of a private name, %"]["value"] == 0.0
    assert by_name["copies of a private name, %"]["in_signals"] == 0  # the nano world has no capitals
