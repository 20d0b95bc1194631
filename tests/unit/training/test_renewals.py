"""Rows that are renewals: where signals are split, what is shown, which targets score it, what a resumed run finds."""

import json
from collections import Counter
from pathlib import Path

import pytest

from popi.config import resolve
from popi.errors import ConfigError
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.local.model import LocalModel
from popi.nano.world import make_users
from popi.signals.types import StatementSignal, User
from popi.training.planning.plan import refuse_settings
from popi.training.references import References
from popi.training.renewals import FILE, Renewal, cuts, new_signals, renewals, split_in_time
from popi.training.rows import inference_rows
from popi.training.written import sample_summaries


@pytest.fixture(scope="module")
def users() -> list[User]:
    return [made.user for made in make_users(4, 0, "train", targets=3)]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> InferenceModel:
    return InferenceModel(LocalModel.load(tiny_base, device="cpu"), max_tokens=5)


def said(text: str, time: float | None = None) -> StatementSignal:
    return StatementSignal(text=text, time=time)


def test_signals_are_split_by_their_times() -> None:
    mixed = [said("c", 3), said("a", 1), said("b", 2)]
    earlier, later = split_in_time(mixed, 2)
    assert [one.text for one in earlier] == ["a", "b"] and [one.text for one in later] == ["c"]
    untimed = [said("c", 3), said("a"), said("b", 2)]
    assert [one.text for one in split_in_time(untimed, 1)[0]] == ["c"]  # as they stand


@pytest.mark.parametrize(("n", "place", "new"), [(2, 0.0, 1), (2, 0.99, 1), (9, 0.0, 1), (9, 0.5, 3), (9, 0.95, 8)])
def test_new_signals_by_hand(n: int, place: float, new: int) -> None:
    assert new_signals(n, place) == new


def test_where_rows_are_split() -> None:
    few = [User(user_id=str(n), signals=[said("x")] * n) for n in (0, 1, 2, 4)]
    order = [0, 1, 2, 3] * 200
    found = cuts(few, order, 1.0, seed=0)
    places = {n: {cut for i, cut in zip(order, found, strict=True) if i == n} for n in range(4)}
    assert places == {0: {0}, 1: {0}, 2: {1}, 3: {1, 2, 3}}
    assert found == cuts(few, order, 1.0, seed=0) != cuts(few, order, 1.0, seed=1)
    assert set(cuts(few, order, 0.0, seed=0)) == {0}
    half = cuts(few, [3] * 1000, 0.5, seed=0)
    assert 430 < sum(cut > 0 for cut in half) < 570
    new = Counter(
        4 - cut for cut in cuts(few, [3] * 2000, 1.0, seed=0)
    )  # P(1) = ln 2/ln 4, P(2) = ln 3/ln 4 − ln 2/ln 4
    assert [round(new[n] / 2000, 1) for n in (1, 2, 3)] == [0.5, 0.3, 0.2]
    longer = cuts(few, [3] * 2000, 0.5, seed=0)
    assert longer[:1000] == half  # a row does not depend on those behind it


def all_of(users: list[User], model: InferenceModel, folder: Path, share: float = 1.0) -> list[Renewal | None] | None:
    return renewals(users, [2, 0, 2], share, 0, model, folder, lambda n: lambda done: None)


def test_rows_show_the_old_summary_and_later_signals_and_are_scored_on_the_last_targets(
    users: list[User], model: InferenceModel, tmp_path: Path
) -> None:
    references = References(tmp_path / "references.jsonl")
    references.compute(users, Generator(model.local))
    found = all_of(users, model, tmp_path)
    assert found is not None
    rows = inference_rows(users, [2, 0, 2], model, references, 2, 0, found)
    placed = cuts(users, [2, 0, 2], 1.0, 0)
    for row, renewal, i, cut in zip(rows, found, (2, 0, 2), placed, strict=True):
        assert renewal is not None and row.user_id == users[i].user_id
        assert list(renewal.signals) == users[i].signals[cut:]
        assert renewal.previous.text == model.summarize(users[i].signals[:cut]).text
        assert renewal.previous.signals_total == cut
        assert row.prompt_ids == tuple(model.prompt_ids(users[i].signals[cut:], None, renewal.previous)[0])
        assert list(row.targets) == list(references.targets(users[i])[1:])
    mixed = [found[0], None, None]
    plain = inference_rows(users, [2, 0, 2], model, references, 3, 0)
    assert inference_rows(users, [2, 0, 2], model, references, 3, 0, mixed)[1:] == plain[1:]


def test_old_summaries_are_kept_and_found_again(
    users: list[User], model: InferenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = all_of(users, model, tmp_path)
    kept = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert {row["user_id"] for row in kept} == {users[0].user_id, users[2].user_id}
    monkeypatch.setattr(InferenceModel, "summarize_many", lambda *_, **__: pytest.fail("written again"))
    assert all_of(users, model, tmp_path) == found  # through the file, as a resumed run


def test_without_renewals_nothing_is_written(users: list[User], model: InferenceModel, tmp_path: Path) -> None:
    assert all_of(users, model, tmp_path, share=0.0) is None
    assert not (tmp_path / FILE).exists()


def test_the_generator_trains_on_renewed_summaries(users: list[User], model: InferenceModel, tmp_path: Path) -> None:
    found = renewals(users, range(4), 1.0, 0, model, tmp_path, lambda n: lambda done: None)
    assert found is not None and found[1] is not None
    found[3] = None
    written = sample_summaries(users, model, 1e-6, 1.0, lambda done: None, 3, found)
    assert written[1] == [model.summarize(found[1].signals, previous=found[1].previous).text] * 3
    assert written[3] == [model.summarize(users[3].signals).text] * 3


def test_summaries_for_one_prompt_are_not_renewed() -> None:
    config = resolve(
        {
            "summary": {"conditioned_on_prompt": True},
            "training": {"renewal": {"share": 0.5}, "inference": {"targets_per_summary": 1}},
        }
    )
    with pytest.raises(ConfigError, match=r"training.renewal.share=0.5 does not work with .* set it to 0"):
        refuse_settings(config)
