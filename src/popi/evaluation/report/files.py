"""Reading what a run left behind. A file that is not there is no error; one that can't be read is."""

import json
from pathlib import Path
from typing import Any

from popi.errors import RunError

NEEDED = ("methods", "config", "versions", "seconds", "n_users", "n_pairs")


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """metrics.json of a run.

    Raises:
        RunError: there is none, it can't be read, or it is not what `popi evaluate` writes.
    """
    path = run_dir / "metrics.json"
    metrics = read_json(path)
    if metrics is None:
        what = "" if (run_dir / "config.json").is_file() else "not a run directory, and "
        raise RunError(f"{run_dir}: {what}no metrics.json to report on; first: popi evaluate --run {run_dir}")
    missing = [key for key in NEEDED if key not in metrics] if isinstance(metrics, dict) else ["a JSON object"]
    if missing:
        raise RunError(f"{path}: not what popi evaluate writes (no {', '.join(missing)}); evaluate the run again")
    return dict(metrics)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no file.

    Raises:
        RunError: it can't be read.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read ({error}); evaluate the run again") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where there is no file. A last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
