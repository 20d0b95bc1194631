"""How signals, summaries and task prompts become chat messages. The only place that truncates.

A set of templates is a folder: ``set.toml``, ``signal.j2`` (one signal), and per use (``inference``, ``raw``,
``generator``) a ``.system.j2`` and, for ``inference``, a ``.user.j2``; before the latter stands
``inference.previous.j2``, where there is an old summary to renew. Sets that ship: ``nano`` (what the nano base was
trained on), ``default`` (English, for instruction-tuned LLMs), and sets of single benchmarks, which inherit from
``default``. docs/data.md shows how to write one.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from popi.errors import ConfigError
from popi.signals.fading import Previous
from popi.signals.fit import fit, surely_fits, too_long
from popi.signals.neutralise import neutralise
from popi.signals.types import Prompt, Signal, ToolCallMessage, ToolMessage, Turn, said

SHIPPED = Path(__file__).parent / "templates"
NANO = "nano"
"""The set of the nano world: its models know one form of prompt and of summary."""
ROLES = ("user", "assistant")
_FILES = ("signal.j2", "inference.system.j2", "inference.user.j2", "raw.system.j2", "generator.system.j2")
PREVIOUS = "inference.previous.j2"
"""The old summary in a renewal's prompt. A set may lack it; it then can't renew."""
COPY = "copy.j2"
"""What is copied of a signal. A set may lack it; it then can't copy."""
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
"""Key of set.toml: the set (shipped, or a folder beside this one) that has the files and settings left out here."""
NO_PREFERENCE = "No preference is known."
"""What a summary says of a user of whom nothing is known, in sets that do not word it themselves."""
STATEMENT = r"no (clear |known )?preferences?( (is |are )?(known|clear|shown))?( yet)?\.?"
"""Statements of that kind; every set takes them, so that a summary keeps its meaning with any generator."""


