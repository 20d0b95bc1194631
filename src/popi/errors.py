"""One error class per boundary. The command line prints only the message and exits with 2."""

from typing import Any


class PopiError(Exception):
    """An error that the user can fix; the message says what was wrong, which value arrived and what to do."""


class DataError(PopiError):
    """User signals, targets or a file of them don't match their schema."""


class AnswerError(DataError):
    """An inference model's answer has nothing that can be used. The message says why, without quoting it."""


class ConfigError(PopiError):
    """A setting is unknown, or has an invalid type or value."""


class ModelError(PopiError):
    """A model or adapter can't be loaded, or lacks something popi needs, such as a chat template."""


class RunError(PopiError):
    """A run directory is missing, incomplete, or belongs to another configuration."""


class UpstreamError(PopiError):
    """A model API rejected a request, could not be reached, or gave an answer that popi can't parse.

    Attributes:
        status: HTTP status of the answer, `None` if there was none (a timeout, a broken connection).
        transient: retries didn't help, but later ones may.
        affects_all: every request would fail the same way: no such model, or a rejected key.
        fault: why there was no answer: `timeout`, `unreachable`, `certificate`, `proxy` or `broken`.
        server_message: the server's message. It may quote the request, and with it a user.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        transient: bool = False,
        affects_all: bool = False,
        fault: str | None = None,
        server_message: str = "",
    ) -> None:
        super().__init__(message)
        self.status, self.transient, self.affects_all, self.fault = status, transient, affects_all, fault
        self.server_message = server_message


class GatewayError(PopiError):
    """A gateway rejected a call of its profile API, could not be reached, or gave an answer that popi can't parse.

    Attributes:
        status: HTTP status of the answer, `None` if there was none.
        code: the gateway's error code (`no_user`, `version_conflict`, …), `None` if there was none.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class AuthError(PopiError):
    """A caller's key or token is missing, unknown, revoked or expired, or does not permit the request.

    Attributes:
        status: HTTP status to answer with: 401 (no valid key), 403 (valid, but not permitted), 429 (too many invalid
            keys from this client), 503 (can't be checked now: the store or the issuer's keys are unavailable).
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, *, status: int = 401, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class StoreError(PopiError):
    """The gateway's database can't be reached, is busy for too long, or has a format that this popi can't read."""


class BatchError(PopiError):
    """Part of a batch failed; the other results are retained.

    Attributes:
        results: for each input in order, its value or the PopiError in its place.
        first: the first of those errors.
    """

    def __init__(self, results: list[Any]) -> None:
        failures = [result for result in results if isinstance(result, PopiError)]
        super().__init__(f"{len(failures)} of {len(results)} failed; the first: {failures[0]}")
        self.results, self.first = results, failures[0]
