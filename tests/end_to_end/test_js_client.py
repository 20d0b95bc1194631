"""clients/js as its users run it: under node, against a gateway in a separate process."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from end_to_end.gateway_process import ADMIN, running

from popi.serving.keys import create
from popi.serving.store.database import Database

CLIENT = Path(__file__).parents[2] / "clients/js"
LEAST_NODE = 20


def node_version() -> int:
    if shutil.which("node") is None:
        return 0
    shown = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return int(shown.removeprefix("v").partition(".")[0])


def run(*command: str, **more: Any) -> None:
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=300, **more)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(node_version() < LEAST_NODE, reason=f"there is no node of version {LEAST_NODE} or newer here")
def test_against_a_gateway(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/popi.db"
    database = Database.open(store)
    keys = {
        "POPI_APP_KEY": create(database, "app", "acme")[0],
        "POPI_USER_KEY": create(database, "user", "acme", "ada")[0],
        "POPI_ADMIN_KEY": ADMIN,
    }
    database.close()
    with running(store) as gateway:
        run("node", "--test", "test/client.test.js", env=os.environ | keys | {"POPI_URL": gateway.url})


@pytest.mark.skipif(
    not (CLIENT / "node_modules").is_dir(), reason="clients/js has no node_modules (.ci/js-client installs them)"
)
def test_types_are_those_of_the_document() -> None:
    """`npm run check`: types.d.ts matches openapi.json, and a program that uses the types compiles."""
    run("npm", "run", "check")


def test_types_have_every_operation_and_schema() -> None:
    """Checks that don't need npm, so that a new operation is caught everywhere."""
    document = json.loads((CLIENT / "openapi.json").read_text("utf-8"))
    types = (CLIENT / "types.d.ts").read_text("utf-8")
    operations = {one["operationId"] for methods in document["paths"].values() for one in methods.values()}
    typed = types[types.index("export interface operations") :]
    words = "run `npm install` and `npm run generate` in clients/js"
    assert operations == set(re.findall(r"^    (\w+): {$", typed, re.MULTILINE)), words
    schemas = types[: types.index("export interface operations")].partition("    schemas: {")[2]
    assert document["components"]["schemas"].keys() == set(
        re.findall(r'^        "?([\w-]+)"?: ', schemas, re.MULTILINE)
    ), words
