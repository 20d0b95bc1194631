"""Pages of other origins: which may call, what they may read, and that without the setting none may."""

import json
from typing import Any

import pytest
from serving_client import gateway_client
from unit.serving.proxy.recording import fixed, recording_upstream

from popi.errors import ConfigError
from popi.serving.proxy.settings import ProxySettings
from popi.serving.settings import CaptureSettings, ServerSettings
from popi.serving.store.database import Database

PAGE, OTHER = "https://app.example", "https://evil.example"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def preflight(people: Any, path: str, origin: str, method: str = "POST", **more: str) -> Any:
    wanted = {"access-control-request-headers": "authorization,content-type,x-stainless-os"} | more
    headers = {"origin": origin, "access-control-request-method": method, **wanted}
    return people.ask("OPTIONS", path, None, headers=headers)


def cors(reply: Any) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


@pytest.fixture
def own_cors(sqlite_database: Database) -> Any:
    """A gateway with the page allowed, before an upstream that has rules of its own."""
    with recording_upstream() as upstream:
        upstream.reply = fixed(
            b"{}", "200 OK", "Access-Control-Allow-Origin: *", "Access-Control-Allow-Credentials: true"
        )
        tables = {"server": ServerSettings(cors_origins=(PAGE,)), "proxy": ProxySettings(upstream=upstream.url)}
        with gateway_client(sqlite_database, **tables) as people:
            yield people


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/messages", "/users/ada/summary"])
def test_preflights_need_no_key(own_cors: Any, path: str) -> None:
    reply = preflight(own_cors, path, PAGE, "PUT" if path.startswith("/users") else "POST")
    allowed = cors(reply)
    assert reply.status_code == 200 and allowed["access-control-allow-origin"] == PAGE
    assert "PUT" in allowed["access-control-allow-methods"]
    assert allowed["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert "access-control-allow-credentials" not in allowed


def test_preflights_of_others_are_refused_in_the_apis_form(own_cors: Any) -> None:
    reply = preflight(own_cors, "/v1/chat/completions", OTHER)
    assert (reply.status_code, reply.json()["error"]["code"], cors(reply)) == (403, "cors", {})
    reply = preflight(own_cors, "/v1/messages", OTHER, **{"access-control-request-headers": "anthropic-version"})
    assert (reply.status_code, reply.json()["type"]) == (403, "error")


def test_answers_and_errors_can_be_read_by_the_page_alone(own_cors: Any) -> None:
    for key, status in (("ada", 200), ("popi_wrong", 401)):
        reply = own_cors.ask("POST", "/v1/chat/completions", key, json=CHAT, headers={"origin": PAGE})
        assert reply.status_code == status and reply.headers["vary"] == "Origin"
        assert cors(reply)["access-control-allow-origin"] == PAGE and len(cors(reply)) == 2
        assert "x-popi-personalized" in cors(reply)["access-control-expose-headers"]
    assert own_cors.ask("GET", "/users/ada", "ada", headers={"origin": PAGE}).headers["vary"] == "Origin"
    reply = own_cors.ask("POST", "/v1/chat/completions", "ada", json=CHAT, headers={"origin": OTHER})
    assert reply.status_code == 200 and "access-control-allow-origin" not in reply.headers


def test_a_page_can_read_every_header_that_the_gateway_adds(sqlite_database: Database) -> None:
    """The answer's id among them: the page sends it back with feedback."""
    answer = {"id": "c1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}}]}
    with recording_upstream() as upstream:
        upstream.reply = fixed(json.dumps(answer).encode(), "200 OK", "Content-Type: application/json")
        tables: dict[str, Any] = {
            "server": ServerSettings(cors_origins=(PAGE,)),
            "proxy": ProxySettings(upstream=upstream.url, summary_timeout_ms=10_000),
            "capture": CaptureSettings(tenants=("acme",)),
        }
        with gateway_client(sqlite_database, **tables) as people:
            assert people.ask("PUT", "/users/ada/summary", "ada", json={"text": "Short."}).status_code == 200
            reply = people.ask("POST", "/v1/chat/completions", "ada", json=CHAT, headers={"origin": PAGE})
    added = {name for name in reply.headers if name.startswith("x-popi-")}
    assert added == {"x-popi-personalized", "x-popi-summary-version", "x-popi-answer-id"}
    assert added <= set(cors(reply)["access-control-expose-headers"].split(", "))


def test_our_pages_are_no_other_origins(own_cors: Any) -> None:
    assert cors(own_cors.ask("GET", "/me", None, headers={"origin": PAGE})) == {}
    assert cors(preflight(own_cors, "/me", PAGE)) == {}


def test_without_the_setting_there_is_nothing_of_it(sqlite_database: Database) -> None:
    with recording_upstream() as upstream:
        upstream.reply = fixed(b"{}", "200 OK", "Access-Control-Allow-Origin: *")
        with gateway_client(sqlite_database, proxy=ProxySettings(upstream=upstream.url)) as people:
            reply = people.ask("POST", "/v1/chat/completions", "ada", json=CHAT, headers={"origin": PAGE})
            assert reply.status_code == 200 and cors(reply) == {}
            assert preflight(people, "/v1/chat/completions", PAGE).status_code == 401


def test_all_origins(sqlite_database: Database) -> None:
    with gateway_client(sqlite_database, server=ServerSettings(cors_origins=("*",))) as people:
        assert cors(preflight(people, "/users/ada", OTHER, "GET"))["access-control-allow-origin"] == "*"
        assert (
            cors(people.ask("GET", "/users/ada", "ada", headers={"origin": OTHER}))["access-control-allow-origin"]
            == "*"
        )


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "https://App.example", "https://a/b", "null", ""]
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ConfigError, match="an origin must be https://host"):
        ServerSettings(cors_origins=(origin,))
