"""JSON Schemas of the two kinds of line, generated from the types and written to the shipped files."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from popi.data.windows import PreferenceRow
from popi.signals.types import User

FOLDER = Path(__file__).parent / "schema"
"""Folder of the shipped schemas `user.schema.json` and `preference.schema.json`."""


def schemas() -> dict[str, dict[str, Any]]:
    """File name → JSON Schema (draft 2020-12)."""
    models: dict[str, type[BaseModel]] = {"user.schema.json": User, "preference.schema.json": PreferenceRow}
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {name: {**dialect, **model.model_json_schema()} for name, model in models.items()}


def as_text(schema: dict[str, Any]) -> str:
    """A schema as the text of its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
