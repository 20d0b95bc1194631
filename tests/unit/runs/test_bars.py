import io

import pytest
from rich.console import Console
from rich.progress import TextColumn

from popi.runs import bars
from popi.runs.bars import Bars, passes


class Clock:
    """A clock that the test turns."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(bars, "time", found)
    return found


def told(clock: Clock, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with Bars(TextColumn("bar"), console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("  inference-1", total=3, metrics="")
        for step in range(3):
            progress.update(task, completed=step + 1, metrics=f"reward {step}")
            clock.now += 20
    return file.getvalue()


def test_a_line_every_half_minute_where_there_is_no_terminal(clock: Clock) -> None:
    lines = [line for line in told(clock, terminal=False).splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("inference-1 3/3") and lines[0].endswith("reward 2")


def test_no_lines_between_the_bars_of_a_terminal(clock: Clock) -> None:
    assert "inference-1 3/3" not in told(clock, terminal=True)


def test_passes_have_a_bar_each(clock: Clock) -> None:
    file = io.StringIO()
    with passes(Console(file=file, width=80)) as report:
        for what in ("reading a.jsonl", "reading b.jsonl"):
            for done in range(0, 101, 50):
                report(what, done, 100)
                clock.now += 25
    lines = [line for line in file.getvalue().splitlines() if line]
    assert len(lines) == 2 and [line.split("/")[0] for line in lines] == ["reading a.jsonl 100", "reading b.jsonl 100"]
    with passes(None) as report:
        report("nothing is shown", 1, 2)
