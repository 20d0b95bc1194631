"""Evaluate a run: every method's rows to a file each, then metrics.json and examples.json from those files.

Rows are kept as they come (METHOD.part.jsonl), under everything that they depend on; METHOD.jsonl is written when all
are there. An evaluation that was cut short goes on with the rows that are missing, one that a model behind an API left
gaps in asks for these alone, and one whose models, users or settings changed scores again.
"""

import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from popi.config import RunConfig
from popi.errors import RunError, UpstreamError
from popi.evaluation import metrics
from popi.evaluation.examples import write_examples
from popi.evaluation.figures import measure
from popi.evaluation.kept import KeptRows, settings_of
from popi.evaluation.methods import METHODS, REFERENCE, Context, RowKey, Sources, score_blocks
from popi.evaluation.models import Models, Other, revision
from popi.evaluation.per_user import per_user_blocks
from popi.evaluation.provenance import commit, stamp_of, versions
from popi.evaluation.summaries import kept_summaries
from popi.evaluation.users import held_out, named_attributes
from popi.generator import AnyGenerator, Generator
from popi.summary import Summary
from popi.training.run_directory import differences, read_jsonl, refuse_other_loader
from popi.users import Person

Row = dict[str, Any]
FINISHED = "finished.json"
SUMMARIES = "summaries"
"""Folder of the summaries, which all generators read."""


class Run(Protocol):
    """What is asked of a `popi.training.run_directory.RunDirectory`."""

    path: Path
    config: RunConfig

    def methods(self) -> dict[str, Any]: ...
    def models(self, method: str | None = None) -> tuple[str, str]: ...


def destination(run: Run, generator: Other | None = None, users: str | Path | None = None) -> Path:
    """Folder of an evaluation: the run's own `evaluation/`, or one beside it for another generator or other users."""
    parts = [generator.folder] if generator else []
    parts += [f"on-{Path(users).stem}"] if users else []
    return run.path / "evaluation" / "-".join(parts) if parts else run.path / "evaluation"


def metrics_path(run: Run, generator: Other | None = None, users: str | Path | None = None) -> Path:
    """metrics.json of an evaluation: in the run directory itself for the run's own."""
    own = generator is None and users is None
    return (run.path if own else destination(run, generator, users)) / "metrics.json"


