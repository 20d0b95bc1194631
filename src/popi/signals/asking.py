"""Other ways to ask an untrained model for a summary: `prompts.toml` of a template set.

A trained inference model is to be compared with what the best prompt gets from the same model untrained. Each table of
the file is a prompt: `text` (a Jinja template in the place of `inference.user.j2`) and, where the answer is not a
summary yet, `read_as`, the name of what turns it into one.
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
class Asking:
    """A prompt for summaries.

    Attributes:
        name: how tables call it.
        text: what the last message says instead of the set's `inference.user.j2`; None: the set's own prompt.
        read_as: how its answer is turned into a summary, if it is none.
    """

    name: str = OWN
    text: str | None = None
    read_as: str | None = None

    def templates(self, templates: Templates) -> Templates:
        """The same set, asking this way."""
        if self.text is None:
            return templates
        return replace(templates, sources=templates.sources | {"inference.user.j2": self.text})


def askings(templates: Templates, read_as: Mapping[str, object]) -> list[Asking]:
    """The prompts of a set: its own first, then those of its `prompts.toml`, if it has one.

    Args:
        templates: the set.
        read_as: what `read_as` may name.

    Raises:
        ConfigError: the file can't be read, or a prompt in it is faulty.
    """
    folder = SHIPPED / templates.name if templates.name in shipped() else Path(templates.name)
    path = folder / FILE
    if not path.is_file():
        return [Asking()]
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    found = [Asking()]
    for name, table in tables.items():
        if not isinstance(table, dict) or not isinstance(table.get("text"), str) or set(table) - {"text", "read_as"}:
            raise ConfigError(f"{path}: [{name}] takes text, a string, and perhaps read_as; it has {table!r}")
        if name == OWN:
            raise ConfigError(f"{path}: [{OWN}] is the name of the set's own prompt; choose another")
        if table.get("read_as") not in (None, *read_as):
            known = ", ".join(read_as) or "nothing"
            raise ConfigError(f"{path}: [{name}] read_as = {table['read_as']!r} is not one of {known}")
        one = Asking(name, table["text"], table.get("read_as"))
        try:
            one.templates(templates)._compiled  # noqa: B018 - a template that does not parse should fail here
        except TemplateError as error:
            raise ConfigError(f"{path}: [{name}] text: {error}") from None
        found.append(one)
    return found
