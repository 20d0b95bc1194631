"""A few users in full, for people to read: signals, summaries, and each method's answers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from popi.config import RunConfig
from popi.data.users import Person
from popi.evaluation.methods import METHODS, RowKey
from popi.evaluation.models import Models
from popi.evaluation.users import named_attributes

ANSWERED = 2
"""Task prompts to answer per user."""


def write_examples(
    path: Path,
    config: RunConfig,
    people: Sequence[Person],
    models: Models,
    names: Sequence[str],
    summaries_of: Callable[[str], dict[RowKey, str | None]],
    users_stamp: str,
) -> None:
    """Write the first `evaluation.examples` held-out users, without any selection, to a JSON file.

    Answers are greedy, each by the method's own generator with the method's summary; methods that give the generator
    something else (raw signals, soft prompts, an adapter per user) are skipped. An existing file for the same users
    and models is reused. If summaries are conditioned on the task prompt, `summaries` holds the first prompt's.

    The file is `{"stamp", "users": [user]}`, where a user is `{"user_id", "preferences" (or null), "signals",
    "summaries": {method: text}, "named": {method: [[attribute, value], …]}, "prompts": [{"prompt", "chosen",
    "rejected", "answers": {method: text}}]}`.
    """
    shown = list(people[: config.evaluation.examples])
    names = [name for name in names if METHODS[name].answers]
    facts = [users_stamp, len(shown), config.evaluation.answer_tokens, {name: models.describe(name) for name in names}]
    stamp = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("stamp") == stamp:
        return
    entries: list[dict[str, Any]] = [
        {
            "user_id": person.user.user_id,
            "preferences": dict(sorted(person.preferences)) if person.preferences is not None else None,
            "signals": [signal.model_dump(mode="json", exclude_none=True) for signal in person.user.signals],
            "summaries": {},
            "named": {},
            "prompts": [{**target.model_dump(mode="json"), "answers": {}} for target in person.user.targets[:ANSWERED]],
        }
        for person in shown
    ]
    for name in names:
        generator = models.generator(models.generator_path(METHODS[name]))
        summaries = summaries_of(name)
        places, requests = [], []
        for window, (person, entry) in enumerate(zip(shown, entries, strict=True)):
            summary = summaries[window, 0]
            if summary is not None:
                entry["summaries"][name] = summary
                if person.preferences is not None:
                    entry["named"][name] = sorted(map(list, named_attributes(summary)))
            for t, place in enumerate(entry["prompts"]):
                places.append(place)
                requests.append((person.user.targets[t].prompt, summaries[window, t]))
        answers = generator.generate_many(requests, max_new_tokens=config.evaluation.answer_tokens)
        for place, answer in zip(places, answers, strict=True):
            place["answers"][name] = answer
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps({"stamp": stamp, "users": entries}, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)
