"""The LLM behind an API that writes summaries: its settings and its health. For `popi serve`, `worker` and `infer`.

Reports of its failures must not quote users. A provider's error may quote the prompt, so only allow-listed words and
field names are shown. The startup check uses a made-up user, so its errors are shown in full.
"""

import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, field_validator

from popi.config.section import VariableName
from popi.errors import AnswerError, ConfigError, PopiError, UpstreamError
from popi.inference_model import MAX_TOKENS, InferenceModel
from popi.models.remote.api_url import ApiUrl, Auth
from popi.models.spec import ModelSpec
from popi.profiles.statements import Bounds
from popi.serving.proxy.settings import Settings, read_toml
from popi.signals.types import Signal, StatementSignal
from popi.summary import Summary

log = logging.getLogger("popi.gateway.inference")


class InferenceSettings(Settings):
    """The LLM behind an API that writes summaries. `popi serve` and `popi worker` renew summaries with it; `popi infer
    --config` writes them to a file."""

    table = "inference"

    url: str | None = None
    """URL of the API, up to `/chat/completions`: `https://api.openai.com/v1`, `http://localhost:8000`. The path
    defaults to `/v1`. A query (`?api-version=…`) is sent with every call."""
    model: str | None = Field(default=None, pattern=r"\S")
    """The model's name at the API."""
    protocol: Literal["openai", "anthropic"] = "openai"
    """The API's protocol."""
    key_env: VariableName | None = None
    """Environment variable with the key. Default: OPENAI_API_KEY or ANTHROPIC_API_KEY; no key if that is not set."""
    auth: Auth = "auto"
    """How the key is sent: `Authorization: Bearer`, `x-api-key` or `api-key`. auto: `api-key` for Azure, `x-api-key`
    for Anthropic's protocol, otherwise Bearer."""
    max_tokens: int = Field(default=MAX_TOKENS, ge=1)
    """Maximum tokens per answer. Models that reason before answering need 2000 or more."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The request field for this limit; OpenAI's reasoning models need `max_completion_tokens`."""
    temperature: float | Literal["default"] = Field(default=0.0)
    """Sampling temperature. `"default"` omits the field, for models that only accept their default."""
    reasoning_effort: str | None = Field(default=None, pattern=r"\S")
    """Sent as is (`low`); omitted if unset."""
    structured: bool = True
    """Ask for a JSON list of statements (`response_format`, Anthropic's `output_config`). If the server rejects that,
    ask for lines from then on."""
    extra: dict[str, Any] = {}
    """Additional fields for every request; they override the others: `{ top_p = 0.9 }`."""
    max_clauses: int = Field(default=8, ge=1, le=100)
    """Maximum statements per summary."""
    max_clause_characters: int = Field(default=500, ge=20, le=2000)
    """Maximum characters per statement; longer ones are dropped."""
    token_budget: int = Field(default=8192, ge=1)
    """Maximum tokens of a user's signals, estimated; whole signals are dropped to fit."""
    threads: int = Field(default=4, ge=1)
    """Parallel renewals per process."""
    check: bool = True
    """Call the model once at startup, with a made-up user, and log any problem."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None:
            ApiUrl.parse(value)
        return value

    def fields(self) -> dict[str, Any]:
        """Fields that override those of every request; `None` removes a field."""
        fields: dict[str, Any] = {"temperature": None if self.temperature == "default" else self.temperature}
        if self.max_tokens_field != "max_tokens":
            fields |= {"max_tokens": None, self.max_tokens_field: self.max_tokens}
        if self.reasoning_effort is not None:
            fields["reasoning_effort"] = self.reasoning_effort
        return fields | self.extra

    def connect(self, template: str | None = None, **more: Any) -> InferenceModel:
        """Connect to the model.

        Args:
            template: for a model that popi trained, the set of prompt templates that it was trained with. It then reads
                that set's prompt alone and answers with the summary. None: an LLM that follows instructions.
            more: additional fields of `ModelSpec`.

        Raises:
            ConfigError: the URL or model is missing, the key's variable is not set, or there is no such template set.
        """
        if self.url is None or self.model is None:
            missing = "model" if self.model is None else "url"
            raise ConfigError(f"the inference model needs a {missing}: set {missing} under [inference]")
        options = {"protocol": self.protocol, "key_env": self.key_env, "auth": self.auth, "extra": self.fields()}
        return InferenceModel.from_spec(
            ModelSpec(self.model, template or "auto", url=self.url, **options | more),
            max_tokens=self.max_tokens,
            token_budget=self.token_budget,
            bounds=Bounds(self.max_clauses, self.max_clause_characters),
            structured=self.structured,
            prose=None if template is None else True,
        )


def read(file: Path | None, **overrides: Any) -> InferenceSettings:
    """Read settings from a TOML file; `overrides` that are not `None` take precedence.

    Raises:
        ConfigError: the file can't be read, or has an unknown setting under [inference].
    """
    table = read_toml(file).get("inference", {}) if file is not None else {}
    return InferenceSettings(**table | {name: value for name, value in overrides.items() if value is not None})


# -- health ---------------------------------------------------------------------------------------------------------

SAMPLE_SIGNALS = (
    StatementSignal(text="Please keep answers short: one or two sentences are enough."),
    StatementSignal(text="I like examples from cooking."),
)
"""Signals of a made-up user, for the check."""
OUTAGE = 3
"""After renewals of this many users in a row failed at the provider, the provider is to blame, not their signals."""

State = Literal["unchecked", "ok", "failing"]


class Summarizer(Protocol):
    """A model that the check can call."""

    def summarize(self, signals: Sequence[Signal]) -> Summary:
        """Write a summary."""
        ...


class Provider:
    """The health of the inference model, from its latest answer.

    Attributes:
        state: the result of the latest call, by the check or a renewal.
        reason: why it fails, without any user's words; empty if it doesn't.
    """

    def __init__(self, model: Summarizer) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._failed: set[tuple[str, str]] = set()
        self.state: State = "unchecked"
        self.reason = ""

    def check(self) -> bool:
        """Call the model once with a made-up user, and log any problem."""
        try:
            self._model.summarize(SAMPLE_SIGNALS)
        except PopiError as error:
            self.state, self.reason = "failing", reason_of(error)
            message = f"the inference model can't be used: {error}{hint(error)}"
            log.error(message, extra={"fields": {"reason": self.reason}})
            return False
        self.record_success()
        log.info("the inference model answers")
        return True

    def record_success(self) -> bool:
        """Record an answer. Returns whether it ends an outage, so that failed renewals can be retried."""
        with self._lock:
            over = len(self._failed) >= OUTAGE
            self._failed.clear()
        self.state, self.reason = "ok", ""
        return over

    def record_failure(self, user: tuple[str, str], error: Exception) -> None:
        """Record a failure in a user's renewal."""
        if isinstance(error, UpstreamError):
            with self._lock:
                self._failed.add(user)
        self.state, self.reason = "failing", reason_of(error)


