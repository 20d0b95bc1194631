"""The harness of faults in serving: it finds losses, and a few kills lose nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TORTURE = Path(__file__).parents[2] / "benchmarks/torture"


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Losses that a client finds, given what it knows and what is stored."""
    monkeypatch.syspath_prepend(str(TORTURE))
    from random import Random

    from serving_faults.cases import Case
    from serving_faults.clients import Client, Ledger

    def compare(stored: list[str], texts: dict[int, str] | None = None, **known: Any) -> list[str]:
        case = Case("kill", "x")
        client, ledger = Client(case, "http://127.0.0.1:9", "u", 1, Random(0)), Ledger("u", **known)
        exported = [{"version": number, "text": text} for number, text in (texts or {}).items()]
        client._compare(ledger, {"signals": [{"id": one} for one in stored], "versions": exported})
        return case.losses

    return compare


def test_what_is_stored_as_acknowledged_is_no_loss(compared: Any) -> None:
    assert compared(["a", "b"], {1: "x"}, kept={"a"}, maybe={"b", "c"}, versions={1: "x"}) == []
    assert compared([], kept={"a"}, versions={1: "x"}, unsure_erased=True) == []
    assert compared(["a", "b"], groups=[{"a", "b"}, {"c", "d"}], maybe={"a", "b", "c", "d"}) == []


@pytest.mark.parametrize(
    "stored, versions, known, loss",
    [
        ([], {}, {"kept": {"a"}}, "are missing"),
        (["a", "a"], {}, {"kept": {"a"}}, "stored twice"),
        (["a"], {}, {"gone": {"a"}, "kept": {"a"}}, "are back"),
        (["a"], {}, {}, "never sent"),
        (["a"], {}, {"groups": [{"a", "b"}], "maybe": {"a", "b"}}, "in part"),
        ([], {1: "x"}, {"versions": {1: "y"}}, "acknowledged version 1"),
        (["a"], {}, {"kept": {"a", "b"}, "unsure_erased": True}, "are missing"),
    ],
)
def test_losses_are_found(
    compared: Any, stored: list[str], versions: dict[int, str], known: dict[str, Any], loss: str
) -> None:
    assert any(loss in one for one in compared(stored, versions, **known))


@pytest.mark.slow
def test_a_few_kills_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(TORTURE / "serving.py"), "--only", "kill", "--kills", "6", "--store", "sqlite"]
    environment = os.environ | {"PYTHONPATH": str(TORTURE.parents[1] / "src")}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.json")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert [(one["name"], one["figures"]["kills"]) for one in cases] == [("under load", 4), ("migration", 2)]
