"""User ids in request bodies, and the pseudonyms sent upstream in their place."""

import hmac
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any

from simplejson import RawJSON

from popi.errors import DataError
from popi.profiles.user_id import LONGEST_ID, normal_user_id
from popi.serving.proxy.refusals import Refusal

CACHE_SIZE = 10_000
"""Maximum pseudonyms to cache. Overlong ids are not cached, since they may take megabytes."""
_NAMING = ("safety_identifier", "user", "metadata")
_PLACES = ("messages", "instructions", "system", "input")


class Pseudonyms:
    """HMAC-SHA256 of a tenant and a normalised user id, as 64 hexadecimal digits (the maximum length that OpenAI's API
    accepts).

    Args:
        secret: the deployment's secret, so that nobody else can recover ids by hashing guesses (e-mail addresses, say).
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._cached = lru_cache(maxsize=CACHE_SIZE)(self._of)

    def of(self, tenant: str, user_id: str) -> str:
        """The pseudonym of a user."""
        return self._cached(tenant, user_id) if len(user_id) <= LONGEST_ID else self._of(tenant, user_id)

    def forget(self) -> None:
        """Drop all user ids from memory."""
        self._cached.cache_clear()

    def _of(self, tenant: str, user_id: str) -> str:
        try:
            user_id = normal_user_id(user_id)
        except DataError:
            pass  # not a valid id, but hide it all the same
        # The tenant's length makes this unambiguous: ("a", "b:c") and ("a:b", "c") are two users.
        text = f"{len(tenant)}:{tenant}:{user_id}"
        return hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), "sha256").hex()


def user_ids(body: dict[str, Any]) -> dict[str, str]:
    """The user ids in a personalised request's body, by field; blank and null fields are skipped.

    Raises:
        Refusal: 400, an id is neither a string nor a number, or a field's name differs from ours only in case: some
            upstreams would read it, so its id would slip through.
    """
    check_spelling(body, _PLACES)
    return {field: user_id for field, _, _, user_id in _ids(body)}


def replace_ids(body: dict[str, Any], pseudonym: Callable[[str], str] | None) -> bool:
    """Remove all user ids from a body and from the requests of a batch.

    Args:
        body: changed in place.
        pseudonym: maps an id to its replacement; None removes the field.

    Returns:
        Whether anything was changed.

    Raises:
        Refusal: 400, as `user_ids`.
    """
    batch = body.get("requests")
    params = [one.get("params") for one in batch if isinstance(one, dict)] if isinstance(batch, list) else []
    places = [place for one in (body, *params) if isinstance(one, dict) for place in _ids(one)]
    for _, holder, name, user_id in places:
        if pseudonym is None:
            del holder[name]
        else:
            holder[name] = pseudonym(user_id)
    return bool(places)


def check_spelling(members: dict[str, Any], names: Collection[str]) -> None:
    """Refuse names that a server with case-insensitive JSON (such as Go's) would take for one of `names`.

    Raises:
        Refusal: 400, with the right spelling.
    """
    for name in members:
        if name not in names and (expected := name.casefold()) in names:
            raise Refusal(400, "body_name", f"spell {expected!r} in lower case")


def _ids(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Yield (field, containing object, key in it, user id) per user id; a number is yielded as its digits."""
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
