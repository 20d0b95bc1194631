"""Evaluate a run: write each method's rows to a file, then metrics.json and examples.json from those files.

Rows are saved as they arrive (METHOD.part.jsonl), together with everything that they depend on; METHOD.jsonl is written
once all are there. An interrupted evaluation resumes with the missing rows, and so does one whose model behind an API
failed on some. If models, users or settings changed, everything is scored again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from popi.config import RunConfig
from popi.data.users import Person
from popi.errors import RunError
from popi.evaluation import metrics
from popi.evaluation.examples import write_examples
from popi.evaluation.job import SUMMARIES, Job
from popi.evaluation.methods import METHODS, RowKey
from popi.evaluation.models import Models, Run, trained_models
from popi.evaluation.progress import evaluation_progress
from popi.evaluation.users import benchmark_of, held_out
from popi.models.spec import ModelSpec
from popi.runs.bars import passes
from popi.runs.files import locked, read_jsonl, write_text
from popi.runs.run_directory import USERS, refuse_other_loader
from popi.signals.render import NANO
from popi.training.templates import template_of


def destination(run: Run, generator: ModelSpec | None = None, users: str | Path | None = None) -> Path:
    """Folder of an evaluation: the run's `evaluation/`, or a subfolder for another generator or other users."""
    parts = [f"with-{Path(generator.name).name}"] if generator else []
    parts += [f"on-{Path(users).stem}"] if users else []
    return run.path / "evaluation" / "-".join(parts) if parts else run.path / "evaluation"


def metrics_path(run: Run, generator: ModelSpec | None = None, users: str | Path | None = None) -> Path:
    """metrics.json of an evaluation; the run's own is in the run directory itself."""
    own = generator is None and users is None
    return (run.path if own else destination(run, generator, users)) / "metrics.json"


def evaluate(
    run: Run,
    config: RunConfig | None = None,
    *,
    generator: ModelSpec | None = None,
    users: str | Path | None = None,
    console: Console | None = None,
    models: Models | None = None,
) -> dict[str, Any]:
    """Score every target pair of every held-out user once under every method; write and return metrics.json.

    Args:
        run: the run directory.
        config: settings of the evaluation, if different from the run's.
        generator: another model, not trained with these summaries, to read them instead. It is its own reference and
            has its own rows without personalisation and with raw signals. Its results go to `evaluation/with-NAME/`,
            with the share of the gain over no personalisation that it retains.
        users: a JSONL file of users to evaluate on instead of the run's held-out ones; results go to
            `evaluation/on-NAME/`.
        console: where to show progress; None shows nothing.
        models: loads the models; tests pass fakes.

    Raises:
        ConfigError, DataError, ModelError: users or models can't be loaded.
        RunError: the run has no metrics.json to compare another generator with; or the folder holds an evaluation of
            another generator or other users with the same name; or the run was trained on users of another version of
            the benchmark's loader; or another process is evaluating this run.
        UpstreamError: a model behind an API scored none of a method's rows.
    """
    with locked(destination(run)):  # a run's evaluations share its summaries
        return _evaluate(run, config, generator, users, console, models)


