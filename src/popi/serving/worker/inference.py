"""The LLM behind an API that writes summaries: its settings, and how it does. For `popi serve`, `worker` and `infer`.

What is said of its failures quotes no user: a provider's error may quote the prompt, so of its words only those are
shown that stand in a list, and names of fields. The check at the start asks with a made-up user; its words are shown.
"""

import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, field_validator

from popi.errors import AnswerError, ConfigError, PopiError, UpstreamError
from popi.inference_model import MAX_TOKENS, ApiInferenceModel, InferenceModel
from popi.models.remote.api_url import ApiUrl, Auth
from popi.profiles.statements import Bounds
from popi.serving.proxy.settings import Settings, read_toml
from popi.signals.types import Signal, StatementSignal
from popi.summary import Summary

log = logging.getLogger("popi.gateway.inference")


class InferenceSettings(Settings):
    """The LLM that writes summaries, behind an API. `popi serve` and `popi worker` use it to renew them, `popi infer
    --config` to write them into a file."""

    table = "inference"

    url: str | None = None
    """Its API, as far as `/chat/completions`: `https://api.openai.com/v1`, `http://localhost:8000`. Without a path:
    `/v1`. A query (`?api-version=…`) goes with every call."""
    model: str | None = Field(default=None, pattern=r"\S")
    """The model, as the API calls it."""
    protocol: Literal["openai", "anthropic"] = "openai"
    """What the API speaks."""
    key_env: str | None = Field(default=None, pattern=r"\S")
    """Environment variable with the key; else OPENAI_API_KEY or ANTHROPIC_API_KEY, and no key where that is not set."""
    auth: Auth = "auto"
    """How the key is sent: `Authorization: Bearer`, `x-api-key` or `api-key`. auto: `api-key` at Azure, `x-api-key` for
    Anthropic's protocol, else Bearer."""
    max_tokens: int = Field(default=MAX_TOKENS, ge=1)
    """Longest answer. Models that reason before they answer need room for that, too: 2000 or more."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field that says so; OpenAI's reasoning models want `max_completion_tokens`."""
    temperature: float | Literal["default"] = Field(default=0.0)
    """`"default"` leaves the field out, for models that take no other value than their own."""
    reasoning_effort: str | None = Field(default=None, pattern=r"\S")
    """Sent as it is (`low`); left out if unset."""
    structured: bool = True
    """Ask for a JSON list of statements (`response_format`, Anthropic's `output_config`). A server that refuses is
    asked for lines from then on."""
    extra: dict[str, Any] = {}
    """Further fields of every request, laid over the others: `{ top_p = 0.9 }`."""
    max_clauses: int = Field(default=8, ge=1, le=100)
    """Maximum number of statements of a summary."""
    max_clause_characters: int = Field(default=500, ge=20, le=2000)
    """Maximum length of a statement; longer ones are dropped."""
    token_budget: int = Field(default=8192, ge=1)
    """Maximum tokens of a user's signals, estimated; whole signals are dropped to fit."""
    threads: int = Field(default=4, ge=1)
    """Renewals at once, in each process."""
    check: bool = True
    """Ask once at the start, with a made-up user, and log what is wrong."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None:
            ApiUrl.parse(value)
        return value

    def fields(self) -> dict[str, Any]:
        """What is laid over every request; None takes a field out."""
        fields: dict[str, Any] = {"temperature": None if self.temperature == "default" else self.temperature}
        if self.max_tokens_field != "max_tokens":
            fields |= {"max_tokens": None, self.max_tokens_field: self.max_tokens}
        if self.reasoning_effort is not None:
            fields["reasoning_effort"] = self.reasoning_effort
        return fields | self.extra

    def connect(self, **more: Any) -> ApiInferenceModel:
        """The model. `more`: as ApiModel.connect takes it.

        Raises:
            ConfigError: URL or model are missing, or the key's variable is not set.
        """
        if self.url is None or self.model is None:
            missing = "model" if self.model is None else "url"
            raise ConfigError(f"the inference model needs a {missing}: set {missing} under [inference]")
        return InferenceModel.from_api(
            self.url,
            self.model,
            self.protocol,
            key_env=self.key_env,
            auth=self.auth,
            max_tokens=self.max_tokens,
            token_budget=self.token_budget,
            bounds=Bounds(self.max_clauses, self.max_clause_characters),
            structured=self.structured,
            **{"extra": self.fields(), **more},
        )


def read(file: Path | None, **given: Any) -> InferenceSettings:
    """The settings of a TOML file; those in `given` that are not None override the file's.

    Raises:
        ConfigError: the file can't be read, or has a setting under [inference] that does not exist.
    """
    table = read_toml(file).get("inference", {}) if file is not None else {}
    return InferenceSettings(**table | {name: value for name, value in given.items() if value is not None})


# -- how it does ----------------------------------------------------------------------------------------------------

MADE_UP = (
    StatementSignal(text="Please keep answers short: one or two sentences are enough."),
    StatementSignal(text="I like examples from cooking."),
)
"""The signals of nobody, for the check."""
OUTAGE = 3
"""So many users in a row whose renewals failed at the provider: it is the provider, and not these users' signals."""

