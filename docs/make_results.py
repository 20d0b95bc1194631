"""Regenerates the tables of docs/results.md and README.md, all from one commit: `make results`.

docs/results.toml lists the tables and their commands. An interrupted `make results` resumes. Runs are saved under
runs/results/COMMIT. Each table is written between the marks `<!-- NAME:start -->` and `<!-- NAME:end -->` of its files,
with its commands and the commit. With --quick, small runs are made, and the tables are printed and not written.

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
    """Run a command of this environment's popi; progress is shown in the terminal."""
    name, *arguments = [*shlex.split(command), *overrides]
    print(f"$ {command}" + (f" {' '.join(overrides)}" if overrides else ""), flush=True)
    subprocess.run([str(Path(sys.executable).with_name(name)), *arguments], check=True, cwd=HERE.parent)


def make(table: dict[str, Any], root: str, quick: bool) -> list[str]:
    """Run a table's commands and return its lines.

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
    """Replace the text between a table's marks.

    Raises:
        ValueError: the marks are missing.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if start not in text or end not in text:
        raise ValueError(f"{start} … {end} is missing")
    return re.sub(rf"(?s){start}.*?{end}", lambda _: "\n".join([start, *lines, end]), text, count=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="make small runs and print the tables")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these tables")
    options = parser.parse_args()
    tables = tomllib.loads((HERE / "results.toml").read_text(encoding="utf-8"))["tables"]
    if unknown := set(options.only or []) - {table["name"] for table in tables}:
        parser.error(
            f"--only: unknown table {', '.join(sorted(unknown))}; allowed: {', '.join(t['name'] for t in tables)}"
        )
    revision = commit()
    if not options.quick and not re.fullmatch("[0-9a-f]{40}", revision):
        parser.error(f"the tables must come from one commit, but this checkout is {revision}: commit first")
    root = f"runs/results{'-quick' if options.quick else ''}/{revision[:12]}"
    done: dict[str, list[str]] = {}
    for table in tables:
        if options.only and table["name"] not in options.only:
            continue
        if "needs" in table and not Path(table["needs"]).exists():
            print(f"table {table['name']} is skipped: {table['needs']} does not exist (docs/data.md)", flush=True)
            continue
        began = time.monotonic()
        done[table["name"]] = make(table, root, options.quick)
        print("\n".join(["", *done[table["name"]], "", f"{(time.monotonic() - began) / 60:.1f} minutes"]), flush=True)
    if not options.quick:  # at the end, since a changed file would make the commit of the next table dirty
        write([table for table in tables if table["name"] in done], done, revision)


def write(tables: list[dict[str, Any]], done: dict[str, list[str]], revision: str) -> None:
    """Write each table with its commands and commit into its files."""
    for table in tables:
        source = [
            "```",
            *(command.format(root="runs") for command in table["commands"]),
            "```",
            "",
            f"Commit {revision[:7]}.",
        ]
        for file in table["files"]:
            path = HERE.parent / file
            text = put(path.read_text(encoding="utf-8"), table["name"], [*source, "", *done[table["name"]]])
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
