"""Render signals, summaries and task prompts as chat messages. This is the only place that truncates.

A template set is a folder with ``set.toml``, ``signal.j2`` (one signal), and for each use (``inference``, ``raw``,
``generator``) a ``.system.j2``; ``inference`` also has a ``.user.j2``, preceded by ``inference.previous.j2`` if there
is an old summary to renew. Sets shipped with popi: ``nano`` (which the nano base was trained on), ``default`` (English,
for instruction-tuned LLMs), and benchmark-specific sets that inherit from ``default``. docs/data.md shows how to write
one.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from popi.errors import ConfigError
from popi.signals.fading import Previous
from popi.signals.fit import fit, surely_fits, too_long
from popi.signals.neutralise import neutralise
from popi.signals.types import Prompt, Signal, ToolCallMessage, ToolMessage, Turn, message_text

_ENVIRONMENT: Environment = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)
SHIPPED = Path(__file__).parent / "templates"
NANO = "nano"
"""The template set of the nano world, whose models know a single form of prompt and summary."""
ROLES = ("user", "assistant")
_FILES = ("signal.j2", "inference.system.j2", "inference.user.j2", "raw.system.j2", "generator.system.j2")
PREVIOUS = "inference.previous.j2"
"""Optional: the old summary in a renewal's prompt. A set without it can't renew."""
COPY = "copy.j2"
"""Optional: the part of a signal to copy. A set without it can't copy."""
_SETTINGS = {
    "delimiters": list,
    "separator": str,
    "empty": str,
    "single_line": bool,
    "no_preference": str,
    "says_nothing": list,
    "examples": list,
    "copy_opening": str,
    "copy_separator": str,
}
INHERITS = "inherits"
"""Key of set.toml: the parent set (shipped, or a sibling folder) that provides missing files and settings."""
NO_PREFERENCE = "No preference is known."
"""Default summary of a user about whom nothing is known, for sets that do not define their own."""
STATEMENT = r"no (clear |known )?preferences?( (is |are )?(known|clear|shown))?( yet)?\.?"
"""Equivalent statements, recognised by every set so that a summary keeps its meaning with any generator."""


