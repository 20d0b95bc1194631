"""Trains the configs of a file in as many processes as torchrun starts: `launched.py CONFIGS PRECISION [--resume]`.

A config may come with a `fault` that befalls one process at one step: `rank`, `step` and `what`, which is `killed`,
`drifts` (its weights change on their own) or `diverges` (they become NaN).
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from exact import in_precision
from transformers import TrainerCallback

from popi.config import resolve
from popi.errors import PopiError
from popi.training.phases.trainer import PhaseTrainer
from popi.training.sharding import local
from popi.training.train import train


class Fault(TrainerCallback):
    def __init__(self, trainer: PhaseTrainer, rank: int, step: int, what: str) -> None:
        self.trainer, self.rank, self.step, self.what = trainer, rank, step, what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.processes.rank != self.rank or state.global_step + 1 != self.step:
            return
        if self.what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        with torch.no_grad():
            parameter = next(iter(self.trainer.scorer.trained_parameters().values()))
            parameter[0] += float("nan") if self.what == "diverges" else 1e-3


def befall(**fault: Any) -> None:
    """Let every trainer from now on meet a fault."""
    real = PhaseTrainer.__init__

    def init(self: PhaseTrainer, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        self.add_callback(Fault(self, **fault))

    PhaseTrainer.__init__ = init  # type: ignore[method-assign]


class Shards(TrainerCallback):
    """Writes down what each process holds of trained weights and optimizer states after every step."""

    def __init__(self, trainer: PhaseTrainer, file: str) -> None:
        self.trainer, self.file = trainer, file

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = list(self.trainer.scorer.trained_parameters().values())
        states = [
            v for own in self.trainer.optimizer.state_dict()["state"].values() for v in own.values() if v.numel() > 1
        ]
        held = {
            "types": sorted({type(p).__name__ for p in [*parameters, *states]}),
            "parameters": sum(local(p).numel() for p in parameters),
            "states": sum(local(v).numel() for v in states),
            "all": sum(p.numel() for p in parameters),
        }
        with Path(self.file).open("a") as file:
            file.write(json.dumps(held) + "\n")


def watch(file: str) -> None:
    """Let every trainer from now on write down its shards."""
    real = PhaseTrainer.__init__

    def init(self: PhaseTrainer, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        self.add_callback(Shards(self, file))

    PhaseTrainer.__init__ = init  # type: ignore[method-assign]


def main(file: str, precision: str, *options: str) -> None:
    if "--shards" in options:
        watch(options[options.index("--shards") + 1])
    for one in json.loads(Path(file).read_text(encoding="utf-8")):
        if fault := one.pop("fault", None):
            befall(**fault)
        with in_precision(precision):
            try:
                train(resolve(one), resume="--resume" in options)
            except PopiError as error:
                print(f"popi: {error}", file=sys.stderr)
                sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
