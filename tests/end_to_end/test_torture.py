"""The harness that kills, fills and damages training runs: its quick form, in which nothing may be lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[2] / "benchmarks" / "torture"


@pytest.mark.slow
def test_nothing_is_lost_in_training(tmp_path: Path) -> None:
    cases = tmp_path / "cases.json"
    command = [sys.executable, str(TORTURE / "training.py"), "--quick", "--jobs", "2", "--json", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=os.environ)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    rows = json.loads(cases.read_text())
    assert {row["group"] for row in rows} == {"kill", "disk", "corrupt", "reward", "server"}
    assert sum(row["faults"] for row in rows if row["group"] == "kill") == 5


@pytest.mark.slow
def test_weights_that_differ_in_a_bit_are_a_loss(tmp_path: Path) -> None:
    """The harness itself can fail: it is told that the unbroken run ended otherwise."""
    script = tmp_path / "unlike.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(TORTURE)!r})
import training_faults.bench as bench
from pathlib import Path

def whole(self):
    config = self.config("whole")
    ended = self.go(config)
    result = bench.result(bench.directory(config))
    file = next(iter(result.weights.values()))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    return ended, result

bench.Bench.whole = whole
import training
sys.argv = ["training.py", "--quick", "--match", "kill: alternating", "--json", {str(tmp_path / "cases.json")!r}]
training.main()
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=1800, env=os.environ)
    assert done.returncode == 1 and "other weights" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
