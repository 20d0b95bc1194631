"""Versions of the files that runs leave on disk (docs/compatibility.md).

A version is raised where an older popi would misread what a newer one writes. Every version up to the present one is
read; a newer one is refused, which is better than to misread it.
"""

import json
from pathlib import Path
from typing import Any

from popi.errors import RunError

RUN_DIRECTORY = 1
"""Of a run directory, in its format.json; one without that file has version 1."""
CHECKPOINT = 2
"""Of a checkpoint, in its `complete`. 1: without checksums, whose `complete` is the step alone."""
ROWS = 1
"""Of a file of resumable rows, in its first line; without it, 1."""
FILE = "format.json"


def refuse_newer(what: Path, version: Any, known: int) -> None:
    """Raise RunError where `what` has a version that this popi does not know.

    Raises:
        RunError: it was made by a newer popi, or its version is no number.
    """
    if not isinstance(version, int) or version > known:
        raise RunError(
            f"{what}: has format {version!r}, and this popi reads up to {known}; it was made by a newer popi, upgrade"
        )


def of_run(folder: Path) -> int:
    """The version of a run directory.

    Raises:
        RunError: this popi does not know it.
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
