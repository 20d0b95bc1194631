"""Writes the table of model families in docs/models.md: how popi runs each, tried on a small random model.

python docs/model_families.py [FAMILY ...]     takes two minutes; with names, only prints their rows
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from model_families import verdicts  # noqa: E402

PAGE = Path(__file__).with_name("models.md")
BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
VERDICTS = ("tree rows", "plain", "refused")


def difference(worst: float | None) -> str:
    """Rounding errors as a bound, which is the same on every machine; larger differences as a figure."""
    if worst is None:
        return "–"
    return f"< 1e{math.ceil(math.log10(worst or 1e-9))}" if worst < 1e-3 else f"{worst:.1g}"


def table(rows: list[tuple[str, str, float | None, str]]) -> str:
    """The table, one row per family."""
    lines = ["| Family | Runs by | Largest difference of tree rows (nats) |", "|---|---|---|"]
    for kind in VERDICTS:
        lines += [f"| {name} | {kind} | {difference(worst)} |" for name, verdict, worst, _ in rows if verdict == kind]
    missing = ", ".join(name for name, verdict, *_ in rows if verdict == "not built")
    return "\n".join(lines) + f"\n\nNot tried, since no small model could be built: {missing}.\n"


def written() -> dict[str, str]:
    """Family → verdict, as the page states it."""
    lines = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    return {name: verdict for name, verdict, _ in cells}


def main() -> None:
    rows = []
    for row in verdicts(sys.argv[1:] or None):
        rows.append(row)
        print(f"{row[0]:28} {row[1]:10} {difference(row[2]):>8}  {row[3][:100]}", flush=True)
    if not sys.argv[1:]:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + table(rows) + END + rest.partition(END)[2], encoding="utf-8")
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
