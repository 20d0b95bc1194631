"""Judge two methods of a run: their responses, every pair in both orders, judge.json.

evaluation/responses/METHOD-STAMP.jsonl     a method's greedy responses, for every judge
evaluation/judge/A-vs-B-by-JUDGE/           comparisons.jsonl: a line a verdict, as it comes
                                            judge.json: the figures
                                            alpaca_eval/: the same comparisons in its files
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popi.errors import ConfigError, RunError
from popi.evaluation.judge import alpaca_eval
from popi.evaluation.judge.comparisons import KEY, Comparison, ask_again, compare
from popi.evaluation.judge.kept import KeptRows
from popi.evaluation.judge.question import Judge, Progress
from popi.evaluation.judge.responses import (
    Responses,
    asked,
    contexts_of,
    respond,
    response_settings,
    responses_of_file,
)
from popi.evaluation.judge.result import figures
from popi.evaluation.methods import METHODS
from popi.evaluation.models import Models, Other
from popi.evaluation.provenance import commit, versions
from popi.evaluation.runner import Run, choose_methods, destination, stamp_of
from popi.evaluation.users import held_out
from popi.training.run_directory import refuse_other_loader, write_text
from popi.users import Person

FILE = ".json"
"""What `against` ends in where it is a file of alpaca_eval's model outputs and no method."""


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
    generator: Other | None = None,
    users: str | Path | None = None,
    models: Models | None = None,
    progress: Progress = lambda what, done, of: None,
) -> dict[str, Any]:
    """Compare two methods' responses to held-out users' task prompts; write and return judge.json.

    Args:
        run: the run directory.
        method, against: names of methods (`popi.evaluation.methods.METHODS`); `against` may be a JSON file of
            alpaca_eval's model outputs instead.
        judge: decides.
        prompts: most task prompts a user; None: all.
        max_tokens: most tokens of a response; None: the run's `evaluation.answer_tokens`.
        out: folder of comparisons.jsonl and judge.json, if not the one that the names give.
        resume: go on with what the folder holds.
        export: write the comparisons as files of alpaca_eval, too.
        generator, users: as `popi.evaluation.runner.evaluate` takes them; such an evaluation has its own summaries.
        models: loads the models; tests put fakes here.
        progress: told how far responses and verdicts are.

    Raises:
        ConfigError: no such method, one compared with itself, or users that the judge can't decide for.
        RunError: the run has not trained or evaluated a method; or the folder holds comparisons under other settings
            (the message says which), or any without `resume`.
        DataError, ModelError: users, outputs or models can't be loaded.
    """
    people, facts = held_out(run.config, users)
    refuse_other_loader(run.path, facts)
    models = models or Models(run.config, {order: run.models(order) for order in run.methods()}, generator)
    names = [name for name in (method, against) if not name.endswith(FILE)]
    if method == against or method.endswith(FILE):
        raise ConfigError(f"--method {method}, --against {against}: name a method, and another one to compare it with")
    for name in names:
        _refuse(name, models, people, transfer=generator is not None)
    judge.check(people)
    evaluation = destination(run, generator, users)
    label = re.sub(r"[^\w.]+", "-", judge.label)
    folder = Path(out) if out is not None else evaluation / "judge" / f"{method}-vs-{Path(against).stem}-by-{label}"
    if (folder / "judge.json").exists() and not resume:
        raise RunError(f"{folder}: judged already and left as it is; go on with it (--resume), or name another --out")

    keys = asked(people, prompts)
    wanted = {name: _Wanted(name, run, people, models, evaluation, max_tokens) for name in names}
    stamps = {name: one.stamp for name, one in wanted.items()}
    responses: dict[str, Responses] = {}
    if against not in wanted:
        responses[against] = responses_of_file(Path(against), keys, people)
        stamps[against] = stamp_of([[*key, text] for key, text in responses[against].items()])
    settings = {
        "method": method,
        "against": against,
        "judge": judge.settings(),
        "prompts": prompts,
        "users": stamp_of([person.user.model_dump(mode="json") for person in people]),
        "responses": stamps,
    }
    # Before anything is generated: it may be refused.
    kept = KeptRows(folder / "comparisons.jsonl", settings, KEY, resume=resume, again=ask_again)
    failures = {}
    for name, one in wanted.items():
        responses[name], failures[name] = respond(name, keys, people, one.contexts, models, one.kept(), progress)
    comparisons = compare(judge, people, responses[method], responses[against], kept, progress)
    result = {
        "commit": commit(),
        "versions": versions(),
        **settings,
        **figures(comparisons),
        "failed_responses": {name: reasons for name, reasons in failures.items() if reasons},
    }
    write_text(folder / "judge.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if export:
        write_alpaca_eval(folder / "alpaca_eval", comparisons, method, Path(against).stem, judge.label)
    return result | {"folder": str(folder)}


class _Wanted:
    """A method's responses before they are generated: what they depend on."""

    def __init__(
        self, name: str, run: Run, people: Sequence[Person], models: Models, evaluation: Path, max_tokens: int | None
    ) -> None:
        self.contexts = contexts_of(name, run.config, people, models, evaluation)
        most = max_tokens or run.config.evaluation.answer_tokens
        self.settings = response_settings(name, people, self.contexts, models, most)
        self.stamp = stamp_of(self.settings)
        self.path = evaluation / "responses" / f"{name}-{self.stamp[:8]}.jsonl"

    def kept(self) -> KeptRows:
        return KeptRows(self.path, self.settings, ("window", "target"), resume=True)


def _refuse(name: str, models: Models, people: Sequence[Person], transfer: bool) -> None:
    chosen, left_out = choose_methods(models, people, transfer)
    if name not in METHODS:
        raise ConfigError(f"{name!r} is no method; methods here: {', '.join(chosen)}")
    if name not in chosen:
        why = next(reason for reason, left in left_out.items() if name in left)
        raise RunError(f"{name}: {why.replace('_', ' ')} in this run; methods here: {', '.join(chosen)}")


def write_alpaca_eval(folder: Path, comparisons: Sequence[Comparison], method: str, against: str, judge: str) -> None:
    """Write model_outputs.json, reference_outputs.json (of `against`) and annotations.json into a folder."""
    files = {
        "model_outputs.json": alpaca_eval.model_outputs(comparisons, method, of_reference=False),
        "reference_outputs.json": alpaca_eval.model_outputs(comparisons, against, of_reference=True),
        "annotations.json": alpaca_eval.annotations(comparisons, method, against, judge),
    }
    for name, rows in files.items():
        write_text(folder / name, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
