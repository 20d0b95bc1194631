"""What several commands share: the consoles, the bars, options, and what must be installed."""

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from popi.config import RunConfig
from popi.errors import ModelError
from popi.runs.bars import Bars

if TYPE_CHECKING:
    from popi.runs.run_directory import RunDirectory

# Results go to stdout, so that they can be piped; all else goes to stderr.
out = Console(soft_wrap=True)
console = Console(stderr=True)

Run = Annotated[Path, typer.Option("--run", help="Directory of a trained run.", show_default=False)]
Method = Annotated[
    str | None,
    typer.Option(help="Which of the run's methods, e.g. plug_and_play; by default the fullest that it trained."),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        help="Jinja chat template (a file, or text) for a model whose tokenizer has none.",
        metavar="FILE",
        show_default=False,
    ),
]
ApiName = Annotated[str | None, typer.Option("--api-model", help="The model, as the API calls it.")]
KeyEnv = Annotated[
    str | None,
    typer.Option(help="Environment variable with the key; by default OPENAI_API_KEY or ANTHROPIC_API_KEY, if set."),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Most requests to the API under way at once.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an output file that exists.")]


def progress_bars() -> Progress:
    """Bars on stderr, gone when the work is done; lines where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bars(*columns, console=console, transient=True)


def loading(config: RunConfig) -> dict[str, Any]:
    """How a run's inference model or generator is loaded."""
    return {"templates": config.signals.template} | config.model.loading


def trained_run(path: Path) -> "RunDirectory":
    """A run's directory.

    Raises:
        RunError: it is none, or nothing in it is trained.
    """
    from popi.runs.run_directory import RunDirectory

    run = RunDirectory.open(path)
    run.models()
    return run


def need_training() -> None:
    """Refuse, with what to install, where the packages that load models are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")):
        raise ModelError("this command needs torch, transformers and peft; install them: pip install 'popi[train]'")
    # Names that these libraries use of each other until they drop them: nothing that a user could do anything about.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")
