"""The command line: parse, then import and call. Imports no torch until a command needs it."""

import os
import sys
from typing import Annotated, NoReturn

import typer

import popi
from popi.cli import data, generate, infer, judge, keys, models, operations, runs, serve, studies, users
from popi.cli.shared import out
from popi.errors import PopiError

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
app.add_typer(runs.app)
app.add_typer(infer.app)
app.add_typer(generate.app)
app.add_typer(judge.app)
app.add_typer(studies.app)
app.add_typer(data.app, name="data")
app.add_typer(models.app)
app.add_typer(serve.app)
app.add_typer(operations.app)
app.add_typer(keys.app, name="keys")
app.add_typer(users.app, name="users")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show popi's version and exit.")] = False) -> None:
    if version:
        out.print(popi.__version__, highlight=False)
        raise typer.Exit()


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
