"""Greedy summaries of held-out users, saved as they are written and shared by all methods and generators."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from popi.data.users import Person
from popi.evaluation.models import Models, identity
from popi.evaluation.prompts import ask, named
from popi.runs.formats import current_names
from popi.runs.provenance import stamp_of
from popi.runs.rows import ResumableRows
from popi.signals.asking import OWN
from popi.summary import Summary


def stored_summaries(
    folder: Path,
    path: str,
    models: Models,
    people: Sequence[Person],
    users_stamp: str,
    report: Callable[[int], None] = lambda done: None,
    prompt: str = OWN,
) -> list[tuple[Summary, ...]]:
    """All users' summaries by one inference model: one per user, or one per target when conditioned on the task prompt.

    Args:
        folder: where they are stored, in one file per inference model, settings and users.
        path: the inference model.
        models: loads the model if a summary is missing.
        people: the users.
        users_stamp: identifies the users.
        report: called with the number of users whose summaries are done.
        prompt: name of the template set's prompt to ask with.

    Raises:
        RunError: the file is damaged.
        ModelError: the model can't be loaded.
    """
    config = models.config
    conditioned, size = config.summary.conditioned_on_prompt, config.evaluation.batch_size
    settings: dict[str, Any] = {
        "inference_model": identity(path),
        "users": users_stamp,
        "config": config.settings("model", "signals", "summary"),
    }
    if prompt != OWN:
        settings["prompt"] = prompt
    file = folder / f"{stamp_of(settings)}.jsonl"
    store = ResumableRows(file, settings, ("window", "target"), resume=True, advice="move it away")

    def keys(window: int) -> list[tuple[int, int | None]]:
        return [(window, t) for t in range(len(people[window].user.targets))] if conditioned else [(window, None)]

    missing = [window for window in range(len(people)) if any(key not in store.rows for key in keys(window))]
    model = models.inference_model(path) if missing else None
    asking = named(model, prompt) if model is not None else None
    for start in range(0, len(missing), size):
        assert model is not None and asking is not None
        batch = missing[start : start + size]
        requests = [(window, target) for window in batch for _, target in keys(window)]
        users = [people[window].user for window, _ in requests]
        prompts = [user.targets[t].prompt for user, (_, t) in zip(users, requests, strict=True) if t is not None]
        summaries = ask(model, asking, [user.signals for user in users], prompts if conditioned else None)
        store.extend(
            {
                "user_id": user.user_id,
                "window": window,
                "target": target,
                "summary": summary.text,
                "tokens": summary.tokens,
                "signals_used": summary.signals_used,
                "signals_dropped": list(summary.signals_dropped),
                "model": summary.model,
                "abstained": summary.abstained,
                "removed_content": list(summary.removed_content),
            }
            for user, (window, target), summary in zip(users, requests, summaries, strict=True)
        )
        report(len(people) - len(missing) + start + len(batch))
    store.close()
    return [tuple(_summary(store.rows[key]) for key in keys(window)) for window in range(len(people))]


def _summary(row: dict[str, Any]) -> Summary:
    row = current_names(row)
    return Summary(
        text=row["summary"],
        tokens=row["tokens"],
        signals_used=row["signals_used"],
        signals_dropped=tuple(row["signals_dropped"]),
        model=row["model"],
        abstained=row.get("abstained", False),  # files of earlier versions lack these two
        removed_content=tuple(row.get("removed_content", ())),
    )
