"""Strict JSON for request bodies: parsed once, serialised once.

`json` parses, since its scanner takes a fifth of simplejson's memory for long runs of escapes. simplejson serialises,
since it can write a number as it was spelt. Numbers stay `RawJSON`, so that 1e400, -0 and 5,000 digits survive.
"""

import json
import re
from itertools import islice
from typing import Any

from simplejson import JSONEncoder, RawJSON

from popi.serving.proxy.refusals import Refusal

_STRUCTURE = re.compile(rb'"[^"]*"?|([\[{,])')


def parse(raw: bytes, max_values: int, max_depth: int) -> dict[str, Any]:
    """Parse a body that must be one JSON object.

    Args:
        raw: UTF-8, without a byte order mark.
        max_values: maximum number of values, checked before parsing.
        max_depth: maximum nesting depth of objects and lists.

    Raises:
        Refusal: 400, it is not a JSON object, repeats a name within one object, or exceeds a limit.
    """
    if has_more_values(raw, max_values):
        raise Refusal(400, "body_too_many_values", f"the JSON of this request may hold at most {max_values:,} values")
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
        raise _too_deep(max_depth) from None
    if not isinstance(body, dict):
        raise Refusal(400, "body_json", "the body must be a JSON object")
    if raw.count(b"[") + raw.count(b"{") > max_depth and _levels(body) > max_depth:
        raise _too_deep(max_depth)
    return body


def serialise(body: dict[str, Any]) -> bytes:
    """The body as compact JSON in UTF-8. Lone surrogates stay escaped, as they were received."""
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
    check_circular=False,  # ten times as fast, and parsed JSON has no cycles
    separators=(",", ":"),
    use_decimal=False,
    namedtuple_as_object=False,
    tuple_as_array=False,
)


def has_more_values(raw: bytes, maximum: int) -> bool:
    """Whether there are more values, counting commas and opening brackets; an empty list counts twice."""
    if sum(map(raw.count, (b",", b"[", b"{"))) < maximum:
        return False
    # Remove escapes first, so that a string matches in one sweep: otherwise a long one blocks all threads for seconds.
    unescaped = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    separators = (token for token in _STRUCTURE.finditer(unescaped) if token.lastindex)
    return next(islice(separators, maximum - 1, None), None) is not None


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


def _too_deep(maximum: int) -> Refusal:
    return Refusal(400, "body_too_deep", f"the JSON of this request may be nested at most {maximum} levels deep")
