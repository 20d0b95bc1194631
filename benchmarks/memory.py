"""The memory estimate of `popi train --dry-run` against the measured peak of a short run on this machine.

    python benchmarks/memory.py [CONFIG] [section.key=value …]

On CPU: the process's peak resident memory less what it holds once torch and transformers are imported. On a GPU:
torch's peak of allocated memory. Each phase's own peak can't be told from outside, so run one order at a time.
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
    """Bytes of this process in memory now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def measure(config: str | Path, overrides: list[str]) -> tuple[float, float]:
    """(estimated, measured) bytes at the peak of a run of two steps a phase, without the process's own."""
    with tempfile.TemporaryDirectory() as root:
        settings = load_config(config, [*SHORT, 'training.orders=["plug_and_play"]', *overrides, f"root={root}"])
        plan = dry_run(settings)
        before = resident()
        train(settings, console=Console(quiet=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if plan.device.gpu:
        peak = torch.cuda.max_memory_allocated()
    return max(one.memory.total for one in plan.phases) - OVERHEAD, peak


if __name__ == "__main__":
    given = sys.argv[1:]
    config = given.pop(0) if given and "=" not in given[0] else NANO
    estimated, measured = measure(config, given)
    print(f"estimated {estimated / GIB:.3f} GiB, measured {measured / GIB:.3f} GiB, ratio {estimated / measured:.2f}")
