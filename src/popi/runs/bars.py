"""Progress on long work: bars in a terminal, and a line now and then where there is none (a pipe, a log file)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds between two lines of one task."""


class Bars(Progress):
    """rich's `Progress`; where its console is no terminal, a line a task every half minute."""

    def __init__(self, *columns: Any, **settings: Any) -> None:
        super().__init__(*columns, **settings)
        self._told: dict[TaskID, float] = {}

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        if self.disable or self.console.is_terminal or self.console.is_jupyter:
            return
        task, now = self._tasks[task_id], time.monotonic()
        if now - self._told.setdefault(task_id, now) < EVERY:
            return
        self._told[task_id] = now
        of = "" if task.total is None else f"/{task.total:.0f}"
        left = "" if task.time_remaining is None else f" · {task.time_remaining / 60:.0f} min left"
        notes = [str(note) for note in task.fields.values() if note]
        self.console.print(" · ".join([f"{task.description.strip()} {task.completed:.0f}{of}{left}", *notes]))


@contextmanager
def passes(console: Console | None) -> Iterator[Callable[[str, int, int], None]]:
    """Within it, a function to tell of passes over all users: what is done, how much of it, and of how much. Each has a
    bar, gone when all are done; without a console none is shown.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Bars(
        *columns, TimeRemainingColumn(), console=console or Console(quiet=True), transient=True, disable=console is None
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)

        yield report
