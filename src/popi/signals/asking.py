"""Alternative prompts that ask an untrained model for a summary: a template set's `prompts.toml`.

A trained inference model should be compared with the same model, untrained, given the best prompt. Each table of the
file is a prompt: `text`, a Jinja template that replaces `inference.user.j2`, and, if the answer is not yet a summary,
`read_as`, the name of the function that turns it into one.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import TemplateError

from popi.errors import ConfigError
from popi.signals.render import SHIPPED, Templates, shipped

FILE = "prompts.toml"
OWN = "own"
"""Name of a template set's own prompt."""


@dataclass(frozen=True)
class SummaryPrompt:
    """A prompt for summaries.

    Attributes:
        name: its name in result tables.
        text: template of the last message, in place of the set's `inference.user.j2`; None: the set's own prompt.
        read_as: how to turn the answer into a summary, if it is not one.
    """

    name: str = OWN
    text: str | None = None
    read_as: str | None = None

    def templates(self, templates: Templates) -> Templates:
        """The template set with this prompt."""
        if self.text is None:
            return templates
        return replace(templates, sources=templates.sources | {"inference.user.j2": self.text})


def summary_prompts(templates: Templates, read_as: Mapping[str, object]) -> list[SummaryPrompt]:
    """The prompts of a set: its own first, then those of its `prompts.toml`, if it has one.

    Args:
        templates: the set.
        read_as: the values allowed for `read_as`.

    Raises:
        ConfigError: if the file can't be read, or a prompt in it is invalid.
    """
    folder = SHIPPED / templates.name if templates.name in shipped() else Path(templates.name)
    path = folder / FILE
    if not path.is_file():
        return [SummaryPrompt()]
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    prompts = [SummaryPrompt()]
    for name, table in tables.items():
        if not isinstance(table, dict) or not isinstance(table.get("text"), str) or set(table) - {"text", "read_as"}:
            raise ConfigError(f"{path}: [{name}] must have text, a string, and optionally read_as; got {table!r}")
        if name == OWN:
            raise ConfigError(f"{path}: [{OWN}] is the name of the set's own prompt; choose another name")
        if table.get("read_as") not in (None, *read_as):
            known = ", ".join(read_as) or "nothing"
            raise ConfigError(f"{path}: [{name}] read_as = {table['read_as']!r} is not one of {known}")
        prompt = SummaryPrompt(name, table["text"], table.get("read_as"))
        try:
            prompt.templates(templates)._compiled  # noqa: B018 - a template that does not parse should fail here
        except TemplateError as error:
            raise ConfigError(f"{path}: [{name}] text: {error}") from None
        prompts.append(prompt)
    return prompts
