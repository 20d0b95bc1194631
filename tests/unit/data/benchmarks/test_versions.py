"""A loader's users are fixed by its version: whoever changes them, changes the version and the hash here."""

import os
import subprocess
import sys
from pathlib import Path

import benchmark_sets as sets
import pytest

from popi.config import BENCHMARKS as NAMES
from popi.data.benchmarks.registry import BENCHMARKS

STAMPS: dict[str, dict[str, str]] = {
    "elix/1": {"train": "4de4b884f04f5239", "test": "4f1b21f530d4b69c"},
    "review/1": {"train": "77bf350a0cc2b63e", "test": "da32dc3fd13a454a", "interpolated": "a3883954bf6cacb7"},
    "roleplay/1": {"train": "5bfc33a0cc22d597", "test": "ff830fc6d81bb83e"},
    "alignx/1": {"train": "ea075281b428d2e4", "test": "f83ce0f832005fe2"},
    "polis/1": {"train": "19a793feba60abbb", "test": "27075e15d8ca6da8"},
    "mtbench/1": {"train": "288b48984f76ed33", "test": "bb423e0e4adfb0e5"},
    "persona/1": {"train": "3d355b527072dfe1", "test": "bbba4262f6a25268", "interpolated": "122814af5be89ce0"},
    "prism/1": {"train": "a0e2685c5410207b", "test": "410ac0f8f46684e6"},
    "personamem/1": {"train": "6249878cc19774b5", "test": "b2c06bc4975c98c8"},
    "psoups/1": {"train": "9ac4cdc61bcd796b", "test": "ad486616b2167bdf"},
    "lamp/1": {"train": "a3b420cc5835a2a7", "test": "64b09454354bce7a"},
    "mind/1": {"train": "3beee9a81ffdeac8", "test": "59b2e282edae05d0"},
    "amazon/1": {"train": "6f76a129c78c09b9", "test": "641eb44693c39d12"},
    "hicupid/1": {"train": "514215fe9d7eaaf5", "test": "4bf77d4d33e08d7d"},
    "movielens/1": {"train": "097eaf82fa831628", "test": "8073be614bfab647"},
    "preferences/1": {"train": "1268f6a76770efe3", "test": "eea81bc2ca1e7135"},
}


ROWS = {
    "movielens": len(sets.movielens()[0]),
    "personamem": len(sets.personamem()[0]),
    "lamp": 2 * len(sets.lamp("train")[0]),
    "mind": len(sets.mind()[0]),
    "amazon": len(sets.amazon()[0]),
    "hicupid": len(sets.hicupid()[0]),
}
"""Of sets in several tables: the rows of the one that users are made of."""


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("source", BENCHMARKS)
def test_the_users_are_those_of_the_version(source: str, suffix: str, tmp_path: Path) -> None:
    found = sets.loaded(source, sets.make(source, tmp_path, suffix))
    assert not found.problems, found.problems
    assert found.version == BENCHMARKS[source].VERSION
    stamps = {name: split.stamp() for name, split in found.splits.items()}
    assert {found.version: stamps} == {found.version: STAMPS.get(found.version)}, (
        "the users changed: give the loader a new VERSION, say so in the changelog, and pin the new hashes here"
    )


@pytest.mark.parametrize("source", BENCHMARKS)
def test_every_row_is_accounted_for(source: str, tmp_path: Path) -> None:
    found = sets.loaded(source, sets.make(source, tmp_path))
    for split in found.splits.values():
        assert split.rows == split.used + split.left_over + sum(split.dropped.values())
        assert split.windows == len(split.users) > 0
    rows = ROWS[source] if source in ROWS else sum(sum(1 for _ in open(file)) for file in tmp_path.glob("*.jsonl"))
    assert sum(split.rows for split in found.splits.values()) == rows


def test_settings_and_registry_know_the_same_names() -> None:
    assert list(NAMES) == list(BENCHMARKS)


def test_python_s_own_hash_has_no_say(tmp_path: Path) -> None:
    place = sets.make("polis", tmp_path)
    code = f"import benchmark_sets as s; print(s.loaded('polis', {place!r}).train.stamp())"
    here = Path(__file__).parents[4]
    path = os.pathsep.join([str(here / "src"), str(here / "tests")])
    stamps = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(stamps) == 1
