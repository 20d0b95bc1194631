"""Which template set a run's prompts are made with, said once: when the run begins, into its saved config."""

import json
from pathlib import Path

from popi.config import BENCHMARKS, RunConfig
from popi.models.names import NANO
from popi.signals.render import shipped


def with_template(config: RunConfig) -> RunConfig:
    """The config with `signals.template = "auto"` settled where the source is a benchmark with a set of its own.

    A model that was saved with a set (the nano base, a folder that popi saved) keeps to it: `auto` stays, and the model
    says which. For other sources `auto` stays too, and means `default`.
    """
    source = config.data.source
    if config.signals.template != "auto" or source not in BENCHMARKS or source not in shipped():
        return config
    if _saved_with(config.model.base) is not None:
        return config
    return config.model_copy(update={"signals": config.signals.model_copy(update={"template": source})})


def template_of(config: RunConfig) -> str:
    """The set that a run's prompts are made with: `auto` is the one that the base was saved with, else `default`.

    A generator behind an API has no set of its own: it is asked in this one.
    """
    name = with_template(config).signals.template
    return name if name != "auto" else _saved_with(config.model.base) or "default"


def _saved_with(base: str) -> str | None:
    file = (NANO if base == "nano" else Path(base)) / "popi.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return str(settings["template"]) if "template" in settings else None
    except (OSError, ValueError, TypeError):  # a broken file is refused where the model is loaded
        return None
