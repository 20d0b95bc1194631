"""Where a result comes from: the code's commit and the package versions."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")


def commit() -> str:
    """The git commit of popi's source (`…-dirty` with uncommitted changes), or `popi VERSION` without a repository.

    Git must track this file: popi may be installed inside another project's repository.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return f"popi {_version('popi')}"


def stamp_of(content: Any) -> str:
    """A short hash of any JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def stamp_of_each(contents: Iterable[Any]) -> str:
    """`stamp_of` of a list, with one item in memory at a time."""
    digest = hashlib.sha256(b"[")
    for n, content in enumerate(contents):
        digest.update((", " * bool(n) + json.dumps(content, sort_keys=True)).encode())
    digest.update(b"]")
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python, popi and the packages that can affect results."""
    own = {"python": platform.python_version(), "popi": _version("popi")}
    return own | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        if name != "popi":
            return "not installed"
        from popi import __version__

        return __version__
