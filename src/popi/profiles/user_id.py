"""The normal form of user ids. Two ids with the same normal form are the same user.

It is Unicode NFC without surrounding whitespace, so that invisible differences don't create a second user. Case
matters, since the ids of most systems are case-sensitive (base64, the `sub` of tokens), except in e-mail addresses:
mail and identity providers treat `Ann@Shop.example` and `ann@shop.example` as one person, and clients use both
spellings. Control characters and invisible ones are rejected rather than removed: they indicate a mistake.

Coding assistants such as Claude Code combine account, device and session into one id, which would make every session a
new user. From such an id, the account is used, or the device if there is no account; never the session.
"""

import json
import re
import unicodedata
from hashlib import sha256
from typing import Any

from popi.errors import DataError

LONGEST_ID = 200
LONGEST_GIVEN = 2_000
"""Maximum characters of an id as sent: with a session in it, it may be longer than the normal form."""
_JOINERS = "\u200c\u200d"  # letters of Persian and Hindi need them, and emoji
_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
# Claude Code before 2.1.78: user_<device>_account_<account, may be empty>_session_<session>. Both forms are from
# github.com/coder/aibridge/pull/241 and github.com/ding113/claude-code-hub/pull/939.
_SESSION = re.compile(r"user_([0-9A-Za-z]+)_account_([0-9A-Za-z-]*)_session_[0-9A-Za-z-]+")
# Since 2.1.78: a JSON object with these members.
_ACCOUNT, _DEVICE, _OF_SESSION = "account_uuid", "device_id", "session_id"


def normal_user_id(raw: str) -> str:
    """The normal form of a user id, for storage and lookups; at most `LONGEST_ID` characters.

    Raises:
        DataError: it is blank, too long, not valid Unicode, has invisible characters, or names only a session.
    """
    if len(raw) > LONGEST_GIVEN:
        raise _too_long(len(raw))
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise DataError("a user id must be valid Unicode text") from None
    text = _of_account(unicodedata.normalize("NFC", raw).strip()).strip()
    if not text:
        raise DataError("a user id must not be blank")
    if _ADDRESS.fullmatch(text):
        text = unicodedata.normalize("NFC", text.lower())
    if (position := _invisible(text)) is not None:
        raise DataError(
            f"a user id must not have control characters or invisible ones; got U+{ord(text[position]):04X} as "
            f"character {position + 1}"
        )
    if len(text) > LONGEST_ID:
        raise _too_long(len(text))
    return text


def visible_form(raw: str) -> str:
    """A normal user id for one that `normal_user_id` rejects, with the rejected characters percent-encoded. For ids in
    stores that are older than this check.
    """
    try:
        return normal_user_id(raw)
    except DataError:
        pass
    text = unicodedata.normalize("NFC", raw).strip()
    encoded = "".join(
        one if _visible(one) and one not in "%{" else "".join(f"%{byte:02X}" for byte in one.encode()) for one in text
    )
    if len(encoded) > LONGEST_ID:
        encoded = f"{encoded[: LONGEST_ID - 17]}~{sha256(raw.encode()).hexdigest()[:16]}"
    return normal_user_id(encoded or "%20")


def _of_account(text: str) -> str:
    """The account of an id with a session in it, or else the device; other ids unchanged."""
    if (parts := _SESSION.fullmatch(text)) is not None:
        return parts[2] or parts[1]
    if not (text.startswith("{") and _OF_SESSION in text):
        return text
    try:
        members: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(members, dict) or _OF_SESSION not in members:
        return text
    for name in (_ACCOUNT, _DEVICE):
        if isinstance(value := members.get(name), str) and value.strip():
            return value
    raise DataError("a user id must name a user; this one names only a session")


def _invisible(text: str) -> int | None:
    """The position of the first invisible character."""
    if text.isprintable():
        return None
    return next((at for at, one in enumerate(text) if not _visible(one)), None)


def _visible(one: str) -> bool:
    return one.isprintable() or one in _JOINERS or unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _too_long(length: int) -> DataError:
    return DataError(f"a user id has at most {LONGEST_ID} characters; got {length}")
