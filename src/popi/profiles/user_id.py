"""The one form of a user id, whichever way it comes in. Two ids with the same form are the same user.

Unicode's NFC, without blanks around it: what a person can't see makes no second user. Case counts, since the ids of
most systems are case-sensitive (base64, the `sub` of tokens), but not in an e-mail address: mail and identity providers
take `Ann@Shop.example` and `ann@shop.example` for one person, and clients spell it either way. Control characters and
invisible ones are refused rather than dropped: whoever sends them has mixed something up.

Coding assistants (Claude Code and its kin) put account, device and session into one id: a user would be new with every
session. Of such an id the account counts, or the device where they know no account; never the session.
"""

import json
import re
import unicodedata
from hashlib import sha256
from typing import Any

from popi.errors import DataError

LONGEST_ID = 200
LONGEST_GIVEN = 2_000
"""Characters of an id as it comes: with a session in it, it may be longer than the user's own."""
_JOINERS = "\u200c\u200d"  # letters of Persian and Hindi need them, and emoji
_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
# Claude Code before 2.1.78: user_<device>_account_<account, may be empty>_session_<session>
_SESSION = re.compile(r"user_([0-9A-Za-z]+)_account_([0-9A-Za-z-]*)_session_[0-9A-Za-z-]+")
# And since: a JSON object with these members.
_ACCOUNT, _DEVICE, _OF_SESSION = "account_uuid", "device_id", "session_id"


def normal_user_id(given: str) -> str:
    """The form of a user id that everything is stored and looked up by; at most `LONGEST_ID` characters.

    Raises:
        DataError: it is none: blank, too long, not Unicode, with characters that nobody sees, or a session's id alone.
    """
    if len(given) > LONGEST_GIVEN:
        raise _too_long(len(given))
    try:
        given.encode()
    except UnicodeEncodeError:
        raise DataError("a user id must be valid Unicode text") from None
    text = _of_account(unicodedata.normalize("NFC", given).strip()).strip()
    if not text:
        raise DataError("a user id must not be blank")
    if _ADDRESS.fullmatch(text):
        text = unicodedata.normalize("NFC", text.lower())
    if (unseen := _unseen(text)) is not None:
        raise DataError(
            f"a user id has no control characters and none that can't be seen; got U+{ord(text[unseen]):04X} as "
            f"character {unseen + 1}"
        )
    if len(text) > LONGEST_ID:
        raise _too_long(len(text))
    return text


def visible_form(given: str) -> str:
    """A normal user id for one that `normal_user_id` refuses, with the refused characters percent-encoded: for what a
    store holds from before they were refused.
    """
    try:
        return normal_user_id(given)
    except DataError:
        pass
    text = unicodedata.normalize("NFC", given).strip()
    encoded = "".join(
        one if _seen(one) and one not in "%{" else "".join(f"%{byte:02X}" for byte in one.encode()) for one in text
    )
    if len(encoded) > LONGEST_ID:
        encoded = f"{encoded[: LONGEST_ID - 17]}~{sha256(given.encode()).hexdigest()[:16]}"
    return normal_user_id(encoded or "%20")


def _of_account(text: str) -> str:
    """Of an id with a session in it, the account, else the device; other ids as they are."""
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
        if isinstance(found := members.get(name), str) and found.strip():
            return found
    raise DataError("a user id must name a user; this one names a session alone")


def _unseen(text: str) -> int | None:
    """Where the first character is that nobody sees."""
    if text.isprintable():
        return None
    return next((at for at, one in enumerate(text) if not _seen(one)), None)


def _seen(one: str) -> bool:
    return one.isprintable() or one in _JOINERS or unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _too_long(length: int) -> DataError:
    return DataError(f"a user id has at most {LONGEST_ID} characters; got {length}")
