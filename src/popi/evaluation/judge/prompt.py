"""The judge's prompt, a Jinja file, and parsing of the verdict in its answer."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from popi.errors import ConfigError
from popi.evaluation.judge.question import Missing, Question, Verdict
from popi.signals.neutralise import neutralise
from popi.signals.render import Templates, flat
from popi.signals.types import Signal

SHIPPED = Path(__file__).parent / "pairwise.j2"
SHOWN = 120
"""Maximum characters of an unreadable answer to quote in the reason."""
_TAG = re.compile(r"</?[a-z][\w.-]*", re.IGNORECASE)
_VERDICT = re.compile(r"VERDICT: (FIRST|SECOND|TIE)")
_VERDICTS: dict[str, Verdict] = {"FIRST": "first", "SECOND": "second", "TIE": "tie"}


class JudgePrompt:
    """A judge's prompt.

    The file is rendered with `persona` (text, or none if the judge sees the signals), `signals` (text, or none),
    `prompt`, `first` and `second`. Text of users, personas and responses can't contain a tag that occurs in the file
    (see `neutralise`), so it can't close its block.

    Args:
        path: the file; by default the built-in one.
        signals: how signals are rendered.

    Raises:
        ConfigError: the file can't be read, is not a valid template, or omits one of the texts.
    """

    def __init__(self, path: str | Path | None = None, signals: str | Templates = "default") -> None:
        self.path = Path(path) if path is not None else SHIPPED
        try:
            self.source = self.path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the judge's prompt {self.path} can't be read ({error})") from None
        self.tags = tuple(dict.fromkeys(_TAG.findall(self.source)))
        self.signals = (Templates.load(signals) if isinstance(signals, str) else signals).guarding(self.tags)
        for evidence in ("persona", "signals"):
            self._check(evidence)

    def _check(self, evidence: str) -> None:
        values = {name: f"~{name}~" for name in ("prompt", "first", "second", evidence)}
        text = self._fill(**values)
        for name, value in values.items():
            if value not in text:
                raise ConfigError(f"the judge's prompt {self.path} omits {{{{ {name} }}}} when given the {evidence}")

    @property
    def name(self) -> str:
        """The file's name with a hash of its text."""
        return f"{self.path.name} {hashlib.sha256(self.source.encode()).hexdigest()[:12]}"

    @cached_property
    def _template(self) -> Template:
        environment: Environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        return environment.from_string(self.source)

    def _fill(self, **values: str) -> str:
        try:
            return self._template.render({"persona": None, "signals": None} | values)
        except TemplateError as error:
            raise ConfigError(f"the judge's prompt {self.path}: {error}") from None

    def _clean(self, text: str) -> str:
        return neutralise(text, self.signals.delimiters)

    def text(self, question: Question, persona: str | None, signals: Sequence[Signal] = ()) -> str:
        """A question as one user message.

        Args:
            question: the question.
            persona: who the user is. If None, the judge sees `signals` instead.
            signals: as many of the user's signals as fit.
        """
        if persona is not None:
            about = {"persona": self._clean(persona)}
        else:
            about = {"signals": self.signals.signals_text(signals)}
        responses = {"first": self._clean(question.first), "second": self._clean(question.second)}
        return self._fill(prompt=self._clean(flat(question.prompt)), **responses, **about)


def read_verdict(answer: str) -> Verdict | Missing:
    """The verdict on an answer's last line; missing unless that line, and no other, is a verdict."""
    lines = [line.strip() for line in answer.strip().splitlines()]
    matches = [match for line in lines if (match := _VERDICT.fullmatch(line))]
    if len(matches) == 1 and matches[0].string == lines[-1]:
        return _VERDICTS[matches[0][1]]
    reason = f"{len(matches)} verdicts" if len(matches) > 1 else "its last line is not a verdict"
    return Missing("unreadable", f"{reason}: …{answer.strip()[-SHOWN:]!r}")
