"""Reliability of a group's rewards: by hand, in a simulation of known variances, and as a run and a dry run say it."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, tensor
from typer.testing import CliRunner

from popi.cli import app
from popi.config import RunConfig, resolve
from popi.runs.files import read_jsonl
from popi.training.credit import Clauses
from popi.training.rehearsal import rehearse
from popi.training.reliability import LOW, Reliability, Squares, advice
from popi.training.reward import SummaryReward
from popi.training.train import train

X = tensor([[1.0, 2.0], [3.0, 6.0]])
"""Means of summaries 1.5 and 4.5, of targets 2 and 4, of all 3. SS_s = 2·(1.5² + 1.5²) = 9, SS_res = 4·½² = 1."""


def close(expected: float) -> Any:
    return pytest.approx(expected, abs=1e-9)


def test_one_group_by_hand() -> None:
    squares = Squares.of(X)
    assert (squares.samples, squares.residual, squares.df_samples, squares.df_residual) == (9, 1, 1, 1)
    assert squares.variances == (4.0, 1.0)  # (9 − 1)/2 and 1
    found = Reliability.of([[X]], targets=2)
    assert found is not None and found.value == close(4 / (4 + 1 / 2)) and (found.spread, found.noise) == (2, 1)
    assert found.value == close(1 - 1 / 9), "1 − MS_res/MS_s at the targets of the design"
    assert (found.low, found.high) == (None, None), "one user has no interval"
    assert found.at(2) == close(4 / (4 + 1 / 4)) and found.at(4) == close(4 / (4 + 1 / 8))
    one = Reliability.of([[X]], targets=1)
    assert one is not None and one.value == close(4 / 5), "scored on two targets, trained on one"


def test_how_hard_a_target_is_does_not_matter() -> None:
    assert Squares.of(X + tensor([[100.0, -7.0]])) == Squares.of(X)


def test_groups_are_pooled_whatever_their_size() -> None:
    """A second user: three summaries on three targets, 0 but for a 3. SS_s = 3·(1 − ⅓)² + 2·3·⅓² = 2, SS_res = 4."""
    other = torch.zeros(3, 3)
    other[1, 1] = 3.0
    squares = Squares.of(other)
    assert (squares.samples, squares.residual) == (close(2.0), close(4.0))
    found = Reliability.of([[X], [other]], targets=2)
    assert found is not None
    noise = (1 + 4) / (1 + 4)
    spread = (9 + 2 - 3 * noise) / (1 * 2 + 2 * 3)
    assert (found.noise, found.spread) == (close(1.0), close(math.sqrt(spread)))
    assert found.value == close(spread / (spread + noise / 2))
    # without either user the log of 1 + 2·σ²_s/σ²_res is that of the other: log 9, and of noise 1, spread 0, log 1
    error = math.sqrt(1 / 2 * 2 * (math.log(9) / 2) ** 2)
    reach = 12.706204736432095 * error  # Student's t, one degree of freedom
    assert found.low == 0.0 and found.high == close(1 - math.exp(-math.log(1 + 2 * spread) - reach))
    assert (found.users, found.group) == (2, 2.5)


@pytest.mark.parametrize("rewards", [torch.ones(4, 1), torch.ones(1, 4)], ids=["one target", "one summary"])
def test_what_can_not_be_compared(rewards: Tensor) -> None:
    assert Reliability.of([[rewards]], 1) is None
    found = Reliability.of([[rewards], [X]], 2)
    assert found is not None and found.users == 1


def test_summaries_that_are_all_the_same_or_always_the_same_apart() -> None:
    same = Reliability.of([[torch.randn(1, 4).expand(8, 4)]] * 3, 4)
    assert same is not None and (same.value, same.low, same.high) == (0, 0, 0)
    apart = Reliability.of([[torch.arange(8.0)[:, None].expand(8, 4)]] * 3, 4)
    assert apart is not None and (apart.value, apart.low, apart.high, apart.noise) == (1, 1, 1, 0)


def test_a_simulation_of_known_variances() -> None:
    """σ_s = 1, σ_res = 3, targets 4: ρ = 1/(1 + 9/4). The estimate is right on average, the interval nine times in ten
    and more; targets that are harder than others make no difference."""
    generator = torch.Generator().manual_seed(0)
    truth, times, users = 1 / (1 + 9 / 4), 200, 24
    found = []
    for _ in range(times):
        spread = torch.randn(users, 8, 1, generator=generator)
        noise = 3 * torch.randn(users, 8, 4, generator=generator)
        hard = 5 * torch.randn(users, 1, 4, generator=generator)
        found.append(Reliability.of([[rewards] for rewards in spread + hard + noise], 4))
    assert sum(one.value for one in found) / times == pytest.approx(truth, abs=0.02)
    covered = sum(one.low <= truth <= one.high for one in found) / times
    assert 0.9 <= covered <= 0.99
    assert sum(one.spread for one in found) / times == pytest.approx(1.0, abs=0.05)
    assert sum(one.noise for one in found) / times == pytest.approx(3.0, abs=0.05)


def test_the_best_of_a_group_is_as_much_better_as_is_said() -> None:
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(4000, 8, generator=generator)
    rewards = (true[..., None] + 3 * torch.randn(4000, 8, 4, generator=generator)).mean(-1)
    gain = true.gather(1, rewards.argmax(1, keepdim=True)).mean()
    known = Reliability(1 / (1 + 9 / 4), None, None, 1.0, 3.0, 1, 8, 4)
    assert known.best_of(8) == pytest.approx(float(gain), abs=0.05)


def test_a_low_reliability_is_warned_of() -> None:
    low, high = (Reliability(value, 0.1, 0.9, 1.0, 2.0, 9, 8, 4) for value in (LOW - 0.01, LOW))
    assert "targets_per_summary" in advice(low, 8)[-1] and "warning" in advice(low, 8)[-1]
    assert not any("warning" in line for line in advice(high, 8)) and "16 samples" in advice(high, 8)[0]


def test_a_rehearsal_scores_what_a_step_would_and_draws_nothing_from_training(bench: Callable[..., Any]) -> None:
    """The rewards that it compares are those of its summaries; credit for clauses is compared, too."""
    b = bench({"inference_model"}, inference={"credit": "clause"})
    reward = SummaryReward(b.parts.generator, None, 0.1)
    seen: list[tuple[list[str], Tensor]] = []
    score = reward.score

    def watched(texts: Any, rows: Any, tokens: Any) -> Any:
        scores = score(texts, rows, tokens)
        seen.append((list(texts), scores.rewards))
        assert torch.allclose(torch.stack([own.mean() for own in scores.on_targets(0.1)]), scores.rewards)
        return scores

    reward.score = watched  # type: ignore[method-assign]
    before = torch.random.get_rng_state()
    first = rehearse(b.rows[:3], b.parts, reward, b.config, 7)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first is not None and first.clauses is not None and first.group == 4
    assert first.summaries.users == 3 and first.summaries.targets == 2
    again = rehearse(b.rows[:3], b.parts, reward, b.config, 7)
    assert again == first, "the same seed, the same summaries"
    assert len(seen[0][0]) == 12 and len(set(seen[0][0])) > 1
    conditioned = b.config.model_copy(
        update={"summary": b.config.summary.model_copy(update={"conditioned_on_prompt": True})}
    )
    assert rehearse(b.rows[:3], b.parts, reward, conditioned, 7) is None


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_credit_for_clauses_is_compared_segment_by_segment(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    """Against the definition: what is gained from a clause on, target by target, among the summaries that have it."""
    b = bench({"inference_model"}, inference={"credit": "clause", "clause_decay": decay})
    local = b.parts.inference_model.local
    texts = [
        "wants jokes, any tone and recaps.",
        "prefers humor and recaps.",
        "likes short answers.",
        "wants any level.",
    ]
    encoded = [local.encode_response(text) for text in texts]
    monkeypatch.setattr(local, "generate", lambda prompts, **_: [encoded for _ in prompts])
    reward = SummaryReward(b.parts.generator, None, 0.1)
    found = rehearse(b.rows[:3], b.parts, reward, b.config, 7)

    def on_targets(text: str, row: Any) -> Tensor:
        return reward.score([text], [row], [0]).on_targets(0.1)[0]

    users = []
    for row in b.rows[:3]:
        segments: dict[int, list[Tensor]] = {}
        for text in texts:
            own = Clauses.of(local.decode(local.encode_response(text)))
            values = [on_targets(own.up_to(i), row) for i in range(len(own) + 1)]
            for i in range(len(own)):
                gains = [decay ** (j - i) * (values[j + 1] - values[j]) for j in range(i, len(own))]
                segments.setdefault(i, []).append(torch.stack(gains).sum(0))
        users.append([torch.stack(group) for group in segments.values()])
    expected = Reliability.of(users, 2)
    assert found is not None and found.clauses is not None and expected is not None
    assert found.clauses.value == pytest.approx(expected.value, abs=1e-4)
    assert found.clauses.spread == pytest.approx(expected.spread, rel=1e-3)
    assert "credit for clauses" in found.lines("inference-1")[1]


# -- a run --------------------------------------------------------------------------------------------------------


def settings(base: Path, root: Path, name: str, orders: list[str], adapter: str = "none") -> RunConfig:
    inference = {"steps": 2, "users_per_step": 4, "group_size": 4, "targets_per_summary": 2, "warmup_steps": 0}
    return resolve(
        {
            "name": name,
            "root": str(root),
            "model": {"base": str(base), "device": "cpu", "adapter": adapter},
            "data": {"train_users": 10},
            "summary": {"max_tokens": 6},
            "training": {
                "orders": orders,
                "joint_steps": 2,
                "inference": inference,
                "generator": {"steps": 2, "batch_size": 2},
            },
        }
    )


@pytest.mark.parametrize(("order", "adapter"), [("plug_and_play", "none"), ("simultaneous", "lora")])
def test_a_run_says_it_before_its_first_step_and_learns_as_without(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, adapter: str
) -> None:
    config = settings(tiny_base, tmp_path, "with", [order], adapter)
    said = io.StringIO()
    run = train(config, console=Console(file=said, width=300))
    phase = "inference-1" if order == "plug_and_play" else "joint"
    facts = json.loads((run / "phases" / phase / "reliability.json").read_text())
    assert facts["summaries"]["users"] == 8 and facts["summaries"]["targets"] == 2
    assert f"{phase}: reliability of rewards {facts['summaries']['value']:.2f} [" in said.getvalue()
    assert "2 targets each); with 4 targets" in said.getvalue() and "a larger group" in said.getvalue()

    monkeypatch.setattr("popi.training.trainers.step_zero", lambda *_: None)
    without = train(settings(tiny_base, tmp_path, "without", [order], adapter), console=Console(file=io.StringIO()))
    logs = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(r / "log.jsonl")]
        for r in (run, without)
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 2, "the same learning curve, to the bit"
    samples = [(r / "phases" / phase / "samples.jsonl").read_text() for r in (run, without)]
    assert samples[0] == samples[1]
    assert not (without / "phases" / phase / "reliability.json").exists()


def test_a_dry_run_with_weights_says_the_same_and_leaves_nothing(tiny_base: Path, tmp_path: Path) -> None:
    config = settings(tiny_base, tmp_path / "runs", "run", ["plug_and_play"])
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = ["train", str(tmp_path / "config.json"), "--dry-run", "--with-weights"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "runs").exists()
    [line] = [line for line in done.stdout.splitlines() if "reliability of rewards" in line]
    said = io.StringIO()
    train(config, console=Console(file=said, width=300))
    assert line in said.getvalue()
    generator_alone = CliRunner().invoke(app, [*command, "training.orders=population_dpo"])
    assert "no order of training.orders trains an inference model" in generator_alone.stdout


def test_weights_go_with_a_dry_run_on_this_machine(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(settings(tiny_base, tmp_path, "run", ["plug_and_play"]).model_dump_json())
    for more in ([], ["--dry-run", "--gpu-memory", "24"]):
        done = CliRunner().invoke(app, ["train", str(tmp_path / "config.json"), "--with-weights", *more])
        assert done.exit_code == 2 and "--dry-run" in done.output
