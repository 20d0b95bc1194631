"""Every word of the pages: strings.toml, and languages/*.toml with the same keys.

The team's pages are in English: their keys (team.toml, and TEAMS) are in no other language.
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
"""By language."""
TEAM_FILE = HERE / "team.toml"
TEAMS = ("admin_", "team_", "nav_people", "erased_admin_back", "profile_title_team")
"""How keys of strings.toml begin that only the team sees."""
MOST_LANGUAGES = 50
"""Entries of an Accept-Language header that are looked at."""

language: ContextVar[str] = ContextVar("language", default="en")
"""Of the page that is being made."""


@cache
def _read(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def for_the_team(key: str) -> bool:
    """Whether a string is of the team's pages, which are in English."""
    return key.startswith(TEAMS) or key in _read(TEAM_FILE)


@cache
def strings(name: str = "en") -> dict[str, Any]:
    """The strings of a language by key; one that counts is a table by the language's plural forms (CLDR)."""
    return _read(FILES[name]) | _read(TEAM_FILE) if name == "en" else _read(FILES[name])


def say(key: str, **values: object) -> str:
    """A string in the page's language with its values put in; `n` chooses the plural form.

    Raises:
        KeyError: there is no such string, or a value is missing.
    """
    name = language.get()
    if for_the_team(key):
        name = "en"
    found = strings(name)[key]
    if isinstance(found, dict):
        found = found.get(Locale(name).plural_form(int(str(values["n"]))), found["other"])
    return str(found).format(**values)


def when(at: datetime) -> str:
    """A time (UTC) for pages without script."""
    return f"{format_date(at, 'long', locale=say('lang').replace('-', '_'))}, {at:%H:%M} UTC"


def preferred(accepted: str) -> str:
    """The language that an Accept-Language header (RFC 9110) likes best of those that there are; else English."""
    best, name = 0.0, "en"
    for entry in accepted.split(",")[:MOST_LANGUAGES]:
        read = re.fullmatch(r"\s*([A-Za-z]{1,8})(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?", entry)
        weight = float(read[2] or 1) if read else 0.0
        if read and weight > best and read[1].lower() in FILES:
            best, name = weight, read[1].lower()
    return name
