"""Writes requirements.lock: every package that popi needs to run, with its version and the hashes of its files; and
requirements-gateway.lock, the part of it that the gateway's image installs.

python release/lock.py             uses uv, which queries the package index

requirements.lock covers the extras train, serve, otel and mcp on Linux, macOS and Windows, Python 3.11 and newer, and
honours constraints.txt. It contains no CUDA build of torch: the packages that such a build depends on are dropped, and
torch has only the hashes of its CPU builds. Users choose the build for their machine (docs/compatibility.md).
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
GATEWAY_LOCK = ROOT / "requirements-gateway.lock"
EXTRAS = ("train", "serve", "otel", "mcp")
GATEWAY_EXTRAS = ("serve", "otel")
CUDA = re.compile(r"(nvidia|cuda)-|triton\b")
"""Packages that only a CUDA build of torch needs."""
CPU_FILES = re.compile(r"macosx|win_amd64")
"""Matches the files of torch in the package index that are CPU builds; those for Linux are CUDA builds."""
CPU_BUILDS = ("6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",)
"""SHA-256 of torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl, a CPU build that is not in the package index."""
PROJECT = """\
[project]
name = "torch-alone"
version = "0"
requires-python = ">=3.11"
dependencies = ["torch=={}"]
"""
HEADER = f"""\
# Made by `make lock`; edit pyproject.toml and constraints.txt instead.
# Everything that popi[{",".join(EXTRAS)}] needs, with hashes. To install it:
#   pip install torch==2.13.0                                   any build: CPU, CUDA, ...
#   pip install --require-hashes --no-deps -r requirements.lock
#   pip install --no-deps popi
# torch's hashes are those of its CPU builds for macOS, for Windows, and for Linux on x86-64 with Python 3.11. On other
# machines install torch first, as above: pip keeps an installed build.
"""
GATEWAY_HEADER = f"""\
# Made by `make lock`: the part of requirements.lock that popi[{",".join(GATEWAY_EXTRAS)}] needs, for the Dockerfile.
"""


def compiled(extras: tuple[str, ...]) -> str:
    """uv's resolution for all platforms, with hashes."""
    command = ["uv", "pip", "compile", "--quiet", "pyproject.toml", "-c", "constraints.txt", "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    for extra in extras:
        command += ["--extra", extra]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield each package's name and its lines."""
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        yield re.split(r"[=\[ ]", block, maxsplit=1)[0], block + "\n"


def torch_hashes(version: str) -> list[str]:
    """Hashes of torch's CPU builds. Only a project's lock says which file a hash belongs to."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text(PROJECT.format(version))
        subprocess.run(["uv", "lock", "--quiet"], cwd=folder, check=True)
        packages = tomllib.loads(Path(folder, "uv.lock").read_text())["package"]
    wheels = next(one for one in packages if one["name"] == "torch")["wheels"]
    of_index = [one["hash"].removeprefix("sha256:") for one in wheels if CPU_FILES.search(one["url"])]
    return sorted([*of_index, *CPU_BUILDS])


def locked(text: str) -> str:
    """The lock: the resolved packages without CUDA."""
    packages = []
    for name, block in blocks(text):
        if CUDA.match(name):
            continue
        if name == "torch":
            version = block.split("==")[1].split()[0]
            hashes = (f"    --hash=sha256:{one}" for one in torch_hashes(version))
            block = f"torch=={version} \\\n" + " \\\n".join(hashes) + "\n"
        packages.append(block)
    return HEADER + "".join(packages)


def part(lock: str, names: set[str]) -> str:
    """The gateway's lock: the blocks of a lock that have one of these names."""
    return GATEWAY_HEADER + "".join(block for name, block in blocks(lock.removeprefix(HEADER)) if name in names)


def main() -> None:
    """Write both locks."""
    try:
        text = locked(compiled(EXTRAS))
        gateway = part(text, {name for name, _ in blocks(compiled(GATEWAY_EXTRAS))})
    except FileNotFoundError:
        sys.exit("uv is not installed: pip install -e '.[release]'")
    except subprocess.CalledProcessError as error:
        sys.exit(f"uv could not resolve the dependencies:\n{error.stderr}")
    for path, lock in ((LOCK, text), (GATEWAY_LOCK, gateway)):
        path.write_text(lock, encoding="utf-8")
        print(f"written: {path.name}, {sum(1 for _ in blocks(lock)) - 1} packages")


if __name__ == "__main__":
    main()
