"""All texts of the pages: strings.toml, and languages/*.toml with the same keys.

The team's pages are only in English: their keys (in team.toml, and those that start with TEAM_PREFIXES) are not
translated.
"""

import re
import tomllib
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from babel import Locale
from babel.dates import format_date

HERE = Path(__file__).parent
FILES = {"en": HERE / "strings.toml"} | {file.stem: file for file in sorted(HERE.glob("languages/*.toml"))}
"""Files by language."""
TEAM_FILE = HERE / "team.toml"
TEAM_PREFIXES = ("admin_", "team_", "nav_people", "erased_admin_back", "profile_title_team")
"""Prefixes of keys in strings.toml that only the team sees."""
MAX_LANGUAGES = 50
"""Maximum entries of an Accept-Language header to read."""

language: ContextVar[str] = ContextVar("language", default="en")
"""The language of the page being rendered."""


@cache
def _read(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def for_the_team(key: str) -> bool:
    """Whether a string belongs to the team's pages, which are only in English."""
    return key.startswith(TEAM_PREFIXES) or key in _read(TEAM_FILE)


@cache
def strings(name: str = "en") -> dict[str, Any]:
    """The strings of a language by key; a string with a count is a table of the language's plural forms (CLDR)."""
    return _read(FILES[name]) | _read(TEAM_FILE) if name == "en" else _read(FILES[name])


def say(key: str, **values: object) -> str:
    """A string in the page's language, formatted with its values; `n` selects the plural form.

    Raises:
        KeyError: there is no such string, or a value is missing.
    """
    name = language.get()
    if for_the_team(key):
        name = "en"
    text = strings(name)[key]
    if isinstance(text, dict):
        text = text.get(Locale(name).plural_form(int(str(values["n"]))), text["other"])
    return str(text).format(**values)


def when(at: datetime) -> str:
    """A time in UTC, for browsers without scripts."""
    return f"{format_date(at, 'long', locale=say('lang').replace('-', '_'))}, {at:%H:%M} UTC"


def preferred(accepted: str) -> str:
    """The available language that an Accept-Language header (RFC 9110) prefers; English by default."""
    best, name = 0.0, "en"
    for entry in accepted.split(",")[:MAX_LANGUAGES]:
        match = re.fullmatch(r"\s*([A-Za-z]{1,8})(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?", entry)
        weight = float(match[2] or 1) if match else 0.0
        if match and weight > best and match[1].lower() in FILES:
            best, name = weight, match[1].lower()
    return name
