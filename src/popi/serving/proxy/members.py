"""Where the parts of a JSON body stand, to the byte.

Bodies are edited in place: what the client wrote stays the very same bytes. `json` gives values but no positions,
save one: `raw_decode` says where a value ends. Read as Latin-1, a body's characters are its bytes, so that such a
position is one in the bytes. That is three times as fast as a scanner of regular expressions, and as strict as `json`.
Values read so have their non-ASCII letters garbled; `string` reads one rightly.
"""

import json
import re
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from popi.serving.proxy.refusals import Refusal

# Numbers stay the bytes they are: Python would refuse some that JSON allows (more than 4,300 digits).
_DECODER = json.JSONDecoder(strict=False, parse_int=str.encode, parse_float=str.encode, parse_constant=str.encode)
_value = _DECODER.raw_decode
_B = r"[ \t\n\r]*"
_blank = re.compile(_B).match
_before = re.compile(rf"(?:\xef\xbb\xbf)?{_B}").match  # a mark of UTF-8, and blanks
_opening = re.compile(rf"\{{{_B}(}}?)").match
_plain_name = re.compile(rf'"([^"\\]*)"{_B}:{_B}').match
_colon = re.compile(rf"{_B}:{_B}").match
_following = re.compile(rf"{_B}(?:(}})|,{_B})").match


class Unreadable(Exception):
    """Not a JSON object, or cut short. Says nothing of the text: it is a user's."""


class Member(NamedTuple):
    """One ``"name": value`` of an object.

    Attributes:
        name: without escapes; letters beyond ASCII are garbled.
        key: where its first quote stands.
        start: where the value begins.
        end: where the value ends, exclusive.
        value: as `json` reads it, save for garbled letters, and numbers as bytes.
    """

    name: str
    key: int
    start: int
    end: int
    value: Any


class Edit(NamedTuple):
    """Bytes to stand in place of ``body[start:end]``; an insertion where both are equal."""

    start: int
    end: int
    new: bytes


def body_text(body: bytes) -> str:
    """A body as a string whose positions are those of its bytes."""
    return body.decode("latin-1")


def read_body(text: str) -> tuple[int, list[Member]]:
    """Where the one object of a body begins, and its members in order, doubles included.

    Raises:
        Unreadable: the body is anything else.
        Refusal: it is nested too deep.
    """
    before = _before(text)
    assert before is not None  # it matches nothing, too
    start = before.end()
    members, end = read_object(text, start)
    if _skip(text, end) != len(text):
        raise Unreadable
    return start, members


def read_object(text: str, start: int) -> tuple[list[Member], int]:
    """Members of the object that begins at `start`, and where it ends.

    Raises:
        Unreadable: there is none, or it is not valid.
        Refusal: it is nested too deep.
    """
    members: list[Member] = []
    opening = _opening(text, start)
    if opening is None:
        raise Unreadable
    at = opening.end()
    if opening[1]:
        return members, at
    try:
        while True:
            plain = _plain_name(text, at)
            if plain is not None:
                name, begin = plain[1], plain.end()
            else:
                if text[at] != '"':
                    raise Unreadable
                name, end = _value(text, at)
                colon = _colon(text, end)
                if colon is None:
                    raise Unreadable
                begin = colon.end()
            value, end = _value(text, begin)
            members.append(Member(name, at, begin, end, value))
            following = _following(text, end)
            if following is None:
                raise Unreadable
            at = following.end()
            if following[1] == "}":
                return members, at
    except (ValueError, IndexError):
        raise Unreadable from None
    except RecursionError:
        raise _too_deep() from None


def item(text: str, start: int, number: int) -> int:
    """Where an item of the (valid) array begins that begins at `start`; they are counted from 0.

    Raises:
        Refusal: one before it is nested too deep. What could be read from above need not be readable from here.
    """
    at = _skip(text, start + 1)
    for _ in range(number):
        try:
            _, end = _value(text, at)
        except RecursionError:
            raise _too_deep() from None
        at = _skip(text, _skip(text, end) + 1)
    return at


def last(members: Sequence[Member], name: str) -> Member | None:
    """The member of that name; of doubles the last, as Python, JavaScript and Go read them."""
    for member in reversed(members):
        if member.name == name:
            return member
    return None


def string(body: bytes, member: Member) -> str:
    """The string that a member holds, with all its letters."""
    if isinstance(member.value, str) and member.value.isascii():
        return member.value
    return str(json.loads(body[member.start : member.end].decode("utf-8", "replace"), strict=False))


def without(members: Sequence[Member], drop: Sequence[Member]) -> list[Edit]:
    """Edits that take members out of their object, each run of them with the commas that would be too many."""
    edits: list[Edit] = []
    dropped = {member.key for member in drop}
    at = 0
    while at < len(members):
        if members[at].key not in dropped:
            at += 1
            continue
        begin = at
        while at < len(members) and members[at].key in dropped:
            at += 1
        if at < len(members):
            edits.append(Edit(members[begin].key, members[at].key, b""))
        else:
            edits.append(Edit(members[begin - 1].end if begin else members[0].key, members[-1].end, b""))
    return edits


def apply(body: bytes, edits: Sequence[Edit]) -> bytes:
    """The body with edits made; they must not overlap. Everything else stays as it is."""
    parts: list[bytes] = []
    at = 0
    for edit in sorted(edits, key=itemgetter(0, 1)):
        parts += (body[at : edit.start], edit.new)
        at = edit.end
    parts.append(body[at:])
    return b"".join(parts)


def _too_deep() -> Refusal:
    return Refusal(400, "body_too_deep", "the JSON of this request is nested too deep to be read")


def _skip(text: str, at: int) -> int:
    match = _blank(text, at)
    assert match is not None  # it matches nothing, too
    return match.end()
