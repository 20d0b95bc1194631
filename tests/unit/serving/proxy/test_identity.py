"""The order in which ids count, and whose count at all."""

import pytest

from popi.errors import AuthError, DataError
from popi.profiles.user_id import normal_user_id
from popi.serving.interfaces import Caller
from popi.serving.proxy.identity import user_of

APP, ADMIN = Caller("k", "app", "acme"), Caller("k", "admin", "acme")
USER = Caller("k", "user", "acme", "ann")
FIELDS = ("safety_identifier", "user", "metadata.user_id")


def test_the_order() -> None:
    body = {"metadata.user_id": "m", "user": "u", "safety_identifier": "s"}
    headers = {"x-popi-user": "h1", "x-litellm-end-user-id": "h2"}
    assert user_of(APP, "jwt", headers, body, FIELDS) == "jwt"
    assert user_of(APP, None, headers, body, FIELDS) == "h1"
    assert user_of(APP, None, {"x-litellm-end-user-id": "h2"}, body, FIELDS) == "h2"
    assert user_of(ADMIN, None, {}, body, FIELDS) == "s"
    assert user_of(APP, None, {}, {"metadata.user_id": "m", "user": "u"}, FIELDS) == "u"
    assert user_of(APP, None, {}, {"metadata.user_id": "m"}, FIELDS) == "m"
    assert user_of(APP, None, {}, body, ("user",)) == "u"
    assert user_of(APP, None, {}, {}, FIELDS) is None
    assert user_of(APP, None, {}, body, ()) is None


@pytest.mark.parametrize(
    "user_id",
    ["x", "x" * 200, "x" * 201, "a\x00b", "\x00", "a\ud800", " ", "Bjørn ☃", " Ann@Shop.Example ", "Jose\u0301"],
)
def test_who_is_looked_up_is_whom_the_profile_api_can_name(user_id: str) -> None:
    """Else an answer would be kept of a user who can be neither exported nor erased."""
    try:
        named: str | None = normal_user_id(user_id)
    except DataError:
        named = None
    assert user_of(APP, user_id, {}, {}, FIELDS) == named
    assert user_of(APP, None, {"x-popi-user": user_id}, {}, FIELDS) == named
    assert user_of(ADMIN, None, {}, {"user": user_id}, FIELDS) == named


def test_an_endless_id_is_nobodys() -> None:
    assert user_of(APP, None, {"x-popi-user": "x" * 200}, {}, FIELDS) == "x" * 200
    assert user_of(APP, None, {"x-popi-user": "x" * 201}, {}, FIELDS) is None


def test_a_user_key_stands_for_its_user() -> None:
    assert user_of(USER, None, {}, {}, FIELDS) == "ann"
    assert user_of(USER, "ann", {"x-popi-user": "ann"}, {"user": " ann "}, FIELDS) == "ann"


@pytest.mark.parametrize(
    ("claimed", "headers", "body"),
    [
        ("bert", {}, {}),
        (None, {"x-popi-user": "bert"}, {}),
        ("ann", {"x-popi-user": "ann", "x-litellm-end-user-id": "bert"}, {}),
        (None, {}, {"user": "bert"}),
        (None, {"x-popi-user": "ann"}, {"metadata.user_id": "bert"}),
    ],
)
def test_a_user_key_can_name_nobody_else(claimed: str | None, headers: dict[str, str], body: dict[str, str]) -> None:
    with pytest.raises(AuthError, match="belongs to one user") as error:
        user_of(USER, claimed, headers, body, FIELDS)
    assert error.value.status == 403
    assert "bert" not in str(error.value)
