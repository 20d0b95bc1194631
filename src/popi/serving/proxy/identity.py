"""Determine a request's end user, and check that the caller may act for them.

Sources in order of precedence: a verified token's claim, a header, a body field. They are used only if the key may act
for users. A user key belongs to one user; a request with it that names another user anywhere is refused.
"""

from collections.abc import Mapping, Sequence

from popi.errors import AuthError, DataError
from popi.profiles.user_id import normal_user_id
from popi.serving.interfaces import Caller


def user_of(
    caller: Caller,
    claimed: str | None,
    headers: Mapping[str, str],
    body: Mapping[str, str],
    fields: Sequence[str],
) -> str | None:
    """The end user's normalised id; None if there is none or it is not valid, so that nothing is personalised.

    Args:
        caller: the key's owner.
        claimed: the user id in a verified token.
        headers: user ids by header, in order of precedence.
        body: user ids in the body, by field name.
        fields: body fields that may name the user, in order of precedence.

    Raises:
        AuthError: 403, a user key with another user's id.
    """
    if caller.speaks_for_users:
        user_id = _first(claimed, headers, body, fields)
        return None if user_id is None else _normal(user_id)
    named = [
        *([("the token", claimed)] if claimed is not None else []),
        *headers.items(),
        *((field, user_id) for field, user_id in body.items() if field in fields),
    ]
    for place, user_id in named:
        if _normal(user_id) != caller.user_id:
            raise AuthError(
                f"this key belongs to one user, and {place} names another; remove it, or use an app key",
                status=403,
            )
    return caller.user_id


def _normal(user_id: str) -> str | None:
    try:
        return normal_user_id(user_id)
    except DataError:
        return None


def _first(
    claimed: str | None, headers: Mapping[str, str], body: Mapping[str, str], fields: Sequence[str]
) -> str | None:
    named = (claimed, *headers.values(), *(body.get(field) for field in fields))
    return next((user_id for user_id in named if user_id is not None), None)