@dataclass(frozen=True)
class Templates:
    """A set of prompt templates.

    Attributes:
        name: of a shipped set, or the folder it was read from.
        sources: file name → Jinja text.
        delimiters: strings that users' text must not contain (see `neutralise`).
        separator: what stands between two signals.
        empty: what stands for no signals at all.
        single_line: a signal is one line; white space inside users' text is folded.
    """

    name: str
    sources: dict[str, str]
    delimiters: tuple[str, ...] = ()
    separator: str = "\n"
    empty: str = "none"
    single_line: bool = False
    no_preference: str = NO_PREFERENCE
    """The summary of a user of whom nothing is known."""
    says_nothing: tuple[str, ...] = ()
    """Regular expressions of further summaries that name no preference, matched whole, in any case of letters."""
    examples: tuple[tuple[str, str], ...] = ()
    """(request, answer) of what the inference model is asked, as turns before the user's: a small model does what it
    has seen done. Requests are given whole, not rendered."""
    copy_opening: str = ""
    """What a summary of copied signals begins with."""
    copy_separator: str = "\n"
    """What stands between two copied signals."""

    @classmethod
    def load(cls, name_or_folder: str | Path) -> "Templates":
        """Read a shipped set (`nano`, `default`, `elix`, …) or a folder of one's own.

        Raises:
            ConfigError: no such set, a file of it is missing or not valid.
        """
        folder = _folder(str(name_or_folder))
        sources, settings = _read(folder)
        for key in ("delimiters", "says_nothing"):
            settings[key] = tuple(settings.get(key, ()))
        settings["examples"] = _examples(folder, settings.get("examples", []))
        # A folder is named in full: the name is saved with models, which are loaded from anywhere.
        name = folder.name if folder.parent == SHIPPED else str(folder.resolve())
        templates = cls(name=name, sources=sources, **settings)
        try:
            templates._compiled  # noqa: B018 - a template that does not parse should fail here, not at the first user
            templates._says_nothing  # noqa: B018 - likewise
        except (TemplateError, re.error) as error:
            raise ConfigError(f"template set {folder}: {error}") from None
        if not templates.names_no_preference(templates.no_preference):
            raise ConfigError(
                f"{folder / 'set.toml'}: no_preference = {templates.no_preference!r} would be taken for a preference; "
                "add a regular expression that matches it to says_nothing"
            )
        return templates

    @cached_property
    def stamp(self) -> str:
        """A short hash of the files and settings: two sets of one stamp make the same prompts."""
        own = [self.separator, self.empty, self.single_line, self.no_preference, self.says_nothing]
        own += [self.examples, self.copy_opening, self.copy_separator]
        content = [sorted(self.sources.items()), self.delimiters, own]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def guarding(self, special_tokens: Iterable[str]) -> "Templates":
        """The same set, that also keeps a tokenizer's own special tokens out of users' text."""
        return replace(self, delimiters=tuple(dict.fromkeys((*self.delimiters, *special_tokens))))

    # -- the three prompts ------------------------------------------------------------------------------------

    def inference_messages(
        self, signals: Sequence[Signal], prompt: Prompt | None = None, previous: Previous | None = None
    ) -> list[dict[str, str]]:
        """What the inference model reads: the user's signals and the request to say what the user prefers.

        With `prompt`, what the user prefers in answers to that task prompt. With `previous`, an old summary to renew:
        the signals are those that came since.

        Raises:
            ConfigError: the set has no place for a task prompt, or for an old summary.
        """
        if prompt is not None and not self._conditions:
            raise ConfigError(
                f"template set {self.name!r}: inference.user.j2 does not use the variable `prompt`, which "
                "summary.conditioned_on_prompt needs; write it there, or take another set"
            )
        text = None if prompt is None else self._clean(flat(prompt))
        values: dict[str, Any] = {"signals": self.signals_text(signals), "prompt": text}
        values["each"] = [self._values(signal) for signal in signals]
        values["no_preference"] = self.no_preference
        asked = self._render("inference.user.j2", **values)
        if previous is not None:
            asked = self._previous_text(previous) + asked
        turns = [
            {"role": role, "content": text} for pair in self.examples for role, text in zip(ROLES, pair, strict=True)
        ]
        turns.append({"role": "user", "content": asked})
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
        """What the generator reads. Without a summary, or with one that names no preference: the plain prompt, as the
        reference reads it, so that who is not known is answered as without personalisation.
        """
        messages = self._prompt_messages(prompt)
        if summary is None or self.names_no_preference(summary):
            return messages
        return _with_system(self.summary_text(summary), messages)

    def summary_text(self, summary: str) -> str:
        """What stands in front of the task prompt for a summary, whatever it says."""
        return self._render("generator.system.j2", summary=self._clean(summary.strip()))

    def raw_signals_messages(self, prompt: Prompt, signals: Sequence[Signal]) -> list[dict[str, str]]:
        """The baseline: the generator reads the signals themselves in front of the task prompt; without any, the plain
        prompt.
        """
        if not signals:
            return self._prompt_messages(prompt)
        system = self._render("raw.system.j2", signals=self.signals_text(signals))
        return _with_system(system, self._prompt_messages(prompt))

    # -- abstention -------------------------------------------------------------------------------------------

    def names_no_preference(self, summary: str) -> bool:
        """Whether a summary says that nothing is known of the user: it is blank, or nothing but such a statement."""
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
        """What is copied of a signal; blank if nothing is.

        Raises:
            ConfigError: the set has no `copy.j2`.
        """
        if not self.copies:
            raise ConfigError(
                f"template set {self.name!r} has no {COPY}, which says what is copied of a signal (variables as in "
                "signal.j2); write one, or let the set inherit from default"
            )
        return self._render(COPY, **self._values(signal)).strip()

    def _values(self, signal: Signal) -> dict[str, Any]:
        """What templates know of a signal; fields that it does not have are none."""
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
        """All signals, in the order given."""
        return self.separator.join(map(self.signal_text, signals)) if signals else self.empty

    def fit(
        self, signals: Sequence[Signal], budget: int, count: Callable[[str], int]
    ) -> tuple[list[Signal], tuple[str, ...]]:
        """Drop whole signals until the rest fits `budget` tokens; see `popi.signals.fit.fit` for which go first.

        Args:
            signals: a user's signals.
            budget: most tokens of all rendered signals together.
            count: text → tokens, as the inference model's tokenizer counts.

        Returns:
            The kept signals in the order given; what was dropped, in the order given: a signal's id, or
            ``#3`` for the third signal where it has none.
        """
        texts = [None if too_long(signal, budget) else self.signal_text(signal) for signal in signals]
        return fit(signals, texts, self.separator, budget, count)

    def any_fits(self, signals: Sequence[Signal], budget: int, count: Callable[[str], int]) -> bool:
        """Whether `fit` would keep any: at the cost of one signal where the first fits."""
        texts = (self.signal_text(signal) for signal in signals if not too_long(signal, budget))
        return any(surely_fits(text, budget) or count(text) <= budget for text in texts)

    # -- inside -----------------------------------------------------------------------------------------------

    @cached_property
    def _compiled(self) -> dict[str, Any]:
        environment: Environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        return {file: environment.from_string(source) for file, source in self.sources.items()}

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
        # A task prompt keeps its lines and may speak of the block's tags: it stands outside of the block.
        if isinstance(prompt, str):
            return [{"role": "user", "content": neutralise(prompt)}]
        return [_message(turn) for turn in prompt]


