"""Where a chat API is: what each form of URL means, which are refused, and how the key is sent."""

import pytest

from popi.errors import ConfigError
from popi.models.remote.api_url import ApiUrl

AZURE = "https://r.openai.azure.com/openai/deployments/gpt-4o?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        (" http://localhost:8000/ ", "http://localhost:8000/v1"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        ("https://g.example/v1beta/openai/", "https://g.example/v1beta/openai"),
        ("https://api.z.ai/api/paas/v4", "https://api.z.ai/api/paas/v4"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
        (AZURE, "https://r.openai.azure.com/openai/deployments/gpt-4o"),
        ("https://r.openai.azure.com/openai/v1/", "https://r.openai.azure.com/openai/v1"),
        ("https://r.services.ai.azure.com/models", "https://r.services.ai.azure.com/models"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("https://bücher.example/a%20b", "https://xn--bcher-kva.example/a%20b"),
    ],
)
def test_a_path_is_taken_as_it_is_and_none_means_v1(url: str, base: str) -> None:
    assert ApiUrl.parse(url).at("/chat/completions").split("?")[0] == base + "/chat/completions"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com/v1"),
        ("https://api.anthropic.com/v1/", "https://api.anthropic.com/v1"),
        ("https://api.z.ai/api/anthropic", "https://api.z.ai/api/anthropic/v1"),
    ],
)
def test_anthropics_has_v1_as_its_clients_have_it(url: str, base: str) -> None:
    assert ApiUrl.parse(url, "anthropic").at("/messages") == base + "/messages"


def test_a_query_goes_with_each_call_and_counts_before_the_calls_own() -> None:
    api = ApiUrl.parse(AZURE)
    assert api.at("/x") == f"{api.base}/x?api-version=2024-10-21"
    assert api.at("/x", "a=1&&b=%20&c") == f"{api.base}/x?api-version=2024-10-21&a=1&b=%20&c"
    for again in ("api-version=2020", "a=1&api%2Dversion=2020", "api-version=&api-version"):
        assert api.at("/x", again).count("version") == 1
    assert ApiUrl.parse("http://h").at("/x", "a=1&&b") == "http://h/v1/x?a=1&&b"
    assert "2024" not in api.base


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("api.openai.com/v1", "must begin with https://.*got 'api.openai.com/v1'"),
        ("", "must begin with https://"),
        ("ftp://example.org", "must begin with https://"),
        ("https://example.org/v1?a=1&api_key=x", "has 'api_key' in its query; put a key into an environment"),
        ("https://example.org/v1?Subscription-Key=x", "has 'Subscription-Key' in its query"),
        ("https://", "must begin with https://"),
        ("me:hunter2@example.org", "must begin with https://"),
        ("https://me:hunter2@example.org", "no user, password"),
        ("https://hunter2@example.org/v1?a=1", "no user, password"),
        ("https://example.org/v1#hunter2", "no user, password or fragment"),
        ("https://example.org:99999", "not valid"),
        ("https://example.org/a/../v1", "'..' in its path"),
        ("https://example.org//v1", "'//'"),
        ("https://example.org/v 1", "blanks"),
        ("https://example.org/v1\r\nx: y", "blanks"),
        ("https://example.org/v1/chat/completions", "without /chat/completions; use 'https://example.org/v1'"),
        (AZURE.replace("?", "/chat/completions?"), "without /chat/completions; use 'https://r.*/gpt-4o'"),
        ("https://api.anthropic.com/v1/messages", "base URL, without /messages"),
    ],
)
def test_what_is_wrong_or_ambiguous_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        ApiUrl.parse(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "protocol", "header"),
    [
        ("https://api.openai.com/v1", "openai", "Authorization"),
        ("https://api.anthropic.com", "anthropic", "x-api-key"),
        (AZURE, "openai", "api-key"),
        ("https://R.OpenAI.Azure.com/openai/v1", "openai", "api-key"),
        ("https://r.cognitiveservices.azure.com/openai/v1", "openai", "api-key"),
        ("https://r.services.ai.azure.com/anthropic", "anthropic", "api-key"),
        ("https://r.openai.azure.us/openai/v1", "openai", "api-key"),
        ("https://openai.azure.com.evil.example/v1", "openai", "Authorization"),
    ],
)
def test_the_keys_header_is_found_by_protocol_and_host(url: str, protocol: str, header: str) -> None:
    api = ApiUrl.parse(url)
    assert api.key_header("auto", protocol)[0] == header  # type: ignore[arg-type]
    assert api.key_header("bearer", protocol) == ("Authorization", "Bearer {}")  # type: ignore[arg-type]
