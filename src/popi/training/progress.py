"""The progress bar of a phase."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from popi.runs.bars import Bars

SHOWN = {"reward": "reward", "kl": "KL", "loss": "loss", "reward_accuracy": "accuracy"}


class PhaseProgress:
    """A bar for a phase's steps with its latest metrics, and a temporary one for the preparation."""

    def __init__(self, console: Console, phase: str, steps: int, done: int) -> None:
        self._progress = Bars(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(phase))),
            BarColumn(bar_width=8),  # keeps the line within 80 columns
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[metrics]}"),
            console=console,
        )
        self._task = self._progress.add_task(phase, total=steps, completed=done, metrics="")

    def __enter__(self) -> "PhaseProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        names = {
            k: v for k, v in SHOWN.items() if k != "loss" or "reward" not in metrics
        }  # GRPO's loss is not informative
        shown = [f"{label} {metrics[name]:.3g}" for name, label in names.items() if metrics.get(name) is not None]
        self._progress.update(self._task, completed=step, metrics=" · ".join(shown))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, highlight=False)

    @contextmanager
    def preparing(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a separate bar during preparation; yields a function to call with the number done."""
        task = self._progress.add_task(f"  {description}", total=total, metrics="")
        try:
            yield lambda done: self._progress.update(task, completed=done)
        finally:
            self._progress.remove_task(task)
