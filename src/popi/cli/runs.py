"""Commands about runs: demo, train, evaluate, report."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from popi.cli.shared import (
    ApiName,
    ChatTemplate,
    Concurrency,
    KeyEnv,
    Method,
    Run,
    console,
    need_training,
    out,
    trained_run,
)
from popi.config import RunConfig, load_config
from popi.errors import ConfigError

app = typer.Typer()


@app.command()
def demo(root: Annotated[Path, typer.Option(help="Where the run directory `demo` is made.")] = Path("runs")) -> None:
    """Train, evaluate and report on the nano world, in minutes on two cores."""
    need_training()
    from popi.evaluation.demo import run_demo

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
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Train and evaluate a run for each of these seeds (0-2, or 0,1,7), in {root}/{name}-seed0 …, and show "
            "means and intervals over them."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what it would do and need, and refuse what can't fit: no weights."),
    ] = False,
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="With --dry-run: plan for one GPU of that many GiB and not for this machine.", min=1),
    ] = None,
) -> None:
    """Train inference model, generator, or both, into the run directory {root}/{name}."""
    settings = load_config(config, overrides)
    need_training()
    if gpu_memory is not None and not dry_run:
        raise typer.BadParameter("--gpu-memory goes with --dry-run")
    if dry_run:
        _show_plan(settings, gpu_memory)
        return
    if seeds is not None:
        from popi.evaluation.seeds import seeds_of, seeds_table, train_seeds

        out.print(seeds_table(train_seeds(settings, seeds_of(seeds), resume, console)))
        written = f"{settings.root}/{settings.name}-seeds.json"
        console.print(f"written: {written}", highlight=False, soft_wrap=True)
        return
    from popi.training.train import train as run_training

    path = run_training(settings, resume=resume, console=console)
    console.print(f"trained: {path}; next: popi evaluate --run {path}", highlight=False)


def _show_plan(settings: RunConfig, gpu_memory: float | None) -> None:
    from popi.training.planning.dry_run import GIB, Device, dry_run
    from popi.training.train import refuse

    if gpu_memory is None:
        refuse(settings)
    device = None if gpu_memory is None else Device("the GPU asked about", int(gpu_memory * GIB), gpu=True)
    plan = dry_run(settings, device)
    for line in plan.lines():
        out.print(line, highlight=False, markup=False)
    if plan.problems:
        raise ConfigError("this run can't fit:\n  " + "\n  ".join(plan.problems))


@app.command()
def evaluate(
    grid: Annotated[
        Path | None, typer.Argument(help="TOML file of a grid: benchmarks x methods x generators (docs/evaluation.md).")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="With a grid: settings that replace the file's: name=mine max_users=50 …")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Instead of a grid: directory of one trained run.")] = None,
    generator: Annotated[
        str | None,
        typer.Option(help="Another model (`nano`, folder, GGUF file, hub id) to read the run's summaries instead."),
    ] = None,
    users: Annotated[Path | None, typer.Option(help="JSONL file of users to evaluate on instead of the run's.")] = None,
    chat_template: ChatTemplate = None,
    api: Annotated[
        str | None,
        typer.Option(help="Instead of --generator: URL of a server that scores responses, as vLLM's.", metavar="URL"),
    ] = None,
    api_model: ApiName = None,
    key_env: KeyEnv = None,
    concurrency: Concurrency = 8,
    per_user_lora: Annotated[
        bool, typer.Option("--per-user-lora", help="Also train and score an adapter for each user: slow.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With a grid: only say what it would do, ask and cost. Needs no key.")
    ] = False,
) -> None:
    """Measure every method: of a run on its held-out users, or of a whole grid of runs and generators.

    Of a run: metrics.json and evaluation/ in the run directory. Of a grid: grid.json, grid.md and a row an item in the
    grid's own directory; runs that are not there are trained first. Either goes on where it was killed.
    """
    of_a_run = (generator, users, chat_template, api, api_model, key_env)
    if (grid is None) == (run is None):
        raise typer.BadParameter("name a grid's TOML file, or a trained run with --run: one of the two")
    if grid is not None:
        if any(value is not None for value in of_a_run) or per_user_lora:
            raise typer.BadParameter(
                "a grid's generators, users and methods stand in its file; the options go with --run"
            )
        _evaluate_grid(grid, overrides, dry_run)
        return
    if dry_run:
        raise typer.BadParameter("--dry-run goes with a grid")
    if chat_template is not None and generator is None:
        raise typer.BadParameter("--chat-template goes with --generator; the run's models have theirs")
    if generator is not None and api is not None:
        raise typer.BadParameter("name another generator with --generator or with --api: one of the two")
    if (api is None) != (api_model is None):
        raise typer.BadParameter("--api and --api-model go together: the server, and the model as it calls it")
    if key_env is not None and api is None:
        raise typer.BadParameter("--key-env goes with --api")
    need_training()
    from popi.config import ApiGeneratorConfig, with_per_user_lora
    from popi.evaluation.models import Other
    from popi.evaluation.report import print_table
    from popi.evaluation.runner import evaluate as run_evaluation
    from popi.evaluation.runner import metrics_path
    from popi.training.model_card import refresh_cards

    assert run is not None, "a grid was refused above"
    opened = trained_run(run)
    other = None if generator is None else Other(generator, chat_template)
    if api is not None and api_model is not None:
        server = ApiGeneratorConfig(url=api, name=api_model, key_env=key_env, concurrency=concurrency)
        other = Other(api_model, api=server)
    config = with_per_user_lora(opened.config) if per_user_lora else None
    result = run_evaluation(opened, config, generator=other, users=users, console=console)
    if other is None and users is None:
        refresh_cards(opened)
    print_table(result, out)
    console.print(f"written: {metrics_path(opened, other, users)}", highlight=False, soft_wrap=True)
    missing = {name: entry["missing"] for name, entry in result["methods"].items() if entry["missing"]}
    _tell_missing("target pairs", missing)


def _evaluate_grid(file: Path, overrides: list[str] | None, dry_run: bool) -> None:
    from popi.evaluation.grid.settings import load_grid

    settings = load_grid(file, overrides)
    need_training()
    if dry_run:
        from popi.evaluation.grid.plan import plan_grid

        for line in plan_grid(settings).lines():
            out.print(line, highlight=False, markup=False)
        return
    from popi.evaluation.grid.run import run_grid
    from popi.evaluation.grid.show import grid_table

    result = run_grid(settings, console)
    out.print(grid_table(result))
    console.print(f"written: {settings.directory / 'grid.json'}", highlight=False, soft_wrap=True)
    for one in result["failed"]:
        print(f"not done: {one['benchmark']}, generator {one['generator']}: {one['reason']}", file=sys.stderr)
    rows = result["rows"]
    missing = {f"{r['benchmark']}, {r['generator']}, {r['method']}": r["missing"] + r["missing_verdicts"] for r in rows}
    _tell_missing("items", {name: n for name, n in missing.items() if n})
    if result["failed"]:
        raise typer.Exit(1)


def _tell_missing(what: str, missing: dict[str, int]) -> None:
    """What did not come, to stderr; exit code 1 where there is any."""
    for name, n in missing.items():
        print(f"missing: {n} {what} of {name}", file=sys.stderr)
    if missing:
        print("the same command asks for these alone", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Directory of an evaluated run, of a grid or of a grid's cell.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Directory of another evaluated run to show beside it; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Write report.html and report.md from a run's files alone; with --against, of runs side by side.

    Of a grid, one for each benchmark, in the cell of the run's own generator.
    """
    need_training()
    from popi.evaluation.report import write_reports

    for written in write_reports(run, against or []):
        out.print(str(written), highlight=False, soft_wrap=True)


@app.command()
def push(
    run: Run,
    to: Annotated[str, typer.Option("--to", help="Repository on the Hugging Face hub: owner/name.")],
    method: Method = None,
    part: Annotated[
        str | None, typer.Option(help="inference_model or generator, where the method trained both.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and send nothing.")] = False,
) -> None:
    """Upload a trained model of a run, with its model card, to the Hugging Face hub."""
    need_training()
    from popi.runs.run_directory import RunDirectory
    from popi.training.push import part_to_push, push_folder

    folder = part_to_push(RunDirectory.open(run), method, part)
    files = push_folder(folder, to, private=private, dry_run=dry_run)
    for name, size in files:
        out.print(f"{size:>12,} {name}", highlight=False)
    console.print(f"{'would go' if dry_run else 'pushed'} to {to}: {folder}", highlight=False)


@app.command()
def merge(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of an adapter, such as RUN/phases/inference-1/inference_model.")
    ],
    output: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")],
    dtype: Annotated[str, typer.Option(help="Type of the weights: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Merge a trained adapter into its base and write the whole model."""
    need_training()
    from popi.training.merging import merge as write_merged

    write_merged(adapter, output, dtype, device)
    console.print(f"merged: {output}", highlight=False)
