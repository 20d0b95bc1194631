"""The package as a release has it, built once for all tests of a process."""

import importlib.util
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
_folder = tempfile.TemporaryDirectory(prefix="popi-packages-")


def script(name: str) -> ModuleType:
    """A script of `release/`."""
    spec = importlib.util.spec_from_file_location(f"release_{name}", ROOT / "release" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def built() -> tuple[Path, Path]:
    """sdist and wheel."""
    sdist, wheel = script("release").build(Path(_folder.name))
    return sdist, wheel
