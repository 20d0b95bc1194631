"""Versions of the files that runs write to disk (docs/compatibility.md).

A version is raised when an older popi would misread newer files. popi reads all versions up to the current one and
refuses newer ones instead of misreading them.
"""

import json
from pathlib import Path
from typing import Any

from popi.errors import RunError

RUN_DIRECTORY = 1
"""Version of run directories, in format.json; 1 without that file."""
CHECKPOINT = 2
"""Version of checkpoints, in `complete`. In version 1, `complete` is just the step, without checksums."""
ROWS = 1
"""Version of files of resumable rows, in the first line; 1 if missing."""
FILE = "format.json"
RENAMED = {
    "least": "min_signals",
    "left_out": "removed_content",
    "price_in": "input_price",
    "price_out": "output_price",
    "rests_on": "signals_total",
    "told": "evidence",
    "without": "omit",
}
"""Keys of rows and settings that files made before 0.1.0 have, and their present names."""


def refuse_newer(path: Path, version: Any, known: int) -> None:
    """Refuse a format version that this popi does not know.

    Raises:
        RunError: if the file was made by a newer popi, or its version is not a number.
    """
    if not isinstance(version, int) or version > known:
        raise RunError(
            f"{path}: has format {version!r}, but this popi only reads up to {known}; it was made by a newer popi, so "
            "upgrade"
        )


def current_names(tree: Any) -> Any:
    """A row or settings read from a file, under the present names of `RENAMED`."""
    if isinstance(tree, dict):
        return {RENAMED.get(key, key): current_names(value) for key, value in tree.items()}
    return [current_names(one) for one in tree] if isinstance(tree, list) else tree


def of_run(folder: Path) -> int:
    """The version of a run directory.

    Raises:
        RunError: if this popi does not know it.
    """
    file = folder / FILE
    try:
        version = json.loads(file.read_text(encoding="utf-8"))["format"]
    except FileNotFoundError:
        return 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f'{file}: damaged ({error!r}); restore it, or write {{"format": {RUN_DIRECTORY}}}') from None
    refuse_newer(folder, version, RUN_DIRECTORY)
    return int(version)
