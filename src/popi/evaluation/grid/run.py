"""`popi evaluate GRID.toml`: train missing runs, score and judge every cell, write the tables.

{root}/{name}/config.json                        the grid's settings
             grid.json, grid.md                  all figures
             transfer.svg, transfer.png          with several generators
             cells/BENCHMARK/summaries/          the summaries, shared by all generators
             cells/BENCHMARK/GENERATOR/          METHOD.jsonl, one row per item; metrics.json; responses/, judge/
"""

import json
from collections.abc import Callable
from typing import Any

from rich.console import Console

from popi.errors import ConfigError, ModelError, RunError, UpstreamError
from popi.evaluation.grid.benchmarks import available_entries, open_benchmark
from popi.evaluation.grid.cells import Cell, cells_of
from popi.evaluation.grid.judged import applies, connect, judge_cell, make_judge
from popi.evaluation.grid.result import grid_result
from popi.evaluation.grid.settings import GridConfig
from popi.evaluation.grid.show import markdown
from popi.evaluation.grid.transfer import write_transfer
from popi.evaluation.judge.question import persona_for
from popi.evaluation.judge.truth import TruthJudge
from popi.models.remote.api import ApiModel
from popi.runs import formats
from popi.runs.files import locked, write_text
from popi.runs.run_directory import differences

FREE = ("name", "root", "concurrency", "input_price", "output_price", "key_env")
"""Settings that affect no figure and may change when a grid is resumed."""


def run_grid(grid: GridConfig, console: Console) -> dict[str, Any]:
    """Run the unfinished parts of a grid; write and return grid.json.

    After an interruption, call it again to resume: no item is scored, requested or judged twice. Items on which a model
    behind an API failed count as missing, and the next call retries only those. A generator that can't be used at all
    is listed under `failed` and the others still run.

    Args:
        grid: the grid's settings.
        console: where to show progress.

    Raises:
        RunError: the directory holds a grid with other settings (the message lists them), or another process is
            working there, or a run can't be used.
        ConfigError: a key is missing, or a judge can't decide for a benchmark's users.
        DataError: users can't be read, or leak.
    """
    with locked(grid.directory):
        return _run_grid(grid, console)


def _run_grid(grid: GridConfig, console: Console) -> dict[str, Any]:
    refuse_unjudged(grid)
    save_config(grid)
    for generator in grid.generators:
        if generator.url is not None:
            generator.spec.connect()  # report a missing key now, not after hours of training
    chats = {judge.name: connect(judge) for judge in grid.judges}
    benchmarks = [open_benchmark(entry, grid, console) for entry in available_entries(grid, console)]
    cells = [cell for benchmark in benchmarks for cell in cells_of(benchmark, grid)]
    refuse_judges(grid, cells)
    failed: list[dict[str, str]] = []
    for cell in cells:
        console.print(f"{cell.benchmark.name}, generator {cell.name}", style="bold", highlight=False)
        try:
            _run_cell(cell, grid, chats, console)
        except (ModelError, UpstreamError) as error:
            failed.append({"benchmark": cell.benchmark.name, "generator": cell.name, "reason": str(error)})
            console.print(f"  failed: {error}", highlight=False)
        finally:
            _print_usage(cell, console)
            cell.models.release()
        _write(grid, cells, failed)
    for name, chat in chats.items():
        if chat is not None and chat.usage.requests:
            console.print(f"judge {name}: {chat.usage}", highlight=False)
    return _write(grid, cells, failed)


def _run_cell(cell: Cell, grid: GridConfig, chats: dict[str, ApiModel | None], console: Console) -> None:
    if cell.scored:
        cell.score(console)
    for settings in grid.judges:
        if applies(settings, cell):
            judge = make_judge(settings, cell.benchmark.config, chats[settings.name])
            judge_cell(cell, settings, judge, _progress(console, settings.name))


def refuse_unjudged(grid: GridConfig) -> None:
    """Raise ConfigError for a generator that would have no figures: no log-probs, and no judge."""
    for generator in grid.generators:
        judged = any(judge.generators is None or generator.name in judge.generators for judge in grid.judges)
        if not generator.scored and not judged:
            raise ConfigError(
                f"generators.{generator.name}: returns no log-probs and no judge judges it, so it would have no "
                "figures; name a judge ([[judges]]), or set scores = true if its server returns prompt log-probs"
            )


def refuse_judges(grid: GridConfig, cells: list[Cell]) -> None:
    """Raise ConfigError for judges that can't judge for a cell's users, before anything is scored."""
    for cell in cells:
        for settings in (judge for judge in grid.judges if applies(judge, cell)):
            if settings.kind == "truth":
                TruthJudge().check(cell.benchmark.people)
            else:
                for person in cell.benchmark.people:
                    persona_for(person, settings.evidence)


def save_config(grid: GridConfig) -> None:
    """Write the grid's settings, or compare them with the ones it was started with.

    Benchmarks, generators, judges and methods may be added; existing ones may not change.

    Raises:
        RunError: a setting changed; the message lists the changes.
    """
    path = grid.directory / "config.json"
    given = grid.model_dump(mode="json")
    for entry, benchmark in zip(given["benchmarks"], grid.benchmarks, strict=True):
        entry["name"] = benchmark.label
    try:
        saved = formats.current_names(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if grid.directory.exists() and (not grid.directory.is_dir() or any(grid.directory.iterdir())):
            raise RunError(f"{grid.directory} exists and is not a grid; choose another name=…") from None
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); move {grid.directory} away") from None
    else:
        if changed := changes(saved, given):
            raise RunError(
                f"{grid.directory} was started with other settings:\n  " + "\n  ".join(changed) + "\n"
                "restore those settings, or give the new grid another name=…"
            )
    write_text(path, json.dumps(given, indent=2, ensure_ascii=False) + "\n")


def changes(saved: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Differences between a grid's saved and new settings, as `key: old -> new`; added entries are no difference."""
    old, new = _named(saved), _named(given)
    for section in ("benchmarks", "generators", "judges"):
        new[section] = {name: entry for name, entry in new[section].items() if name in old[section]}
    if old["methods"] is not None and new["methods"] is not None:
        new["methods"] = [name for name in new["methods"] if name in old["methods"]]
        old["methods"].sort(), new["methods"].sort()
    return differences(old, new)


def _named(tree: dict[str, Any]) -> dict[str, Any]:
    """A grid's settings with its lists of entries keyed by name, without those that affect no figure."""
    named: dict[str, Any] = {}
    for key, value in tree.items():
        if key in ("benchmarks", "generators", "judges"):
            named[key] = {one["name"]: {k: v for k, v in one.items() if k not in FREE} for one in value}
        elif key not in FREE:
            named[key] = list(value) if isinstance(value, list) else value
    return named


def _write(grid: GridConfig, cells: list[Cell], failed: list[dict[str, str]]) -> dict[str, Any]:
    result = grid_result(grid, cells, failed)
    write_text(grid.directory / "grid.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_text(grid.directory / "grid.md", markdown(result))
    write_transfer(result["rows"], grid.directory)
    return result


def _progress(console: Console, judge: str) -> Callable[[str, int, int], None]:
    """A callback that prints a line when a judge finishes a step."""

    def report(step: str, done: int, total: int) -> None:
        if done == total:
            console.print(f"  {judge}: {step} {done}/{total}", highlight=False)

    return report


def _print_usage(cell: Cell, console: Console) -> None:
    """Print the usage of a generator behind an API, which is billed even if the cell failed."""
    usage = cell.models.usage()
    if usage is not None:
        console.print(f"  {cell.name}: {usage}", highlight=False)
