"""Does the faster step learn the same? Trains on the nano world twice with one seed: as popi does, and with all fast
paths disabled, using whole sequences.

python benchmarks/learning_curve.py [--steps N] [--seed S]

Disabled are the tree rows of the policy's update, of its KL and of the rewards (replaced by plain forward passes over
whole sequences, with logits of every position), the rollouts' single prefill per group (replaced by the usual cache per
sample), and the pass over the signals that rollouts and update share. Both trainings sample with the same random
numbers, so the first steps agree except for rounding; once rounding changes a sampled token, they continue with
different summaries, and only the curves can be compared. Both go to runs/bench/learning_curve.json and
learning_curve.svg.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scoring import whole_batches
from torch import Tensor

import popi.engine.scoring
import popi.models.local.model
import popi.training.phases.inference
from popi.config import load_config
from popi.config.training import TrainingConfig
from popi.engine.decoding import pick
from popi.engine.scoring import ScoringItem
from popi.runs.files import read_jsonl
from popi.training.train import train

OUT = Path("runs/bench")
SHOWN = ("reward", "reward_accuracy", "kl", "summary_tokens", "seconds")


def summary_logps(
    scorer: Any,
    prompts: list[list[int]],
    summaries: list[list[int]],
    pad_id: int,
    temperature: float,
    entropy: bool = False,
    roots: None = None,
) -> tuple[Tensor, Tensor]:
    """Replaces that of popi.training.phases.inference, with each summary after its own prompt."""
    left, right = max(map(len, prompts)), max(map(len, summaries))
    ids = torch.full((len(prompts), left + right), pad_id)
    on = torch.zeros_like(ids)
    for row, (prompt, summary) in enumerate(zip(prompts, summaries, strict=True)):
        both = slice(left - len(prompt), left + len(summary))
        ids[row, both], on[row, both] = torch.tensor([*prompt, *summary]), 1
    positions = (on.cumsum(1) - 1).clamp(min=0)
    logits = scorer.model(input_ids=ids, attention_mask=on, position_ids=positions).logits
    every = torch.log_softmax(logits[:, left - 1 : -1].float() / temperature, -1)
    mask = on[:, left:].bool()
    logps = every.gather(2, ids[:, left:, None])[..., 0].masked_fill(~mask, 0.0)
    entropies = -(every.exp() * every).sum(-1).masked_fill(~mask, 0.0).detach()
    return logps, entropies


def pair_logps(model: Any, items: list[ScoringItem], pad_id: int, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Replaces that of popi.engine.scoring, with each response after its own prefix."""
    both = whole_batches(model, items, pad_id, batch_size)
    return both[:, 0], both[:, 1]


def decode(
    model: Any,
    prompts: list[list[int]],
    *,
    n: int,
    steps: int,
    temperature: float,
    top_p: float,
    stop_ids: list[int],
    end_id: int,
    soft: None = None,
    roots: None = None,
) -> Tensor:
    """Replaces that of popi.engine.decoding, with a copy of the prompt for every sample."""
    width = max(map(len, prompts))
    ids, mask = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.tensor(prompt), 1
    token, mask = ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    done = torch.zeros(len(token), dtype=torch.bool)
    cache, out = None, []
    for _ in range(steps):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -token.shape[1] :]
        output = model(
            input_ids=token, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        picked = torch.where(done, end_id, pick(output.logits[:, -1].float(), temperature, top_p))
        out.append(picked)
        done |= torch.isin(picked, torch.tensor(stop_ids))
        if bool(done.all()):
            break
        token, mask = picked[:, None], torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], 1)
    return torch.stack(out, 1)


def curve(way: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The logged steps of one training."""
    config = load_config(
        options.config,
        [
            f"name=learning_curve_{way}",
            f"seed={options.seed}",
            'training.orders=["plug_and_play"]',
            f"training.inference.steps={options.steps}",
            "training.share_references=false",
        ],
    )
    run = train(config, console=Console(quiet=True))
    return [row for row in read_jsonl(run / "log.jsonl") if row["phase"].startswith("inference")]


def plot(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for panel, name in zip(panels, ("reward", "reward_accuracy"), strict=True):
        for (way, rows), (width, alpha) in zip(curves.items(), ((5, 0.4), (1, 1.0)), strict=True):  # they may coincide
            steps, values = ([row[key] for row in rows] for key in ("step", name))
            panel.plot(steps, values, label=way, linewidth=width, alpha=alpha)
        panel.set(title=name.replace("_", " "), xlabel="step")
        panel.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.toml")
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    curves = {"popi": curve("popi", options)}
    TrainingConfig.reads_once = property(lambda _: False)  # type: ignore[assignment, method-assign]
    popi.training.phases.inference.summary_logps = summary_logps  # type: ignore[assignment]
    popi.engine.scoring.pair_logps = pair_logps
    popi.models.local.model.decode = decode  # type: ignore[assignment]
    curves["plain"] = curve("plain", options)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "learning_curve.json").write_text(json.dumps(curves, indent=1) + "\n")
    plot(curves, OUT / "learning_curve.svg")
    table = Table("steps", "way", *SHOWN)
    for first in range(0, options.steps, 10):
        for way, rows in curves.items():
            part = rows[first : first + 10]
            means = [sum(row[name] for row in part) / len(part) for name in SHOWN]
            table.add_row(f"{first + 1}-{first + len(part)}", way, *(f"{mean:.4f}" for mean in means))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
