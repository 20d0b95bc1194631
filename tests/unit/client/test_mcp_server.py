"""What a proposal becomes, clause by clause."""

from datetime import UTC, datetime
from typing import Any

import pytest

from popi.client import Clause, ClauseEdit, SummaryAnswer
from popi.errors import DataError

mcp_server: Any = pytest.importorskip("popi.client.mcp_server", exc_type=ImportError)
Change, proposed = mcp_server.Change, mcp_server.proposed


def clause(key: str, text: str, locked: bool, signals: list[str]) -> Clause:
    return Clause(id=key, text=text, locked=locked, signals=signals, attribution=None, author="model")


CLAUSES = [
    clause("a", "Likes tea.", True, ["s1"]),
    clause("b", "Long answers.", False, ["s2"]),
    clause("c", "No jokes.", False, []),
]
NOW = SummaryAnswer(
    version=3, text="x", clauses=CLAUSES, updated_at=datetime(2026, 1, 31, tzinfo=UTC), author="user", forbidden=[]
)


def test_what_is_not_named_stays_with_its_lock_and_reasons() -> None:
    changes = [Change(clause_id="b", text=" Short answers. "), Change(clause_id="c"), Change(text="Metric units.")]
    assert proposed(NOW, 3, changes) == [
        ClauseEdit(id="a", text="Likes tea.", locked=True, signals=["s1"], author="model"),
        ClauseEdit(id="b", text="Short answers."),
        ClauseEdit(text="Metric units."),
    ]
    assert proposed(NOW, 3, [Change(clause_id="b", text="Long answers.")])[1].signals == ["s2"]
    assert proposed(None, 0, [Change(text="Metric units.")]) == [ClauseEdit(text="Metric units.")]


@pytest.mark.parametrize(
    ("version", "changes", "words"),
    [
        (2, [Change(text="x")], "is at version 3, not 2"),
        (0, [Change(text="x")], "is at version 3, not 0"),
        (3, [Change(clause_id="a", text="Hates tea.")], "locked clause a"),
        (3, [Change(clause_id="a", text="Likes tea.")], "locked clause a"),
        (3, [Change(clause_id="a")], "locked clause a"),
        (3, [Change(clause_id="z", text="x")], "the clauses are: a, b, c"),
        (3, [Change(clause_id="b"), Change(clause_id="b", text="x")], "named before"),
        (3, [Change()], "needs a clause_id"),
        (3, [Change(text=" ")], "must not be blank"),
        (3, [Change(clause_id="b", text="")], "must not be blank"),
        (3, [Change(text="x" * 2001)], "text: "),
    ],
)
def test_what_a_proposal_may_not_do(version: int, changes: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        proposed(NOW, version, changes)
    with pytest.raises(DataError, match="version 0, not 3"):
        proposed(None, 3, changes)


def test_a_clause_that_is_too_long_to_be_sent_back_can_only_be_reworded() -> None:
    long = clause("d", "x" * 2001, False, [])
    now = NOW.model_copy(update={"clauses": [*CLAUSES, long]})
    with pytest.raises(DataError, match="clause d has 2001 characters"):
        proposed(now, 3, [Change(text="Metric units.")])
    assert proposed(now, 3, [Change(clause_id="d", text="Short.")])[-1] == ClauseEdit(id="d", text="Short.")


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"authorization": "bearer k1", "x-popi-user": "ada"}, ("k1", "ada", "")),
        ({"authorization": "Bearer k1", "x-api-key": "k2"}, ("k1", "", "")),
        ({"authorization": "Bearer k1", "x-popi-key": "k3", "x-popi-tenant": "acme"}, ("k3", "", "acme")),
        ({"authorization": "Basic k1", "x-api-key": "k2"}, ("k2", "", "")),
        ({"authorization": "k1"}, ("", "", "")),
        ({"x-popi-user": " j\u00f6rg \u2603 "}, ("", "j\u00f6rg \u2603", "")),
    ],
)
def test_headers_are_read_as_the_gateway_reads_them(headers: dict[str, str], named: tuple[str, ...]) -> None:
    from popi.serving.proxy.headers import HeaderRules, RequestHeaders
    from popi.serving.proxy.settings import ProxySettings

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    found = mcp_server.named_by(raw)
    assert found == named
    theirs = RequestHeaders(raw, HeaderRules(ProxySettings(upstream="http://127.0.0.1:9")))
    assert (theirs.key or "", theirs.ids.get("x-popi-user", ""), theirs.tenant or "") == named


def test_a_header_with_two_values_names_nobody() -> None:
    raw = [(b"x-popi-user", b"ada"), (b"other", b"1"), (b"other", b"2"), (b"x-popi-user", b"ben")]
    with pytest.raises(DataError, match="x-popi-user is present twice"):
        mcp_server.named_by(raw)
    assert mcp_server.named_by([*raw[:3], raw[0]]).user_id == "ada"
