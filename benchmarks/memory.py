"""The memory estimate of `popi train --dry-run` against the measured peak of a short run on this machine.

    python benchmarks/memory.py [CONFIG] [section.key=value …]

On a CPU: the process's peak resident memory minus its memory after importing torch and transformers. On a GPU: torch's
peak of allocated memory. Only the overall peak can be measured, not each phase's, so run one order at a time.
"""

import resource
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from popi.config import load_config
from popi.training.planning.cost import OVERHEAD
from popi.training.planning.dry_run import GIB, dry_run
from popi.training.train import train

NANO = Path(__file__).parents[1] / "configs" / "nano.toml"
SHORT = ["training.inference.steps=2", "training.generator.steps=2", "training.joint_steps=2", "data.train_users=200"]


def resident() -> int:
    """This process's current resident memory in bytes."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def measure(config: str | Path, overrides: list[str]) -> tuple[float, float]:
    """(estimated, measured) peak bytes of a run with two steps per phase, without the process's baseline."""
    with tempfile.TemporaryDirectory() as root:
        settings = load_config(config, [*SHORT, 'training.orders=["plug_and_play"]', *overrides, f"root={root}"])
        plan = dry_run(settings)
        before = resident()
        train(settings, console=Console(quiet=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if plan.device.gpu:
        peak = torch.cuda.max_memory_allocated()
    return max(phase.memory.total for phase in plan.phases) - OVERHEAD, peak


if __name__ == "__main__":
    arguments = sys.argv[1:]
    config = arguments.pop(0) if arguments and "=" not in arguments[0] else NANO
    estimated, measured = measure(config, arguments)
    print(f"estimated {estimated / GIB:.3f} GiB, measured {measured / GIB:.3f} GiB, ratio {estimated / measured:.2f}")
