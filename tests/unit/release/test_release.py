"""The scripts of `release/`: what they refuse, and what they make of their tools' answers."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from package_build import ROOT, script
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import popi

release, sbom, audit, lock = (script(name) for name in ("release", "sbom", "audit", "lock"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
CHANGES = "# Changelog\n\n## Unreleased\n\n## 0.2.0 (2027-01-31)\n\n### Added\n- B.\n\n## 0.1.0 (2026-12-01)\n\n- A.\n"


def needs(*extras: str) -> list[Requirement]:
    """What popi with these extras asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for listed in lists for line in listed]


def test_the_lock_has_what_popi_needs_at_the_versions_that_tests_run_with() -> None:
    """After a change of pyproject.toml or constraints.txt: `make lock licences`."""
    versions: dict[str, list[str]] = {}
    for name, version in sbom.locked(LOCK):
        versions.setdefault(name, []).append(version)
    for need in needs(*lock.EXTRAS):
        there = versions[canonicalize_name(need.name)]
        assert there and all(need.specifier.contains(version) for version in there), need
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        assert versions.get(canonicalize_name(name), [version]) == [version], line


def test_everything_in_the_lock_has_hashes_and_nothing_is_built_for_cuda() -> None:
    for name, block in lock.blocks(LOCK.removeprefix(lock.HEADER)):
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)
        assert hashes and len(hashes) == block.count("--hash"), name
        assert not lock.CUDA.match(name), name
    assert LOCK.startswith(lock.HEADER) and "\ntorch==2.13.0 \\\n" in LOCK
    assert set(lock.CPU_BUILDS) <= set(re.findall(r"[0-9a-f]{64}", LOCK))
    assert "://" not in LOCK and "--index" not in LOCK and "--find-links" not in LOCK


def test_the_gateways_lock_is_part_of_the_lock_and_has_no_torch() -> None:
    gateway = (ROOT / "requirements-gateway.lock").read_text(encoding="utf-8")
    blocks = dict(lock.blocks(gateway.removeprefix(lock.GATEWAY_HEADER)))
    assert gateway == lock.part(LOCK, set(blocks)), "run `make lock`"
    assert {canonicalize_name(need.name) for need in needs(*lock.GATEWAY_EXTRAS)} <= set(blocks)
    assert not {"torch", "transformers"} & set(blocks)


def test_cuda_is_dropped_and_torch_gets_the_hashes_of_cpu_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "torch_hashes", lambda version: ["c" * 64, f"{version}-cpu"])
    resolved = "".join(
        f"{line} \\\n    --hash=sha256:{n}\n"
        for n, line in enumerate(("a==1", "cuda-bindings==13", "nvidia-cublas==13 ; x", "torch==2.13.0", "triton==3"))
    )
    assert lock.locked(resolved) == lock.HEADER + (
        "a==1 \\\n    --hash=sha256:0\n"
        f"torch==2.13.0 \\\n    --hash=sha256:{'c' * 64} \\\n    --hash=sha256:2.13.0-cpu\n"
    )


def test_the_page_of_licences_is_of_the_lock_and_none_is_forbidden() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| ([^|]+) \| ([^|]+) \|$", page, flags=re.MULTILINE)[1:]
    found = {name: licence for name, _, licence in rows}
    assert page == sbom.table(found, LOCK), "run `make licences`"
    assert [row for row in rows if sbom.FORBIDDEN.search(row[2])] == []
    for bad in ("GPL-3.0-only", "AGPL-3.0", "MIT AND GPL-2.0", "unknown", "Commercial", "SSPL-1.0"):
        assert sbom.FORBIDDEN.search(bad), bad
    assert not sbom.FORBIDDEN.search("LGPL-3.0-only") and not sbom.FORBIDDEN.search("CC0-1.0 AND MPL-2.0")


def component(name: str, version: str, *licences: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "version": version, "licenses": list(licences)}


def test_licences_are_read_off_what_packages_say() -> None:
    classifier = {"license": {"name": "License :: OSI Approved :: Apache Software License"}}
    assert sbom.licence(component("a", "1", {"expression": "MIT OR Apache-2.0"})) == "MIT OR Apache-2.0"
    assert sbom.licence(component("a", "1", {"license": {"id": "MPL-2.0"}}, classifier)) == "MPL-2.0"
    assert sbom.licence(component("a", "1", classifier)) == "Apache-2.0"
    assert sbom.licence(component("a", "1", {"license": {"name": "do what you want"}})) == "unknown"
    assert sbom.licence(component("protobuf", "7")) == "BSD-3-Clause" and sbom.licence(component("a", "1")) == "unknown"


