"""Command `mcp`: the profile API as tools of an MCP host."""

import importlib.util
from typing import Annotated

import typer

from popi.cli.shared import console
from popi.errors import ModelError

app = typer.Typer()


@app.command()
def mcp(
    url: Annotated[str, typer.Option(help="The gateway: http://localhost:8600.", metavar="URL")],
    user: Annotated[
        str | None, typer.Option(help="Whose profile; over HTTP each request names it in x-popi-user.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key, POPI_KEY by default; best a user key.")
    ] = None,
    http: Annotated[
        bool, typer.Option("--http", help="Streamable HTTP, not stdio: each request brings its own key.")
    ] = False,
    host: Annotated[str, typer.Option(help="With --http: address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="With --http: port to listen at.")] = 8601,
) -> None:
    """Start an MCP server: read a user's summary, add a signal, propose an edit."""
    if any(importlib.util.find_spec(name) is None for name in ("mcp", "uvicorn", "starlette")):
        raise ModelError("this command needs the MCP SDK; install it with: pip install 'popi[mcp]'")
    from popi.client.mcp_server import run_http, run_stdio

    if http:
        if user is not None or key_env is not None:
            raise typer.BadParameter(
                "with --http each request brings its key (Authorization: Bearer) and its user (x-popi-user); leave out "
                "--user and --key-env"
            )
        console.print(f"MCP at http://{host}:{port}/mcp; Ctrl-C ends it", highlight=False, markup=False)
        run_http(url, host, port)
        return
    if user is None:
        raise typer.BadParameter("name the user whose profile it is about with --user ID")
    run_stdio(url, key_env or "POPI_KEY", user)
