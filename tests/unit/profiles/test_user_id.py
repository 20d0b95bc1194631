"""One form of a user id, whichever way it is spelt."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi.errors import DataError
from popi.profiles.user_id import LONGEST_ID, normal_user_id, visible_form

DEVICE = "a1b2c3d4e5f6" * 5 + "abcd"
ACCOUNT, SESSION = "0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.mark.parametrize(
    ("spelt", "normal"),
    [
        ("ann", "ann"),
        ("  ann\t\n", "ann"),
        ("\u00a0ann\u3000", "ann"),
        ("Jose\u0301", "Jos\u00e9"),
        ("Ann Lee", "Ann Lee"),
        ("Ann", "Ann"),
        ("00uBaSe64==", "00uBaSe64=="),
        ("auth0|Ab12", "auth0|Ab12"),
        ("Ann.Lee@Shop.Example", "ann.lee@shop.example"),
        ("JOSE\u0301@Shop.example", "jos\u00e9@shop.example"),
        ("@Ann:Shop.example", "@Ann:Shop.example"),
        ("Ann@Shop", "Ann@Shop"),
        ("Ann@Lee@Shop.example", "Ann@Lee@Shop.example"),
        ("Bjørn ☃ 👩\u200d💻", "Bjørn ☃ 👩\u200d💻"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("x" * LONGEST_ID, "x" * LONGEST_ID),
    ],
)
def test_the_form(spelt: str, normal: str) -> None:
    assert normal_user_id(spelt) == normal


def claude(**members: object) -> str:
    return json.dumps(members, separators=(",", ":"))


@pytest.mark.parametrize(
    ("spelt", "normal"),
    [
        (f"user_{DEVICE}_account_{ACCOUNT}_session_{SESSION}", ACCOUNT),
        (f" user_{DEVICE}_account_{ACCOUNT}_session_{SESSION}", ACCOUNT),
        (f"user_{DEVICE}_account__session_{SESSION}", DEVICE),
        (claude(device_id=DEVICE, account_uuid=ACCOUNT, session_id=SESSION), ACCOUNT),
        (claude(device_id=DEVICE, account_uuid="", session_id=SESSION), DEVICE),
        (claude(device_id=DEVICE, session_id=SESSION, parent=None), DEVICE),
        # No session in it: somebody's own id, which only looks like one.
        (f"user_{DEVICE}_account_{ACCOUNT}", f"user_{DEVICE}_account_{ACCOUNT}"),
        ("user_7_session_9", "user_7_session_9"),
        ('{"id":7}', '{"id":7}'),
        ('{"session_id":', '{"session_id":'),
    ],
)
def test_of_a_session_the_account(spelt: str, normal: str) -> None:
    """As Claude Code sends `metadata.user_id`: in one text until 2.1.77, as JSON since."""
    assert normal_user_id(spelt) == normal


@pytest.mark.parametrize(
    ("spelt", "why"),
    [
        ("", "blank"),
        (" \t\u00a0", "blank"),
        ("a\x00b", r"U\+0000 as character 2"),
        ("a\nb", r"U\+000A"),
        ("a\u200bb", r"U\+200B as character 2"),
        ("\ufeffann", r"U\+FEFF"),
        ("\u202eann", r"U\+202E"),
        ("a\u2028b", r"U\+2028"),
        ("a\ud800", "Unicode"),
        ("x" * (LONGEST_ID + 1), "at most 200 characters; got 201"),
        ("x" * 1_000_000, "got 1000000"),
        ("\u0958" * LONGEST_ID, "got 400"),
        (claude(session_id=SESSION), "only a session"),
        (claude(device_id="", account_uuid=None, session_id=SESSION), "only a session"),
    ],
)
def test_what_is_none(spelt: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        normal_user_id(spelt)


@given(st.text(max_size=LONGEST_ID + 5))
def test_a_form_is_its_own_form(spelt: str) -> None:
    try:
        normal = normal_user_id(spelt)
    except DataError:
        return
    assert normal_user_id(normal) == normal == unicodedata.normalize("NFC", normal)
    assert normal_user_id(f" {unicodedata.normalize('NFD', normal)}\n") == normal


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=LONGEST_ID))
def test_what_was_taken_once_stays_reachable(spelt: str) -> None:
    form = visible_form(spelt)
    assert normal_user_id(form) == form
    try:
        assert form == normal_user_id(spelt)
    except DataError:
        assert form.isascii() or form != spelt


def test_visible_forms_are_told_apart() -> None:
    spelt = [
        "ab",
        "a\x01b",
        "a\x02b",
        "a\u200bb",
        "a%01b\x01",
        claude(session_id="1"),
        claude(session_id="2"),
        "\x01" * 200,
    ]
    assert len({visible_form(one) for one in spelt}) == len(spelt)
    assert visible_form("a\x01b") == "a%01b"
