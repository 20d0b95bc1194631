"""A gateway in this process tells an endpoint over HTTP; what it says, in which order, and how it goes on trying."""

import base64
import logging
import threading
import time
from collections.abc import Iterator

import pytest
from serving_client import ADMIN, People, gateway_client
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from webhook_receiver import SECRET, Receiver, eventually, receiving

from popi.errors import ConfigError
from popi.serving import webhooks
from popi.serving.server import free_port
from popi.serving.settings import WebhookSettings
from popi.serving.store import erasure, outbox
from popi.serving.store.database import Database


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture
def told(
    store_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[People]:
    """A gateway with two endpoints: `dead`, where nobody listens, and `crm`."""
    monkeypatch.setenv("POPI_ADMIN_KEY", ADMIN)
    monkeypatch.setenv("HOOK", SECRET)
    for name, seconds in (("BACK_OFF", 0.05), ("IDLE_SECONDS", 0.02), ("PAUSE", 0.01)):
        monkeypatch.setattr(webhooks, name, seconds)
    endpoints = (
        WebhookSettings(name="dead", url=f"http://127.0.0.1:{free_port()}", secret_env="HOOK"),
        WebhookSettings(name="crm", url=receiver.url, secret_env="HOOK"),
    )
    caplog.set_level(logging.INFO, "popi.gateway.webhooks")
    with gateway_client(Database.open(store_url), webhooks=endpoints) as people:
        yield people


def put(people: People, user: str, text: str, version: int = 0) -> None:
    headers = {"if-match": f'"{version}"'} if version else {}
    reply = people.ask("PUT", f"/users/{user}/summary", json={"text": text}, headers=headers)
    assert reply.status_code == 200, reply.text


def waits(people: People, user: str, endpoint: str = "crm") -> bool:
    def look(connection: object) -> bool:
        return any(one.user_id == user for one in rows(connection) if one.endpoint == endpoint)

    return people.gateway.store.database.read(look)


def rows(connection: object) -> list[object]:
    return connection.execute(outbox.outbox.select()).all()  # type: ignore[attr-defined]


def test_an_endpoint_is_told_of_each_change_and_of_no_word(
    told: People, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    put(told, "ann", "Likes tea.")
    [first] = receiver.wait(1)
    put(told, "ann", "Likes green tea.", 1)
    receiver.wait(2)
    assert told.ask("DELETE", "/users/ann").json()["data_on_disk"] in ("scheduled", "left_to_postgresql")
    receiver.wait(3)
    assert receiver.told() == [
        ("summary.changed", "ann", 1),
        ("summary.changed", "ann", 2),
        ("user.erased", "ann", None),
    ]
    assert first.body["data"] == {"tenant": "acme", "user_id": "ann", "version": 1}
    assert first.body.keys() == {"type", "timestamp", "data"} and first.headers["content-type"] == "application/json"
    assert len({one.id for one in receiver.got}) == 3
    assert "tea" not in str(receiver.got)
    eventually(lambda: not waits(told, "ann"))
    assert told.ask("DELETE", "/users/nobody").status_code == 200  # of whom there is nothing to tell
    logged = " ".join(f"{one.getMessage()} {one.__dict__.get('fields')}" for one in caplog.records)
    assert "'outcome': 'delivered'" in logged and "ann" not in logged and SECRET not in logged
    metrics = told.ask("GET", "/metrics", "admin").text
    assert 'popi_webhooks_total{endpoint="crm",outcome="delivered"} 3.0' in metrics
    assert 'popi_webhook_events_waiting{endpoint="dead"}' in metrics


def test_after_the_erasure_was_told_the_bytes_go(told: People, receiver: Receiver) -> None:
    database = told.gateway.store.database
    receiver.answer = lambda got: 204 if got.body["type"] == "user.erased" else 410
    put(told, "zebulon-17", "Likes tea.")
    receiver.wait(1)
    told.ask("DELETE", "/users/zebulon-17")
    receiver.wait(2)
    eventually(lambda: not waits(told, "zebulon-17"))
    assert waits(told, "zebulon-17", "dead")  # and only for hours
    database.write(lambda c: c.execute(outbox.outbox.delete()))
    eventually(lambda: database.read(erasure.scrub_due) is not None)
    if database.file is not None:
        assert database.scrub()
        for file in database.file.parent.glob("popi.db*"):
            assert b"zebulon-17" not in file.read_bytes()


def test_what_fails_is_tried_again_with_the_same_id(told: People, receiver: Receiver) -> None:
    answers: list[int | None] = [500, None, 307, 429]
    receiver.answer = lambda got: answers.pop(0) if answers else 200
    put(told, "ann", "Likes tea.")
    got = receiver.wait(5)
    assert len({one.id for one in got}) == 1 and len({str(one.body) for one in got}) == 1
    eventually(lambda: not waits(told, "ann"))


def test_gone_is_not_tried_again(told: People, receiver: Receiver) -> None:
    receiver.answer = lambda got: 410
    put(told, "ann", "Likes tea.")
    receiver.wait(1)
    eventually(lambda: not waits(told, "ann"))
    assert len(receiver.got) == 1


def test_a_users_events_come_one_after_the_other_and_hold_up_nobody(told: People, receiver: Receiver) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def answer(got: object) -> int:
        if got.told[1] == "ann" and not go_on.is_set():  # type: ignore[attr-defined]
            begun.set()
            go_on.wait(30)
            return 500
        return 200

    receiver.answer = answer
    put(told, "ann", "One.")
    assert begun.wait(30)
    put(told, "ann", "Two.", 1)
    put(told, "ann", "Three.", 2)
    put(told, "ben", "Likes tea.")
    eventually(lambda: ("summary.changed", "ben", 1) in receiver.told())
    assert [user for _, user, _ in receiver.told()] == ["ann", "ben"]
    go_on.set()
    eventually(lambda: ("summary.changed", "ann", 3) in receiver.told())
    told.ask("DELETE", "/users/ann")
    eventually(lambda: not waits(told, "ann") and not waits(told, "ben"))
    of_ann = [version for _, user, version in receiver.told() if user == "ann"]
    assert of_ann == [1, 3, None]  # two was superseded while it waited, and one by the time that it failed


def test_a_user_whose_event_is_never_taken_holds_up_no_other(told: People, receiver: Receiver) -> None:
    receiver.answer = lambda got: 500 if got.told[1] == "ann" else 200
    put(told, "ann", "One.")
    receiver.wait(2)
    put(told, "ben", "One.")
    eventually(lambda: ("summary.changed", "ben", 1) in receiver.told())
    assert waits(told, "ann")


def test_a_merge_is_an_erasure_that_says_into_whom(told: People, receiver: Receiver) -> None:
    put(told, "ann-2", "Likes tea.")
    put(told, "ann", "Likes cake.")
    receiver.wait(2)
    assert told.ask("POST", "/users/ann/merge", json={"source": "ann-2"}).status_code == 200
    receiver.wait(4)
    assert set(receiver.told()[2:]) == {("user.erased", "ann-2", "ann"), ("summary.changed", "ann", 3)}


def test_a_deletion_makes_a_version_that_is_told_of(told: People, receiver: Receiver) -> None:
    put(told, "ann", "Likes tea. Likes cake.")
    clause = told.ask("GET", "/users/ann/summary").json()["clauses"][0]["id"]
    receiver.wait(1)
    assert told.ask("DELETE", f"/users/ann/summary/clauses/{clause}").status_code == 200
    receiver.wait(2)
    assert told.ask("DELETE", "/users/ann/summary/versions/2").status_code == 200
    receiver.wait(3)
    assert [version for *_, version in receiver.told()] == [
        1,
        2,
        told.ask("GET", "/users/ann/summary").json()["version"],
    ]


SHORT = "whsec_" + base64.b64encode(b"short").decode()


@pytest.mark.parametrize("secret", ["", "  ", "whsec_", "nonsense", SHORT, "x " + SECRET])
def test_a_secret_that_is_none(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = WebhookSettings(name="crm", url="http://127.0.0.1:9", secret_env="HOOK")
    monkeypatch.setenv("HOOK", secret)
    with pytest.raises(ConfigError, match="openssl rand") as caught:
        webhooks.secrets_of(endpoint)
    assert all(one not in str(caught.value) for one in (SECRET, SHORT, "nonsense"))


def test_two_secrets_sign_while_one_replaces_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    new = "whsec_" + base64.b64encode(b"another secret of the tests").decode()
    monkeypatch.setenv("HOOK", f"{SECRET} {new}")
    both = webhooks.secrets_of(WebhookSettings(name="crm", url="http://127.0.0.1:9", secret_env="HOOK"))
    now = int(time.time())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now)}
    headers["webhook-signature"] = webhooks.signature(both, "msg_1", now, b'{"a": 1}')
    for secret in (SECRET, new):
        assert Webhook(secret).verify(b'{"a": 1}', headers) == {"a": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(b'{"a": 2}', headers)
