"""A method's greedy response to each task prompt, saved as it arrives."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popi.config import RunConfig
from popi.data.users import Person
from popi.errors import BatchError, DataError, PopiError, RunError
from popi.evaluation.job import model_facts
from popi.evaluation.judge.alpaca_eval import read_model_outputs
from popi.evaluation.judge.question import Progress
from popi.evaluation.methods import METHODS, Context, RowKey, personalized, plain_prompts, stacked
from popi.evaluation.models import Models
from popi.evaluation.runner import evaluated_summaries
from popi.evaluation.users import users_stamp
from popi.runs.provenance import commit, stamp_of
from popi.runs.rows import ResumableRows
from popi.signals.render import flat
from popi.summary import Summary

Responses = dict[RowKey, str | None]
"""(window, target) → response, or None if there is none."""


def asked(people: Sequence[Person], prompts: int | None = None) -> list[RowKey]:
    """The task prompts to answer: each user's first `prompts`, or all, without duplicates within a window.

    Windows with the same user id count as one user.
    """
    keys: list[RowKey] = []
    of_user = Counter[str]()
    for window, person in enumerate(people):
        seen: list[Any] = []
        for index, target in enumerate(person.user.targets):
            full = prompts is not None and of_user[person.user.user_id] >= prompts
            if not full and target.prompt not in seen:
                seen.append(target.prompt)
                of_user[person.user.user_id] += 1
                keys.append((window, index))
    return keys


def contexts_of(name: str, config: RunConfig, people: Sequence[Person], models: Models, folder: Path) -> list[Context]:
    """A method's context for each user's task prompts, with the summaries that `popi evaluate` wrote.

    Raises:
        RunError: there are no such summaries, or they are by other models; or the method saves no models.
    """
    method = METHODS[name]
    if method.per_user:
        raise RunError(f"{name}: its per-user adapters are not saved, so it can't answer; judge another method")
    if method.contexts is plain_prompts:
        return [Context() for _ in people]
    if method.has_summary:
        written = evaluated_summaries(config, people, models, folder, name)
        return [
            Context(tuple(Summary(written[window, target] or "", 0) for target in range(len(person.user.targets))))
            for window, person in enumerate(people)
        ]
    return method.contexts(models.sources(method, _no_summaries, _no_summaries), people)


def respond(
    name: str,
    keys: Sequence[RowKey],
    people: Sequence[Person],
    contexts: Sequence[Context],
    models: Models,
    store: ResumableRows,
    progress: Progress,
) -> tuple[Responses, dict[str, int]]:
    """A method's greedy responses by its own generator; stored ones are not generated again.

    Returns:
        The responses, and the count of each reason for a failure (of a model behind an API).
    """
    path = models.generator_path(METHODS[name])
    facts = {"method": name, "models": models.describe(name), "commit": commit()}
    missing = [key for key in keys if key not in store.rows]
    reasons = Counter[str]()
    size, max_tokens = models.config.evaluation.users_at_once, store.settings["max_tokens"]
    for start in range(0, len(missing), size):
        batch = missing[start : start + size]
        generator = models.generator(path)
        prompts = [personalized(generator, people[w].user.targets[t], contexts[w], t) for w, t in batch]
        results: Sequence[str | PopiError]
        try:
            soft = stacked([contexts[w].soft for w, _ in batch])
            results = generator.reply_many(prompts, max_new_tokens=max_tokens, soft=soft)
        except BatchError as error:
            results = error.results
        answered = []
        for (window, target), prompt, result in zip(batch, prompts, results, strict=True):
            if isinstance(result, PopiError):
                reasons[str(result)] += 1
                continue
            person, summary = people[window], contexts[window].summary(target)
            row = {
                "user_id": person.user.user_id,
                "window": window,
                "target": target,
                "prompt": flat(person.user.targets[target].prompt),
                "messages": [dict(message) for message in prompt],
                "summary": summary.text if summary else None,
                "response": result,
            }
            answered.append(facts | model_facts(generator) | row)
        store.extend(answered)
        progress(f"responses of {name}", len(keys) - len(missing) + start + len(batch), len(keys))
        if all(isinstance(result, PopiError) for result in results):
            break  # the server is down
    store.close()
    return {key: store.rows[key]["response"] if key in store.rows else None for key in keys}, dict(reasons)


def response_settings(
    name: str, people: Sequence[Person], contexts: Sequence[Context], models: Models, max_tokens: int
) -> dict[str, Any]:
    """Everything that a method's responses depend on."""
    signals = [[s.model_dump(mode="json") for s in context.signals or ()] for context in contexts]
    return {
        "method": name,
        "models": models.describe(name),
        "config": models.config.settings("model", "signals"),
        "users": users_stamp(people),
        "contexts": stamp_of([[[summary.text for summary in context.summaries] for context in contexts], signals]),
        "max_tokens": max_tokens,
    }


def responses_of_file(path: Path, keys: Sequence[RowKey], people: Sequence[Person]) -> Responses:
    """Responses from a file of alpaca_eval's model outputs, matched by user and prompt, or else by prompt alone.

    Raises:
        DataError: the file is invalid, or lacks a response to one of the prompts.
    """
    outputs: Mapping[tuple[str | None, str], str] = {
        (row.user_id, row.instruction): row.output for row in read_model_outputs(path)
    }
    responses: Responses = {}
    for window, target in keys:
        user, prompt = people[window].user.user_id, flat(people[window].user.targets[target].prompt)
        response = outputs.get((user, prompt), outputs.get((None, prompt)))
        if response is None:
            raise DataError(f"{path}: no output for user {user!r} and instruction {prompt[:80]!r}")
        responses[window, target] = response
    return responses


def _no_summaries(users: Sequence[Person], prompt: str | None = None) -> list[tuple[Summary, ...]]:
    raise AssertionError("methods with summaries are read from the evaluation's files")
