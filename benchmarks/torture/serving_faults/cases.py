"""What a fault did: one case per fault and store, with everything that was lost or wrong."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MAX_SHOWN = 5
"""Losses of one case that are printed; the JSON has all."""


class Skipped(Exception):
    """This machine can't produce the fault; the message says why."""


@dataclass
class Case:
    """One fault on one store.

    Attributes:
        group: kill, upstream, store, clock or soak.
        name: the fault.
        store: sqlite or postgresql; empty if it doesn't matter.
        losses: what must not happen: lost, doubled, stuck or unreadable.
        figures: counts and seconds.
        skipped: why the fault could not be produced here.
        seconds: how long the case took.
    """

    group: str
    name: str
    store: str = ""
    losses: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""
    seconds: float = 0.0

    def lost(self, description: str) -> None:
        self.losses.append(description)

    def expect(self, holds: bool, description: str) -> None:
        """Record a loss unless something holds."""
        if not holds:
            self.lost(description)

    def count(self, name: str, number: float = 1) -> None:
        self.figures[name] = self.figures.get(name, 0) + number


class Report:
    """All cases of a run, printed as they end."""

    def __init__(self, console: Console) -> None:
        self.console, self.cases = console, list[Case]()

    @contextmanager
    def case(self, group: str, name: str, store: str = "") -> Iterator[Case]:
        """Run one case. An exception in it is a loss: the harness could not check what it had to."""
        case, began = Case(group, name, store), time.monotonic()
        self.cases.append(case)
        try:
            yield case
        except Skipped as why:
            case.skipped = str(why)
        except Exception as error:
            case.lost(f"the check itself failed: {type(error).__name__}: {error}")
        case.seconds = round(time.monotonic() - began, 1)
        outcome = "[red]LOST[/]" if case.losses else "[yellow]skipped[/]" if case.skipped else "[green]held[/]"
        self.console.print(f"{outcome} {group}: {name} {store} ({case.seconds:.0f} s)", highlight=False)
        for loss in case.losses[:MAX_SHOWN]:
            self.console.print(f"     {loss}", style="red", highlight=False, markup=False)

    def table(self) -> Table:
        table = Table("fault", "store", "result", "seconds", "figures", title="Serving under faults")
        for one in self.cases:
            result = f"[red]{len(one.losses)} lost[/]" if one.losses else "[green]held[/]"
            figures = ", ".join(
                f"{name} {_short(value)}" for name, value in one.figures.items() if not isinstance(value, list)
            )
            result = f"[yellow]skipped[/]: {one.skipped}" if one.skipped and not one.losses else result
            table.add_row(f"{one.group}: {one.name}", one.store, result, f"{one.seconds:.0f}", figures)
        return table

    def write(self, path: Path, command: str, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"command": command, "seed": seed, "python": platform.python_version(), "at": time.time()}
        path.write_text(json.dumps(about | {"cases": [asdict(one) for one in self.cases]}, indent=1) + "\n")

    @property
    def failed(self) -> bool:
        return any(one.losses for one in self.cases)


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
