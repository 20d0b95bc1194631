"""`make bench`, small: every way computes the same, rows have their fields, a way that fails is recorded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def bench(*arguments: object) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_every_part_computes_the_same(tiny_base: Path, tmp_path: Path) -> None:
    """Needs popi as it lies here; the rows of two calls stand in one file."""
    common = ("--model", tiny_base, "--signals", 40, "--groups", 3, "--repeats", 1, "--out", tmp_path)
    bench(*common, "--only", "scoring")
    bench(*common, "--only", "policy_update", "rollouts", "whole_step", "generator_step")
    rows: list[dict[str, Any]] = json.loads((tmp_path / "bench.json").read_text())
    assert [row["what"] for row in rows] == ["scoring", "policy_update", "rollouts", "whole_step", "generator_step"]
    for row in rows:
        assert row["equal"] and not row["failed"], row
        assert row["largest_difference"] <= row["tolerance"] == 1e-2
        for name in ("released", "trl"):
            assert row[f"ratio_{name}"] == pytest.approx(row[f"seconds_{name}"] / row["seconds_ours"], abs=1e-3)
            assert row[f"peak_bytes_{name}"] > 0
        assert row["floor_ratio"] > 0 and row["peak_bytes_ours"] > 0
    assert "gradient against trl" in rows[3]["differences"] and "rewards against released" in rows[3]["differences"]
    assert "<svg" in (tmp_path / "bench.svg").read_text()


@pytest.mark.slow
def test_out_of_time_is_recorded(tiny_base: Path, tmp_path: Path) -> None:
    bench("--model", tiny_base, "--only", "scoring", "--groups", 3, "--time-limit", 0.01, "--out", tmp_path)
    [row] = json.loads((tmp_path / "bench.json").read_text())
    assert row["failed"]["ours"].startswith("out of time") and row["seconds_ours"] is None
    assert row["ratio_trl"] is None and not row["equal"]