@dataclass(frozen=True)
class Templates:
    """A set of prompt templates.

    Attributes:
        name: a shipped set's name, or the folder the set was loaded from.
        sources: file name → Jinja text.
        delimiters: strings that users' text must not contain (see `neutralise`).
        separator: the text between two signals.
        empty: the text shown if there are no signals.
        single_line: each signal is one line; white space inside users' text is collapsed.
    """

    name: str
    sources: dict[str, str]
    delimiters: tuple[str, ...] = ()
    separator: str = "\n"
    empty: str = "none"
    single_line: bool = False
    no_preference: str = NO_PREFERENCE
    """The summary of a user about whom nothing is known."""
    says_nothing: tuple[str, ...] = ()
    """Regular expressions for other summaries that name no preference; they must match the whole text, ignoring
    case."""
    examples: tuple[tuple[str, str], ...] = ()
    """(request, answer) examples for the inference model, shown as earlier turns: small models follow examples better
    than instructions. Requests are complete texts, not templates."""
    copy_opening: str = ""
    """The beginning of a summary of copied signals."""
    copy_separator: str = "\n"
    """The text between two copied signals."""

    @classmethod
    def load(cls, name_or_folder: str | Path) -> "Templates":
        """Load a shipped set (`nano`, `default`, `elix`, …) or a folder.

        Raises:
            ConfigError: if there is no such set, or one of its files is missing or invalid.
        """
        folder = _folder(str(name_or_folder))
        sources, settings = _read(folder)
        for key in ("delimiters", "says_nothing"):
            settings[key] = tuple(settings.get(key, ()))
        settings["examples"] = _examples(folder, settings.get("examples", []))
        # Use a folder's absolute path: the name is saved with models, which may be loaded from anywhere.
        name = folder.name if folder.parent == SHIPPED else str(folder.resolve())
        templates = cls(name=name, sources=sources, **settings)
        try:
            templates._compiled  # noqa: B018 - a template that does not parse should fail here, not at the first user
            templates._says_nothing  # noqa: B018 - likewise
        except (TemplateError, re.error) as error:
            raise ConfigError(f"template set {folder}: {error}") from None
        if not templates.names_no_preference(templates.no_preference):
            raise ConfigError(
                f"{folder / 'set.toml'}: no_preference = {templates.no_preference!r} would be read as a preference; "
                "add a regular expression that matches it to says_nothing"
            )
        return templates

    @cached_property
    def stamp(self) -> str:
        """A short hash of the files and settings: sets with equal stamps produce the same prompts."""
        own = [self.separator, self.empty, self.single_line, self.no_preference, self.says_nothing]
        own += [self.examples, self.copy_opening, self.copy_separator]
        content = [sorted(self.sources.items()), self.delimiters, own]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def guarding(self, special_tokens: Iterable[str]) -> "Templates":
        """A copy of the set that also keeps a tokenizer's special tokens out of users' text."""
        return replace(self, delimiters=tuple(dict.fromkeys((*self.delimiters, *special_tokens))))

    # -- the three prompts ------------------------------------------------------------------------------------

    def inference_messages(
        self, signals: Sequence[Signal], prompt: Prompt | None = None, previous: Previous | None = None
    ) -> list[dict[str, str]]:
        """The inference model's prompt: the user's signals and a request to describe the user's preferences.

        With `prompt`, it asks for preferences about answers to that task prompt. With `previous`, an old summary to
        renew, `signals` are those added since.

        Raises:
            ConfigError: if the set has no place for a task prompt, or for an old summary.
        """
        if prompt is not None and not self._conditions:
            raise ConfigError(
                f"template set {self.name!r}: inference.user.j2 does not use the variable `prompt`, which "
                "summary.conditioned_on_prompt needs; add it there, or use another set"
            )
        text = None if prompt is None else self._clean(flat(prompt))
        values: dict[str, Any] = {"signals": self.signals_text(signals), "prompt": text}
        values["each"] = [self._values(signal) for signal in signals]
        values["no_preference"] = self.no_preference
        request = self._render("inference.user.j2", **values)
        if previous is not None:
            request = self._previous_text(previous) + request
        turns = [
            {"role": role, "content": text} for pair in self.examples for role, text in zip(ROLES, pair, strict=True)
        ]
        turns.append({"role": "user", "content": request})
        return _with_system(self._render("inference.system.j2", **values), turns)

    @property
    def renews(self) -> bool:
        """Whether the set has a place for an old summary."""
        return PREVIOUS in self.sources

    def _previous_text(self, previous: Previous) -> str:
        if not self.renews:
            raise ConfigError(
                f"template set {self.name!r} has no {PREVIOUS}, which shows the inference model an old summary "
                "(variables: previous, worth); write one, or let the set inherit from default"
            )
        return self._render(PREVIOUS, previous=self._clean(previous.text.strip()), worth=previous.worth) + "\n\n"

    def generator_messages(self, prompt: Prompt, summary: str | None) -> list[dict[str, str]]:
        """The generator's prompt. Without a summary, or with one that names no preference, it is the plain prompt, as
        for the reference model, so that unknown users get answers without personalisation.
        """
        messages = self._prompt_messages(prompt)
        if summary is None or self.names_no_preference(summary):
            return messages
        return _with_system(self.summary_text(summary), messages)

    def summary_text(self, summary: str) -> str:
        """The system text for a summary, even if it names no preference."""
        return self._render("generator.system.j2", summary=self._clean(summary.strip()))

    def raw_signals_messages(self, prompt: Prompt, signals: Sequence[Signal]) -> list[dict[str, str]]:
        """The baseline prompt: the signals themselves before the task prompt, or the plain prompt without signals."""
        if not signals:
            return self._prompt_messages(prompt)
        system = self._render("raw.system.j2", signals=self.signals_text(signals))
        return _with_system(system, self._prompt_messages(prompt))

    # -- abstention -------------------------------------------------------------------------------------------

    def names_no_preference(self, summary: str) -> bool:
        """Whether a summary says that nothing is known about the user: it is blank, or just such a statement."""
        text = " ".join(summary.split())
        return not text or any(pattern.fullmatch(text) for pattern in self._says_nothing)

    # -- signals ----------------------------------------------------------------------------------------------

    def signal_text(self, signal: Signal) -> str:
        """One signal as text."""
        return self._render("signal.j2", **self._values(signal)).strip()

    @property
    def copies(self) -> bool:
        """Whether the set says what is copied of a signal."""
        return COPY in self.sources

    def copied_text(self, signal: Signal) -> str:
        """The part of a signal to copy; blank if nothing is.

        Raises:
            ConfigError: if the set has no `copy.j2`.
        """
        if not self.copies:
            raise ConfigError(
                f"template set {self.name!r} has no {COPY}, which renders the part of a signal to copy (variables as "
                "in signal.j2); write one, or let the set inherit from default"
            )
        return self._render(COPY, **self._values(signal)).strip()

    def _values(self, signal: Signal) -> dict[str, Any]:
        """The template variables of a signal; fields it does not have are None."""
        values: dict[str, Any] = {"type": signal.type, "rating": None}
        for field in ("chosen", "rejected", "response", "edit", "text", "context"):
            value = getattr(signal, field, None)
            values[field] = None if value is None else self._clean(value)
        prompt = getattr(signal, "prompt", None)
        values["prompt"] = None if prompt is None else self._clean(flat(prompt))
        rating = getattr(signal, "rating", None)
        if rating is not None:
            values["rating"] = int(rating) if rating == int(rating) else rating
        return values

    def signals_text(self, signals: Sequence[Signal]) -> str:
        """All signals, in the given order."""
        return self.separator.join(map(self.signal_text, signals)) if signals else self.empty

    def fit(
        self, signals: Sequence[Signal], budget: int, count: Callable[[str], int]
    ) -> tuple[list[Signal], tuple[str, ...]]:
        """Drop whole signals until the rest fits `budget` tokens; `popi.signals.fit` explains which are dropped first.

        Args:
            signals: a user's signals.
            budget: maximum tokens of all rendered signals together.
            count: text → number of tokens of the inference model's tokenizer.

        Returns:
            The remaining signals, and the names of those dropped, both in the given order. A name is the signal's id,
            or ``#3`` for a third signal without one.
        """
        texts = [None if too_long(signal, budget) else self.signal_text(signal) for signal in signals]
        return fit(signals, texts, self.separator, budget, count)

    def any_fits(self, signals: Sequence[Signal], budget: int, count: Callable[[str], int]) -> bool:
        """Whether `fit` would keep any signal; cheap if the first one fits."""
        texts = (self.signal_text(signal) for signal in signals if not too_long(signal, budget))
        return any(surely_fits(text, budget) or count(text) <= budget for text in texts)

    # -- internals --------------------------------------------------------------------------------------------

    @cached_property
    def _compiled(self) -> dict[str, Template]:
        return {file: _compile(source) for file, source in self.sources.items()}

    @cached_property
    def _says_nothing(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern, re.IGNORECASE) for pattern in (STATEMENT, *self.says_nothing)]

    @cached_property
    def _conditions(self) -> bool:
        """Whether the inference prompt has a place for the task prompt."""
        parsed = ImmutableSandboxedEnvironment().parse(self.sources["inference.user.j2"])
        return "prompt" in find_undeclared_variables(parsed)

    def _render(self, file: str, **values: Any) -> str:
        try:
            return self._compiled[file].render(values)
        except TemplateError as error:
            raise ConfigError(f"template set {self.name!r}, {file}: {error}") from None

    def _clean(self, text: str) -> str:
        return neutralise(text, self.delimiters, single_line=self.single_line)

    def _prompt_messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        # A task prompt keeps its line breaks and may contain the block's tags, since it is outside the block.
        if isinstance(prompt, str):
            return [{"role": "user", "content": neutralise(prompt)}]
        return [_message(turn) for turn in prompt]


