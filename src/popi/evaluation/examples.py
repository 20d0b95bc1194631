"""A few users in full, for people to read: signals, summaries, and each method's answers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from popi.config import RunConfig
from popi.data.users import Person
from popi.errors import BatchError, PopiError, UpstreamError
from popi.evaluation.methods import METHODS, RowKey
from popi.evaluation.models import Models
from popi.evaluation.users import labelled, named_attributes
from popi.generator import Generator
from popi.signals.types import Prompt

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
    and models is reused. A prompt that a server's model writes no text for, or refuses, has no answer. If summaries are
    conditioned on the task prompt, `summaries` holds the first prompt's.

    The file is `{"stamp", "users": [user]}`, where a user is `{"user_id", "preferences" (or null), "signals",
    "summaries": {method: text}, "named": {method: [[attribute, value], …]}, "prompts": [{"prompt", "chosen",
    "rejected", "answers": {method: text}}]}`.

    Raises:
        UpstreamError: the server is down or rejects every request.
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
            "preferences": dict(labelled(person.preferences)) if person.preferences is not None else None,
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
                    entry["named"][name] = labelled(named_attributes(summary))
            for t, place in enumerate(entry["prompts"]):
                places.append(place)
                requests.append((person.user.targets[t].prompt, summaries[window, t]))
        for place, answer in zip(places, _answers(generator, requests, config.evaluation.answer_tokens), strict=True):
            if answer is not None:
                place["answers"][name] = answer
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps({"stamp": stamp, "users": entries}, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def _answers(generator: Generator, requests: Sequence[tuple[Prompt, str | None]], longest: int) -> Sequence[str | None]:
    """The generator's answers; None where a server's model gave none and would not if asked again."""
    try:
        return generator.generate_many(requests, max_new_tokens=longest)
    except BatchError as batch:
        for result in batch.results:
            if isinstance(result, PopiError) and not _of_the_prompt(result):
                raise result from None
        return [None if isinstance(result, PopiError) else result for result in batch.results]


def _of_the_prompt(error: PopiError) -> bool:
    """Whether a request failed because of its prompt, and not because of the server's state."""
    return isinstance(error, UpstreamError) and not error.transient and not error.affects_all
