"""Progress of long tasks: bars in a terminal, occasional lines elsewhere (a pipe, a log file)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds between two lines about the same task."""


class Bars(Progress):
    """rich's `Progress`, which prints one line per task every half minute if the console is not a terminal."""

    def __init__(self, *columns: Any, **settings: Any) -> None:
        super().__init__(*columns, **settings)
        self._printed_at: dict[TaskID, float] = {}

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._print_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        if self.disable or self.console.is_terminal or self.console.is_jupyter:
            return
        task, now = self._tasks[task_id], time.monotonic()
        if now - self._printed_at.setdefault(task_id, now) < EVERY:
            return
        self._printed_at[task_id] = now
        total = "" if task.total is None else f"/{task.total:.0f}"
        left = "" if task.time_remaining is None else f" · {task.time_remaining / 60:.0f} min left"
        notes = [str(note) for note in task.fields.values() if note]
        self.console.print(" · ".join([f"{task.description.strip()} {task.completed:.0f}{total}{left}", *notes]))


@contextmanager
def passes(console: Console | None) -> Iterator[Callable[[str, int, int], None]]:
    """A function that reports passes over all users: its arguments are a description, the number done and the total.
    Each pass has a bar that disappears at the end of the block; without a console, none is shown.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Bars(
        *columns, TimeRemainingColumn(), console=console or Console(quiet=True), transient=True, disable=console is None
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def report(description: str, done: int, total: int) -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=total)
            bars.update(tasks[description], completed=done, total=total)

        yield report
