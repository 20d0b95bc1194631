"""The command line: parse, then import and call. Imports no torch until a command needs it."""

import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import popi
from popi.config import BENCHMARKS, DataConfig, RunConfig, load_config
from popi.errors import DataError, ModelError, PopiError, RunError

# Idle OpenMP threads sleep and do not spin: on a busy machine spinning costs seven times the run's time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="popi",
    help="Personalise an LLM through one short, readable text a user: signals -> preference summary -> response.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Files of users.", no_args_is_help=True)
nano_app = typer.Typer(help="The nano base: the small model that ships with popi.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(nano_app, name="nano")

# Results go to stdout, so that they can be piped; all else goes to stderr.
out = Console(soft_wrap=True)
console = Console(stderr=True)

Run = Annotated[Path, typer.Option("--run", help="Directory of a trained run.", show_default=False)]
Method = Annotated[
    str | None,
    typer.Option(help="Which of the run's methods, e.g. plug_and_play; by default the fullest that it trained."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an output file that exists.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show popi's version and exit.")] = False) -> None:
    if version:
        out.print(popi.__version__, highlight=False)
        raise typer.Exit()


@app.command()
def demo(root: Annotated[Path, typer.Option(help="Where the run directory `demo` is made.")] = Path("runs")) -> None:
    """Train, evaluate and report on the nano world, in minutes on two cores."""
    _need_training()
    from popi.demo import run_demo

    run_demo(root=str(root))


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="TOML file of settings (docs/configuration.md), or a run's config.json.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that replace the file's: training.inference.steps=100 …")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
) -> None:
    """Train inference model, generator, or both, into the run directory {root}/{name}."""
    settings = load_config(config, overrides)
    _need_training()
    from popi.training.train import train as run_training

    path = run_training(settings, resume=resume, console=console)
    console.print(f"trained: {path}; next: popi evaluate --run {path}", highlight=False)


@app.command()
def infer(
    users: Annotated[Path, typer.Argument(help="JSONL file of users (docs/data.md).")],
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a trained run.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of --run: `nano`, a folder or a hub id.")] = None,
    method: Method = None,
    output: Annotated[Path | None, typer.Option("--out", help="File to write; stdout by default.")] = None,
    force: Force = False,
) -> None:
    """Write a preference summary for every user of a file, one JSON object a line."""
    if (run is None) == (model is None):
        raise typer.BadParameter("name a trained run with --run, or a model with --model: one of the two")
    if model is not None and method is not None:
        raise typer.BadParameter("--method names a method of a run; it does not go with --model")
    from popi.signals.jsonl import read_users, refuse_existing, write_rows

    if output is not None:
        refuse_existing(output, force)
        if output.exists() and users.exists() and output.samefile(users):
            raise DataError(f"{output}: is the file of users itself; name another file with --out")
    _need_training()
    from popi.inference_model import InferenceModel
    from popi.training.run_directory import RunDirectory

    opened = None if run is None else RunDirectory.open(run)
    people = read_users(users) if opened is None else read_users(users, **opened.config.data.windows())
    if opened is not None:
        inference_model = InferenceModel.from_pretrained(opened.models(method)[0], **_loading(opened.config))
    else:
        inference_model = InferenceModel.from_pretrained(str(model))
    with _progress() as progress:
        task = progress.add_task("users", total=len(people))
        summaries = inference_model.summarize_many(
            [user.signals for user in people], progress=lambda done: progress.advance(task, done)
        )
    rows = [
        {
            "user_id": user.user_id,
            "summary": summary.text,
            "tokens": summary.tokens,
            "signals_used": summary.signals_used,
            "signals_dropped": list(summary.signals_dropped),
        }
        for user, summary in zip(people, summaries, strict=True)
    ]
    if output is not None:
        write_rows(output, rows, force=force)
        console.print(f"{len(rows)} summaries: {output}", highlight=False)
    else:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The task prompt.")],
    run: Run,
    summary: Annotated[
        str | None, typer.Option(help="The user's preference summary; without one, the plain prompt.")
    ] = None,
    method: Method = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the response.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
) -> None:
    """Answer a task prompt for the user that a summary describes."""
    if not prompt.strip():
        raise typer.BadParameter("the task prompt is empty; give it as text in quotes")
    if not math.isfinite(temperature):
        raise typer.BadParameter(f"--temperature must be a finite number; got {temperature}")
    _need_training()
    from popi.generator import Generator
    from popi.training.run_directory import RunDirectory

    opened = RunDirectory.open(run)
    generator = Generator.from_pretrained(opened.models(method)[1], **_loading(opened.config))
    print(generator.generate(prompt, summary=summary, max_new_tokens=max_tokens, temperature=temperature))


@app.command()
def evaluate(
    run: Run,
    generator: Annotated[
        str | None, typer.Option(help="Another model (`nano`, folder, hub id) to read the run's summaries instead.")
    ] = None,
    users: Annotated[Path | None, typer.Option(help="JSONL file of users to evaluate on instead of the run's.")] = None,
) -> None:
    """Measure every method of a run on held-out users: metrics.json and evaluation/ in the run directory."""
    _need_training()
    from popi.evaluation.report import print_table
    from popi.evaluation.runner import evaluate as run_evaluation
    from popi.evaluation.runner import metrics_path
    from popi.training.run_directory import RunDirectory

    opened = RunDirectory.open(run)
    opened.models()  # refuses a run in which nothing is trained
    result = run_evaluation(opened, generator=generator, users=users, console=console)
    print_table(result, out)
    console.print(f"written: {metrics_path(opened, generator, users)}", highlight=False)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Directory of an evaluated run.")]) -> None:
    """Write report.html from a run's files alone."""
    _need_training()
    from popi.evaluation.report import write_report

    out.print(str(write_report(run)), highlight=False)


