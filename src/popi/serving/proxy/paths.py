"""Which path a request means, however it is spelt."""

import re
from urllib.parse import unquote

_ODD = re.compile(r"[^a-z0-9/_-]")
_UNSEEN = re.compile(r"[\x00-\x20\x7f]")


def canonical(raw: str) -> str | None:
    """A path as the most lenient of servers would read it.

    Without escapes, however deep; doubled, trailing and back slashes; parameters behind `;`, `?` or `#`; blanks and
    control characters; in lower case. Decides what a request is, and is no path to send, but for those that we know.

    Returns:
        None where it leads out of its folder by `.` or `..`, or has escapes of escapes of escapes.
    """
    path = raw
    if _ODD.search(path):
        for _ in range(3):
            path = unquote(path)
        if unquote(path) != path:
            return None
    parts = [_UNSEEN.sub("", re.split("[;?#]", part, maxsplit=1)[0]) for part in re.split(r"[/\\]", path)]
    if "." in parts or ".." in parts:
        return None
    return "/" + "/".join(filter(None, parts)).casefold()
