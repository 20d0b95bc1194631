"""Judge two methods of a run: their responses, every pair in both orders, judge.json.

evaluation/responses/METHOD-STAMP.jsonl     a method's greedy responses, shared by all judges
evaluation/judge/A-vs-B-by-JUDGE/           comparisons.jsonl: one line per verdict, as it arrives
                                            judge.json: the figures
                                            alpaca_eval/: the same comparisons in alpaca_eval's format
                                            seen_topics/comparisons.jsonl: nano users' prompts on training topics
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from popi.data.users import Person
from popi.errors import ConfigError, RunError
from popi.evaluation.judge import alpaca_eval
from popi.evaluation.judge.comparisons import KEY, Comparison, ask_again, compare
from popi.evaluation.judge.question import SEEN, Judge, Progress, WorldJudge
from popi.evaluation.judge.responses import (
    Responses,
    asked,
    contexts_of,
    respond,
    response_settings,
    responses_of_file,
)
from popi.evaluation.judge.result import figures, inspected
from popi.evaluation.methods import METHODS, Context
from popi.evaluation.models import Models, Run, trained_models
from popi.evaluation.runner import choose_methods, destination
from popi.evaluation.users import held_out, users_stamp
from popi.models.spec import ModelSpec
from popi.runs.files import locked, write_text
from popi.runs.provenance import commit, stamp_of, versions
from popi.runs.rows import ResumableRows
from popi.runs.run_directory import USERS, refuse_other_loader

_COMMON = ("commit", "versions", "method", "against", "judge")
"""Keys of judge.json that the figures on seen topics don't repeat."""
FILE = ".json"
"""An `against` with this suffix is a file of alpaca_eval's model outputs, not a method."""


