"""`popi demo`: train on the nano world, evaluate, report, and show a few users; takes minutes on two cores.

The demo's directory is `{root}/demo`. If it exists already, nothing is ever deleted:

- an unfinished demo with the same settings is resumed;
- a finished demo, or one with other settings, is moved to `demo-1`, `demo-2`, … and the demo starts over;
- anything else is left untouched, with an error.
"""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from popi.config import RunConfig, load_config
from popi.errors import RunError

USERS_SHOWN = 3
SIGNALS_SHOWN = 5
FINISHED = ("metrics.json", "report.html")


def demo_config(root: str | Path = "runs", overrides: list[str] | None = None) -> RunConfig:
    """The demo's settings, as shipped with the package (configs/demo.toml in a checkout)."""
    with as_file(files("popi.nano") / "demo.toml") as path:
        return load_config(path, [*(overrides or []), f"root={json.dumps(str(root))}"])


def run_demo(
    root: str | Path = "runs",
    *,
    console: Console | None = None,
    progress: Console | None = None,
    overrides: list[str] | None = None,
) -> Path:
    """Run the demo and return its run directory, `{root}/demo`.

    Args:
        root: where to create the run directory.
        console: where to show results; stdout by default.
        progress: where to show progress; stderr by default.
        overrides: settings that replace the demo's (`training.inference.steps=10`).

    Raises:
        RunError: `{root}/demo` exists and is not a run.
    """
    from popi.evaluation.report import print_table, write_report
    from popi.evaluation.runner import evaluate
    from popi.runs.run_directory import RunDirectory
    from popi.training.train import train

    console = console or Console(highlight=False)
    progress = progress or Console(stderr=True, highlight=False)
    started = time.monotonic()
    config = demo_config(root, overrides)
    prepare(config, progress)
    progress.print(Text("POPI demo", style="bold"), "training on synthetic users with known preferences")
    run = RunDirectory.open(train(config, resume=True, console=progress))
    progress.print("evaluating on held-out users")
    metrics = evaluate(run, console=progress)
    examples = json.loads((run.path / "evaluation" / "examples.json").read_text(encoding="utf-8"))["users"]
    users_file = write_example_users(run.path / "users.jsonl", examples)
    report = write_report(run.path)

    console.print(Rule("Held-out users, every method", style="dim"))
    print_table(metrics, console)
    for example in examples[:USERS_SHOWN]:
        console.print(user_panel(example, metrics["methods"]))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"Done in {minutes} min {seconds} s.")
    for label, path in (("report", report), ("numbers", run.path / "metrics.json")):
        console.print(Text(f"  {label:<8} {path}"), soft_wrap=True)
    console.print("\nTry next:", style="bold")
    for command in next_commands(run.path, users_file, examples):
        console.print(Text("  " + command), soft_wrap=True)
    return run.path


