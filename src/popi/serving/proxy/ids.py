"""User ids in bodies, and what goes upstream in their place."""

import hmac
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any

from simplejson import RawJSON

from popi.serving.profiles.models import LONGEST_ID
from popi.serving.proxy.refusals import Refusal

KEPT = 10_000
"""Most pseudonyms that are kept ready. Those of ids that are too long for a user's are not: they may take megabytes."""
_NAMING = ("safety_identifier", "user", "metadata")
_PLACES = ("messages", "instructions", "system", "input")


class Pseudonyms:
    """HMAC-SHA256 of a user id within its tenant, as 64 hexadecimal digits (the most that OpenAI's API takes).

    Args:
        secret: of the deployment; without it ids can't be found by trying all e-mail addresses, say.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._kept = lru_cache(maxsize=KEPT)(self._of)

    def of(self, tenant: str, user_id: str) -> str:
        """What stands for a user."""
        return self._kept(tenant, user_id) if len(user_id) <= LONGEST_ID else self._of(tenant, user_id)

    def forget(self) -> None:
        """Keep no user's id in memory."""
        self._kept.cache_clear()

    def _of(self, tenant: str, user_id: str) -> str:
        # The tenant's length goes first: ("a", "b:c") and ("a:b", "c") are two users.
        text = f"{len(tenant)}:{tenant}:{user_id}"
        return hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), "sha256").hex()


def user_ids(body: dict[str, Any]) -> dict[str, str]:
    """The user ids in a personalised request's body, by field; fields that are blank or null name nobody.

    Raises:
        Refusal: 400, a field is no text or number, or a name that matters differs from ours in case alone: some
            upstreams would read it, and its id would pass unseen.
    """
    check_spelling(body, _PLACES)
    ids = {}
    for field, holder, name in _places(body):
        if (user_id := _text(holder[name])) is None:
            raise Refusal(400, "body_user_id", f"{field} must be a string")
        if user_id.strip():
            ids[field] = user_id
    return ids


def replace_ids(body: dict[str, Any], pseudonym: Callable[[str], str] | None) -> bool:
    """Leave no user id in a body, nor in the requests of a batch.

    Args:
        body: changed in place.
        pseudonym: what to put in an id's place; None: nothing, and the field goes.

    Returns:
        Whether anything was changed.
    """
    batch = body.get("requests")
    inner = [one.get("params") for one in batch if isinstance(one, dict)] if isinstance(batch, list) else []
    changed = False
    for one in (body, *(params for params in inner if isinstance(params, dict))):
        for _, holder, name in list(_places(one)):
            user_id = _text(holder[name])
            if user_id is None or not user_id.strip():
                continue
            changed = True
            if pseudonym is None:
                del holder[name]
            else:
                holder[name] = pseudonym(user_id)
    return changed


def check_spelling(members: dict[str, Any], names: Collection[str]) -> None:
    """Refuse what servers that ignore the case of names (Go's) would take for one of these.

    Raises:
        Refusal: 400, with the right spelling.
    """
    for name in members:
        if name not in names and (right := name.casefold()) in names:
            raise Refusal(400, "body_name", f"spell {right!r} in lower case")


def _places(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Field, object and name of each user id."""
    check_spelling(body, _NAMING)
    for name in ("safety_identifier", "user"):
        if name in body:
            yield name, body, name
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        check_spelling(metadata, ("user_id",))
        if "user_id" in metadata:
            yield "metadata.user_id", metadata, "user_id"


def _text(value: Any) -> str | None:
    """An id as text, a number as its digits; None where it is neither."""
    if value is None:
        return ""
    if isinstance(value, RawJSON):
        return str(value.encoded_json)
    return value if isinstance(value, str) else None