Source = Annotated[
    str | None,
    typer.Option(help="Read FILE as a benchmark: elix, review, roleplay, alignx, polis, mtbench or preferences."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="With --source: a setting of [data.benchmark], user_column=who; may be repeated."),
]


@data_app.command("check")
def data_check(
    file: Annotated[
        str | None,
        typer.Argument(
            help="JSONL file of users, or of preference rows with a user_id; with --source: a folder, a file or a hub "
            "id, by default the benchmark's own."
        ),
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="File of another split that may share no user with FILE; may be repeated.")
    ] = None,
    signals_per_user: Annotated[
        int | None, typer.Option(min=1, help="Preference rows: signals of a window. By default 4, or the benchmark's.")
    ] = None,
    targets_per_user: Annotated[
        int | None, typer.Option(min=1, help="Preference rows: targets of a window. By default 4, or the benchmark's.")
    ] = None,
    source: Source = None,
    settings: Settings = None,
) -> None:
    """Report everything wrong with a file: bad lines, duplicates, targets among the signals, users in two splits.

    Of a benchmark: bad rows; and what became of all others, rule by rule.
    """
    given = {"signals_per_user": signals_per_user, "targets_per_user": targets_per_user}
    if source is not None:
        if against:
            raise typer.BadParameter("--against compares JSONL files; a benchmark's own splits are compared anyway")
        from popi.users import look_at

        loaded = look_at(_benchmark(source, file, settings, given))
        problems, summary = loaded.problems, loaded.summary()
    else:
        if file is None or settings:
            raise typer.BadParameter("name a JSONL file; --set goes with --source")
        from popi.signals.check import check

        found = check(
            file, against or [], signals_per_user=signals_per_user or 4, targets_per_user=targets_per_user or 4
        )
        problems, summary = found.problems, found.summary()
    for problem in problems:
        print(f"{problem}" if problem.file else f"{file}: {problem}")
    print("\n".join(summary))
    if problems:
        raise typer.Exit(2)


@data_app.command("convert")
def data_convert(
    output: Annotated[Path, typer.Option("--out", help="JSONL file to write.")],
    source: Annotated[
        str, typer.Option(help="The benchmark: elix, review, roleplay, alignx, polis, mtbench or preferences.")
    ],
    place: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="Folder, file or hub id; by default the benchmark's set on the hub."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, test, or another split of the benchmark (interpolated).")] = "test",
    signals_per_user: Annotated[int | None, typer.Option(min=1, help="By default the benchmark's.")] = None,
    targets_per_user: Annotated[int | None, typer.Option(min=1, help="By default the benchmark's.")] = None,
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Write one split of a benchmark as a JSONL file of users. Windows of one user become users NAME#1, NAME#2, ..."""
    from popi.signals.jsonl import refuse_existing, write_users
    from popi.users import look_at, one_line_each

    refuse_existing(output, force)
    given = {"signals_per_user": signals_per_user, "targets_per_user": targets_per_user}
    users = one_line_each(look_at(_benchmark(source, place, settings, given)), split)
    write_users(output, users, force=force)
    console.print(f"{len(users)} users: {output}", highlight=False)


def _benchmark(source: str, place: str | None, settings: list[str] | None, given: dict[str, int | None]) -> DataConfig:
    """The settings of a benchmark named on the command line."""
    if source not in BENCHMARKS:
        raise typer.BadParameter(f"--source must be one of {', '.join(BENCHMARKS)}; got {source!r}")
    tree: dict[str, Any] = {"source": source} | {name: value for name, value in given.items() if value is not None}
    if place is not None:
        tree["benchmark"] = {"path": place}
    dotted = [f"data.benchmark.{setting}" for setting in settings or []]
    return load_config(None, dotted, tree={"data": tree}).data


@nano_app.command("build")
def nano_build(
    output: Annotated[Path, typer.Option("--out", help="Folder to make.")] = Path("runs/nano-base"),
    seed: Annotated[int, typer.Option(min=0, help="Seeds weights and data; the shipped base has seed 0.")] = 0,
    hidden_size: Annotated[int | None, typer.Option(min=16, help="Width; the shipped base's if not given.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Depth; the shipped base's if not given.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="A shorter curriculum; the shipped base's if not given.")
    ] = None,
) -> None:
    """Train a nano base from scratch (the shipped one: about half an hour on two cores)."""
    if output.exists():
        raise RunError(f"{output}: exists and is left as it is; name another folder with --out")
    output.mkdir(parents=True)  # can it be made at all? Better known now than after half an hour
    output.rmdir()
    _need_training()
    from popi.nano.recipe import Recipe, build

    shipped = Recipe()
    recipe = Recipe(seed, hidden_size or shipped.hidden_size, layers or shipped.layers)
    recipe = recipe.shortened(steps) if steps else recipe
    with _progress() as progress:
        task = progress.add_task("steps", total=recipe.steps)
        build(output, recipe, on_step=lambda step, _losses: progress.update(task, completed=step + 1))
    console.print(f"built: {output}", highlight=False)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _loading(config: RunConfig) -> dict[str, Any]:
    """How a run's models are loaded."""
    model = config.model
    return {
        "templates": config.signals.template,
        "dtype": model.dtype,
        "device": model.device,
        "chat_template": model.chat_template,
    }


def _need_training() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "trl")):
        raise ModelError("this command needs torch, transformers and trl; install them with: pip install 'popi[train]'")


def main() -> None:
    """Entry point. What the user can put right is one message on stderr and exit code 2; Ctrl-C is 130."""
    try:
        app()
    except PopiError as error:
        _fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has had enough
            sys.stderr.close()
            sys.exit(1)
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    print(f"popi: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
