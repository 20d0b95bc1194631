"""A budget for summaries, end to end: on nano users, with a small random model whose summaries run on at first."""

from pathlib import Path

from rich.console import Console

from popi.config import resolve
from popi.runs.files import read_jsonl
from popi.training.train import train

STEPS = 20


def lengths(root: Path, base: Path, name: str, **budget: float) -> list[dict]:
    config = resolve(
        {
            "name": name,
            "root": str(root),
            "model": {"base": str(base), "device": "cpu"},
            "data": {"train_users": 8},
            "summary": {"max_tokens": 16},
            "training": {
                "inference": {
                    "steps": STEPS,
                    "users_per_step": 4,
                    "group_size": 8,
                    "targets_per_summary": 1,
                    "warmup_steps": 0,
                    "learning_rate": 3e-2,
                    "kl": 0.0,
                    **budget,
                }
            },
        }
    )
    return read_jsonl(train(config, console=Console(quiet=True)) / "log.jsonl")


def test_summaries_grow_shorter_under_a_budget(tmp_path: Path, tiny_base: Path) -> None:
    free = lengths(tmp_path, tiny_base, "free")
    short = lengths(tmp_path, tiny_base, "short", length_target=3, length_penalty=2.0)

    def late(log: list[dict], key: str) -> float:
        return sum(row[key] for row in log[-4:]) / 4

    assert all("length_penalty" not in row for row in free)
    assert short[0]["summary_tokens"] > 10, "it runs on before training"
    assert late(short, "summary_tokens") < 0.5 * short[0]["summary_tokens"]
    assert late(short, "summary_tokens") < 0.5 * late(free, "summary_tokens")
    assert late(short, "length_penalty") < 0.6 * short[0]["length_penalty"]
    samples = read_jsonl(tmp_path / "short" / "phases" / "inference-1" / "samples.jsonl")
    assert {row["length_penalty"] % 2 for row in samples} == {0.0}, "2 a token"
