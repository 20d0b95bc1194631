"""Reading a run's result files. A missing file is not an error, an unreadable one is."""

import json
from pathlib import Path
from typing import Any

from popi.errors import RunError

NEEDED = ("methods", "config", "versions", "seconds", "n_users", "n_pairs")


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """Read a run's metrics.json.

    Raises:
        RunError: the file does not exist, can't be read, or was not written by `popi evaluate`.
    """
    path = run_dir / "metrics.json"
    metrics = read_json(path)
    if metrics is None:
        problem = "" if (run_dir / "config.json").is_file() else "not a run directory, and "
        raise RunError(f"{run_dir}: {problem}no metrics.json to report on; first run: popi evaluate --run {run_dir}")
    missing = [key for key in NEEDED if key not in metrics] if isinstance(metrics, dict) else ["a JSON object"]
    if missing:
        raise RunError(f"{path}: not written by popi evaluate (no {', '.join(missing)}); evaluate the run again")
    return dict(metrics)


def read_json(path: Path) -> Any:
    """The contents of a JSON file; None if there is no file.

    Raises:
        RunError: the file can't be read.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read ({error}); evaluate the run again") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; empty if there is no file. Skips a truncated last line."""
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
