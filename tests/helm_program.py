"""Renders a chart with Helm's library, and says what is wrong with it. Run by helm.py where that library is.

Reads chart, values and the version of Kubernetes to check for (or null) as JSON from stdin; writes error, notes,
manifests and problems.
"""

import json
import sys
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from helm_python.chart import lint


def answer(chart: str, values: dict[str, Any], check_for: str | None) -> dict[str, Any]:
    try:
        with helm_python.Chart.load(chart) as loaded:
            manifests = loaded.render(values, name="shop", namespace="chat")
    except helm_python.HelmError as error:
        return {"error": str(error), "notes": "", "manifests": {}, "problems": []}
    notes = "".join(manifests.pop(name) for name in list(manifests) if name.endswith("NOTES.txt"))
    if check_for is None:
        return {"error": "", "notes": notes, "manifests": manifests, "problems": []}
    report = lint(chart, values, strict=True, namespace="chat", kube_version=f"v{check_for}.0")
    problems = [str(one) for one in report["messages"] if one["severity"] > 1]  # 1: a chart might have an icon
    for text in manifests.values():
        for one in yaml.safe_load_all(text):
            if one is None or one["apiVersion"].startswith("monitoring.coreos.com/"):
                continue  # nothing, or the operator's own kinds
            try:
                kubernetes_validate.validate(one, check_for, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{one['kind']}: {error.message}")
    return {"error": "", "notes": notes, "manifests": manifests, "problems": problems}


if __name__ == "__main__":
    print(json.dumps(answer(**json.load(sys.stdin))))
