"""Write the table of model families in docs/models.md: how each runs, seen on a small random model of it.

python docs/model_families.py [FAMILY ...]     two minutes; with names, only print their rows
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from model_families import verdicts  # noqa: E402

PAGE = Path(__file__).with_name("models.md")
BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
KINDS = {
    "tree rows": "Tree rows",
    "plain": "The plain way: right, each text in a row of its own",
    "refused": "Refused",
}


def difference(worst: float | None) -> str:
    """Rounding as a bound, which is the same on every machine; more as a figure."""
    if worst is None:
        return "–"
    return f"< 1e{math.ceil(math.log10(worst or 1e-9))}" if worst < 1e-3 else f"{worst:.1g}"


def table(found: list[tuple[str, str, float | None, str]]) -> str:
    """The table, a row a family."""
    rows = ["| Family | Runs by | Largest difference of tree rows (nats) |", "|---|---|---|"]
    for kind in KINDS:
        rows += [f"| {name} | {kind} | {difference(worst)} |" for name, verdict, worst, _ in found if verdict == kind]
    missing = ", ".join(name for name, verdict, *_ in found if verdict == "not built")
    return "\n".join(rows) + f"\n\nNot tried, since no small model of it was built: {missing}.\n"


def written() -> dict[str, str]:
    """Family → verdict, as the page has it."""
    lines = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    return {name: verdict for name, verdict, _ in cells}


def main() -> None:
    found = []
    for row in verdicts(sys.argv[1:] or None):
        found.append(row)
        print(f"{row[0]:28} {row[1]:10} {difference(row[2]):>8}  {row[3][:100]}", flush=True)
    if not sys.argv[1:]:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + table(found) + END + rest.partition(END)[2], encoding="utf-8")
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
