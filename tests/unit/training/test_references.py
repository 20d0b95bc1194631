"""Reference log-probs that runs share: found again to the bit, by what they depend on, and checked."""

import json
from pathlib import Path

import pytest
import torch

from popi.generator import Generator
from popi.models.local.adapters import TRAINED, attach_adapters
from popi.models.local.model import LocalModel
from popi.nano.world import make_users
from popi.signals.types import User
from popi.training.references import References, identity, weights_stamp


@pytest.fixture(scope="module")
def users() -> list[User]:
    return [made.user for made in make_users(4, 0, "train", targets=2)]


@pytest.fixture
def base(tiny_base: Path) -> Generator:
    return Generator(LocalModel.load(tiny_base, device="cpu"))


def run(folder: Path, name: str, users: list[User], base: Generator) -> References:
    references = References(folder / name / "references.jsonl", folder / ".references")
    references.compute(users, base)
    return references


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many targets each call scores."""
    scored: list[int] = []
    inner = Generator.pair_logps

    def pair_logps(self: Generator, targets: list, *rest: object) -> object:
        scored.append(len(targets))
        return inner(self, targets, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "pair_logps", pair_logps)
    return scored


def test_a_second_run_finds_them_to_the_bit(
    users: list[User], base: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, "a", users[:3], base)
    scored = counted(monkeypatch)
    second = run(tmp_path, "b", users, base)
    assert scored == [2, 2], "one user again, to check the file, and the one that it did not hold"
    for user in users[:3]:
        assert second.targets(user) == first.targets(user)
    scored.clear()
    assert run(tmp_path, "c", users, base).targets(users[3]) == second.targets(users[3])
    assert scored == [2]
    scored.clear()
    run(tmp_path, "b", users, base)
    assert scored == [], "the run's own file comes first, and is not checked"


def test_who_else_is_in_the_run_changes_no_bit(users: list[User], base: Generator, tmp_path: Path) -> None:
    alone, together = (References(tmp_path / name) for name in ("alone", "together"))
    alone.compute(users[2:3], base)
    together.compute(users[::-1], base)
    assert alone.targets(users[2]) == together.targets(users[2])
    assert (tmp_path / "alone").exists() and not (tmp_path / ".references").exists()


def test_another_reference_has_a_file_of_its_own(users: list[User], tiny_base: Path, tmp_path: Path) -> None:
    def generator(templates: str = "nano", dtype: str = "float32", moved: float = 0.0) -> Generator:
        local = LocalModel.load(tiny_base, device="cpu", dtype=dtype)
        with torch.no_grad():
            local.model.model.layers[1].mlp.up_proj.weight[0, 0] += moved
        return Generator(local, templates)

    told = [identity(g) for g in (generator(), generator(), generator("default"), generator(moved=1e-3))]
    told.append(identity(generator(dtype="bfloat16")))
    assert told[0] == told[1]
    assert [k for k in told[0] if told[0][k] != told[2][k]] == ["template"]
    assert [k for k in told[0] if told[0][k] != told[3][k]] == ["weights"]
    assert {"dtype", "weights"} == {k for k in told[0] if told[0][k] != told[4][k]}
    run(tmp_path, "a", users, generator())
    run(tmp_path, "b", users, generator(moved=1e-3))
    assert len(list((tmp_path / ".references").iterdir())) == 2


def test_adapters_over_the_base_do_not_change_its_stamp(tiny_base: Path) -> None:
    plain = weights_stamp(LocalModel.load(tiny_base, device="cpu").model)
    adapted = attach_adapters(LocalModel.load(tiny_base, device="cpu").model, 4, 8.0, {TRAINED: None})
    assert weights_stamp(adapted) == plain


def test_roundings_of_another_machine_are_taken_as_they_stand(
    users: list[User], base: Generator, tmp_path: Path
) -> None:
    run(tmp_path, "a", users, base)
    [file] = (tmp_path / ".references").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[1:]:
        row["logps"] = [[c * (1 + 5e-5), r * (1 - 5e-5)] for c, r in row["logps"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(tmp_path, "b", users, base).targets(users[0])
    assert [found[0].ref_chosen, found[0].ref_rejected] in [pair for row in rows[1:] for pair in row["logps"]]


@pytest.mark.parametrize("damage", ["moved", "nan", "other", "cut"])
def test_what_does_not_fit_is_written_anew(users: list[User], base: Generator, tmp_path: Path, damage: str) -> None:
    right = run(tmp_path, "a", users, base)
    [file] = (tmp_path / ".references").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if damage == "moved":
        for row in rows[1:]:
            row["logps"] = [[c + 1, r] for c, r in row["logps"]]
    elif damage == "nan":
        rows[1]["logps"][0][0] = float("nan")
    elif damage == "other":
        rows[0]["reference"]["weights"] = "another"
    else:
        rows[1].pop("logps")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="discarded and recomputed"):
        again = run(tmp_path, "b", users, base)
    for user in users:
        assert again.targets(user) == right.targets(user)
    assert run(tmp_path, "c", users, base).targets(users[0]) == right.targets(users[0])


def test_a_kill_loses_no_user_that_was_scored(
    users: list[User], base: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path, "whole", users, base)
    inner, calls = Generator.pair_logps, []

    def killed(self: Generator, targets: list, *rest: object) -> object:
        calls.append(targets)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inner(self, targets, *rest)  # type: ignore[arg-type]

    path = tmp_path / "references.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(Generator, "pair_logps", killed)
        with pytest.raises(KeyboardInterrupt):
            References(path).compute(users, base)
    path.write_text(path.read_text() + '{"targets": "brok')  # of the line that it was writing
    scored = counted(monkeypatch)
    again = References(path)
    assert len(again.missing(users)) == 2
    again.compute(users, base)
    assert scored == [2, 2]
    assert [again.targets(user) for user in users] == [whole.targets(user) for user in users]
    assert not References(path).missing(users)
