"""One class per boundary. The command line prints the message alone and exits with 2."""

from typing import Any


class PopiError(Exception):
    """Something the user can put right; the message says what was wrong, what arrived, what to do."""


class DataError(PopiError):
    """User signals, targets or a file of them do not fit their schema."""


class AnswerError(DataError):
    """An inference model's answer holds nothing that can be used. The message says why and quotes nothing of it."""


class ConfigError(PopiError):
    """A setting, its type or its value is not one that popi knows."""


class ModelError(PopiError):
    """A model or adapter can't be loaded, or lacks what popi needs of it (a chat template, say)."""


class RunError(PopiError):
    """A run directory is missing, incomplete, or belongs to another configuration."""


class UpstreamError(PopiError):
    """A model API refused, could not be reached, or answered what popi can't read.

    Attributes:
        status: the HTTP status of its answer, None where there was none (a time limit, a cut connection).
        passing: popi tried again, and it did not help; later it may.
        for_all: every further request would meet the same: no such model, a key that is not taken.
        fault: why there was no answer: `timeout`, `unreachable`, `certificate`, `proxy` or `broken`.
        words: what the server said of it. They may quote the request, and with it a user.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        passing: bool = False,
        for_all: bool = False,
        fault: str | None = None,
        words: str = "",
    ) -> None:
        super().__init__(message)
        self.status, self.passing, self.for_all, self.fault, self.words = status, passing, for_all, fault, words


class GatewayError(PopiError):
    """A gateway refused a call of its profile API, could not be reached, or answered what popi can't read.

    Attributes:
        status: the HTTP status of its answer, None where there was none.
        code: the gateway's word for what was wrong (`no_user`, `version_conflict`, …), None where it gave none.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class AuthError(PopiError):
    """A caller's key or token is missing, unknown, revoked or expired, or not enough for what it asks.

    Attributes:
        status: the HTTP status to answer with: 401 (no valid key), 403 (valid, and not allowed), 429 (too many wrong
            ones came from there), 503 (nobody can tell now: the store of keys, or the issuer's keys, can't be read).
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, *, status: int = 401, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class StoreError(PopiError):
    """The gateway's database can't be reached, is busy for too long, or is not one that this popi reads."""


class BatchError(PopiError):
    """Part of a batch failed; what did not is kept.

    Attributes:
        results: aligned with the inputs: for each its value, or the PopiError that stands in its place.
        first: the first of those errors.
    """

    def __init__(self, results: list[Any]) -> None:
        failures = [result for result in results if isinstance(result, PopiError)]
        super().__init__(f"{len(failures)} of {len(results)} failed; the first: {failures[0]}")
        self.results, self.first = results, failures[0]
