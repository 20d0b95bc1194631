"""The template set of a run's prompts, resolved once, when the run starts, and stored in its config."""

import json
from pathlib import Path

from popi.config import BENCHMARKS, RunConfig
from popi.models.spec import NANO
from popi.signals.render import shipped


def with_template(config: RunConfig) -> RunConfig:
    """The config with `signals.template = "auto"` resolved if the source is a benchmark with its own set.

    If the base was saved with a set (the nano base, a folder that popi saved), `auto` stays and stands for that set.
    For other sources `auto` also stays and means `default`.
    """
    source = config.data.source
    if config.signals.template != "auto" or source not in BENCHMARKS or source not in shipped():
        return config
    if _saved_with(config.model.base) is not None:
        return config
    return config.model_copy(update={"signals": config.signals.model_copy(update={"template": source})})


def template_of(config: RunConfig) -> str:
    """The template set of a run's prompts; `auto` is the set that the base was saved with, else `default`.

    A generator behind an API has no saved set and uses this one.
    """
    name = with_template(config).signals.template
    return name if name != "auto" else _saved_with(config.model.base) or "default"


def _saved_with(base: str) -> str | None:
    file = (NANO if base == "nano" else Path(base)) / "popi.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return str(settings["template"]) if "template" in settings else None
    except (OSError, ValueError, TypeError):  # loading the model reports a broken file
        return None
