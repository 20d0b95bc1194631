"""What goes into sdist and wheel: all of the package, and nothing else."""

import email
import subprocess
import tarfile
import tomllib
import zipfile

import pytest
from package_build import ROOT, built

import popi

MOST_BYTES = 4_000_000
"""Of either; half of it is the nano base."""


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "src/popi"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_wheel_has_every_file_of_the_package_and_no_other(tracked: set[str]) -> None:
    with zipfile.ZipFile(built()[1]) as wheel:
        names = set(wheel.namelist())
        folder = f"popi-{popi.__version__}.dist-info"
        beside = {name for name in names if name.startswith(f"{folder}/")}
        about = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
        commands = wheel.read(f"{folder}/entry_points.txt").decode()
    assert names - beside == {name.removeprefix("src/") for name in tracked}
    assert f"{folder}/licenses/LICENSE" in beside
    assert (
        about["Name"] == "popi" and about["Version"] == popi.__version__ and about["License-Expression"] == "Apache-2.0"
    )
    assert set(about.get_all("Provides-Extra") or []) == set(extras())
    assert "popi = popi.cli:main" in commands
    # Data that is read at run time; a pattern that missed it would show on somebody else's machine alone.
    for name in ("nano/base/model.safetensors", "serving/store/migrations/0001_start.sql", "nano/demo.toml"):
        assert f"popi/{name}" in names


def test_the_sdist_builds_what_the_wheel_has(tracked: set[str]) -> None:
    with tarfile.open(built()[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames() if not name.endswith("/")}
        files = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    assert tracked <= names
    more = {name for name in files if not name.startswith(("src/popi/", "src/popi.egg-info/"))}
    assert more == {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


def test_neither_is_large() -> None:
    for package in built():
        assert package.stat().st_size < MOST_BYTES, f"{package.name}: {package.stat().st_size:,} bytes"


def test_times_in_the_wheel_are_the_commits() -> None:
    """Otherwise nobody could check that a published file is what the commit builds."""
    with zipfile.ZipFile(built()[1]) as wheel:
        dates = {info.date_time for info in wheel.infolist()}
    assert len(dates) == 1


def extras() -> list[str]:
    return list(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