def evaluate(
    run: Run,
    config: RunConfig | None = None,
    *,
    generator: Other | None = None,
    users: str | Path | None = None,
    console: Console | None = None,
    models: Models | None = None,
) -> dict[str, Any]:
    """Score every target pair of every held-out user once under every method; write and return metrics.json.

    Args:
        run: the run directory.
        config: settings of the evaluation, if not the run's own.
        generator: another model, not trained with these summaries, to read them instead: it has its own reference
            and its own rows without personalisation and with raw signals. Such results lie in
            `evaluation/with-NAME/`, with the share of the gain over no personalisation that it keeps.
        users: a JSONL file of users to evaluate on instead of the run's held-out ones, in `evaluation/on-NAME/`.
        console: where progress is shown; None shows nothing.
        models: loads the models; tests put fakes here.

    Raises:
        ConfigError, DataError, ModelError: users or models can't be loaded.
        RunError: the run has no metrics.json to compare another generator with; or the evaluation's folder holds that
            of another generator or other users of the same name; or the run was trained on users of another version
            of the benchmark's loader.
        UpstreamError: a model behind an API scored nothing of a method at all.
    """
    config = config or run.config
    people, facts = held_out(config, users)
    refuse_other_loader(run.path, facts)
    trained = {order: run.models(order) for order in run.methods()}
    models = models or Models(config, trained, generator)
    folder = destination(run, generator, users)
    _refuse_another(metrics_path(run, generator, users), generator, users)
    own = _own_metrics(run, users) if generator is not None else None

    chosen, left_out = choose_methods(models, people, transfer=generator is not None)
    summaries = destination(run, users=users) / SUMMARIES
    job = Job(config, people, models, folder, summaries=summaries, benchmark=benchmark_of(config, facts, users))
    with evaluation_progress(console) as progress:
        for name in chosen:
            task = progress.add_task(METHODS[name].label, total=len(job.expected(name)))
            job.run_method(name, progress, task)
            job.refuse_empty(name)
        write_examples(folder / "examples.json", config, people, models, chosen, job.summaries_of, job.users_stamp)

    result = job.metrics(chosen) | left_out
    result["seconds"] = {"training": training_seconds(run.path / "log.jsonl")} | result["seconds"]
    if generator is not None:
        result["generator"] = generator.label
        result["gain_kept"] = _gains(result, own) if own else {}
    if users is not None:
        result["users"] = str(users)
    if facts is not None:
        result["data"] = facts
    _write(metrics_path(run, generator, users), json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def choose_methods(models: Models, people: Sequence[Person], transfer: bool) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the methods that can be evaluated, and those left out under the reason for it."""
    chosen, not_trained, not_applicable, not_enabled = [], [], [], []
    for name, method in METHODS.items():
        if method.order is not None and method.order not in models.trained:
            not_trained.append(name)
        elif method.per_user and not models.config.evaluation.per_user_lora.enabled:
            not_enabled.append(name)
        elif method.per_user and models.config.model.api_generator.given:
            not_applicable.append(name)  # behind an API there are no weights to put an adapter on
        elif method.needs_truth and any(person.oracle is None for person in people):
            not_applicable.append(name)  # a file of users carries no truth
        elif transfer and (method.order is not None or method.per_user) and not method.has_summary:
            not_applicable.append(name)  # population DPO has nothing to hand on to another generator
        else:
            chosen.append(name)
    return chosen, {"not_trained": not_trained, "not_applicable": not_applicable, "not_enabled": not_enabled}


def benchmark_of(
    config: RunConfig, facts: Mapping[str, Any] | None, users: str | Path | None = None
) -> dict[str, str | None]:
    """What every row says of the users that it is about: whence, and by which version of the loader."""
    data = config.data
    source = str(users) if users is not None else data.test or data.source
    return {"benchmark": source, "benchmark_version": facts["loader"] if facts is not None else None}


def evaluated_summaries(
    config: RunConfig, people: Sequence[Person], models: Models, folder: Path, name: str
) -> dict[RowKey, str | None]:
    """(window, target) → the summary that an evaluation in `folder` wrote under a method.

    Raises:
        RunError: that method was not evaluated there, or with other users, models or settings.
    """
    job = Job(config, people, models, folder)
    written = job.finished.get(name, {}).get("stamp")
    if written != job.method_stamp(name) or not (folder / f"{name}.jsonl").is_file():
        state = "has no summaries of" if written is None else "has summaries by other models, or of other users, of"
        raise RunError(f"{folder} {state} {name}; write them first: popi evaluate, with the same --run and options")
    return job.summaries_of(name)


class Job:
    """One evaluation: users, models and the folder of its files.

    Args:
        config: the run's.
        people: held-out users.
        models: loads the models.
        folder: of the methods' files.
        summaries: folder of the summaries that the inference models write; by default in `folder`.
        benchmark: what every row says of where the users come from (`benchmark_of`).
        refuse_changes: rows that were made under other settings are an error, and not made again.
    """

    def __init__(
        self,
        config: RunConfig,
        people: Sequence[Person],
        models: Models,
        folder: Path,
        *,
        summaries: Path | None = None,
        benchmark: Mapping[str, Any] | None = None,
        refuse_changes: bool = False,
    ) -> None:
        self.config, self.people, self.models, self.folder = config, people, models, folder
        self.summaries, self.refuse_changes = summaries or folder / SUMMARIES, refuse_changes
        self.benchmark, self.commit = dict(benchmark or {}), commit()
        self.users_stamp = stamp_of([p.user.model_dump(mode="json") for p in people])
        self.written: dict[str, list[tuple[Summary, ...]]] = {}
        self.finished: dict[str, Any] = _finished(folder / FINISHED)

    def expected(self, name: str) -> list[RowKey]:
        """The keys of a method's rows, in their order: of all users, or of the first that a slow method is for."""
        most = self.config.evaluation.per_user_lora.users if METHODS[name].per_user else None
        return [(w, t) for w, p in enumerate(self.people[:most]) for t in range(len(p.user.targets))]

    def method_settings(self, name: str) -> dict[str, Any]:
        """Everything that a method's rows depend on."""
        settings = self.config.model_dump(mode="json", include={"model", "signals", "summary"})
        truths = {"oracles": [person.oracle for person in self.people]} if METHODS[name].needs_truth else {}
        facts = {"method": name, "users": self.users_stamp, "models": self.models.describe(name)}
        if METHODS[name].per_user:
            lora = self.config.evaluation.per_user_lora.model_dump(exclude={"enabled", "users"})
            settings["per_user_lora"] = lora | {"seed": self.config.seed}
        return facts | settings | truths

    def method_stamp(self, name: str) -> str:
        return stamp_of(self.method_settings(name))

    def run_method(self, name: str, progress: Progress, task: TaskID) -> None:
        """Make the rows of a method that are missing, and write its file.

        Raises:
            RunError: rows are there that other settings made, and changes are refused; the message says which.
        """
        settings, path = self.method_settings(name), self.folder / f"{name}.jsonl"
        stamp, expected = stamp_of(settings), self.expected(name)
        before = self.finished.get(name, {})
        if before.get("stamp") == stamp and before["rows"] == len(expected) and not before.get("missing"):
            if path.is_file():
                progress.update(task, completed=len(expected), note="already scored")
                return
        kept = self._kept(name, settings, before)
        done = set(kept.rows) & set(expected)
        progress.update(task, completed=len(done))
        started = time.perf_counter()
        if len(done) < len(expected):
            for block in self._blocks(name, done, progress, task):
                kept.extend(block)
                progress.advance(task, len(block))
        kept.close()
        rows = [kept.rows[key] for key in expected if key in kept.rows]
        check_rows(name, rows, expected)
        _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        missing = sum(map(_is_missing, rows))
        seconds = time.perf_counter() - started + (before["seconds"] if before.get("stamp") == stamp else 0)
        facts = {"stamp": stamp, "rows": len(rows), "seconds": round(seconds, 2), "missing": missing}
        self.finished[name] = facts | {"settings": brief(settings)}
        _write(self.folder / FINISHED, json.dumps(self.finished, indent=2) + "\n")
        if not missing:  # else the rows that are there wait for those that are not
            kept.path.unlink(missing_ok=True)
        progress.update(task, note=f"{missing} missing" if missing else "")

    def refuse_empty(self, name: str) -> None:
        """Raise UpstreamError, with the first row's reason, where a model behind an API scored nothing of a method."""
        if self.finished[name]["rows"] and self.finished[name].get("missing") == self.finished[name]["rows"]:
            reason = read_rows(self.folder / f"{name}.jsonl")[0]["missing"]
            raise UpstreamError(f"no target pair could be scored under {name}: {reason}")

    def _kept(self, name: str, settings: dict[str, Any], before: dict[str, Any]) -> KeptRows:
        """The rows of a method that are there; of other settings' rows none, or an error."""
        path = self.folder / f"{name}.part.jsonl"
        brief_settings = brief(settings)
        advice = "give this evaluation a place of its own (of a grid: another name=…)"
        if self.refuse_changes:
            changed = differences(before["settings"], brief_settings) if "settings" in before else []
            if changed:
                raise RunError(
                    f"{self.folder / name}.jsonl was made under other settings:\n  "
                    + "\n  ".join(changed)
                    + f"\ngo on with those, or {advice}"
                )
        elif settings_of(path) != brief_settings:
            path.unlink(missing_ok=True)
        kept = KeptRows(path, brief_settings, ("window", "target"), resume=True, again=_is_missing, advice=advice)
        finished = self.folder / f"{name}.jsonl"
        if not kept.rows and before.get("stamp") == stamp_of(settings) and finished.is_file():
            kept.extend(row for row in read_rows(finished) if row.get("missing") is None and "messages" in row)
        return kept

    def _blocks(self, name: str, done: Collection[RowKey], progress: Progress, task: TaskID) -> Iterator[list[Row]]:
        """The rows of a method but for those done, as they come."""
        method = METHODS[name]
        facts = self.benchmark | {"method": name, "models": self.models.describe(name), "users": self.users_stamp}
        facts |= {"seed": self.config.seed, "commit": self.commit}
        if method.per_user:
            generator = self.models.generator(self.models.untrained)
            assert isinstance(generator, Generator), "behind an API there are no weights (choose_methods)"
            people = self.people[: self.config.evaluation.per_user_lora.users]
            facts |= made_by(generator)
            for block in per_user_blocks(generator, people, self._reference(), self.config, done):
                yield [facts | row for row in block]
            return
        path = self.models.generator_path(method)
        generator = self.models.generator(path)
        facts |= made_by(generator)
        contexts = self.contexts(name, progress, task)
        truths = self._truths(contexts)
        for block in score_blocks(
            generator,
            self.people,
            contexts,
            None if name == REFERENCE else self._reference(),
            untrained=path == self.models.untrained,
            batch_size=self.config.evaluation.batch_size,
            done=done,
        ):
            yield [facts | row | truths.get(row["window"], {}) for row in block]

    def contexts(self, name: str, progress: Progress, task: TaskID) -> list[Context]:
        """What a method puts beside each user's task prompts; summaries are written if they are not there."""
        method = METHODS[name]
        generator = self.models.generator(self.models.generator_path(method))

        def summarize(users: Sequence[Person]) -> list[tuple[Summary, ...]]:
            return self.summaries_by(self.models.inference_path(method), progress, task)

        def embed(users: Sequence[Person]) -> Tensor:
            return self.models.soft_prompts(method, users)

        sources = Sources(summarize, embed, generator, self.config.signals.token_budget)
        return method.contexts(sources, self.people)

    def _truths(self, contexts: Sequence[Context]) -> dict[int, Row]:
        """Window → what the (first target's) summary names and what the user prefers, where both are known."""
        return {
            window: {
                "named": sorted(map(list, named_attributes(summary.text))),
                "preferred": sorted(map(list, person.preferences)),
            }
            for window, (person, context) in enumerate(zip(self.people, contexts, strict=True))
            if person.preferences is not None and (summary := context.summary(0)) is not None
        }

    def summaries_by(self, path: str, progress: Progress, task: TaskID) -> list[tuple[Summary, ...]]:
        """Greedy summaries of all users by an inference model, written once for all methods and generators."""
        if path not in self.written:

            def report(done: int) -> None:
                progress.update(task, note=f"summaries {done}/{len(self.people)}")

            self.written[path] = kept_summaries(
                self.summaries, path, self.models, self.people, self.users_stamp, report
            )
            progress.update(task, note="")
        return self.written[path]

    def _reference(self) -> dict[RowKey, tuple[float, float]]:
        """The reference's log-probs: those of the rows without personalisation."""
        rows = [row for row in read_rows(self.folder / f"{REFERENCE}.jsonl") if row.get("missing") is None]
        return {(row["window"], row["target"]): (row["chosen_logp"], row["rejected_logp"]) for row in rows}

    def summaries_of(self, name: str) -> dict[RowKey, str | None]:
        """(window, target) → the summary that a method's file holds."""
        rows = read_rows(self.folder / f"{name}.jsonl")
        return {(row["window"], row["target"]): row["summary"] for row in rows}

    def metrics(self, names: Sequence[str]) -> dict[str, Any]:
        """metrics.json from the methods' files."""
        rows_of, seconds = {}, {}
        for name in names:
            rows_of[name] = read_rows(self.folder / f"{name}.jsonl")
            check_rows(name, rows_of[name], self.expected(name))
            seconds[name] = self.finished[name]["seconds"]
        file = self.folder / "examples.json"  # a grid's cells have none
        examples = json.loads(file.read_text(encoding="utf-8"))["users"] if file.is_file() else []
        return {
            "commit": commit(),
            "config": self.config.model_dump(mode="json"),
            "seed": self.config.seed,
            "versions": versions(),
            "n_users": len({person.user.user_id for person in self.people}),
            "n_pairs": len(self.expected(REFERENCE)),
            **measure(rows_of, self.config, self.people, examples),
            "seconds": {"evaluation": round(sum(seconds.values()), 2)} | seconds,
        }


def check_rows(name: str, rows: Sequence[Row], expected: Sequence[RowKey]) -> None:
    """Every target pair once, none missing, none twice.

    Raises:
        RunError: a file does not hold the rows that it should.
    """
    keys = [(row["window"], row["target"]) for row in rows]
    if keys != list(expected):
        missing, twice = len(set(expected) - set(keys)), len(keys) - len(set(keys))
        raise RunError(
            f"evaluation of {name}: {len(keys)} rows for {len(expected)} target pairs ({missing} missing, {twice} "
            f"twice); delete {name}.jsonl in the run's evaluation folder and evaluate again"
        )


def training_seconds(log: Path) -> float:
    """Seconds of the run's training steps, as its log tells them: one number a step, whatever was resumed."""
    return round(sum(row.get("seconds") or 0.0 for row in read_jsonl(log)), 2)


def read_rows(path: Path) -> list[Row]:
    """The rows of a method's file, in the order of users and targets."""
    try:
        with path.open(encoding="utf-8") as lines:  # splitlines() would also cut at U+2028 inside a summary
            return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); delete it and evaluate again") from None


