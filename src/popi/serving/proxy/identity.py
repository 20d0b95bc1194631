"""Who the end user of a request is, and whether the caller may say so.

In this order: the claim of a verified token, a header, a field of the body. What comes with a request counts only
where its key may speak for users. A user key stands for one user: naming another, anywhere, is refused.
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
    """The end user's id in its normal form, or None: personalise for nobody. An id that has none is nobody's.

    Args:
        caller: whose key it is.
        claimed: the user id in a token that was verified.
        headers: user ids by header, in the order in which they count.
        body: user ids in the body, by field.
        fields: fields of the body that may name the user, in the order in which they count.

    Raises:
        AuthError: 403, a user key that names somebody else.
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
                f"this key is one user's own, and {place} names another user; leave it out, or use an app key",
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