@lru_cache(maxsize=256)
def _compile(source: str) -> Template:
    # A set is read with every model that is loaded, and compiling it takes 50 ms.
    return _ENVIRONMENT.from_string(source)


def _message(turn: Turn) -> dict[str, Any]:
    """A message for chat templates, with call arguments as an object and all text neutralised."""
    message: dict[str, Any] = {"role": turn.role, "content": neutralise(turn.content)}
    if isinstance(turn, ToolCallMessage):
        calls = [call.model_dump(exclude_none=True) for call in turn.tool_calls]
        message["tool_calls"] = [call | {"function": _neutral(call["function"])} for call in calls]
    if isinstance(turn, ToolMessage):
        message |= turn.model_dump(include={"tool_call_id", "name"}, exclude_none=True)
    return message


def _neutral(value: Any) -> Any:
    """JSON with all text in it neutralised."""
    if isinstance(value, dict):
        return {neutralise(name): _neutral(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_neutral(item) for item in value]
    return neutralise(value) if isinstance(value, str) else value


def _with_system(text: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `text` as the system message, joined with the prompt's own since chat templates allow only one."""
    if not text:
        return messages
    if messages and messages[0]["role"] == "system":
        first, *messages = messages
        text = f"{text}\n\n{first['content']}"
    return [{"role": "system", "content": text}, *messages]


def shortened(prompt: Prompt, length: int = 60) -> str:
    """The beginning of a task prompt, for an error message."""
    text = " ".join(flat(prompt).split())
    return text if len(text) <= length else text[:length] + "…"


def flat(prompt: Prompt) -> str:
    """A task prompt as plain text: a single user message unchanged, several with their roles and tool calls."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n".join(f"{turn.role}: {message_text(turn)}" for turn in prompt)


def shipped() -> list[str]:
    """The names of the template sets shipped with popi."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())


def _examples(folder: Path, examples: list[Any]) -> tuple[tuple[str, str], ...]:
    for pair in examples:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text for text in pair)):
            raise ConfigError(f"{folder / 'set.toml'}: examples has {pair!r}, which is not [request, answer]")
    return tuple((request, answer) for request, answer in examples)


