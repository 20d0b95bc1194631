"""Chooses the untrained inference model's prompt: the template set's best one, by accuracy on training users.

Training should be compared with the best that prompting can do with the same model, not with an arbitrary prompt. The
choice is made before any held-out user is read: greedy summaries of training users under every prompt of the set, read
by the run's own base as generator, compared by reward accuracy on those users' targets. It sends no requests to a model
behind an API.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from popi.evaluation.methods import Context, score_rows
from popi.evaluation.metrics import reward_accuracy
from popi.evaluation.models import Models, identity
from popi.inference_model import InferenceModel
from popi.nano.answers import READ_AS
from popi.runs.files import write_text
from popi.runs.provenance import stamp_of
from popi.signals.asking import SummaryPrompt, summary_prompts
from popi.signals.render import Templates
from popi.signals.types import Signal
from popi.summary import Summary
from popi.training.templates import template_of

FILE = "prompts.json"


def ask(
    model: InferenceModel,
    asking: SummaryPrompt,
    users: Sequence[Sequence[Signal]],
    prompts: Sequence[Any] | None = None,
) -> list[Summary]:
    """Greedy summaries of these users' signals under that prompt."""
    prompted = model if asking.text is None else model.asking(asking.templates(model.templates))
    written = prompted.summarize_many(users, prompts=prompts)
    if asking.read_as is None:
        return written
    says_nothing = model.templates.names_no_preference
    read = [READ_AS[asking.read_as](summary.text) for summary in written]
    return [
        replace(summary, text=text, tokens=model.count_tokens(text), abstained=says_nothing(text))
        for summary, text in zip(written, read, strict=True)
    ]


def choose(models: Models, folder: Path) -> dict[str, Any]:
    """The best prompt of the run's template set, and the accuracy of each prompt.

    Args:
        models: the evaluation's models, of which only the untrained ones are used.
        folder: stores the choice for later calls.

    Returns:
        `chosen` (a name), `users`, and `prompts`: name → reward accuracy (with its interval) and mean tokens of a
        summary. Nothing is measured if the set has only one prompt.

    Raises:
        ConfigError: the set's prompts can't be read.
    """
    config = models.config
    prompts = summary_prompts(Templates.load(template_of(config)), READ_AS)
    n = config.evaluation.prompt_users
    if len(prompts) == 1 or not n or config.summary.conditioned_on_prompt:
        return {"chosen": prompts[0].name, "users": 0, "prompts": {}}
    settings: dict[str, Any] = {
        "model": identity(config.model.base),
        "config": config.settings("model", "signals", "summary", "data", "seed"),
        "users": n,
        "asked": [[one.name, one.text, one.read_as] for one in prompts],
    }
    stamp, path = stamp_of(settings), folder / FILE
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        stored = {}
    if stored.get("stamp") == stamp:
        return stored
    model = models.inference_model(config.model.base)
    people = list(models.training_people(n))
    generator, size = models.base_generator(), config.evaluation.batch_size

    def score(contexts: list[Context], reference: Any) -> list[dict[str, Any]]:
        return list(score_rows(generator, people, contexts, reference, untrained=True, batch_size=size))

    plain = [row for row in score([Context() for _ in people], None) if row["missing"] is None]
    reference = {(row["window"], row["target"]): (row["chosen_logp"], row["rejected_logp"]) for row in plain}
    measured: dict[str, Any] = {}
    for one in prompts:
        written = ask(model, one, [person.user.signals for person in people])
        rows = [row for row in score([Context((s,)) for s in written], reference) if row["missing"] is None]
        accuracy = reward_accuracy([row["margin"] for row in rows], [row["user_id"] for row in rows])
        tokens = sum(summary.tokens for summary in written) / len(written)
        measured[one.name] = {"reward_accuracy": accuracy.as_dict(), "tokens": round(tokens, 2)}
    best = max(measured, key=lambda name: measured[name]["reward_accuracy"]["value"] or 0.0)
    result = {"stamp": stamp, "chosen": best, "users": len(people), "prompts": measured}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=2) + "\n")
    return result


def named(model: InferenceModel, name: str) -> SummaryPrompt:
    """The prompt with that name in the model's template set."""
    return next(one for one in summary_prompts(model.templates, READ_AS) if one.name == name)
