"""Shared by several commands: consoles, progress bars, options, and the check for installed packages."""

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from popi.errors import ModelError
from popi.runs.bars import Bars

if TYPE_CHECKING:
    from popi.models.spec import ModelSpec
    from popi.runs.run_directory import RunDirectory

# Results go to stdout so that they can be piped; everything else goes to stderr.
out = Console(soft_wrap=True)
console = Console(stderr=True)

LOCAL = "Local model"
"""The help panel of options for a model that is loaded on this machine."""
Run = Annotated[Path, typer.Option("--run", help="Directory of a trained run.", show_default=False)]
Method = Annotated[
    str | None,
    typer.Option(
        help="One of the run's methods, such as plug_and_play. Default: the most complete one that was trained."
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        help="Jinja chat template (a file or text) for a model whose tokenizer has none.",
        metavar="FILE",
        show_default=False,
        rich_help_panel=LOCAL,
    ),
]
LocalModel = Annotated[
    str | None,
    typer.Option(
        help="Use this model instead of a run: `nano`, `smollm2`, a folder, a GGUF file or a hub id.",
        metavar="MODEL",
        rich_help_panel=LOCAL,
    ),
]
TemplateSet = Annotated[
    str | None, typer.Option(help="Set of prompt templates: nano, default or a folder.", rich_help_panel=LOCAL)
]
Dtype = Annotated[str | None, typer.Option(help="auto (default), float32, bfloat16 or float16.", rich_help_panel=LOCAL)]
Device = Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, cuda:1 and so on.", rich_help_panel=LOCAL)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an output file that exists.")]


def local_spec(
    model: str, template: str | None, dtype: str | None, device: str | None, chat_template: str | None
) -> "ModelSpec":
    """The local model that a command's options describe."""
    from popi.models.spec import ModelSpec

    return ModelSpec(model, template or "auto", dtype or "auto", device or "auto", chat_template=chat_template)


def reject_unrelated_options(
    run: Path | None,
    method: str | None,
    model: str | None,
    template: str | None,
    dtype: str | None,
    device: str | None,
    chat_template: str | None,
) -> None:
    """Reject options of a run or of a local model when none is named."""
    if run is None and method is not None:
        raise typer.BadParameter("--method names a method of a run; it does not go with --model or --api")
    if model is None and any(value is not None for value in (chat_template, template, dtype, device)):
        raise typer.BadParameter("--chat-template, --template, --dtype and --device go with --model; a run has its own")


def progress_bars() -> Progress:
    """Progress bars on stderr, removed when the work is done; plain lines if stderr is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bars(*columns, console=console, transient=True)


def trained_run(path: Path) -> "RunDirectory":
    """The directory of a trained run.

    Raises:
        RunError: it is not a run directory, or nothing in it has been trained.
    """
    from popi.runs.run_directory import RunDirectory

    run = RunDirectory.open(path)
    run.models()
    return run


def need_training() -> None:
    """Raise a ModelError that says what to install if the packages that load models are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")):
        raise ModelError("this command needs torch, transformers and peft; install them: pip install 'popi[train]'")
    # These libraries warn about their own use of deprecated names, which users can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")
