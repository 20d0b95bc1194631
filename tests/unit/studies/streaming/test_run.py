"""streaming.json on tiny models: the same signals in batches, renewed and from scratch."""

import json
from dataclasses import replace

import pytest

from popi.errors import ConfigError
from popi.signals.types import StatementSignal
from popi.studies.streaming.batches import batches, kinds_of_users, read_batches
from popi.studies.streaming.run import streaming
from popi.studies.streaming.written import Writer
from popi.studies.study import Study


def texts(parts: list) -> list[list[str]]:
    return [[one.text for one in part] for part in parts]


def test_batches_by_hand() -> None:
    signals = [StatementSignal(text=text, time=float(9 - n)) for n, text in enumerate("edcba")]
    assert texts(batches(signals, 1)) == [list("abcde")]
    assert texts(batches(signals, 2)) == [["a", "b"], ["c", "d", "e"]]
    assert texts(batches(signals, 4)) == [["a"], ["b"], ["c"], ["d", "e"]]
    assert texts(batches(signals[:2], 4)) == [[], ["d"], [], ["e"]]


def test_numbers_of_batches() -> None:
    assert read_batches("8,1,2") == [1, 2, 8]
    for wrong in ("0,1", "two", ""):
        with pytest.raises(ConfigError, match="--batches .*such as 1,2,4,8,16"):
            read_batches(wrong)


def test_users_of_the_nano_world(run, tiny) -> None:
    study = Study.open(run, models=tiny(run), methods=["untrained_summary"])
    kinds = kinds_of_users(study, None)
    for old, new in zip(kinds["stable"], kinds["changing"], strict=True):
        assert len(old.person.user.signals) == len(new.person.user.signals) == 16
        assert (old.before, old.change, new.change) == (None, 0, 8)
        assert new.before != new.person.preferences == old.person.preferences
        assert new.person.user.targets == old.person.user.targets
    with pytest.raises(ConfigError, match="--signals 4: must be at least 5"):
        kinds_of_users(study, 4)


def test_other_users_are_as_they_are(run, tiny) -> None:
    study = Study.open(run, models=tiny(run), methods=["untrained_summary"])
    study.people = [type(person)(person.user) for person in study.people]
    assert [len(one.person.user.signals) for one in kinds_of_users(study, None)["held out"]] == [9] * 3
    with pytest.raises(ConfigError, match="--signals 16 only applies to the nano world"):
        kinds_of_users(study, 16)
    result = streaming(study, [1, 2])
    assert all(row["drift"] is row["until_stated"] is row["stated"] is None for row in result["rows"])


@pytest.mark.parametrize(
    ("min_signals", "starts"),
    [
        (1, [(None, 0), (0, 2), (1, 4), (2, 6)]),  # each is made of the one before
        (4, [(None, 0), (None, 0), (1, 2), (1, 4)]),  # the second is the base, which has read four
        (5, [(None, 0), (None, 0), (None, 0), (2, 3)]),  # the third, with six; five signals are read at least
    ],
)
def test_from_which_summary_a_renewal_starts(run, tiny, min_signals: int, starts: list) -> None:
    study = Study.open(run, models=tiny(run), methods=["untrained_summary"], test_users=2)
    users = kinds_of_users(study, 8)["stable"]
    model = tiny(run).inference_model("nano")
    found = Writer(study, "untrained_summary", min_signals).after_each(users, "stable", 4, "renewed")
    for one, after in zip(users, found, strict=True):
        assert [each.seen for each in after] == [2, 4, 6, 8]
        for each, (number, since) in zip(after, starts, strict=True):
            read = one.person.user.signals[since : each.seen]
            base = None if number is None else replace(after[number].summary, signals_total=after[number].seen)
            assert each.read == len(model.prompt_ids(read, None, base)[0])
            assert each.summary == model.summarize(read, previous=base)
    scratch = Writer(study, "untrained_summary").after_each(users, "stable", 4, "from scratch")
    for one, after in zip(users, scratch, strict=True):
        for each in after:
            signals = one.person.user.signals[: each.seen]
            assert each.read == len(model.prompt_ids(signals)[0])
            assert each.summary == model.summarize(signals)


def test_streaming_json(run, tiny) -> None:
    models = tiny(run)
    open_study = lambda: Study.open(run, models=models, methods=["popi_alternating"])  # noqa: E731
    result = streaming(open_study(), [1, 4], 8)
    assert json.loads((run.path / "evaluation" / "streaming.json").read_text()) == result
    rows = result["rows"]
    assert [(r["kind"], r["batches"], r["way"]) for r in rows] == [
        (kind, n, way) for kind in ("stable", "changing") for n in (1, 4) for way in ("renewed", "from scratch")
    ]
    for row in rows:
        assert set(result["columns"]) <= set(row) and (row["users"], row["pairs"]) == (3, 6)
        assert len(row["after_each"]) == row["batches"] and row["after_each"][-1]["value"] == row["value"]
        assert (row["until_stated"] is None) == (row["kind"] == "stable")
    for renewed, scratch in zip(rows[::2], rows[1::2], strict=True):
        assert renewed["gain"] == pytest.approx(renewed["value"] - scratch["value"])
        if renewed["batches"] == 1:  # there is nothing to renew yet: all is the same
            different = {key for key in renewed if renewed[key] != scratch.get(key)}
            assert different == {"way", "series", "gain", "gain_low", "gain_high", "gain_after_each"}
            assert renewed["gain"] == 0
        else:
            assert renewed["tokens_read"] < scratch["tokens_read"]
    whole = {row["kind"]: row for row in rows if row["batches"] == 1}
    for row in rows:
        if row["way"] == "from scratch":
            assert row["value"] == whole[row["kind"]]["value"], "the last summary has read all, however they came"
    asked = len(models.asked)
    assert streaming(open_study(), [1, 4], 8)["rows"] == rows
    assert len(models.asked) == asked, "what is kept is not made again"


def test_summaries_for_one_prompt_are_refused(run, tiny) -> None:
    study = Study.open(run, models=tiny(run), methods=["untrained_summary"])
    study.config = study.config.model_copy(
        update={"summary": study.config.summary.model_copy(update={"conditioned_on_prompt": True})}
    )
    with pytest.raises(ConfigError, match="they can't be renewed"):
        streaming(study)