def _folder(name: str) -> Path:
    folder = SHIPPED / name if name in shipped() else Path(name)
    if not folder.is_dir():
        raise ConfigError(f"signals.template: {name!r} is neither one of {', '.join(shipped())} nor a folder")
    return folder


def _read(folder: Path, heirs: tuple[Path, ...] = ()) -> tuple[dict[str, str], dict[str, Any]]:
    """The files and settings of a set, including inherited ones."""
    if folder.resolve() in heirs:
        raise ConfigError(f"template set {folder}: inherits from itself, via {', '.join(map(str, heirs))}")
    sources: dict[str, str] = {}
    settings: dict[str, Any] = {}
    try:
        own = tomllib.loads((folder / "set.toml").read_text(encoding="utf-8"))
        parent = own.pop(INHERITS, None)
        if parent is not None:
            parent_name = str(parent) if str(parent) in shipped() else str(folder / str(parent))
            sources, settings = _read(_folder(parent_name), (*heirs, folder.resolve()))
        for file in _FILES:
            if parent is None or (folder / file).is_file():
                sources[file] = (folder / file).read_text(encoding="utf-8").removesuffix("\n")
        for file in (PREVIOUS, COPY):
            if (folder / file).is_file():
                sources[file] = (folder / file).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"template set {folder}: {error}; it needs set.toml and {', '.join(_FILES)}, "
            f'or {INHERITS} = "default" in set.toml and the files that differ'
        ) from None
    for key, value in own.items():
        if key not in _SETTINGS or not isinstance(value, _SETTINGS[key]):
            allowed = ", ".join(f"{name} ({kind.__name__})" for name, kind in _SETTINGS.items())
            raise ConfigError(f"{folder / 'set.toml'}: {key} = {value!r} is not one of {INHERITS} (str), {allowed}")
    # Inherited files use the inherited tags, so a set may guard more than its parent, never less.
    own["delimiters"] = [*settings.get("delimiters", []), *own.get("delimiters", [])]
    return sources, settings | own
