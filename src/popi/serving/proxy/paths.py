"""Normalise request paths, however they are spelt."""

import re
from urllib.parse import unquote

_ODD = re.compile(r"[^a-z0-9/_-]")
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


def canonical(raw: str) -> str | None:
    """The path as the most lenient server would read it.

    Removes percent escapes (even nested ones), duplicate and trailing slashes, parameters after `;`, `?` or `#`,
    whitespace and control characters; backslashes become slashes and letters lower case. Use the result to decide what
    a request is; send it upstream only if it is one of the known paths.

    Returns:
        None if the path has a `.` or `..` segment, or escapes nested more than three deep.
    """
    path = raw
    if _ODD.search(path):
        for _ in range(3):
            path = unquote(path)
        if unquote(path) != path:
            return None
    parts = [_CONTROL.sub("", re.split("[;?#]", part, maxsplit=1)[0]) for part in re.split(r"[/\\]", path)]
    if "." in parts or ".." in parts:
        return None
    return "/" + "/".join(filter(None, parts)).casefold()
