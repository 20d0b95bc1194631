"""What a path means, however it is spelt."""

import pytest

from popi.serving.proxy.paths import canonical

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        "/v1//chat/completions",
        "//v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions//",
        "/V1/Chat/COMPLETIONS",
        "/v1/chat/completion%73",
        "/v1/chat/completion%2573",
        "/%76%31/chat/completions",
        "/v1%2Fchat%2fcompletions",
        "/v1/chat\\completions",
        "/v1/chat%5ccompletions",
        "/v1/chat/completions;a=b",
        "/v1/chat;x/completions",
        "/v1/chat/completions%3Fx",
        "/v1/chat/completions%23x",
        "/v1/chat/completions%20",
        "/v1/chat/completions%00",
        "/v1/chat/completions%09%0a",
        "/v1/chat/completion%C5%BF",
    ],
)
def test_is_a_chat(path: str) -> None:
    assert canonical(path) == CHAT


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions/abc", "/v1/chat", "/v1/chatcompletions", "/v1/chat/completions2", "/v1/models/gpt-4.1"],
)
def test_is_none(path: str) -> None:
    assert canonical(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/%2e%2E/admin",
        "/v1/files/..%2f..%2fadmin",
        "/v1/./x",
        "/v1/..",
        "/v1/a/..;/b",
        "/v1/..\\x",
        "/v1/%252e%252e/x",
        "/v1/%00../x",
        "/v1/%" + "25" * 4 + "41",
        "/v1/%" + "25" * 20_000,
    ],
)
def test_leads_out_or_hides(path: str) -> None:
    assert canonical(path) is None