def prepare(config: RunConfig, console: Console) -> None:
    """Move an earlier demo aside if necessary, as described in the module docstring.

    Raises:
        RunError: the demo's directory exists and is not a run.
    """
    from popi.runs.run_directory import RunDirectory, config_differences

    path = config.directory
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        existing = RunDirectory.open(path)
    except RunError as error:
        raise RunError(f"{error}; nothing was changed: move it away, or run the demo elsewhere with --root") from None
    finished = all((path / name).is_file() for name in FINISHED)
    differences = config_differences(existing.config, config)
    if not finished and not differences:
        console.print(Text(f"resuming the unfinished demo in {path}"))
        return
    number = 1
    while (aside := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    path.rename(aside)
    kind = "a demo with other settings" if differences else "the earlier demo"
    console.print(Text(f"{kind} was moved to {aside}"))


def write_example_users(path: Path, examples: list[Mapping[str, Any]]) -> Path:
    """Write the shown users to a JSONL file for `popi infer` and `popi evaluate --users`."""
    from popi.data.jsonl import write_users
    from popi.signals.types import User

    pair = ("prompt", "chosen", "rejected")
    users = [
        User.model_validate(
            {
                "user_id": example["user_id"],
                "signals": example["signals"],
                "targets": [{key: asked[key] for key in pair} for asked in example["prompts"]],
            }
        )
        for example in examples
    ]
    write_users(path, users, force=True)
    return path


def user_panel(example: Mapping[str, Any], methods: Mapping[str, Any]) -> Panel:
    """One user: signals, the summaries by the best prompt and after training, and an answer to a prompt with each."""
    from popi.evaluation.methods import METHODS
    from popi.evaluation.report import prompt_text

    shown = ["untrained_summary", *(name for name in methods if name.startswith("popi_"))]
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(style="dim", no_wrap=True, min_width=17)
    rows.add_column(overflow="fold")
    rows.add_row(_heading("signals"), "")
    for signal in example["signals"][:SIGNALS_SHOWN]:
        for kind, text in _signal_lines(signal):
            rows.add_row(kind, Text(text, no_wrap=True, overflow="ellipsis"))
    if len(example["signals"]) > SIGNALS_SHOWN:
        rows.add_row("", Text(f"… and {len(example['signals']) - SIGNALS_SHOWN} more", style="dim"))
    rows.add_row()
    rows.add_row(_heading("summary"), "")
    for name in shown:
        label = "best prompt" if name == "untrained_summary" else METHODS[name].label
        rows.add_row(label, _answer(name, example["summaries"].get(name)))
    if "oracle" in example["summaries"]:
        rows.add_row("the truth", Text(example["summaries"]["oracle"], style="italic"))
    for asked in example["prompts"][:1]:
        rows.add_row()
        rows.add_row(_heading("answers to"), Text(prompt_text(asked["prompt"]), style="italic"))
        labels = {"no_personalization": "no summary", "untrained_summary": "best prompt"}
        for name in ["no_personalization", *shown]:
            rows.add_row(labels.get(name, METHODS[name].label), _answer(name, asked["answers"].get(name)))
    return Panel(rows, title=Text(f"user {example['user_id']}"), title_align="left", border_style="dim")


def next_commands(run: Path, users_file: Path, examples: list[Mapping[str, Any]]) -> list[str]:
    """Three commands to copy and run."""
    from popi.evaluation.report import best_popi, prompt_text

    beside = Path(sys.executable).with_name("popi")
    popi = "popi" if shutil.which("popi") or not beside.is_file() else _near(beside)
    example = examples[0]
    method = best_popi(example["summaries"])
    summary = shlex.quote(example["summaries"][method] if method else "")
    prompt = shlex.quote(prompt_text(example["prompts"][0]["prompt"]))
    third = "train configs/nano.toml" if Path("configs/nano.toml").is_file() else f"data check {users_file}"
    return [
        f"{popi} infer --run {shlex.quote(str(run))} {shlex.quote(str(users_file))}",
        f"{popi} generate --run {shlex.quote(str(run))} --summary {summary} {prompt}",
        f"{popi} {third}",
    ]


def _near(path: Path) -> str:
    """A path relative to the working directory, if it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _heading(text: str) -> Text:
    return Text(text, style="bold")


def _answer(method: str, text: str | None) -> Text:
    return Text(text or "(empty)", style="bold" if method.startswith("popi_") else "")


def _signal_lines(signal: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A signal in one or two lines: (kind, text)."""
    from popi.evaluation.report import prompt_text

    kind = signal["type"]
    if kind == "pair":
        return [(kind, f"+ {signal['chosen']}"), ("", f"− {signal['rejected']}")]
    if kind == "interaction":
        edit, rating = signal.get("edit"), signal.get("rating")
        content = (
            f"edited to: {edit}" if edit else f"rated {rating:g}: {signal['response']}" if rating is not None else ""
        )
        return [(kind, content or f"asked: {prompt_text(signal['prompt'])}")]
    return [(kind, str(signal["text"]))]
