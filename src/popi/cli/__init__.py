"""The command line: parse, then import and call. Imports no torch until a command needs it."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

import popi
from popi.cli import data, generate, infer, judge, keys, models, operations, runs, serve, studies, users
from popi.cli.shared import out
from popi.errors import ConfigError, PopiError

# Idle OpenMP threads sleep instead of spinning: on a busy machine, spinning makes a run seven times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS: dict[str, dict[str, Callable[..., Any] | typer.Typer]] = {
    # From a first try to an application: the training loop, then its three uses.
    "Everyday": {
        "demo": runs.demo,
        "train": runs.train,
        "evaluate": runs.evaluate,
        "infer": infer.infer,
        "generate": generate.generate,
        "serve": serve.serve,
    },
    "Results and studies": {
        "report": runs.report,
        "judge": judge.judge_command,
        "win-rate": judge.win_rate,
        "study": studies.app,
    },
    "Data and models": {
        "push": models.push,
        "merge": models.merge,
        "data": data.app,
        "nano": models.nano_app,
    },
    "Gateway operations": {
        "worker": serve.worker,
        "mcp": serve.mcp,
        "audit": operations.audit,
        "replay": operations.replay,
        "keys": keys.app,
        "users": users.app,
    },
}
"""The panels of `popi --help`, in order."""

MOVED = {name: f"study {name}" for name in ("evidence", "streaming", "abstention", "side-effects")}
"""Old command names and their replacements."""


def _command_line() -> typer.Typer:
    app = typer.Typer(
        name="popi",
        help="Personalise any LLM through one short, readable text per user: "
        "user signals -> preference summary -> response.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # supports panels, and prints [brackets] literally
    )
    app.callback(invoke_without_command=True)(_root)
    for panel, commands in COMMANDS.items():
        for name, command in commands.items():
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=name, rich_help_panel=panel)
            else:
                app.command(name, rich_help_panel=panel)(command)
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    for name in MOVED:
        app.command(name, hidden=True, add_help_option=False, context_settings=anything)(_moved)
    return app


def _root(version: Annotated[bool, typer.Option("--version", help="Show popi's version and exit.")] = False) -> None:
    if version:
        out.print(popi.__version__, highlight=False)
        raise typer.Exit()


def _moved(context: typer.Context) -> None:
    name = str(context.info_name)
    raise ConfigError(f"`popi {name}` is now `popi {MOVED[name]}`")


app = _command_line()


def main() -> None:
    """Entry point. Errors the user can fix print one message on stderr and exit with 2; Ctrl-C exits with 130."""
    try:
        sys.exit(app(prog_name="popi", standalone_mode=False))
    except typer.TyperException as error:  # wrong options or arguments
        message, context = error.format_message(), getattr(error, "ctx", None)
        if message and context is not None:
            message += f"\nTry `{context.command_path} --help`."
        _fail(message, error.exit_code)
    except PopiError as error:
        _fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reading end of the pipe was closed
            sys.stderr.close()
            sys.exit(1)
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _fail(message: str, code: int = 2) -> NoReturn:
    if message:  # empty when a group without a command has already printed its help
        print(f"popi: {message}", file=sys.stderr)
    sys.exit(code)
