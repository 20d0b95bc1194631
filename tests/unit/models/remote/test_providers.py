"""An inference model at each make of API: what `[inference]` must say, and what then arrives."""

from collections.abc import Iterator
from typing import Any

import pytest
from providers import KEY, Providers, serving

from popi.errors import UpstreamError
from popi.models.remote.retries import Retries
from popi.serving.worker.inference import InferenceSettings, hint
from popi.signals.types import StatementSignal

GPT_5 = {"max_tokens_field": "max_completion_tokens", "temperature": "default"}


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_KEY", KEY)


def summarize(providers: Providers, path: str, model: str, **settings: Any) -> str:
    """A summary by a model at a path."""
    url = providers.url + path
    chosen = InferenceSettings(url=url, model=model, **{"key_env": "PROVIDER_KEY"} | settings)
    return chosen.connect(retries=Retries(0)).summarize([StatementSignal(text="Please be brief.")]).text


@pytest.mark.parametrize(
    ("path", "model", "settings", "target", "header"),
    [
        ("/v1", "gpt-5-mini", GPT_5, "/v1/chat/completions", "authorization"),
        (
            "/openai/deployments/gpt-4o?api-version=2024-10-21",
            "gpt-4o",
            {"auth": "api-key"},
            "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
            "api-key",
        ),
        ("/openai/v1/", "gpt-4o", {"auth": "api-key"}, "/openai/v1/chat/completions", "api-key"),
        ("/v1beta/openai/", "gemini-2.5-flash", {}, "/v1beta/openai/chat/completions", "authorization"),
        ("/api/paas/v4", "glm-4.6", {}, "/api/paas/v4/chat/completions", "authorization"),
        ("/api/anthropic", "glm-4.6", {"protocol": "anthropic"}, "/api/anthropic/v1/messages", "x-api-key"),
        ("", "claude-x", {"protocol": "anthropic"}, "/v1/messages", "x-api-key"),
        ("", "smol", {}, "/v1/chat/completions", "authorization"),
        ("", "llama3.2", {"key_env": None}, "/v1/chat/completions", None),
    ],
)
def test_what_each_needs(
    providers: Providers, path: str, model: str, settings: dict[str, Any], target: str, header: str | None
) -> None:
    assert summarize(providers, path, model, **settings) == "Likes short answers."
    keys = [name for name in providers.last.headers if name in ("authorization", "x-api-key", "api-key")]
    assert providers.last.target == target and keys == ([header] if header else [])


@pytest.mark.parametrize(
    ("path", "model", "settings", "words", "advice"),
    [
        ("", "gpt-5", {}, "'max_tokens' is not supported", 'max_tokens_field = "max_completion_tokens"'),
        ("", "gpt-5", {"max_tokens_field": "max_completion_tokens"}, "'temperature'", 'temperature = "default"'),
        ("/v1beta/openai", "gemini-9", {"auth": "api-key"}, "Missing or invalid Authorization header.", ""),
        ("/openai/v1", "gpt-4o", {}, "invalid subscription key", ""),
        ("/openai/deployments/gpt-4o", "gpt-4o", {"auth": "api-key"}, "Resource not found; check the URL", ""),
        ("/v1", "smol", {"auth": "api-key"}, "401 Unauthorized: Unauthorized; check the key", ""),
    ],
)
def test_what_each_says_that_is_missing(
    providers: Providers, path: str, model: str, settings: dict[str, Any], words: str, advice: str
) -> None:
    with pytest.raises(UpstreamError) as error:
        summarize(providers, path, model, **settings)
    assert words in str(error.value) and advice in hint(error.value)
    assert KEY not in str(error.value) and "api-version" not in str(error.value)