State = Literal["unchecked", "ok", "failing"]


class Summarizes(Protocol):
    """What the check asks."""

    def summarize(self, signals: Sequence[Signal]) -> Summary:
        """Write a summary."""
        ...


class Provider:
    """How the inference model does, by its latest answer.

    Attributes:
        state: by the latest call, of the check or of a renewal.
        reason: why it fails, without a user's words; empty where it does not.
    """

    def __init__(self, model: Summarizes) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._failed: set[tuple[str, str]] = set()
        self.state: State = "unchecked"
        self.reason = ""

    def check(self) -> bool:
        """Ask once, with a made-up user, and log what is wrong."""
        try:
            self._model.summarize(MADE_UP)
        except PopiError as error:
            self.state, self.reason = "failing", reason_of(error)
            words = f"the inference model can't be used: {error}{hint(error)}"
            log.error(words, extra={"fields": {"reason": self.reason}})
            return False
        self.worked()
        log.info("the inference model answers")
        return True

    def worked(self) -> bool:
        """It answered. Whether an outage is over with that: what failed meanwhile may be tried again."""
        with self._lock:
            over = len(self._failed) >= OUTAGE
            self._failed.clear()
        self.state, self.reason = "ok", ""
        return over

    def failed(self, user: tuple[str, str], error: Exception) -> None:
        """It failed at a user's renewal."""
        if isinstance(error, UpstreamError):
            with self._lock:
                self._failed.add(user)
        self.state, self.reason = "failing", reason_of(error)


def passes(error: Exception) -> bool:
    """Whether an error is the provider's, whatever was asked: it is not reached, overloaded, or takes no request of
    ours.
    """
    return isinstance(error, UpstreamError) and (error.passing or error.for_all)


def reason_of(error: Exception) -> str:
    """Why a model gave no summary, without a word that a user may have written."""
    if isinstance(error, AnswerError):
        return str(error)
    if not isinstance(error, UpstreamError):
        return type(error).__name__
    if error.status is None:
        if error.fault is not None:
            return f"the provider did not answer ({error.fault})"
        return (
            "the provider did not answer" if error.passing else "the provider's answer can't be read, or is a refusal"
        )
    words = known_words(error.words)
    return f"the provider answered {error.status}" + (f": {words}" if words else "")


def known_words(words: str) -> str:
    """A provider's words with those replaced by "…" that are not known to be about APIs."""
    shown = [word if word.casefold().strip("_'") in _KNOWN else "…" for word in re.findall(r"[^\W\d]+(?:'\w+)?", words)]
    found = re.sub(r"…(?: …)+", "…", " ".join(shown))
    return found if found not in ("", "…") else ""


def hint(error: PopiError) -> str:
    """What to set, where the server named a field."""
    words = error.words if isinstance(error, UpstreamError) and error.status in (400, 422) else ""
    for field, setting in _SETTINGS.items():
        if field in words:
            return f"; under [inference], set {setting}"
    return ""


_SETTINGS = {
    "max_completion_tokens": 'max_tokens_field = "max_completion_tokens"',
    "max_tokens": 'max_tokens_field = "max_completion_tokens"',
    "temperature": 'temperature = "default"',
    "reasoning_effort": "another reasoning_effort, or none",
    "response_format": "structured = false",
    "output_config": "structured = false",
}
_KNOWN = frozenset(
    """
    a access again an and api are argument arguments bad balance be been billing can can't cannot check context
    credit credits current currently denied deployment did do does doesn't error exceeded exist expected expired
    failed field fields for found from gateway has have high in incorrect input instead insufficient internal
    invalid is it json_schema key later length limit limits load loaded long max_completion_tokens max_tokens
    maximum missing model must no not of on only or organization out output output_config overloaded parameter
    parameters path permission plan please project prompt provided quota rate reached reasoning_effort request
    requests requires response_format retry server service supported temperature the this timeout to token tokens
    too top_p try type unauthorized unavailable unexpected unknown unprocessable unrecognized unsupported url use
    value with you your
    """.split()
)