def _message(turn: Turn) -> dict[str, Any]:
    """A message as chat templates take it: a call's arguments as an object, every text neutralised."""
    message: dict[str, Any] = {"role": turn.role, "content": neutralise(turn.content)}
    if isinstance(turn, ToolCallMessage):
        calls = [call.model_dump(exclude_none=True) for call in turn.tool_calls]
        message["tool_calls"] = [call | {"function": _neutral(call["function"])} for call in calls]
    if isinstance(turn, ToolMessage):
        message |= turn.model_dump(include={"tool_call_id", "name"}, exclude_none=True)
    return message


def _neutral(value: Any) -> Any:
    """JSON with every text in it neutralised."""
    if isinstance(value, dict):
        return {neutralise(name): _neutral(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_neutral(one) for one in value]
    return neutralise(value) if isinstance(value, str) else value


def _with_system(text: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`text` as system message; joined with the prompt's own, since chat templates allow but one."""
    if not text:
        return messages
    if messages and messages[0]["role"] == "system":
        first, *messages = messages
        text = f"{text}\n\n{first['content']}"
    return [{"role": "system", "content": text}, *messages]


def flat(prompt: Prompt) -> str:
    """A task prompt inside a signal: a lone user message as it is, several with their roles and tool calls."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n".join(f"{turn.role}: {said(turn)}" for turn in prompt)


def shipped() -> list[str]:
    """The names of the sets that ship."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())


def _examples(folder: Path, given: list[Any]) -> tuple[tuple[str, str], ...]:
    for one in given:
        if not (isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) and text for text in one)):
            raise ConfigError(f"{folder / 'set.toml'}: examples has {one!r}, which is not [request, answer]")
    return tuple((request, answer) for request, answer in given)


def _folder(name: str) -> Path:
    folder = SHIPPED / name if name in shipped() else Path(name)
    if not folder.is_dir():
        raise ConfigError(f"signals.template: {name!r} is neither one of {', '.join(shipped())} nor a folder")
    return folder


def _read(folder: Path, heirs: tuple[Path, ...] = ()) -> tuple[dict[str, str], dict[str, Any]]:
    """The files and settings of a set, with what it inherits."""
    if folder.resolve() in heirs:
        raise ConfigError(f"template set {folder}: inherits from itself, by way of {', '.join(map(str, heirs))}")
    sources: dict[str, str] = {}
    settings: dict[str, Any] = {}
    try:
        own = tomllib.loads((folder / "set.toml").read_text(encoding="utf-8"))
        parent = own.pop(INHERITS, None)
        if parent is not None:
            beside = folder / str(parent)
            named = str(parent) if str(parent) in shipped() else str(beside)
            sources, settings = _read(_folder(named), (*heirs, folder.resolve()))
        for file in _FILES:
            if parent is None or (folder / file).is_file():
                sources[file] = (folder / file).read_text(encoding="utf-8").removesuffix("\n")
        for file in (PREVIOUS, COPY):
            if (folder / file).is_file():
                sources[file] = (folder / file).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"template set {folder}: {error}; it needs set.toml, {', '.join(_FILES)}, "
            f'or {INHERITS} = "default" in set.toml and the files that differ'
        ) from None
    for key, value in own.items():
        if key not in _SETTINGS or not isinstance(value, _SETTINGS[key]):
            allowed = ", ".join(f"{name} ({kind.__name__})" for name, kind in _SETTINGS.items())
            raise ConfigError(f"{folder / 'set.toml'}: {key} = {value!r} is not one of {INHERITS} (str), {allowed}")
    # Inherited files write the inherited tags: a set may guard more than its parent, never less.
    own["delimiters"] = [*settings.get("delimiters", []), *own.get("delimiters", [])]
    return sources, settings | own
