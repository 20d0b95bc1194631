"""Commands on files of users and on benchmarks: data check, data convert."""

from pathlib import Path
from typing import Annotated, Any

import typer

from popi.cli.shared import Force, console
from popi.config import BENCHMARKS, DataConfig, load_config

app = typer.Typer(help="Check files of users; convert benchmarks to JSONL.", no_args_is_help=True)

Source = Annotated[
    str | None,
    typer.Option(help=f"Read FILE as a benchmark: {', '.join(BENCHMARKS)}."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="With --source: a setting of [data.benchmark], such as user_column=who. Can be repeated."
    ),
]


@app.command("check")
def data_check(
    file: Annotated[
        str | None,
        typer.Argument(
            help="File of users, or of preference rows with a user_id: JSONL, parquet, or a hub id. With --source: "
            "a folder, a file or a hub id. Default: the benchmark's own."
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="File of another split, which must share no user with FILE. Can be repeated."),
    ] = None,
    signals_per_user: Annotated[
        int | None, typer.Option(min=1, help="Signals per window of preference rows. Default: 4, or the benchmark's.")
    ] = None,
    targets_per_user: Annotated[
        int | None, typer.Option(min=1, help="Targets per window of preference rows. Default: 4, or the benchmark's.")
    ] = None,
    source: Source = None,
    settings: Settings = None,
) -> None:
    """Report all problems in a file: bad lines, duplicates, targets among the signals, users in two splits.

    For a benchmark: bad rows, and how many rows each rule kept or dropped.
    """
    windows = {"signals_per_user": signals_per_user, "targets_per_user": targets_per_user}
    if source is not None:
        if against:
            raise typer.BadParameter("--against compares JSONL files; the splits of a benchmark are always compared")
        from popi.data.users import load_for_check

        loaded = load_for_check(_benchmark(source, file, settings, windows))
        problems, summary = loaded.problems, loaded.summary()
    else:
        if file is None or settings:
            raise typer.BadParameter("name a JSONL file; --set requires --source")
        from popi.data.check import check
        from popi.runs.bars import passes

        with passes(console) as progress:
            report = check(
                file,
                against or [],
                signals_per_user=signals_per_user or 4,
                targets_per_user=targets_per_user or 4,
                progress=progress,
            )
        problems, summary = report.problems, report.summary()
    for problem in problems:
        print(f"{problem}" if problem.file else f"{file}: {problem}")
    print("\n".join(summary))
    if problems:
        raise typer.Exit(2)


@app.command("convert")
def data_convert(
    output: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
    source: Annotated[str, typer.Option(help=f"The benchmark: {', '.join(BENCHMARKS)}.")],
    path: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="Folder, file or hub id. Default: the benchmark's data set on the hub."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split to write: train, test, or another one of the benchmark, such as interpolated.")
    ] = "test",
    signals_per_user: Annotated[
        int | None, typer.Option(min=1, help="Signals per window. Default: the benchmark's.")
    ] = None,
    targets_per_user: Annotated[
        int | None, typer.Option(min=1, help="Targets per window. Default: the benchmark's.")
    ] = None,
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Write one split of a benchmark as a JSONL file of users.

    If a user has several windows, each becomes a separate user: NAME#1, NAME#2 and so on.
    """
    from popi.data.jsonl import refuse_existing, write_users
    from popi.data.users import load_for_check, with_unique_ids

    refuse_existing(output, force)
    windows = {"signals_per_user": signals_per_user, "targets_per_user": targets_per_user}
    users = with_unique_ids(load_for_check(_benchmark(source, path, settings, windows)), split)
    write_users(output, users, force=force)
    console.print(f"{len(users)} users: {output}", highlight=False)


def _benchmark(source: str, path: str | None, settings: list[str] | None, windows: dict[str, int | None]) -> DataConfig:
    """The settings of the benchmark named on the command line."""
    if source not in BENCHMARKS:
        raise typer.BadParameter(f"--source must be one of {', '.join(BENCHMARKS)}; got {source!r}")
    tree: dict[str, Any] = {"source": source} | {name: value for name, value in windows.items() if value is not None}
    if path is not None:
        tree["benchmark"] = {"path": path}
    dotted = [f"data.benchmark.{setting}" for setting in settings or []]
    return load_config(None, dotted, tree={"data": tree}).data