def judge_run(
    run: Run,
    method: str,
    against: str,
    judge: Judge,
    *,
    prompts: int | None = None,
    max_tokens: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    export: bool = False,
    generator: ModelSpec | None = None,
    users: str | Path | None = None,
    models: Models | None = None,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Compare two methods' responses to held-out users' task prompts; write and return judge.json.

    Args:
        run: the run directory.
        method, against: names of methods (`popi.evaluation.methods.METHODS`); `against` may be a JSON file of
            alpaca_eval's model outputs instead.
        judge: the judge.
        prompts: maximum task prompts per user; None is all.
        max_tokens: maximum tokens per response; by default the run's `evaluation.answer_tokens`.
        out: folder of comparisons.jsonl and judge.json; by default named after the methods and the judge.
        resume: continue from the verdicts in the folder.
        export: also write the comparisons in alpaca_eval's format.
        generator, users: as in `popi.evaluation.runner.evaluate`; such an evaluation has its own summaries.
        models: loads the models; tests pass fakes.
        progress: called as responses and verdicts arrive.

    Raises:
        ConfigError: unknown method, a method compared with itself, or users that the judge can't judge for.
        RunError: the run has not trained or evaluated a method; or the folder holds comparisons under other settings
            (the message lists them), or any comparisons without `resume`.
        DataError, ModelError: users, outputs or models can't be loaded.
    """
    people, facts = held_out(run.config, users, cache=run.path.parent / USERS)
    refuse_other_loader(run.path, facts)
    trained = trained_models(run)
    models = models or Models(run.config, trained, generator)
    names = _methods(method, against)
    for name in names:
        _refuse(name, models, people, transfer=generator is not None)
    judge.check(people)
    evaluation = destination(run, generator, users)
    label = re.sub(r"[^\w.]+", "-", judge.label)
    folder = Path(out) if out is not None else evaluation / "judge" / f"{method}-vs-{Path(against).stem}-by-{label}"
    if (folder / "judge.json").exists() and not resume:
        raise RunError(f"{folder}: already judged; resume with --resume, or choose another --out")

    def contexts(name: str) -> list[Context]:
        if generator is not None and METHODS[name].has_summary:  # all generators share the run's summaries
            own, written = Models(run.config, trained), destination(run, users=users)
            return contexts_of(name, run.config, people, own, written)
        return contexts_of(name, run.config, people, models, evaluation)

    max_tokens = max_tokens or run.config.evaluation.answer_tokens
    arena = Arena(
        people, models, {name: contexts(name) for name in names}, evaluation / "responses", max_tokens, prompts
    )
    with locked(folder):
        return judge_pair(arena, method, against, judge, folder, resume=resume, export=export, progress=progress)


@dataclass(frozen=True)
class Arena:
    """The users, models and contexts for a comparison of two methods.

    Attributes:
        people: the users whose task prompts are answered.
        models: loads the generators.
        contexts: method → its context for each user's prompts.
        responses: folder of the responses, shared by all judges.
        max_tokens: maximum tokens per response.
        prompts: maximum task prompts per user; None is all.
    """

    people: Sequence[Person]
    models: Models
    contexts: Mapping[str, Sequence[Context]]
    responses: Path
    max_tokens: int
    prompts: int | None = None


def judge_pair(
    arena: Arena,
    method: str,
    against: str,
    judge: Judge,
    folder: Path,
    *,
    resume: bool,
    export: bool = False,
    progress: Progress = lambda step, done, total: None,
    advice: str = "choose another --out",
) -> dict[str, Any]:
    """Generate two methods' responses, have every pair judged, and write judge.json to `folder`.

    A judge that knows the users' world (`WorldJudge`) also judges responses on training topics, reported under
    `seen_topics`; held-out users' own prompts are on unseen topics.

    Args:
        arena: users, models and contexts of both methods.
        method, against: the methods; `against` may be a file of model outputs.
        judge: the judge.
        folder: where comparisons.jsonl and judge.json go.
        resume, export, progress: as in `judge_run`.
        advice: what the user can do if the folder was made under other settings, for the error message.

    Raises:
        RunError: the folder holds comparisons under other settings (the message lists them), or any comparisons
            without `resume`.
        DataError, ModelError: outputs or models can't be loaded.
    """
    result, comparisons = _compared(arena, method, against, judge, folder, resume, progress, advice)
    seen = _on_seen_topics(arena, judge) if against in METHODS else None
    if seen is not None:
        on_seen, _ = _compared(seen, method, against, judge, folder / SEEN, resume, progress, advice)
        result[SEEN] = {name: value for name, value in on_seen.items() if name not in _COMMON}
    write_text(folder / "judge.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if export:
        write_alpaca_eval(folder / "alpaca_eval", comparisons, method, Path(against).stem, judge.label)
    return result | {"folder": str(folder)}


def _on_seen_topics(arena: Arena, judge: Judge) -> Arena | None:
    """The same methods with prompts on training topics; None if the judge has none or summaries depend on prompts."""
    config = arena.models.config
    if not isinstance(judge, WorldJudge) or config.summary.conditioned_on_prompt:
        return None
    people = judge.on_seen_topics(arena.people, arena.prompts, config.seed)
    contexts = {
        name: [replace(context, summaries=context.summaries[:1]) for context in every]
        for name, every in arena.contexts.items()
    }
    return replace(arena, people=people, contexts=contexts)


def _compared(
    arena: Arena,
    method: str,
    against: str,
    judge: Judge,
    folder: Path,
    resume: bool,
    progress: Progress,
    advice: str,
) -> tuple[dict[str, Any], list[Comparison]]:
    """Figures and comparisons of two methods in one arena."""
    people = arena.people
    keys = asked(people, arena.prompts)
    plans = {name: _ResponsePlan(name, arena, advice) for name in _methods(method, against)}
    stamps = {name: plan.stamp for name, plan in plans.items()}
    responses: dict[str, Responses] = {}
    if against not in plans:
        responses[against] = responses_of_file(Path(against), keys, people)
        stamps[against] = stamp_of([[*key, text] for key, text in responses[against].items()])
    settings = {
        "method": method,
        "against": against,
        "judge": judge.settings(),
        "prompts": arena.prompts,
        "users": users_stamp(people),
        "responses": stamps,
    }
    path = folder / "comparisons.jsonl"
    # Opened before anything is generated, since this may raise an error.
    store = ResumableRows(path, settings, KEY, resume=resume, again=ask_again, advice=advice)
    failures = {}
    for name, plan in plans.items():
        responses[name], failures[name] = respond(
            name, keys, people, plan.contexts, arena.models, plan.store(), progress
        )
    comparisons = compare(judge, people, responses[method], responses[against], store, progress)
    result = {
        "commit": commit(),
        "versions": versions(),
        **settings,
        **figures(comparisons),
        **(inspected(comparisons, judge.inspect) if isinstance(judge, WorldJudge) else {}),
        "failed_responses": {name: reasons for name, reasons in failures.items() if reasons},
    }
    return result, comparisons


def _methods(method: str, against: str) -> list[str]:
    """The names that are methods; `against` may be a file."""
    if method == against or method.endswith(FILE):
        raise ConfigError(f"--method {method}, --against {against}: must name a method and another one to compare with")
    return [name for name in (method, against) if not name.endswith(FILE)]


class _ResponsePlan:
    """What a method's responses depend on, before they are generated."""

    def __init__(self, name: str, arena: Arena, advice: str) -> None:
        self.contexts, self.advice = arena.contexts[name], advice
        self.settings = response_settings(name, arena.people, self.contexts, arena.models, arena.max_tokens)
        self.stamp = stamp_of(self.settings)
        self.path = arena.responses / f"{name}-{self.stamp[:8]}.jsonl"

    def store(self) -> ResumableRows:
        return ResumableRows(self.path, self.settings, ("window", "target"), resume=True, advice=self.advice)


def _refuse(name: str, models: Models, people: Sequence[Person], transfer: bool) -> None:
    chosen, skipped = choose_methods(models, people, transfer)
    if name not in METHODS:
        raise ConfigError(f"{name!r} is not a method; methods of this run: {', '.join(chosen)}")
    if name not in chosen:
        reason = next(reason for reason, names in skipped.items() if name in names)
        raise RunError(f"{name}: {reason.replace('_', ' ')} in this run; methods of this run: {', '.join(chosen)}")


def write_alpaca_eval(folder: Path, comparisons: Sequence[Comparison], method: str, against: str, judge: str) -> None:
    """Write model_outputs.json, reference_outputs.json (for `against`) and annotations.json to a folder."""
    files = {
        "model_outputs.json": alpaca_eval.model_outputs(comparisons, method, of_reference=False),
        "reference_outputs.json": alpaca_eval.model_outputs(comparisons, against, of_reference=True),
        "annotations.json": alpaca_eval.annotations(comparisons, method, against, judge),
    }
    for name, rows in files.items():
        write_text(folder / name, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