def is_provider_fault(error: Exception) -> bool:
    """Whether the provider would fail for any request: it is unreachable or overloaded, or rejects all our requests."""
    return isinstance(error, UpstreamError) and (error.transient or error.affects_all)


def reason_of(error: Exception) -> str:
    """Why a model wrote no summary, without any words that a user may have written."""
    if isinstance(error, AnswerError):
        return str(error)
    if not isinstance(error, UpstreamError):
        return type(error).__name__
    if error.status is None:
        if error.fault is not None:
            return f"the provider did not answer ({error.fault})"
        return (
            "the provider did not answer" if error.transient else "the provider's answer can't be read, or is a refusal"
        )
    words = redacted(error.server_message)
    return f"the provider answered {error.status}" + (f": {words}" if words else "")


def redacted(words: str) -> str:
    """A provider's message, with "…" in place of all words that are not common in API errors."""
    shown = [word if word.casefold().strip("_'") in _KNOWN else "…" for word in re.findall(r"[^\W\d]+(?:'\w+)?", words)]
    text = re.sub(r"…(?: …)+", "…", " ".join(shown))
    return text if text not in ("", "…") else ""


def hint(error: PopiError) -> str:
    """Which setting to change, if the server named a field."""
    words = error.server_message if isinstance(error, UpstreamError) and error.status in (400, 422) else ""
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
