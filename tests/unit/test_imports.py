"""torch comes in late, and HTTP goes out from one place. In which direction folders import: pyproject.toml."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import popi

SOURCE = Path(popi.__file__).parent
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "numpy", "pandas", "pyarrow", "matplotlib")


def imported(file: Path) -> set[str]:
    """Names of popi's modules that a file imports, functions' bodies included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "popi"}


@pytest.mark.parametrize(
    "statement",
    [
        "import popi; popi.Summary; popi.User; popi.read_users; popi.Templates; popi.load_config",
        "import popi.config",
        "import popi.cli",
        "import popi.data.users, popi.data.benchmarks.registry",
        "import popi.data.check, popi.data.schema, popi.signals.render, popi.data.jsonl",
        "import popi.inference_model, popi.generator, popi.runs.summary_file, popi.models.spec, popi.models.backend",
        "import popi; popi.Client('http://localhost:8600', 'key'); popi.AsyncClient",
        "import popi; popi.InferenceModel.from_api('https://example.org/v1', 'm').templates.signals_text([])",
        "import popi; popi.Generator.from_api('https://example.org', 'm', 'anthropic').messages('hello', 'short')",
        "import popi; popi.Generator.from_api('https://example.org/v1', 'm').scorer",
        "import popi.serving.server, popi.serving.worker.renewal, popi.serving.demo, popi.cli.serve",
        "import popi.client.mcp_server, popi.cli.serve",
        "import sys; sys.argv = ['popi', '--help']\nfrom popi.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_no_torch_before_a_command_needs_it(statement: str) -> None:
    check = f"{statement}\nimport sys\nprint('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")


def test_the_client_needs_none_of_the_gateways_packages() -> None:
    check = (
        "import sys\n"
        "missing = ('torch', 'aiohttp', 'sqlalchemy', 'starlette', 'uvicorn', 'jwt', 'mcp')\n"
        "sys.modules.update(dict.fromkeys(missing))\n"
        "import popi; popi.Client('http://localhost:8600', 'key').close(); popi.AsyncClient"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_every_public_name_has_a_home() -> None:
    assert set(popi.__all__) == set(popi._MODULE_OF)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = popi.Nothing


OUTGOING = {"client/base.py", "client/client.py", "client/async_client.py", "models/remote/http.py"}
OUTGOING |= {f"models/remote/http_{part}.py" for part in ("connection", "faults", "routes", "upload")}
LISTENING = {"serving/server.py"}


def test_http_goes_out_from_one_place() -> None:
    clients = (
        "httpx",
        "httpx2",
        "requests",
        "aiohttp",
        "urllib.request",
        "http.client",
        "socket",
        "openai",
        "anthropic",
    )
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(name == client or name.startswith(f"{client}.") for name in names for client in clients):
                assert file.relative_to(SOURCE).as_posix() in OUTGOING | LISTENING


def test_serving_needs_no_users_on_disk() -> None:
    check = (
        "import popi.serving.server, popi.serving.worker.renewal, popi.serving.demo, popi.cli, sys\n"
        "assert 'popi.data.jsonl' in sys.modules and 'popi.data.store' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
