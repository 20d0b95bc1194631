"""Shared code of the studies of a run: evidence, abstention, streaming, side effects.

A study measures how a method's figures change when it sees something else of the users: fewer signals, none, or others.
Each change is a list of users to score (`Study.rows`), so prompts are still built by the method's own code. Rows are
stored in `evaluation/studies/`, one file per method and list of users, named by a hash of everything they depend on, so
that an interrupted study resumes with the missing files.

All results have the form `{"title", "columns", "labels", "percent", "rows", "notes", …}`, where rows are flat
dictionaries.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from popi.config import RunConfig
from popi.data.users import Person
from popi.errors import ConfigError, RunError
from popi.evaluation.job import logps_of, read_rows
from popi.evaluation.methods import METHODS, REFERENCE, Context, RowKey, score_rows
from popi.evaluation.metrics import Estimate
from popi.evaluation.models import Models, Run, trained_models
from popi.evaluation.runner import choose_methods, destination
from popi.evaluation.users import held_out, users_stamp
from popi.inference_model import InferenceModel
from popi.models.spec import ModelSpec
from popi.runs.files import write_jsonl, write_text
from popi.runs.provenance import commit, stamp_of, versions
from popi.runs.run_directory import USERS, refuse_other_loader
from popi.signals.types import Prompt, Signal
from popi.summary import Summary

Row = dict[str, Any]
Report = Callable[[str], None]
"""Called with a description of what is being scored."""


@dataclass
class _Writer:
    """The inference model used last, and the summaries that it wrote."""

    path: str
    model: InferenceModel
    written: dict[str, Summary] = field(default_factory=dict)

    def write(self, requests: Sequence[tuple[Sequence[Signal], Prompt | None]]) -> list[Summary]:
        keys = [_content_of(signals, prompt) for signals, prompt in requests]
        todo = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.written}
        prompts = [prompt for _, prompt in todo.values() if prompt is not None] or None
        summaries = self.model.summarize_many([signals for signals, _ in todo.values()], prompts=prompts)
        self.written |= zip(todo, summaries, strict=True)
        return [self.written[key] for key in keys]


@dataclass
class Study:
    """The users, models and stored rows of one study.

    Attributes:
        config: the run's config.
        people: the run's held-out users.
        models: loads the run's models.
        folder: the evaluation's folder, which holds results, and stored rows in its `studies/`.
        names: the methods studied.
        report: called with a description of what is being scored.
    """

    config: RunConfig
    people: Sequence[Person]
    models: Models
    folder: Path
    names: list[str]
    report: Report = lambda description: None
    _writer: "_Writer | None" = None

    @classmethod
    def open(
        cls,
        run: Run,
        *,
        methods: Sequence[str] | None = None,
        test_users: int | None = None,
        generator: ModelSpec | None = None,
        users: str | Path | None = None,
        models: Models | None = None,
        summaries_only: bool = False,
        report: Report = lambda description: None,
    ) -> "Study":
        """Open a run for a study.

        Args:
            run: the run directory.
            methods: names of methods; None: all of the run's methods that read signals.
            test_users: maximum held-out users (the first ones); None: all.
            generator, users, models: as in `popi.evaluation.runner.evaluate`.
            summaries_only: only methods whose contexts are an inference model's summaries.
            report: called with a description of what is being scored.

        Raises:
            ConfigError: if a method is unknown, or does not read signals.
            RunError: if a method was not trained, or the run was trained on users from another version of the loader.
            DataError, ModelError: if users or models can't be loaded.
        """
        people, facts = held_out(run.config, users, cache=run.path.parent / USERS)
        refuse_other_loader(run.path, facts)
        models = models or Models(run.config, trained_models(run), generator)
        chosen, _ = choose_methods(models, people, transfer=generator is not None)
        eligible = [name for name in chosen if reads_signals(name) and (METHODS[name].writer or not summaries_only)]
        for name in methods or []:
            if name not in eligible:
                error = RunError if name in METHODS and reads_signals(name) and not summaries_only else ConfigError
                raise error(f"--method {name}: can't be studied here; choose from {', '.join(eligible)}")
        people, folder = people[:test_users], destination(run, generator, users)
        return cls(run.config, people, models, folder, list(methods or eligible), report=report)

    @property
    def is_nano(self) -> bool:
        """Whether the users are the nano world's."""
        return all(person.preferences is not None for person in self.people)

    def rows(self, name: str, people: Sequence[Person], label: str) -> list[Row]:
        """The rows of `score_rows` for users with a method, in the order of users and targets.

        Each row also has `abstained`: whether the method writes summaries and this one names no preference.

        Args:
            name: name of a method.
            people: users as the method should see them.
            label: how they differ from the held-out ones; part of the file's name.
        """
        return self.cached(name, label, {"users": users_stamp(people)}, lambda: self._score(name, people))

    def scored(self, name: str, people: Sequence[Person], summaries: Sequence[Summary], label: str) -> list[Row]:
        """The same rows with the given summaries, one for each of `people`, instead of the method's own."""
        facts = {"users": users_stamp(people), "summaries": [summary.text for summary in summaries]}
        contexts = [Context((summary,), dropped=summary.signals_dropped) for summary in summaries]
        return self.cached(name, label, facts, lambda: self._score(name, people, contexts))

    def cached(self, name: str, label: str, facts: Mapping[str, Any], make: Callable[[], list[Row]]) -> list[Row]:
        """Rows about a method, computed only if they are not stored yet.

        Args:
            name: name of the method.
            label: describes the rows; part of the file's name.
            facts: what the rows depend on in addition to the method's models and the run's settings.
            make: computes the rows.
        """
        settings = self.config.model_dump(mode="json", include={"model", "signals", "summary"})
        dependencies = {"method": name, "models": self.models.describe(name), **facts, **settings}
        path = self.folder / "studies" / f"{name}-{re.sub(r'[^a-z0-9]+', '-', label)}-{stamp_of(dependencies)}.jsonl"
        if path.is_file():
            return read_rows(path)
        self.report(f"{METHODS[name].label}: {label}")
        rows = make()
        write_jsonl(path, rows)
        return rows

    def inference_model(self, name: str) -> InferenceModel:
        """The inference model that writes a method's summaries."""
        return self.models.inference_model(self.models.inference_path(METHODS[name]))

    def reference(self, people: Sequence[Person]) -> dict[RowKey, tuple[float, float]]:
        """The reference's log-probs of the users' targets, which depend only on the targets."""
        bare = [_bare(person) for person in people]
        return logps_of(self.rows(REFERENCE, bare, "plain"))

    def plain_rows(self, name: str, people: Sequence[Person]) -> list[Row]:
        """The rows of a method for users without signals, which show what its generator does without a context."""
        return self.rows(name, [_bare(person) for person in people], "no signals")

    def _score(self, name: str, people: Sequence[Person], contexts: Sequence[Context] | None = None) -> list[Row]:
        reference = None if name == REFERENCE else self.reference(people)
        method = METHODS[name]
        path = self.models.generator_path(method)
        generator = self.models.generator(path)

        def summarize(users: Sequence[Person]) -> list[tuple[Summary, ...]]:
            return self._summaries(self.models.inference_path(method), users)

        def ask(users: Sequence[Person], _prompt: str | None) -> list[tuple[Summary, ...]]:
            return summarize(users)  # studies compare reactions to evidence with the set's own prompt

        contexts = contexts or method.contexts(self.models.sources(method, summarize, ask), people)
        scored = score_rows(
            generator,
            people,
            contexts,
            reference,
            untrained=path == self.models.untrained,
            batch_size=self.config.evaluation.batch_size,
        )
        says_nothing = generator.templates.names_no_preference
        return [
            row | {"abstained": row["summary"] is not None and says_nothing(row["summary"])}
            for row in scored
            if row["margin"] is not None  # it is None if a server returned no log-probs
        ]

    def _summaries(self, path: str, people: Sequence[Person]) -> list[tuple[Summary, ...]]:
        """Greedy summaries, one per user or one per target; equal ones are written only once."""
        if self._writer is None or self._writer.path != path:
            self._writer = _Writer(path, self.models.inference_model(path))
        users = [person.user for person in people]
        if self.config.summary.conditioned_on_prompt:
            summaries = iter(
                self._writer.write([(user.signals, target.prompt) for user in users for target in user.targets])
            )
            return [tuple(islice(summaries, len(user.targets))) for user in users]
        return [(summary,) for summary in self._writer.write([(user.signals, None) for user in users])]

    def write(self, file: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write a result to the evaluation's folder, adding its provenance, and return it."""
        facts = {"commit": commit(), "versions": versions(), "seed": self.config.seed, "test_users": len(self.people)}
        document = {**result, **facts}
        write_text(self.folder / file, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        return document


def reads_signals(name: str) -> bool:
    """Whether a method's answers depend on a held-out user's signals without training on that user."""
    method = METHODS[name]
    return method.tells in ("signals", "summary") and not method.per_user and not method.nano


def with_signals(person: Person, signals: Sequence[Signal]) -> Person:
    """The same person and targets with other signals."""
    user = person.user.model_copy(update={"signals": list(signals)})
    return Person(user, person.preferences, person.oracle)


def _bare(person: Person) -> Person:
    return with_signals(person, [])


def _content_of(signals: Sequence[Signal], prompt: Prompt | None) -> str:
    turns = prompt if prompt is None or isinstance(prompt, str) else [m.model_dump() for m in prompt]
    return stamp_of([[signal.model_dump(mode="json") for signal in signals], turns])


def interval(estimate: Estimate, name: str = "") -> dict[str, float | None]:
    """An estimate as three entries of a row: `value`, `low`, `high`, or `NAME`, `NAME_low`, `NAME_high`."""
    keys = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    return dict(zip(keys, (estimate.value, estimate.low, estimate.high), strict=True))


def result_table(result: Mapping[str, Any]) -> Table:
    """A result for the terminal, with half the interval's width after each value. In narrow terminals, only text
    wraps."""
    table = Table(title=result["title"], title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    bounds = {name: _bounds(name) for name in result["columns"]}
    shown = [name for name in result["columns"] if not any(name in pair for pair in bounds.values())]
    for name in shown:
        text = any(isinstance(row.get(name), str) for row in result["rows"])
        style: dict[str, Any] = {"justify": "left" if text else "right", "vertical": "bottom", "no_wrap": not text}
        table.add_column(result["labels"].get(name, name), overflow="fold", **style)
    last = None
    for row in result["rows"]:
        if last not in (None, row["method"]):
            table.add_section()
        cells = [_cell(row, name, bounds[name], name in result["percent"]) for name in shown]
        table.add_row(*(["", *cells[1:]] if row["method"] == last else cells))
        last = row["method"]
    table.caption, table.caption_justify = "\n".join(result["notes"]), "left"
    return table


def _bounds(name: str) -> tuple[str, str]:
    return ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")


def _cell(row: Mapping[str, Any], name: str, bounds: tuple[str, str], percent: bool) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    if isinstance(value, str):
        return value.split(" (")[0]
    if isinstance(value, int):
        return str(value)
    scale = 100 if percent else 1
    low, high = (row.get(bound) for bound in bounds)
    reach = "" if low is None or high is None else f" ± {scale * (high - low) / 2:.1f}"
    return f"{scale * value:.1f}{reach}"
