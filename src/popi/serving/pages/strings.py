"""Every word of the pages: strings.toml. A page of another language is another such file."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "strings.toml"


@cache
def strings() -> dict[str, Any]:
    """The strings by key; one that counts is a table of `one` and `other`."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def say(key: str, **values: object) -> str:
    """A string with its values put in; `n` chooses between `one` and `other`.

    Raises:
        KeyError: there is no such string, or a value is missing.
    """
    found = strings()[key]
    if isinstance(found, dict):
        found = found["one" if values.get("n") == 1 else "other"]
    return str(found).format(**values)
