"""The chart as Helm itself renders it. Helm is a library, and runs in a process of its own
(helm_program.py), in that Python which POPI_TEST_HELM names (`.ci/helm`)."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "popi"
PROGRAM = Path(__file__).with_name("helm_program.py")
PYTHON = os.environ.get("POPI_TEST_HELM")
needs_helm = pytest.mark.skipif(PYTHON is None, reason="no Helm: POPI_TEST_HELM is not set (.ci/helm sets it)")


@dataclass
class Rendered:
    """What Helm made of values.

    Attributes:
        error: why it refused them; empty where it did not.
        notes: what a person reads after the installation.
        objects: of Kubernetes, by kind and name.
        problems: what Kubernetes' schemas find wrong in these, and what `helm lint --strict` says.
    """

    error: str
    notes: str
    objects: dict[tuple[str, str], dict[str, Any]]
    problems: list[str]


def render(values: dict[str, Any], check_for: str | None = None) -> Rendered:
    """`helm template shop deploy/helm/popi`; with a version of Kubernetes also `helm lint --strict`, and a check by the
    schemas of that version."""
    assert PYTHON is not None
    asked = json.dumps({"chart": str(CHART), "values": values, "check_for": check_for})
    done = subprocess.run([PYTHON, PROGRAM], input=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    objects = [one for text in told["manifests"].values() for one in yaml.safe_load_all(text) if one]
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(named) == len(objects)
    return Rendered(told["error"], told["notes"], named, told["problems"])
