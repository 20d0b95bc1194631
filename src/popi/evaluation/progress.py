"""Progress bars of an evaluation, one per method."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn

from popi.runs.bars import Bars


def evaluation_progress(console: Console | None) -> Bars:
    """Progress bars for an evaluation's methods; None shows nothing."""
    columns = (
        TextColumn("  {task.description:<26}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    shown = console or Console(quiet=True)
    return _NotedProgress(*columns, console=shown, disable=console is None)


class _NotedProgress(Bars):
    """Progress bars whose tasks always have a `note` field."""

    def add_task(self, description: str, *args: Any, **fields: Any) -> TaskID:
        return super().add_task(description, *args, **({"note": ""} | fields))
