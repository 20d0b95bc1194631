"""Commands on runs: demo, train, evaluate, report."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from popi.cli.api import PANEL, ApiName, Concurrency, KeyEnv
from popi.cli.shared import LOCAL, ChatTemplate, console, need_training, out, trained_run
from popi.config import RunConfig, load_config
from popi.errors import ConfigError


def demo(root: Annotated[Path, typer.Option(help="Parent of the run directory `demo`.")] = Path("runs")) -> None:
    """Train, evaluate and report on synthetic users, in a few minutes on two cores."""
    need_training()
    from popi.evaluation.demo import run_demo

    run_demo(root=str(root))


def train(
    config: Annotated[
        Path, typer.Argument(help="TOML file of settings (docs/configuration.md), or the config.json of a run.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that override the file's, such as training.inference.steps=100."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Train and evaluate one run per seed (0-2 or 0,1,7), in {root}/{name}-seed0 and so on, and show means "
            "and intervals over the seeds."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only report what the run would do and need, without loading weights; fail if it can't fit.",
        ),
    ] = False,
    with_weights: Annotated[
        bool,
        typer.Option(
            "--with-weights",
            help="With --dry-run: load the model, sample and score the first groups, and report how reliable their "
            "rewards are.",
        ),
    ] = False,
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="With --dry-run: plan for a GPU with this many GiB instead of this machine.", min=1),
    ] = None,
    processes: Annotated[
        int, typer.Option(help="With --dry-run: plan for this many processes, each on its own device.", min=1)
    ] = 1,
) -> None:
    """Train the inference model, the generator or both, in the run directory {root}/{name}."""
    settings = load_config(config, overrides)
    need_training()
    if gpu_memory is not None and not dry_run:
        raise typer.BadParameter("--gpu-memory requires --dry-run")
    if processes > 1 and not dry_run:
        raise typer.BadParameter(
            f"--processes requires --dry-run; to start them: torchrun --nproc-per-node {processes} -m popi train"
        )
    if with_weights and (gpu_memory is not None or not dry_run):
        raise typer.BadParameter("--with-weights requires --dry-run and excludes --gpu-memory: it runs on this machine")
    if dry_run:
        _show_plan(settings, gpu_memory, processes)
        if with_weights:
            _show_reliability(settings)
        return
    if seeds is not None:
        from popi.evaluation.seeds import seeds_of, seeds_table, train_seeds

        out.print(seeds_table(train_seeds(settings, seeds_of(seeds), resume, console)))
        written = f"{settings.root}/{settings.name}-seeds.json"
        console.print(f"written: {written}", highlight=False, soft_wrap=True)
        return
    from popi.training.processes import leave
    from popi.training.train import train as run_training

    path = run_training(settings, resume=resume, console=console)
    if int(os.environ.get("RANK", "0")) == 0:
        console.print(f"trained: {path}; next: popi evaluate --run {path}", highlight=False)
    leave()


def _show_plan(settings: RunConfig, gpu_memory: float | None, processes: int) -> None:
    from popi.training.planning.dry_run import GIB, Device, dry_run
    from popi.training.train import refuse

    if gpu_memory is None and processes == 1:
        refuse(settings)
    device = None if gpu_memory is None else Device("the GPU of --gpu-memory", int(gpu_memory * GIB), gpu=True)
    plan = dry_run(settings, device, processes)
    for line in plan.lines():
        out.print(line, highlight=False, markup=False)
    if plan.problems:
        raise ConfigError("this run can't fit:\n  " + "\n  ".join(plan.problems))


def _show_reliability(settings: RunConfig) -> None:
    from popi.training.planning.with_weights import reliability_lines

    for line in reliability_lines(settings):
        out.print(line, highlight=False, markup=False)


def evaluate(
    grid: Annotated[
        Path | None, typer.Argument(help="TOML file of a grid: benchmarks x methods x generators (docs/evaluation.md).")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="With a grid: settings that override the file's, such as max_users=50.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Evaluate one trained run, in this directory, instead of a grid.")
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            help="Generate with another model (`nano`, a folder, a GGUF file or a hub id) from the run's summaries.",
            metavar="MODEL",
            rich_help_panel=LOCAL,
        ),
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="Evaluate on the users of this file instead of the run's held-out users.")
    ] = None,
    chat_template: ChatTemplate = None,
    api: Annotated[
        str | None,
        typer.Option(
            help="Generate with a model on a server that can score responses, such as vLLM.",
            metavar="URL",
            rich_help_panel=PANEL,
        ),
    ] = None,
    api_model: ApiName = None,
    key_env: KeyEnv = None,
    concurrency: Concurrency = 8,
    per_user_lora: Annotated[
        bool, typer.Option("--per-user-lora", help="Also train and score one adapter per user (slow).")
    ] = False,
    copied: Annotated[
        bool, typer.Option("--copy", help="Also score the user's signals, copied word for word, as a summary.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With a grid: only report the work, the requests and their cost. Needs no key."),
    ] = False,
) -> None:
    """Evaluate every method of a run on held-out users, or a whole grid of runs and generators.

    A run gets metrics.json and evaluation/ in its directory. A grid gets grid.json, grid.md and one row per item in its
    own directory; missing runs are trained first. Both resume if they are interrupted.
    """
    run_options = (generator, users, chat_template, api, api_model, key_env)
    if (grid is None) == (run is None):
        raise typer.BadParameter("name either a grid's TOML file, or a trained run with --run")
    if grid is not None:
        if any(value is not None for value in run_options) or per_user_lora or copied:
            raise typer.BadParameter(
                "a grid's file sets its generators, users and methods; use these options with --run"
            )
        _evaluate_grid(grid, overrides, dry_run)
        return
    if dry_run:
        raise typer.BadParameter("--dry-run requires a grid")
    if chat_template is not None and generator is None:
        raise typer.BadParameter("--chat-template requires --generator; the run's models have their own")
    if generator is not None and api is not None:
        raise typer.BadParameter("name another generator either with --generator or with --api")
    if (api is None) != (api_model is None):
        raise typer.BadParameter("--api and --api-model must be set together: the server, and the model's name there")
    if key_env is not None and api is None:
        raise typer.BadParameter("--key-env requires --api")
    need_training()
    from popi.config import with_method
    from popi.evaluation.report import print_table
    from popi.evaluation.runner import evaluate as run_evaluation
    from popi.evaluation.runner import metrics_path
    from popi.models.spec import ModelSpec
    from popi.training.model_card import refresh_cards

    assert run is not None, "grids are handled above"
    opened = trained_run(run)
    other = None if generator is None else ModelSpec(generator, chat_template=chat_template)
    if api is not None and api_model is not None:
        other = ModelSpec(api_model, url=api, key_env=key_env, concurrency=concurrency)
    config = opened.config
    config = with_method(config, "per_user_lora") if per_user_lora else config
    config = with_method(config, "copied") if copied else config
    result = run_evaluation(opened, config, generator=other, users=users, console=console)
    if other is None and users is None:
        refresh_cards(opened)
    print_table(result, out)
    console.print(f"written: {metrics_path(opened, other, users)}", highlight=False, soft_wrap=True)
    missing = {name: entry["missing"] for name, entry in result["methods"].items() if entry["missing"]}
    _report_missing("target pairs", missing)


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
    for cell in result["failed"]:
        print(f"not done: {cell['benchmark']}, generator {cell['generator']}: {cell['reason']}", file=sys.stderr)
    rows = result["rows"]
    missing = {f"{r['benchmark']}, {r['generator']}, {r['method']}": r["missing"] + r["missing_verdicts"] for r in rows}
    _report_missing("items", {name: n for name, n in missing.items() if n})
    if result["failed"]:
        raise typer.Exit(1)


def _report_missing(kind: str, missing: dict[str, int]) -> None:
    """Report missing results on stderr, and exit with 1 if there are any."""
    for name, n in missing.items():
        print(f"missing: {n} {kind} of {name}", file=sys.stderr)
    if missing:
        print("run the same command again to retry only these", file=sys.stderr)
        raise typer.Exit(1)


def report(
    run: Annotated[Path, typer.Argument(help="Directory of an evaluated run, of a grid, or of a cell of a grid.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Directory of another evaluated run to compare with. Can be repeated.", show_default=False),
    ] = None,
) -> None:
    """Write report.html and report.md from a run's files; --against compares runs side by side.

    A grid gets one report per benchmark, in the cell of the run's own generator.
    """
    need_training()
    from popi.evaluation.report import write_reports

    for written in write_reports(run, against or []):
        out.print(str(written), highlight=False, soft_wrap=True)
