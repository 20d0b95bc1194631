"""Several upstreams of several makes, over real sockets: which one serves, what arrives there, and lists of models."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from providers import KEY, Providers, serving
from unit.serving.proxy.recording import (
    ADMIN_KEY,
    APP_KEY,
    OTHER_KEY,
    SUMMARY,
    Answer,
    RecordingUpstream,
    RunningGateway,
    running_gateway,
)

from popi.errors import ConfigError
from popi.serving.proxy.settings import ProxySettings, UpstreamSettings
from popi.serving.proxy.upstream import Outgoing, Upstreams

AZURE = "/openai/deployments/gpt-4o"
ANTHROPIC = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(providers: Providers) -> Iterator[RunningGateway]:
    def one(name: str, path: str, *models: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "url": providers.url + path, "models": models, "key": KEY} | more

    upstreams = (
        one("azure", f"{AZURE}?api-version=2024-10-21", "gpt-4o", auth="api-key"),
        one("gemini", "/v1beta/openai", "gemini-*", "models/gemini-*", tenants=("acme",)),
        one("zai", "/api/paas/v4", "glm-*", protocol="openai"),
        one("zai-anthropic", "/api/anthropic", "glm-*", "claude-*", protocol="anthropic"),
        one("vllm", "", "smol", "gpt-5*"),
        {"name": "ollama", "url": providers.url, "models": ("llama*",)},
    )
    with running_gateway(RecordingUpstream(), upstreams=upstreams) as running:
        yield running


@pytest.fixture(autouse=True)
def _afresh(providers: Providers) -> None:
    providers.arrived.clear()
    providers.down.clear()


def chat(gateway: RunningGateway, model: Any, path: str = "/v1/chat/completions", **more: Any) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "user": "ann", "max_completion_tokens": 9}
    return gateway.call(path, json.dumps(body).encode(), **more)


@pytest.mark.parametrize(
    ("model", "target", "header"),
    [
        ("gpt-4o", f"{AZURE}/chat/completions?api-version=2024-10-21", ("api-key", KEY)),
        ("gemini-2.5-flash", "/v1beta/openai/chat/completions", ("authorization", f"Bearer {KEY}")),
        ("glm-4.6", "/api/paas/v4/chat/completions", ("authorization", f"Bearer {KEY}")),
        ("smol", "/v1/chat/completions", ("authorization", f"Bearer {KEY}")),
        ("gpt-5-mini", "/v1/chat/completions", ("authorization", f"Bearer {KEY}")),
        ("llama3.2", "/v1/chat/completions", None),
    ],
)
def test_a_chat_goes_to_the_one_that_serves_its_model(
    gateway: RunningGateway, providers: Providers, model: str, target: str, header: tuple[str, str] | None
) -> None:
    got = chat(gateway, model)
    assert (got.status, got.header("x-popi-personalized")) == (200, "applied"), got.body
    arrived = providers.last
    assert arrived.target == target and SUMMARY in json.dumps(arrived.body)
    keys = {name: value for name, value in arrived.headers.items() if name in ("authorization", "x-api-key", "api-key")}
    assert keys == ({header[0]: header[1]} if header else {})
    assert APP_KEY not in str(arrived)


def test_queries_are_joined_and_the_settings_count(gateway: RunningGateway, providers: Providers) -> None:
    assert chat(gateway, "gpt-4o", "/v1/chat/completions?api-version=2020-01-01&b=%20").status == 200
    assert providers.last.target == f"{AZURE}/chat/completions?api-version=2024-10-21&b=%20"
    assert chat(gateway, "glm-4.6", "/v1/chat/completions?api-version=1").status == 200
    assert providers.last.target == "/api/paas/v4/chat/completions?api-version=1"


def test_one_model_in_two_protocols(gateway: RunningGateway, providers: Providers) -> None:
    assert chat(gateway, "glm-4.6", "/v1/messages", headers=ANTHROPIC).status == 200
    assert providers.last.target == "/api/anthropic/v1/messages" and providers.last.headers["x-api-key"] == KEY
    assert chat(gateway, "glm-4.6").status == 200
    assert providers.last.target == "/api/paas/v4/chat/completions"
    assert chat(gateway, "claude-x").status == 404 and len(providers.arrived) == 2


def test_errors_of_each_pass_as_they_came(gateway: RunningGateway) -> None:
    body = {"model": "gpt-5", "messages": [], "max_tokens": 5}
    got = gateway.call(body=json.dumps(body).encode())
    assert got.status == 400 and got.json["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize("model", ["GPT-4o", "gpt-4o-mini", "", "none/" + "x" * 300, "x" * 501, "naïve ☃"])
def test_a_model_that_none_serves(gateway: RunningGateway, providers: Providers, model: str) -> None:
    got = chat(gateway, model)
    assert got.status == 404 and got.header("content-type") == "application/json"
    error = got.json["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "model_not_found")
    assert (model[:100] if len(model) <= 500 else "501 characters") in error["message"]
    got = chat(gateway, model, "/v1/messages", headers=ANTHROPIC)
    assert (got.status, got.json["type"], got.json["error"]["type"]) == (404, "error", "not_found_error")
    assert providers.arrived == []


def test_a_tenant_that_may_not_use_it_does_not_know_it(gateway: RunningGateway, providers: Providers) -> None:
    assert chat(gateway, "gemini-2.5-flash", key=OTHER_KEY).json == json.loads(
        chat(gateway, "gemini-9", key=OTHER_KEY).body.replace(b"gemini-9", b"gemini-2.5-flash")
    )
    assert chat(gateway, "gemini-2.5-flash", key=ADMIN_KEY, headers={"x-popi-tenant": "other"}).status == 404
    assert providers.arrived == []
    assert chat(gateway, "gpt-4o", key=OTHER_KEY).status == 200


def test_another_spelling_of_the_field_hides_no_model(gateway: RunningGateway, providers: Providers) -> None:
    for name in ("Model", "MODEL"):
        body = json.dumps({"model": "llama3.2", name: "gpt-5", "messages": []}).encode()
        for path in ("/v1/chat/completions", "/v1/embeddings"):
            got = gateway.call(path, body)
            assert (got.status, got.json["error"]["code"]) == (400, "body_name")
    assert providers.arrived == []


def test_requests_without_a_model_go_to_the_first(gateway: RunningGateway, providers: Providers) -> None:
    for body in ({"messages": []}, {"model": None, "messages": []}, {"model": 5, "messages": []}):
        assert gateway.call(body=json.dumps(body).encode()).status == 200
        assert providers.last.target.startswith(AZURE)
    gateway.call("/v1/files", b"plain text", {"content-type": "text/plain"})
    assert providers.last.target == "/openai/deployments/gpt-4o/files?api-version=2024-10-21"
    gateway.call("/v1/messages/batches", b"{}", ANTHROPIC)
    assert providers.last.target == "/openai/deployments/gpt-4o/messages/batches?api-version=2024-10-21"


def test_other_paths_go_by_the_model_where_they_name_one(gateway: RunningGateway, providers: Providers) -> None:
    gateway.call("/v1/embeddings", json.dumps({"model": "glm-4.6", "input": "a"}).encode())
    assert providers.last.target == "/api/paas/v4/embeddings"
    gateway.call("/v1/embeddings", json.dumps({"model": "llama3.2", "input": "a"}).encode())
    assert providers.last.target == "/v1/embeddings"
    gateway.call("/v1/models/models%2Fgemini-2.5-pro", method="GET")
    assert providers.last.target == "/v1beta/openai/models/models%2Fgemini-2.5-pro"
    assert gateway.call("/v1/models/unheard-of", method="GET").json["error"]["code"] == "model_not_found"
    assert gateway.call("/v1/embeddings", b'{"model": "unheard-of"}').status == 404


def listed(gateway: RunningGateway, **more: Any) -> list[str]:
    got = gateway.call("/v1/models", method="GET", **more)
    assert got.status == 200
    return [one["id"] for one in got.json["data"]]


def test_lists_of_models_are_joined(gateway: RunningGateway, providers: Providers) -> None:
    got = gateway.call("/v1/models", method="GET")
    assert got.json["object"] == "list" and {one["object"] for one in got.json["data"]} == {"model"}
    assert [(one["id"], one["owned_by"]) for one in got.json["data"]] == [
        ("gpt-4o", "azure"),  # which has no list
        ("models/gemini-2.5-flash", "them"),
        ("models/gemini-2.5-pro", "them"),
        ("claude-x", "zai-anthropic"),
        ("smol", "them"),
        ("llama3.2:latest", "them"),
    ]
    assert got.json["data"][3]["created"] == 1739923200 and got.json["data"][4]["max_model_len"] == 2048
    asked = {one.target for one in providers.arrived}
    assert f"{AZURE}/models?api-version=2024-10-21" in asked and "/api/anthropic/v1/models?limit=1000" in asked
    assert not any(name.startswith("models/gemini") for name in listed(gateway, key=OTHER_KEY))
    assert {name for one in providers.arrived for name in one.headers if "popi" in name} == set()


def test_lists_in_anthropics_form(gateway: RunningGateway) -> None:
    got = gateway.call("/v1/models?limit=2", method="GET", headers=ANTHROPIC).json
    assert (got["has_more"], got["first_id"], got["last_id"]) == (False, "gpt-4o", "llama3.2:latest")
    assert {one["type"] for one in got["data"]} == {"model"}
    assert {"type", "id", "display_name", "created_at"} <= set.intersection(*(set(one) for one in got["data"]))
    assert got["data"][1]["created_at"] == "1970-01-01T00:00:07Z"


def test_official_clients_read_the_joined_list(gateway: RunningGateway) -> None:
    openai, anthropic = pytest.importorskip("openai"), pytest.importorskip("anthropic")
    names = ["gpt-4o", "models/gemini-2.5-flash", "models/gemini-2.5-pro", "claude-x", "smol", "llama3.2:latest"]
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=APP_KEY)
    assert [model.id for model in client.models.list()] == names
    with pytest.raises(openai.NotFoundError, match="unheard-of"):
        client.chat.completions.create(model="unheard-of", messages=[])
    client = anthropic.Anthropic(base_url=gateway.url, api_key=APP_KEY)
    assert [model.id for model in client.models.list(limit=2)] == names
    with pytest.raises(anthropic.NotFoundError, match="unheard-of"):
        client.messages.create(model="unheard-of", max_tokens=5, messages=[{"role": "user", "content": "hi"}])


def test_one_that_fails_takes_none_of_the_others_along(
    gateway: RunningGateway, providers: Providers, caplog: pytest.LogCaptureFixture
) -> None:
    providers.down.add("/v1beta/openai/models")
    failed = gateway.counted("popi_upstream_failures_total", kind="models", upstream="gemini")
    with caplog.at_level(logging.WARNING, "popi.gateway"):
        assert listed(gateway) == ["gpt-4o", "claude-x", "smol", "llama3.2:latest"]
    assert gateway.counted("popi_upstream_failures_total", kind="models", upstream="gemini") == failed + 1
    told = [record.__dict__["fields"] for record in caplog.records if record.levelno == logging.WARNING]
    # Z.ai has no list, and its settings name no model without wildcards.
    assert {"upstream": "gemini", "reason": "answered 500"} in told and {one["upstream"] for one in told} == {
        "gemini",
        "zai",
    }


def test_a_clients_own_key_is_not_shown_to_every_upstream(gateway: RunningGateway, providers: Providers) -> None:
    own = {"x-popi-key": APP_KEY, "authorization": "Bearer sk-own"}
    listed(gateway, key=None, headers=own)
    assert "sk-own" not in str(providers.arrived)
    chat(gateway, "llama3.2", key=None, headers=own)
    assert providers.last.headers["authorization"] == "Bearer sk-own"


def test_logs_and_metrics_name_the_upstream(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    labels = {"route": "chat", "status": "200", "personalized": "applied", "upstream": "zai"}
    before = gateway.counted("popi_requests_total", **labels)
    with caplog.at_level(logging.INFO, "popi.gateway"):
        chat(gateway, "glm-4.6")
        chat(gateway, "unheard-of")
    served = [record.__dict__["fields"].get("upstream") for record in caplog.records if record.msg == "request"]
    assert served == ["zai", None]
    assert gateway.counted("popi_requests_total", **labels) == before + 1
    assert gateway.counted("popi_upstream_seconds_count", route="chat", upstream="zai") > 0


def test_nothing_is_the_tenants(providers: Providers) -> None:
    upstreams = ({"name": "a", "url": providers.url, "tenants": ("other",)},)
    with running_gateway(RecordingUpstream(), upstreams=upstreams) as gateway:
        assert listed(gateway) == []
        assert chat(gateway, "smol").json["error"]["code"] == "model_not_found"
        got = gateway.call("/v1/files", method="GET")
        assert (got.status, got.json["error"]["code"]) == (404, "no_upstream")
    assert providers.arrived == []


def test_all_lists_fail(providers: Providers) -> None:
    providers.down.add("/v1/models")
    with running_gateway(
        RecordingUpstream(), upstreams=({"name": "a", "url": providers.url, "models": ("*",)},)
    ) as one:
        got = one.call("/v1/models", method="GET")
    assert (got.status, got.json["error"]["code"]) == (502, "upstream_models")


def test_one_upstream_stays_as_it_is(providers: Providers) -> None:
    with running_gateway(RecordingUpstream(), upstream=f"{providers.url}/v1beta/openai", upstream_key=KEY) as gateway:
        assert chat(gateway, "gemini-9").status == 200  # whatever the model is called
        assert providers.last.target == "/v1beta/openai/chat/completions"
        assert listed(gateway) == ["models/gemini-2.5-flash", "models/gemini-2.5-pro"]
        assert gateway.counted("popi_upstream_seconds_count", route="chat", upstream="default") == 1


def test_a_key_that_is_not_there_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    one = UpstreamSettings(name="a", url="http://h", key_env="NO_SUCH_KEY")
    settings = ProxySettings(upstreams=(one,))
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        Upstreams(settings, Outgoing.__new__(Outgoing))
    monkeypatch.setenv("NO_SUCH_KEY", KEY)
    found = Upstreams(settings, Outgoing.__new__(Outgoing)).choose("acme", "anthropic", "m")
    assert found.keys["anthropic"] == (b"x-api-key", KEY.encode())
