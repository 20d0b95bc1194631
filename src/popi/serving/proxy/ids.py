"""User ids in bodies, and what goes upstream in their place."""

import hmac
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from popi.serving.profiles.models import LONGEST_ID
from popi.serving.proxy.members import Edit, Member, read_object, string, without

KEPT = 10_000
"""Most pseudonyms that are kept ready. Those of ids that are too long for a user's are not: they may take megabytes."""


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


class FoundId(NamedTuple):
    """A user id in a body.

    Attributes:
        field: `safety_identifier`, `user` or `metadata.user_id`.
        user_id: as the client wrote it; empty for a blank, null, a list or an object, which name nobody.
        member: where it stands.
        siblings: the members of the object that it is one of.
    """

    field: str
    user_id: str
    member: Member
    siblings: Sequence[Member]


def find_ids(body: bytes, text: str, members: Sequence[Member]) -> list[FoundId]:
    """Every user id in a body, doubles included: none may be overlooked on its way upstream."""
    found = []
    for member in members:
        if member.name in ("safety_identifier", "user"):
            found.append(FoundId(member.name, _read(body, member), member, members))
        elif member.name == "metadata" and isinstance(member.value, dict):
            inner, _ = read_object(text, member.start)
            found += [
                FoundId("metadata.user_id", _read(body, one), one, inner) for one in inner if one.name == "user_id"
            ]
    return found


def id_edits(
    found: Sequence[FoundId], pseudonyms: Pseudonyms, tenant: str, mode: Literal["hashed", "stripped"]
) -> list[Edit]:
    """Edits that leave no user id in a body."""
    found = [one for one in found if one.user_id]
    if mode == "hashed":
        return [
            Edit(one.member.start, one.member.end, b'"%b"' % pseudonyms.of(tenant, one.user_id).encode())
            for one in found
        ]
    objects = {id(one.siblings): one.siblings for one in found}
    return [
        edit
        for key, siblings in objects.items()
        for edit in without(siblings, [one.member for one in found if id(one.siblings) == key])
    ]


def _read(body: bytes, member: Member) -> str:
    if isinstance(member.value, bytes):  # a number is taken at its text
        return member.value.decode()
    user_id = string(body, member) if isinstance(member.value, str) else ""
    return user_id if user_id.strip() else ""
