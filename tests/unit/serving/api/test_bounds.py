"""Bounds on what is stored of a user: what happens at each, and that what was stored before stays reachable."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_client import ADMIN, People, gateway_client

from popi.serving.settings import ProfileSettings
from popi.serving.store.database import Database

TIGHT = ProfileSettings(
    body_bytes=4_000,
    import_bytes=8_000,
    body_values=1_000,
    signal_chars=200,
    signals=5,
    signals_bytes=900,
    versions=3,
    versions_bytes=2_000,
)


@pytest.fixture
def bounded(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[People]:
    monkeypatch.setenv("POPI_ADMIN_KEY", ADMIN)
    with gateway_client(Database.open(store_url), profiles=TIGHT) as client:
        yield client


def said(n: int, text: str = "x") -> dict[str, Any]:
    return {"type": "statement", "text": text, "id": str(n)}


def send(people: People, *signals: dict[str, Any]) -> Any:
    return people.ask("POST", "/users/u/signals", json={"signals": list(signals)})


def refused(reply: Any, status: int, code: str, *words: str) -> None:
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert all(word in reply.json()["error"]["message"] for word in words), reply.text


def test_a_signal_of_many_characters(bounded: People) -> None:
    refused(send(bounded, said(1), said(2, "é" * 180)), 413, "signal_too_long", "signals[1]", "200", "signal_chars")
    assert bounded.ask("GET", "/users/u").status_code == 404
    assert send(bounded, said(1, "é" * 140)).status_code == 200


def test_more_signals_than_a_user_may_have(bounded: People) -> None:
    assert send(bounded, *map(said, range(4))).json()["added"] == 4
    refused(send(bounded, said(4), said(5)), 422, "profile_full", "6", "the maximum is 5", "[profiles] signals")
    assert bounded.ask("GET", "/users/u").json()["signals"] == 4
    assert send(bounded, *map(said, range(5))).json() == {
        "ids": list("01234"),
        "added": 1,
        "duplicates": 4,
        "ignored": 0,
    }
    assert send(bounded, *map(said, range(5))).status_code == 200  # those that are known are no more
    line = {"user_id": "u", "signals": [said(6)]}
    refused(bounded.ask("POST", "/users/import", json={"users": [{"user_id": "v"}, line]}), 422, "profile_full")
    assert bounded.ask("GET", "/users/v").status_code == 404
    assert bounded.ask("DELETE", "/users/u").json()["removed"]["signals"] == 5


def test_more_bytes_than_a_user_may_have(bounded: People) -> None:
    for n in range(4):
        assert send(bounded, said(n, "x" * 150)).status_code == 200
    refused(send(bounded, said(9, "x" * 150)), 422, "profile_full", "900", "signals_bytes")


def test_versions_that_are_kept(bounded: People) -> None:
    for n in range(5):
        reply = bounded.ask("PUT", "/users/u/summary", json={"text": f"{n}."}, headers={"if-match": str(n)})
        assert reply.status_code == 200
    listed = bounded.ask("GET", "/users/u/summary/versions").json()["versions"]
    assert [one["version"] for one in listed] == [5, 4, 3]
    for n in range(5, 8):
        text = "Likes tea and short answers. " * (25 + n)
        bounded.ask("PUT", "/users/u/summary", json={"text": text}, headers={"if-match": str(n)})
    listed = bounded.ask("GET", "/users/u/summary/versions").json()["versions"]
    assert [one["version"] for one in listed] == [8, 7]
    assert bounded.ask("POST", "/users/u/summary/rollback", json={"version": 3}).status_code == 404


def test_bodies(bounded: People) -> None:
    refused(send(bounded, said(1, "x" * 4_000)), 413, "body_too_long", "4,000")
    many = b'{"signals": [' + b"[]," * 1_000 + b"1]}"
    refused(bounded.ask("POST", "/users/u/signals", content=many), 413, "body_too_many_values", "1,000")
    commas = send(bounded, said(1, ", " * 50 + '"\\' + "[" * 20), *(said(n, ",[{" * 30) for n in range(2, 5)))
    assert commas.status_code == 200, commas.text  # those within texts are none
    jsonl = {"content-type": "application/jsonl"}
    refused(
        bounded.ask("POST", "/users/import", content=b"\n" * 1_100, headers=jsonl), 413, "body_too_many_values", "lines"
    )
    refused(bounded.ask("POST", "/users/import", content=b" " * 8_001), 413, "body_too_long", "8,000")


def test_json_is_strict(people: People) -> None:
    for body in (
        b'{"signals": [], "signals": [{"type": "post", "text": "x"}]}',
        b'{"signals": [{"type": "post", "type": "statement", "text": "x"}]}',
        b'{"signals": [{"type": "post", "text": "x"}]} {}',
        b'\xef\xbb\xbf{"signals": [{"type": "post", "text": "x"}]}',
        '{"signals": [{"type": "post", "text": "x"}]}'.encode("utf-16"),
        b"[" * 200_000,
        b'{"signals": ' + b"1" * 5_000 + b"}",
    ):
        refused(people.ask("POST", "/users/u/signals", content=body), 400, "not_json")
    wide = {"signals": [{"type": "post", "text": "x"} | {f"k{n}": 1 for n in range(100)}]}
    refused(people.ask("POST", "/users/u/signals", json=wide), 422, "not_valid", "64 fields")
    long = {"signals": [{"type": "pair", "prompt": [{"role": "user", "content": "x"}] * 1_001}]}
    refused(people.ask("POST", "/users/u/signals", json=long), 422, "not_valid", "signals[0]", "1,000 messages")


def test_the_first_bad_signal_is_explained(people: People) -> None:
    bad = {"type": "post", "txt": "x", "more": 1}
    reply = people.ask("POST", "/users/u/signals", json={"signals": [said(1), *[bad] * 500]})
    refused(reply, 422, "not_valid", "signals[1].text: required", "signals[1].txt: no such field")
    assert "signals[2]" not in reply.text and len(reply.text) < 400


def test_clauses_and_what_is_forbidden(people: People) -> None:
    for body in (
        {"clauses": [{"text": "x " * 500}] * 41},
        {"forbidden": [{"text": "x " * 500}] * 41},
        {"clauses": [{"text": "x"}] * 101},
        {"clauses": [{"text": "x", "signals": ["s"] * 101}]},
    ):
        refused(people.ask("PUT", "/users/u/summary", json=body), 422, "not_valid")


def test_what_was_stored_under_other_bounds_stays_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPI_ADMIN_KEY", ADMIN)
    url = f"sqlite:///{tmp_path}/popi.db"
    with gateway_client(Database.open(url)) as people:
        assert send(people, *(said(n, f"{n}" * 900_000) for n in range(1, 3))).status_code == 413
        monkeypatch.setattr(people.gateway.profiles, "bounds", ProfileSettings(signal_chars=10**6, signals_bytes=10**8))
        for n in range(1, 9):
            assert send(people, said(n, f"{n}é" * 400_000)).status_code == 200
        for n in range(8):
            people.ask("PUT", "/users/u/summary", json={"text": f"Likes tea {n}. " * 60}, headers={"if-match": str(n)})
        before = people.ask("GET", "/users/u/export").json()
    with gateway_client(Database.open(url), profiles=TIGHT) as people:
        refused(send(people, said(9)), 422, "profile_full")
        whole = people.ask("GET", "/users/u/export")
        assert whole.json() == before
        assert [one["text"] for one in before["signals"]] == [f"{n}é" * 400_000 for n in range(1, 9)]
        assert [one["version"] for one in before["versions"]] == list(range(8, 0, -1))
        assert "é" in whole.text and whole.headers["content-type"] == "application/json"
        listed = people.ask("GET", "/users/u/summary/versions").json()["versions"]
        assert listed == before["versions"]
        assert json.loads(people.ask("GET", "/users/u/export?format=jsonl").text)["user_id"] == "u"
        assert people.ask("DELETE", "/users/u").json()["removed"]["signals"] == 8
