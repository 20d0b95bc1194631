"""The gateway's own error responses, in the format of the API that was called."""

import json
from collections.abc import Iterable
from typing import Literal

from popi.errors import AuthError

Dialect = Literal["openai", "anthropic"]
Names = Iterable[tuple[bytes, bytes]]

# status: (OpenAI's type, Anthropic's type)
_TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    431: ("invalid_request_error", "request_too_large"),
    500: ("server_error", "api_error"),
    502: ("server_error", "api_error"),
    503: ("server_error", "api_error"),
    504: ("server_error", "timeout_error"),
    505: ("invalid_request_error", "invalid_request_error"),
}


class Refusal(Exception):
    """An error that the gateway itself responds with. Its message must not contain a user's text.

    Attributes:
        status: the HTTP status.
        code: the reason as one word, for programs and metrics.
        retry_after: seconds after which to try again.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


def dialect_of(path: str, headers: Names) -> Dialect:
    """The API of a request: Anthropic's if the path or an `anthropic-version` header says so, else OpenAI's."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "anthropic" if any(name == b"anthropic-version" for name, _ in headers) else "openai"


def not_authenticated(error: AuthError) -> Refusal:
    """The refusal for a key or token that is invalid or can't be checked, or after too many wrong ones."""
    codes = {401: "not_authenticated", 403: "not_allowed", 429: "too_many_wrong_keys"}
    status = error.status if error.status in codes else 503
    retry_after = 1 if status == 503 else error.retry_after
    return Refusal(status, codes.get(status, "keys_unavailable"), str(error), retry_after=retry_after)


def answer(refusal: Refusal, dialect: Dialect) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """A refusal's headers and body."""
    openai, anthropic = _TYPES.get(refusal.status, _TYPES[400 if refusal.status < 500 else 500])
    error: dict[str, object]
    if dialect == "anthropic":
        error = {"type": "error", "error": {"type": anthropic, "message": str(refusal)}}
    else:
        error = {"error": {"message": str(refusal), "type": openai, "param": None, "code": refusal.code}}
    body = json.dumps(error).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after))
    if refusal.status == 405:
        headers.append((b"allow", b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers, body