def test_an_environment_that_is_not_the_locks_is_refused() -> None:
    text = "a-b==1 \\\n  x\ntorch==2.13.0 \\\n  x\ncolorama==0.4 \\\n  x\nnet==1 ; x \\\nnet==2 ; y \\\n"
    good = [component("A_b", "1"), component("torch", "2.13.0+cpu"), component("net", "2"), component("popi", "0.1.0")]
    assert sbom.problems(good, text) == []
    bad = [component("a.b", "2"), component("net", "3"), component("own", "1")]
    assert sbom.problems(bad, text) == [
        "a-b is 2, but 1 in the lock",
        "net is 3, but 1 or 2 in the lock",
        "own 1 is not in the lock",
        "torch is missing, but 2.13.0 in the lock",
    ]


def test_an_audit_that_asked_nobody_is_no_clean_one() -> None:
    skipped = {"name": "idna", "skip_reason": "Dependency not found on PyPI and could not be audited"}
    clean, fault = {"name": "a", "version": "1", "vulns": []}, {"id": "PYSEC-1", "fix_versions": ["2"]}

    def verdict(*dependencies: dict[str, Any]) -> tuple[int, str]:
        code, message = audit.verdict(json.dumps({"dependencies": dependencies, "fixes": []}), "")
        return int(code), str(message)

    assert verdict(clean) == (0, "no known vulnerability in 1 packages")
    assert verdict(clean | {"vulns": [fault]}, clean) == (1, "a 1: PYSEC-1, fixed in 2")
    assert verdict(clean, skipped) == (1, "idna: not audited")
    assert verdict(skipped)[0] == audit.UNREACHABLE and "nothing was audited" in verdict(skipped)[1]
    code, message = audit.verdict("", "Traceback\nConnectionError: no such host")
    assert code == audit.UNREACHABLE and message.endswith("(ConnectionError: no such host)")


def test_notes_are_the_changelogs_words() -> None:
    assert release.notes_of(CHANGES, "0.2.0") == "### Added\n- B.\n"
    assert release.notes_of(CHANGES, "0.1.0") == "- A.\n"
    with pytest.raises(SystemExit, match="no section for 0.3.0"):
        release.notes_of(CHANGES, "0.3.0")
    with pytest.raises(SystemExit, match='"Unreleased".*0.2.0'):
        release.notes_of(CHANGES.replace("## Unreleased\n", "## Unreleased\n- C.\n"), "0.2.0")


def test_one_version_everywhere(tmp_path: Path) -> None:
    assert release.version_of() == popi.__version__
    for name in ("src/popi/__init__.py", *release.STATED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    (tmp_path / "CITATION.cff").write_text("version: 9.9\n")
    with pytest.raises(SystemExit, match=f"CITATION.cff has version 9.9, but popi is {popi.__version__}"):
        release.version_of(tmp_path)


def test_a_dirty_tree_is_refused(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    release.refuse_dirty_tree(tmp_path)
    (tmp_path / "new.txt").write_text("x")
    with pytest.raises(SystemExit, match=r"not clean.*\n\?\? new.txt"):
        release.refuse_dirty_tree(tmp_path)


def test_a_release_stops_at_the_first_step_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def step(name: str) -> Any:
        def work() -> None:
            done.append(name)
            if name == "slow":
                release.run("false")

        return work

    monkeypatch.setattr(release, "STEPS", {name: step(name) for name in release.STEPS})
    monkeypatch.setattr(release, "refuse_dirty_tree", lambda: done.append("clean?"))
    monkeypatch.setattr(release, "notes_of", lambda *_: "")
    with pytest.raises(SystemExit, match="failed with 1: false"):
        release.main([])
    assert done == ["clean?", "ci", "clean?", "slow"]
    done.clear()
    release.main(["--from", "packages"])
    assert done == ["clean?", "packages", "clean?", "sbom", "clean?", "audit", "clean?", "notes", "clean?"]
