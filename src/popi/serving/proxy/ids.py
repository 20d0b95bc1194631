"""User ids in bodies, and what goes upstream in their place."""

import hmac
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any

from simplejson import RawJSON

from popi.errors import DataError
from popi.profiles.user_id import LONGEST_ID, normal_user_id
from popi.serving.proxy.refusals import Refusal

KEPT = 10_000
"""Most pseudonyms that are kept ready. Those of ids that are too long for a user's are not: they may take megabytes."""
_NAMING = ("safety_identifier", "user", "metadata")
_PLACES = ("messages", "instructions", "system", "input")


class Pseudonyms:
    """HMAC-SHA256 of a user id in its normal form within its tenant, as 64 hexadecimal digits (the most that OpenAI's
    API takes).

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
        try:
            user_id = normal_user_id(user_id)
        except DataError:
            pass  # nobody's id, and hidden all the same
        # The tenant's length goes first: ("a", "b:c") and ("a:b", "c") are two users.
        text = f"{len(tenant)}:{tenant}:{user_id}"
        return hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), "sha256").hex()


def user_ids(body: dict[str, Any]) -> dict[str, str]:
    """The user ids in a personalised request's body, by field; fields that are blank or null name nobody.

    Raises:
        Refusal: 400, an id is no text or number, or a name that matters differs from ours in case alone: some upstreams
            would read it, and its id would pass unseen.
    """
    check_spelling(body, _PLACES)
    return {field: user_id for field, _, _, user_id in _ids(body)}


def replace_ids(body: dict[str, Any], pseudonym: Callable[[str], str] | None) -> bool:
    """Leave no user id in a body, nor in the requests of a batch.

    Args:
        body: changed in place.
        pseudonym: what to put in an id's place; None: nothing, and the field goes.

    Returns:
        Whether anything was changed.

    Raises:
        Refusal: 400, as `user_ids`.
    """
    batch = body.get("requests")
    params = [one.get("params") for one in batch if isinstance(one, dict)] if isinstance(batch, list) else []
    found = [place for one in (body, *params) if isinstance(one, dict) for place in _ids(one)]
    for _, holder, name, user_id in found:
        if pseudonym is None:
            del holder[name]
        else:
            holder[name] = pseudonym(user_id)
    return bool(found)


def check_spelling(members: dict[str, Any], names: Collection[str]) -> None:
    """Refuse what servers that ignore the case of names (Go's) would take for one of these.

    Raises:
        Refusal: 400, with the right spelling.
    """
    for name in members:
        if name not in names and (right := name.casefold()) in names:
            raise Refusal(400, "body_name", f"spell {right!r} in lower case")


def _ids(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Of each user id: its field, the object that it stands in, its name there, and itself; a number is its digits."""
    check_spelling(body, _NAMING)
    places: list[tuple[str, dict[str, Any], str]] = [
        (name, body, name) for name in ("safety_identifier", "user") if name in body
    ]
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        check_spelling(metadata, ("user_id",))
        places += [("metadata.user_id", metadata, "user_id")] if "user_id" in metadata else []
    for field, holder, name in places:
        value = holder[name]
        if isinstance(value, RawJSON):
            value = value.encoded_json
        if not isinstance(value, str | None):
            raise Refusal(400, "body_user_id", f"{field} must be a string")
        if value and value.strip():
            yield field, holder, name, value