def _finished(path: Path) -> dict[str, Any]:
    """Which methods were scored, by their stamps; a damaged file says nothing, and all are scored again."""
    try:
        marks = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


def _refuse_another(path: Path, generator: Other | None, users: str | Path | None) -> None:
    """Two generators (or files of users) can have one name: the second may not replace the first's evaluation."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    asked_for = {"generator": None if generator is None else generator.label, "users": users}
    for kind, asked in asked_for.items():
        if asked is not None and there.get(kind) and Path(there[kind]).resolve() != Path(asked).resolve():
            raise RunError(
                f"{path.parent} holds an evaluation with {kind} {there[kind]}, not {asked}: the same name, another "
                "place; move that folder away, or rename one of the two"
            )


def _own_metrics(run: Run, users: str | Path | None) -> dict[str, Any]:
    path = metrics_path(run, users=users)
    if not path.is_file():
        command = f"popi evaluate --run {run.path}" + (f" --users {users}" if users else "")
        raise RunError(f"{path}: not there, so there is no gain to compare another generator's with; first: {command}")
    try:
        own: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); evaluate the run again first") from None
    return own


def _gains(result: dict[str, Any], own: dict[str, Any]) -> dict[str, float | None]:
    """Method → share of the gain over no personalisation that the other generator keeps."""
    names = [name for name in result["methods"] if METHODS[name].has_summary and name in own["methods"]]
    accuracy = {n: [r["methods"][n]["reward_accuracy"]["value"] for r in (result, own)] for n in names}
    return {name: metrics.gain_kept(other, mine) for name, (other, mine) in accuracy.items()}


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)  # not before: a refused evaluation leaves no empty folder
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _is_missing(row: Row) -> bool:
    return row["missing"] is not None


def brief(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings with hashes for long lists: what a file of rows begins with."""
    return {key: stamp_of(value) if key == "oracles" else value for key, value in settings.items()}


def made_by(generator: AnyGenerator) -> dict[str, Any]:
    """What a row says of the model that it was made by, beyond its name."""
    templates = generator.templates
    return {"template": templates.name, "template_stamp": templates.stamp, "revision": revision(generator)}


def evaluation_progress(console: Console | None) -> Progress:
    """Bars of the methods of an evaluation; None shows nothing."""
    columns = (
        TextColumn("  {task.description:<26}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    shown = console or Console(quiet=True)
    return _NotedProgress(*columns, console=shown, disable=console is None)


class _NotedProgress(Progress):
    """Progress whose tasks have a `note` from the start."""

    def add_task(self, description: str, *args: Any, **fields: Any) -> TaskID:
        return super().add_task(description, *args, **({"note": ""} | fields))
