"""Make the tables of docs/results.md and README.md again, all from one commit: `make results`.

What each table needs stands in docs/results.toml. The commands resume, so that an interrupted `make results` goes on
where it stopped. Runs lie under runs/results/COMMIT; a table goes between the marks `<!-- NAME:start -->` and `<!--
NAME:end -->` of its files, with its commands and the commit. With --quick everything is run small, and tables are
printed, not written.

python docs/make_results.py [--quick] [--only NAME ...]
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from results import grid_table, personal_table, runs_table

from popi.runs.provenance import commit

HERE = Path(__file__).parent


def run(command: str, overrides: list[str]) -> None:
    """Run a command of this environment's popi; its progress goes to the terminal."""
    name, *arguments = [*shlex.split(command), *overrides]
    print(f"$ {command}" + (f" {' '.join(overrides)}" if overrides else ""), flush=True)
    subprocess.run([str(Path(sys.executable).with_name(name)), *arguments], check=True, cwd=HERE.parent)


def make(table: dict[str, Any], root: str, quick: bool) -> list[str]:
    """The lines of a table, its commands having been run.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    finished = table.get("finished")
    overrides = table["quick"] if quick else []
    if finished is None or not Path(finished.format(root=root)).is_file():
        for command in table["commands"]:
            takes_settings = not command.startswith("python") and "--run" not in command
            run(command.format(root=shlex.quote(root)), overrides if takes_settings else [])
    if "personal" in table:
        return personal_table(Path(table["personal"].format(root=root)))
    if "grid" in table:
        return grid_table(Path(table["grid"].format(root=root)))
    return runs_table([Path(one.format(root=root)) for one in table["runs"]])


def put(text: str, name: str, lines: list[str]) -> str:
    """The text with these lines between a table's marks.

    Raises:
        ValueError: the marks are not there.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if start not in text or end not in text:
        raise ValueError(f"{start} … {end} is not there")
    return re.sub(rf"(?s){start}.*?{end}", lambda _: "\n".join([start, *lines, end]), text, count=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run everything small and print the tables")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these tables alone")
    asked = parser.parse_args()
    tables = tomllib.loads((HERE / "results.toml").read_text(encoding="utf-8"))["tables"]
    if unknown := set(asked.only or []) - {table["name"] for table in tables}:
        parser.error(f"--only: no table {', '.join(sorted(unknown))}; there are {', '.join(t['name'] for t in tables)}")
    made = commit()
    if not asked.quick and not re.fullmatch("[0-9a-f]{40}", made):
        parser.error(f"the tables are to come from one commit, and this checkout is {made}: commit first")
    root = f"runs/results{'-quick' if asked.quick else ''}/{made[:12]}"
    done: dict[str, list[str]] = {}
    for table in tables:
        if asked.only and table["name"] not in asked.only:
            continue
        if "needs" in table and not Path(table["needs"]).exists():
            print(f"table {table['name']} left as it is: {table['needs']} is not here (docs/data.md)", flush=True)
            continue
        began = time.monotonic()
        done[table["name"]] = make(table, root, asked.quick)
        print("\n".join(["", *done[table["name"]], "", f"{(time.monotonic() - began) / 60:.1f} minutes"]), flush=True)
    if not asked.quick:  # at the end: a changed file would make the next table's commit a dirty one
        write([table for table in tables if table["name"] in done], done, made)


def write(tables: list[dict[str, Any]], done: dict[str, list[str]], made: str) -> None:
    """Put each table, its commands and its commit into the files that show it."""
    for table in tables:
        said = [
            "```",
            *(command.format(root="runs") for command in table["commands"]),
            "```",
            "",
            f"Commit {made[:7]}.",
        ]
        for file in table["files"]:
            path = HERE.parent / file
            text = put(path.read_text(encoding="utf-8"), table["name"], [*said, "", *done[table["name"]]])
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
