"""Bodies of requests as Python objects: read once and strictly, written once.

`json` reads: its scanner takes a fifth of the memory that simplejson's takes for long runs of escapes. simplejson
writes: it can put a number back as it was spelt. Numbers stay `RawJSON`, so that 1e400, -0 and 5,000 digits survive.
"""

import json
import re
from itertools import islice
from typing import Any

from simplejson import JSONEncoder, RawJSON

from popi.serving.proxy.refusals import Refusal

_STRUCTURE = re.compile(rb'"[^"]*"?|([\[{,])')


def parsed(raw: bytes, most_values: int, most_levels: int) -> dict[str, Any]:
    """The one JSON object that a body consists of.

    Args:
        raw: UTF-8, without a byte order mark.
        most_values: values that it may hold, counted before any is made.
        most_levels: levels of objects and lists.

    Raises:
        Refusal: 400, it is anything else, has a name twice in one object, or is too large to read.
    """
    if has_more_values(raw, most_values):
        raise Refusal(400, "body_too_many_values", f"the JSON of this request may hold {most_values:,} values at most")
    try:
        body = _decoder.decode(raw.decode())
    except UnicodeDecodeError as error:
        raise Refusal(
            400, "body_encoding", f"the JSON of this request must be UTF-8; byte {error.start} is not"
        ) from None
    except json.JSONDecodeError as error:
        if b"\0" in raw[:4]:
            raise Refusal(
                400, "body_encoding", "the JSON of this request must be UTF-8, not UTF-16 or UTF-32"
            ) from None
        message = f"the body must be one JSON object and nothing else: {error.msg}, at character {error.pos}"
        raise Refusal(400, "body_json", message) from None
    except RecursionError:
        raise _too_deep(most_levels) from None
    if not isinstance(body, dict):
        raise Refusal(400, "body_json", "the body must be a JSON object")
    if raw.count(b"[") + raw.count(b"{") > most_levels and _levels(body) > most_levels:
        raise _too_deep(most_levels)
    return body


def written(body: dict[str, Any]) -> bytes:
    """The body as compact JSON in UTF-8. Lone surrogates go out as the escapes that they came in as."""
    text: str = _encoder.encode(body)
    return text.encode("utf-8", "backslashreplace")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refusal(400, "body_duplicate_name", "the JSON of this request has an object with the same name twice")
    return members


def _no_number(constant: str) -> None:
    raise Refusal(400, "body_json", f"{constant} is not JSON")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=RawJSON, parse_float=RawJSON, parse_constant=_no_number
)
_encoder = JSONEncoder(
    ensure_ascii=False,
    check_circular=False,  # ten times as fast; what was parsed has no circles
    separators=(",", ":"),
    use_decimal=False,
    namedtuple_as_object=False,
    tuple_as_array=False,
)


def has_more_values(raw: bytes, most: int) -> bool:
    """Each value but the first stands behind a comma or a bracket that opens; an empty list counts twice."""
    if sum(map(raw.count, (b",", b"[", b"{"))) < most:
        return False
    # Without escapes a string is found in one sweep; with them a long one would hold up all threads for seconds.
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    separators = (token for token in _STRUCTURE.finditer(plain) if token.lastindex)
    return next(islice(separators, most - 1, None), None) is not None


def _levels(body: dict[str, Any]) -> int:
    level: list[Any] = [body]
    depth = 0
    while level:
        depth += 1
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
    return depth


def _too_deep(most: int) -> Refusal:
    return Refusal(400, "body_too_deep", f"the JSON of this request may be nested {most} levels deep at most")
