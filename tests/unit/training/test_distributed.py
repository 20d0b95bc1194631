"""Several processes train what one does: the same summaries, metrics and weights, whatever is asked of them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from together import assert_same, config, launch, train_alone, trained

from popi.config import resolve
from popi.engine.decoding import pick, skip
from popi.errors import ConfigError
from popi.training.phases.trainer import share_random_state
from popi.training.planning.shares import parts_of
from popi.training.processes import Processes, fingerprint
from popi.training.train import refuse_launch

EVERY_ORDER = [
    "plug_and_play",
    "alternating",
    "simultaneous",
    "population_dpo",
    "fspo",
    "user_embedding",
    "user_embedding_from_signals",
]


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """Where one process trains, with reference log-probs of its own."""
    folder = tmp_path / "alone"
    folder.mkdir()
    return folder


def test_two_processes_train_what_one_does(tiny_base: Path, tmp_path: Path, alone: Path) -> None:
    """Both components with adapters, and a generator alone; with evaluations."""

    def configs(root: Path) -> list[dict[str, Any]]:
        orders = ["simultaneous", "population_dpo"]
        return [config(tiny_base, root, "lora", "lora", orders, eval_steps=2, eval_users=3)]

    train_alone(configs(alone))
    trained(2, tmp_path, configs(tmp_path))
    assert_same(alone / "lora", tmp_path / "lora")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_four_processes_train_every_order(tiny_base: Path, tmp_path: Path, alone: Path, adapter: str) -> None:
    """With credit for clauses, renewals, a micro batch and fewer pairs in the joint step than there could be, too."""
    inference = {"steps": 2, "warmup_steps": 0, "users_per_step": 8, "group_size": 2, "learning_rate": 1e-2}

    def configs(root: Path) -> list[dict[str, Any]]:
        return [
            config(tiny_base, root, "every", adapter, EVERY_ORDER, eval_steps=2, eval_users=3),
            config(tiny_base, root, "clauses", adapter, ["plug_and_play"], inference=inference | {"credit": "clause"}),
            config(tiny_base, root, "renewals", adapter, ["alternating"], renewal={"share": 0.5}),
            config(tiny_base, root, "pairs", adapter, ["simultaneous"], generator={"batch_size": 6, "warmup_steps": 0}),
        ]

    train_alone(configs(alone))
    trained(4, tmp_path, configs(tmp_path))
    for name in ("every", "clauses", "renewals", "pairs"):
        assert_same(alone / name, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_two_processes_train_on_copied_and_on_single_signals(
    tiny_base: Path, tmp_path: Path, alone: Path, adapter: str
) -> None:
    """Order `copy`, and `summary.per_signal` in the orders that sample summaries."""

    def configs(root: Path) -> list[dict[str, Any]]:
        orders = ["copy", "alternating", "simultaneous"]
        one = config(tiny_base, root, "signals", adapter, orders, generator_start="copy", eval_steps=2, eval_users=3)
        return [one | {"summary": {"max_tokens": 8, "per_signal": True}}]

    train_alone(configs(alone))
    trained(2, tmp_path, configs(tmp_path))
    assert_same(alone / "signals", tmp_path / "signals")


@pytest.mark.slow
def test_micro_batches_of_several_processes(tiny_base: Path, tmp_path: Path, alone: Path) -> None:
    """Two processes with micro batches of 2 go through a step as one process does with micro batches of 4."""

    def configs(root: Path, micro_batch: int) -> list[dict[str, Any]]:
        inference = {"steps": 2, "warmup_steps": 0, "users_per_step": 8, "group_size": 2, "micro_batch": micro_batch}
        generator = {"steps": 2, "warmup_steps": 0, "batch_size": 8, "micro_batch": micro_batch}
        return [
            config(tiny_base, root, "micro", "lora", ["alternating"], inference=inference, generator=generator),
        ]

    train_alone(configs(alone, 4))
    trained(2, tmp_path, configs(tmp_path, 2))
    assert_same(alone / "micro", tmp_path / "micro")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_run_resumes_on_another_number_of_processes(
    tiny_base: Path, tmp_path: Path, alone: Path, before: int, after: int
) -> None:
    def configs(root: Path, **more: Any) -> list[dict[str, Any]]:
        one = config(tiny_base, root, "resumed", "lora", ["simultaneous"], save_steps=1)
        return [one | more]

    train_alone(configs(alone))
    killed = launch(before, tmp_path, configs(tmp_path, fault={"rank": 0, "step": 2, "what": "killed"}))
    assert killed.returncode and (tmp_path / "resumed/phases/joint/checkpoints/checkpoint-1/complete").is_file()
    trained(after, tmp_path, configs(tmp_path), "--resume")
    assert_same(alone / "resumed", tmp_path / "resumed")


@pytest.mark.slow
def test_a_killed_process_ends_the_run(tiny_base: Path, tmp_path: Path) -> None:
    fault = {"rank": 1, "step": 2, "what": "killed"}
    one = config(tiny_base, tmp_path, "killed", "lora", ["plug_and_play"], save_steps=1)
    done = launch(2, tmp_path, [one | {"fault": fault}])
    assert done.returncode and "SIGKILL" in done.stderr
    assert "another process of this run has ended" in done.stderr or "SIGTERM" in done.stderr, done.stderr
    assert (tmp_path / "killed/phases/inference-1/checkpoints/checkpoint-1/complete").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [("drifts", "the weights of processes 1 differ from those of process 0"), ("diverges", "training diverged")],
)
def test_a_fault_of_one_process_stops_all(tiny_base: Path, tmp_path: Path, what: str, message: str) -> None:
    one = config(tiny_base, tmp_path, "fault", "lora", ["population_dpo"], save_steps=1)
    done = launch(2, tmp_path, [one | {"fault": {"rank": 1, "step": 2, "what": what}}])
    reported = re.findall(rf"^popi: population-dpo.*{message}", done.stderr, re.MULTILINE)  # by the first process
    assert done.returncode and len(reported) == 1, done.stderr[-5000:]
    checkpoints = tmp_path / "fault/phases/population-dpo/checkpoints"
    assert (checkpoints / "checkpoint-1/complete").is_file() and not (checkpoints / "checkpoint-2/complete").exists()


# -- without other processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [40, 1500])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_share_of_the_rows_is_drawn_as_one_process_draws_them(vocabulary: int, top_p: float) -> None:
    logits = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    whole = [pick(logits, 0.9, top_p) for _ in range(3)]
    next_number = torch.rand(1)
    torch.manual_seed(5)
    first = pick(logits[2:4], 0.9, top_p, (2, 6))
    skip(6, vocabulary, torch.float32, torch.device("cpu"))
    third = pick(logits[4:], 0.9, top_p, (4, 6))
    assert torch.equal(first, whole[0][2:4]) and torch.equal(third, whole[2][4:])
    assert torch.equal(torch.rand(1), next_number)


def test_permutations_of_all_processes_are_one() -> None:
    drawn = []
    for rank in range(3):
        torch.manual_seed(1)
        drawn.append(Processes(rank, 3).permutation(4))
    assert all(sorted(own.tolist()) == [0, 1, 2, 3] for own in drawn)
    torch.manual_seed(1)
    order = Processes().permutation(12).tolist()
    for rank, own in enumerate(drawn):
        assert [n - 4 * rank for n in order if n // 4 == rank] == own.tolist()


def test_shares_are_all_of_the_items_in_order() -> None:
    for n in range(8):
        items = list(range(n))
        shares = [Processes(rank, 3).share(items) for rank in range(3)]
        assert [item for share in shares for item in share] == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_step_in_parts() -> None:
    assert parts_of("users_per_step", 8, None, 2) == 1
    assert parts_of("users_per_step", 8, 2, 2) == 2
    assert parts_of("users_per_step", 8, 6, 2) == 1
    with pytest.raises(ConfigError, match="users_per_step=8 can't be divided among 3 processes"):
        parts_of("users_per_step", 8, None, 3)
    with pytest.raises(ConfigError, match="is 4 for each, which is no multiple of micro_batch=3"):
        parts_of("users_per_step", 8, 3, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fingerprints_tell_weights_apart(dtype: torch.dtype) -> None:
    weights = torch.randn(50, 3).to(dtype)
    other = weights.clone()
    other[7, 1] = torch.nextafter(other[7, 1].float(), torch.tensor(9.0)).to(dtype) + torch.finfo(dtype).eps
    assert fingerprint([weights]) == fingerprint([weights.clone()]) != fingerprint([other])


def test_random_state_for_another_number_of_processes(tmp_path: Path) -> None:
    torch.save({"cpu": torch.random.get_rng_state()}, tmp_path / "rng_state.pth")
    share_random_state(tmp_path, 2)
    (tmp_path / "rng_state.pth").unlink()
    share_random_state(tmp_path, 1)
    assert {file.name for file in tmp_path.iterdir()} == {"rng_state.pth", "rng_state_0.pth", "rng_state_1.pth"}
    for file in tmp_path.iterdir():
        assert torch.equal(torch.load(file)["cpu"], torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inference": {"users_per_step": 3}}, "users_per_step=3 can't be divided among 2 processes"),
        ({"generator": {"batch_size": 5}}, "batch_size=5 can't be divided among 2 processes"),
    ],
)
def test_what_can_not_be_divided_is_refused(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refuse_launch(resolve(config(tiny_base, tmp_path, "r", "lora", ["alternating"])))
    with pytest.raises(ConfigError, match=message):
        refuse_launch(resolve(config(tiny_base, tmp_path, "r", "lora", ["alternating"], **changes)))
