"""Makes a release of the version in src/popi/__init__.py: checks everything, builds the packages, writes the notes.

python release/release.py                 all steps in order; takes hours, since `results` trains
python release/release.py --from packages resume at a step, after fixing and committing
python release/release.py --only packages one step, from any state of the working tree
python release/release.py --list          list the steps

It starts from a clean working tree and stops at the first step that fails or changes a tracked file. It publishes
nothing; at the end it prints the commands that do. dist/ then contains the sdist, the wheel, the bill of materials,
SHA256SUMS and notes.md.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVICES = [".ci/client-stacks", ".ci/chromium", ".ci/forward-proxy", ".ci/helm", ".ci/pgbouncer", ".ci/postgres"]
STATED = {
    "CITATION.cff": r"^version: (.+)$",
    "deploy/helm/popi/Chart.yaml": r'^appVersion: "(.+)"$',
}
"""Other files that state the version."""


def run(*command: str) -> None:
    """Run a step's command in the checkout.

    Raises:
        SystemExit: the command failed.
    """
    print(f"$ {shlex.join(command)}", flush=True)
    if (code := subprocess.run(command, cwd=ROOT).returncode) != 0:
        sys.exit(f"failed with {code}: {shlex.join(command)}; fix it, commit, and resume with --from")


def git(*arguments: str, root: Path = ROOT) -> str:
    """Run git and return its stdout."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def refuse_dirty_tree(root: Path = ROOT) -> None:
    """Raise SystemExit if files are changed or untracked: a release is made from a commit."""
    if changed := git("status", "--porcelain", root=root):
        sys.exit(f"the working tree is not clean; commit or remove these, then start again:\n{changed.rstrip()}")


def version_of(root: Path = ROOT) -> str:
    """The version to release.

    Raises:
        SystemExit: another file states a different version.
    """
    source = (root / "src/popi/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    assert version is not None
    for name, pattern in STATED.items():
        stated = re.search(pattern, (root / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        if stated is None or stated[1] != version[1]:
            sys.exit(f"{name} has version {stated[1] if stated else 'none'}, but popi is {version[1]}")
    return version[1]


def notes_of(changelog: str, version: str) -> str:
    """The changelog's section for a version, without its heading.

    Raises:
        SystemExit: there is none, or "Unreleased" is not empty.
    """
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", changelog, flags=re.MULTILINE))
    if sections.get("Unreleased", "").strip():
        sys.exit(f'CHANGELOG.md has changes under "Unreleased": rename that section "{version} (YEAR-MONTH-DAY)"')
    for heading, text in sections.items():
        if heading.split()[0].strip("[]") == version and text.strip():
            return str(text).strip() + "\n"
    sys.exit(f"CHANGELOG.md has no section for {version}")


def build(out: Path, root: Path = ROOT) -> tuple[Path, Path]:
    """Build the sdist from the files that git tracks, and the wheel from the sdist; untracked files can't get in.

    Args:
        out: folder for both.
        root: the checkout.
    """
    out.mkdir(parents=True, exist_ok=True)
    commit = git("stash", "create", root=root).strip() or "HEAD"  # includes uncommitted changes
    env = os.environ | {"SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct", root=root).strip()}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "source.tar")
        git("archive", "--output", str(archive), commit, root=root)
        with tarfile.open(archive) as source:
            source.extractall(Path(folder, "source"), filter="data")
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(Path(folder, "source"))]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"building the packages failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return next(out.glob("popi-*.tar.gz")), next(out.glob("popi-*.whl"))


def packages() -> None:
    """Build sdist and wheel into dist/."""
    for old in (ROOT / "dist").glob("popi-*"):
        old.unlink()
    for package in build(ROOT / "dist"):
        print(f"built: {package.relative_to(ROOT)}, {package.stat().st_size:,} bytes")


def notes() -> None:
    """Write SHA256SUMS and notes.md."""
    version, dist = version_of(), ROOT / "dist"
    files = sorted(dist.glob("popi[-.]*"))
    sums = "".join(f"{sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (dist / "SHA256SUMS").write_text(sums)
    changes = notes_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    commit = git("rev-parse", "HEAD").strip()
    text = f"# popi {version}\n\nCommit {commit}.\n\n{changes}\n### Files\n\n```\n{sums}```\n"
    (dist / "notes.md").write_text(text, encoding="utf-8")
    print(f"written: dist/notes.md, dist/SHA256SUMS for {len(files)} files")


STEPS: dict[str, Callable[[], None]] = {
    "ci": lambda: run(".ci/run"),
    "slow": lambda: run(*SERVICES, "make", "slow"),
    "results": lambda: run("make", "results"),
    "site": lambda: run("make", "site"),
    "packages": packages,
    "sbom": lambda: run("make", "sbom"),
    "audit": lambda: run("make", "audit"),
    "notes": notes,
}
"""The steps of a release, in order."""


def main(arguments: list[str] | None = None) -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="first", choices=STEPS, default=next(iter(STEPS)), help="start at this step")
    parser.add_argument("--only", choices=STEPS, help="run only this step, even if the working tree is not clean")
    parser.add_argument("--list", action="store_true", help="list the steps and exit")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(STEPS))
        return
    if options.only:
        STEPS[options.only]()
        return
    refuse_dirty_tree()
    version = version_of()
    notes_of((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    names = list(STEPS)
    for name in names[names.index(options.first) :]:
        print(f"== {name}", flush=True)
        STEPS[name]()
        refuse_dirty_tree()
    print(f"popi {version} is in dist/. To publish it:")
    print(f"  git tag -s v{version} -F dist/notes.md\n  git push origin v{version}")
    print(f"  twine upload dist/popi-{version}.tar.gz dist/popi-{version}-*.whl")


if __name__ == "__main__":
    main()