def _evaluate(
    run: Run,
    config: RunConfig | None,
    generator: ModelSpec | None,
    users: str | Path | None,
    console: Console | None,
    models: Models | None,
) -> dict[str, Any]:
    config = config or run.config
    with passes(console) as report:
        people, facts = held_out(config, users, cache=run.path.parent / USERS, report=report)
    refuse_other_loader(run.path, facts)
    models = models or Models(config, trained_models(run), generator)
    folder = destination(run, generator, users)
    _refuse_another(metrics_path(run, generator, users), generator, users)
    own = _own_metrics(run, users) if generator is not None else None

    chosen, skipped = choose_methods(models, people, transfer=generator is not None)
    summaries = destination(run, users=users) / SUMMARIES
    job = Job(config, people, models, folder, summaries=summaries, benchmark=benchmark_of(config, facts, users))
    with evaluation_progress(console) as progress:
        for name in chosen:
            task = progress.add_task(METHODS[name].label, total=len(job.expected(name)))
            job.run_method(name, progress, task)
            job.refuse_empty(name)
        write_examples(folder / "examples.json", config, people, models, chosen, job.summaries_of, job.users_stamp)

    result = job.metrics(chosen) | skipped
    result["seconds"] = {"training": training_seconds(run.path / "log.jsonl")} | result["seconds"]
    if generator is not None:
        result["generator"] = generator.label
        result["gain_kept"] = _gains(result, own) if own else {}
    if users is not None:
        result["users"] = str(users)
    if facts is not None:
        result["data"] = facts
    write_text(metrics_path(run, generator, users), json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def choose_methods(models: Models, people: Sequence[Person], transfer: bool) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the methods to evaluate, and reason → names of those skipped."""
    chosen, not_trained, not_applicable, not_enabled = [], [], [], []
    for name, method in METHODS.items():
        if method.order is not None and method.order not in models.trained:
            not_trained.append(name)
        elif method.per_user and not models.config.evaluation.per_user_lora.enabled:
            not_enabled.append(name)
        elif method.copies and not models.config.evaluation.copied.enabled:
            not_enabled.append(name)
        elif method.per_user and models.config.model.api_generator.given:
            not_applicable.append(name)  # an API gives no access to weights, so no adapter can be added
        elif method.nano and (
            models.config.data.source != "nano" or any(person.preferences is None for person in people)
        ):
            not_applicable.append(name)
        elif name == "tally" and (models.config.summary.conditioned_on_prompt or template_of(models.config) != NANO):
            not_applicable.append(name)  # the tally prompt takes no task prompt, and other templates have no tally
        elif method.needs_truth and any(person.oracle is None for person in people):
            not_applicable.append(name)  # a file of users has no true preferences
        elif transfer and (method.order is not None or method.per_user) and not method.has_summary:
            not_applicable.append(name)  # population DPO has nothing to pass to another generator
        else:
            chosen.append(name)
    return chosen, {"not_trained": not_trained, "not_applicable": not_applicable, "not_enabled": not_enabled}


def evaluated_summaries(
    config: RunConfig, people: Sequence[Person], models: Models, folder: Path, name: str
) -> dict[RowKey, str | None]:
    """(window, target) → the summary that an evaluation in `folder` wrote under a method.

    Raises:
        RunError: the method was not evaluated there, or was with other users, models or settings.
    """
    job = Job(config, people, models, folder)
    written = job.finished.get(name, {}).get("stamp")
    if written != job.method_stamp(name) or not (folder / f"{name}.jsonl").is_file():
        state = "has no summaries for" if written is None else "has summaries by other models, or of other users, for"
        raise RunError(f"{folder} {state} {name}; first run popi evaluate with the same --run and options")
    return job.summaries_of(name)


def training_seconds(log: Path) -> float:
    """Total seconds of the run's training steps, from its log, which has one number per step even after a resume."""
    return round(sum(row.get("seconds") or 0.0 for row in read_jsonl(log)), 2)


def _refuse_another(path: Path, generator: ModelSpec | None, users: str | Path | None) -> None:
    """Raise RunError if another generator (or file of users) with the same name was evaluated in this place."""
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    asked_for = {"generator": None if generator is None else generator.label, "users": users}
    for kind, asked in asked_for.items():
        if asked is not None and existing.get(kind) and Path(existing[kind]).resolve() != Path(asked).resolve():
            raise RunError(
                f"{path.parent} holds an evaluation with {kind} {existing[kind]}, not {asked}: same name, different "
                "location; move that folder away, or rename one of the two"
            )


def _own_metrics(run: Run, users: str | Path | None) -> dict[str, Any]:
    path = metrics_path(run, users=users)
    if not path.is_file():
        command = f"popi evaluate --run {run.path}" + (f" --users {users}" if users else "")
        raise RunError(f"{path} does not exist, so there is no gain to compare with; first run: {command}")
    try:
        own: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); first evaluate the run again") from None
    return own


def _gains(result: dict[str, Any], own: dict[str, Any]) -> dict[str, float | None]:
    """Method → share of the gain over no personalisation that the other generator retains."""
    names = [name for name in result["methods"] if METHODS[name].has_summary and name in own["methods"]]
    accuracy = {n: [r["methods"][n]["reward_accuracy"]["value"] for r in (result, own)] for n in names}
    return {name: metrics.gain_kept(other, ours) for name, (other, ours) in accuracy.items()}
