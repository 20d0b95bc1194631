"""The report's tables: one form, rendered as HTML by the page and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A text with smaller text below it, such as an interval."""

    text: str
    range: str = ""

    @property
    def whole(self) -> str:
        """The cell in one line."""
        return f"{self.text} [{self.range.replace(chr(10), '; ')}]" if self.range else self.text


@dataclass(frozen=True)
class Row:
    """The head of a row, and its cells. `marked` highlights a POPI method."""

    head: str
    cells: Sequence[Cell]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a head for each column; the first column holds the heads of the rows.

    `text_columns`: number of columns from the left, including the first, that hold text and are left-aligned.
    """

    heads: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    notes: Sequence[str] = field(default=())
    text_columns: int = 1

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [self.heads, ["---"] * self.text_columns + ["---:"] * (len(self.heads) - self.text_columns)]
        for row in self.rows:
            head = f"**{escaped(row.head)}**" if row.marked else escaped(row.head)
            lines.append([head, *(escaped(cell.whole) for cell in row.cells)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Escape a text for a cell or line of Markdown."""
    for character in "\\`*_[]<>|#&~$":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def estimated(estimate: Mapping[str, Any] | None, scale: float = 1, digits: int = 1, sign: bool = False) -> Cell:
    """A value with its interval; `sign` shows + or −, for a difference."""
    if estimate is None or estimate["value"] is None:
        return Cell(NOTHING)
    value, low, high = (None if estimate[k] is None else scale * estimate[k] for k in ("value", "low", "high"))
    interval = "" if low is None or high is None else f"{number(low, digits, sign)} to {number(high, digits, sign)}"
    return Cell(number(value, digits, sign), interval)


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """Format a number with a real minus sign, and without one if it rounds to 0."""
    if value is None:
        return NOTHING
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    elif sign and value > 0:
        text = f"+{text}"
    return text.replace("-", "−")
