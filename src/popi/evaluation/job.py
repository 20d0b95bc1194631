"""One evaluation: computes each method's rows, saves them as they arrive, and derives the figures.

Rows go to METHOD.part.jsonl together with everything that they depend on; METHOD.jsonl is written once all are there.
An interrupted evaluation resumes with the missing rows. A method whose models, users or settings changed is scored
again.
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from popi.config import RunConfig
from popi.data.users import Person
from popi.errors import RunError, UpstreamError
from popi.evaluation.figures import measure
from popi.evaluation.methods import METHODS, REFERENCE, Context, RowKey, score_blocks
from popi.evaluation.models import Models
from popi.evaluation.per_user import per_user_blocks
from popi.evaluation.prompts import choose
from popi.evaluation.summaries import stored_summaries
from popi.evaluation.users import named_attributes, users_stamp
from popi.generator import Generator
from popi.runs.files import write_text
from popi.runs.provenance import commit, stamp_of, versions
from popi.runs.rows import ResumableRows, settings_of
from popi.runs.run_directory import differences
from popi.signals.asking import OWN
from popi.summary import Summary

Row = dict[str, Any]
FINISHED = "finished.json"
SUMMARIES = "summaries"
"""Folder of the summaries, shared by all generators."""


class Job:
    """One evaluation: users, models and the folder of its files.

    Args:
        config: the run's config.
        people: held-out users.
        models: loads the models.
        folder: where the methods' files go.
        summaries: folder of the inference models' summaries; by default inside `folder`.
        benchmark: where the users come from, for every row (`benchmark_of`).
        refuse_changes: raise an error for rows made under other settings instead of recomputing them.
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
        self.users_stamp = users_stamp(people)
        self.written: dict[tuple[str, str], list[tuple[Summary, ...]]] = {}
        self._prompts: dict[str, Any] | None = None
        self.finished: dict[str, Any] = _finished(folder / FINISHED)

    def expected(self, name: str) -> list[RowKey]:
        """The keys of a method's rows, in order: for all users, or for the first few if the method is slow."""
        most = self.config.evaluation.per_user_lora.users if METHODS[name].per_user else None
        return [(w, t) for w, p in enumerate(self.people[:most]) for t in range(len(p.user.targets))]

    def method_settings(self, name: str) -> dict[str, Any]:
        """Everything that a method's rows depend on."""
        settings = self.config.settings("model", "signals", "summary")
        truths = {"oracles": [person.oracle for person in self.people]} if METHODS[name].needs_truth else {}
        facts = {"method": name, "users": self.users_stamp, "models": self.models.describe(name)}
        if name == "untrained_summary" and (prompt := self.prompts()["chosen"]) != OWN:
            facts["prompt"] = prompt
        if METHODS[name].per_user:
            lora = self.config.evaluation.per_user_lora.model_dump(exclude={"enabled", "users"})
            settings["per_user_lora"] = lora | {"seed": self.config.seed}
        if METHODS[name].copies:
            settings["copied"] = self.config.evaluation.copied.token_budget
        return facts | settings | truths

    def method_stamp(self, name: str) -> str:
        return stamp_of(self.method_settings(name))

    def run_method(self, name: str, progress: Progress, task: TaskID) -> None:
        """Compute a method's missing rows and write its file.

        Raises:
            RunError: existing rows were made under other settings, and changes are refused; the message lists them.
        """
        settings, path = self.method_settings(name), self.folder / f"{name}.jsonl"
        stamp, expected = stamp_of(settings), self.expected(name)
        before = self.finished.get(name, {})
        if before.get("stamp") == stamp and before["rows"] == len(expected) and not before.get("missing"):
            if path.is_file():
                progress.update(task, completed=len(expected), note="already scored")
                return
        store = self._stored_rows(name, settings, before)
        done = set(store.rows) & set(expected)
        progress.update(task, completed=len(done))
        started = time.perf_counter()
        if len(done) < len(expected):
            for block in self._blocks(name, done, progress, task):
                store.extend(block)
                progress.advance(task, len(block))
        store.close()
        rows = [store.rows[key] for key in expected if key in store.rows]
        check_rows(name, rows, expected)
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        missing = sum(map(_is_missing, rows))
        seconds = time.perf_counter() - started + (before["seconds"] if before.get("stamp") == stamp else 0)
        facts = {"stamp": stamp, "rows": len(rows), "seconds": round(seconds, 2), "missing": missing}
        self.finished[name] = facts | {"settings": brief(settings)}
        write_text(self.folder / FINISHED, json.dumps(self.finished, indent=2) + "\n")
        if not missing:  # otherwise the partial file is needed to fill the gaps later
            store.path.unlink(missing_ok=True)
        progress.update(task, note=f"{missing} missing" if missing else "")

    def refuse_empty(self, name: str) -> None:
        """Raise UpstreamError, with the first row's reason, if a model behind an API scored none of a method's rows."""
        if self.finished[name]["rows"] and self.finished[name].get("missing") == self.finished[name]["rows"]:
            reason = read_rows(self.folder / f"{name}.jsonl")[0]["missing"]
            raise UpstreamError(f"no target pair could be scored under {name}: {reason}")

    def _stored_rows(self, name: str, settings: dict[str, Any], before: dict[str, Any]) -> ResumableRows:
        """A method's existing rows. Rows made under other settings are dropped, or an error."""
        path = self.folder / f"{name}.part.jsonl"
        brief_settings = brief(settings)
        advice = "put this evaluation elsewhere (for a grid: another name=…)"
        if self.refuse_changes:
            changed = differences(before["settings"], brief_settings) if "settings" in before else []
            if changed:
                raise RunError(
                    f"{self.folder / name}.jsonl was made under other settings:\n  "
                    + "\n  ".join(changed)
                    + f"\nrestore those settings, or {advice}"
                )
        elif settings_of(path) != brief_settings:
            path.unlink(missing_ok=True)
        store = ResumableRows(path, brief_settings, ("window", "target"), resume=True, again=_is_missing, advice=advice)
        finished = self.folder / f"{name}.jsonl"
        if not store.rows and before.get("stamp") == stamp_of(settings) and finished.is_file():
            store.extend(row for row in read_rows(finished) if row.get("missing") is None and "messages" in row)
        return store

    def _blocks(self, name: str, done: Collection[RowKey], progress: Progress, task: TaskID) -> Iterator[list[Row]]:
        """A method's remaining rows, as they are computed."""
        method = METHODS[name]
        facts = self.benchmark | {"method": name, "models": self.models.describe(name), "users": self.users_stamp}
        facts |= {"seed": self.config.seed, "commit": self.commit}
        if method.per_user:
            generator = self.models.generator(self.models.untrained)
            people = self.people[: self.config.evaluation.per_user_lora.users]
            facts |= model_facts(generator)
            for block in per_user_blocks(generator, people, self._reference(), self.config, done):
                yield [facts | row for row in block]
            return
        path = self.models.generator_path(method)
        generator = self.models.generator(path)
        facts |= model_facts(generator)
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
        """A method's context for each user's task prompts; missing summaries are written first."""
        method = METHODS[name]

        def summarize(users: Sequence[Person]) -> list[tuple[Summary, ...]]:
            return self.summaries_by(self.models.inference_path(method), progress, task)

        def ask(users: Sequence[Person], prompt: str | None) -> list[tuple[Summary, ...]]:
            chosen = self.prompts()["chosen"] if prompt is None else prompt
            return self.summaries_by(self.models.inference_path(method), progress, task, chosen)

        return method.contexts(self.models.sources(method, summarize, ask), self.people)

    def prompts(self) -> dict[str, Any]:
        """The untrained inference model's best prompt, and the accuracy of each prompt."""
        if self._prompts is None:
            self._prompts = choose(self.models, self.summaries)
        return self._prompts

    def _truths(self, contexts: Sequence[Context]) -> dict[int, Row]:
        """Window → the attributes that the (first target's) summary names and the user prefers, if both are known."""
        return {
            window: {
                "named": sorted(map(list, named_attributes(summary.text))),
                "preferred": sorted(map(list, person.preferences)),
            }
            for window, (person, context) in enumerate(zip(self.people, contexts, strict=True))
            if person.preferences is not None and (summary := context.summary(0)) is not None
        }

    def summaries_by(self, path: str, progress: Progress, task: TaskID, prompt: str = OWN) -> list[tuple[Summary, ...]]:
        """Greedy summaries of all users by an inference model, shared by all methods and generators."""
        key = path, prompt
        if key not in self.written:

            def report(done: int) -> None:
                progress.update(task, note=f"summaries {done}/{len(self.people)}")

            self.written[key] = stored_summaries(
                self.summaries, path, self.models, self.people, self.users_stamp, report, prompt
            )
            progress.update(task, note="")
        return self.written[key]

    def _reference(self) -> dict[RowKey, tuple[float, float]]:
        """The reference's log-probs, from the rows without personalisation."""
        rows = read_rows(self.folder / f"{REFERENCE}.jsonl")
        return logps_of(row for row in rows if row.get("missing") is None)

    def summaries_of(self, name: str) -> dict[RowKey, str | None]:
        """(window, target) → the summary stored in a method's file."""
        rows = read_rows(self.folder / f"{name}.jsonl")
        return {(row["window"], row["target"]): row["summary"] for row in rows}

    def metrics(self, names: Sequence[str]) -> dict[str, Any]:
        """The contents of metrics.json, from the methods' files."""
        rows_of, seconds = {}, {}
        for name in names:
            rows_of[name] = read_rows(self.folder / f"{name}.jsonl")
            check_rows(name, rows_of[name], self.expected(name))
            seconds[name] = self.finished[name]["seconds"]
        file = self.folder / "examples.json"  # absent in the cells of a grid
        examples = json.loads(file.read_text(encoding="utf-8"))["users"] if file.is_file() else []
        return {
            "commit": self.commit,
            "config": self.config.model_dump(mode="json"),
            "seed": self.config.seed,
            "versions": versions(),
            "n_users": len({person.user.user_id for person in self.people}),
            "n_pairs": len(self.expected(REFERENCE)),
            **measure(rows_of, self.config, self.people, examples),
            **({"prompts": self.prompts()} if "untrained_summary" in names else {}),
            "seconds": {"evaluation": round(sum(seconds.values()), 2)} | seconds,
        }


def check_rows(name: str, rows: Sequence[Row], expected: Sequence[RowKey]) -> None:
    """Check that every target pair occurs exactly once.

    Raises:
        RunError: rows are missing or duplicated.
    """
    keys = [(row["window"], row["target"]) for row in rows]
    if keys != list(expected):
        missing, twice = len(set(expected) - set(keys)), len(keys) - len(set(keys))
        raise RunError(
            f"evaluation of {name}: {len(keys)} rows for {len(expected)} target pairs ({missing} missing, {twice} "
            f"duplicated); delete {name}.jsonl in the run's evaluation folder and evaluate again"
        )


def read_rows(path: Path) -> list[Row]:
    """The rows of a method's file, ordered by user and target."""
    try:
        with path.open(encoding="utf-8") as lines:  # splitlines() would also cut at U+2028 inside a summary
            return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); delete it and evaluate again") from None


def logps_of(rows: Iterable[Row]) -> dict[RowKey, tuple[float, float]]:
    """(window, target) → log-probs of the chosen and the rejected response, for rows that have them."""
    return {(row["window"], row["target"]): (row["chosen_logp"], row["rejected_logp"]) for row in rows}


def _finished(path: Path) -> dict[str, Any]:
    """Scored methods and their stamps; empty for a damaged file, so that all are scored again."""
    try:
        marks = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}


def _is_missing(row: Row) -> bool:
    return row["missing"] is not None


def brief(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings with long lists replaced by hashes, as the header of a file of rows."""
    return {key: stamp_of(value) if key == "oracles" else value for key, value in settings.items()}


def model_facts(generator: Generator) -> dict[str, Any]:
    """What a row records about its generator, beyond the name."""
    templates = generator.templates
    return {"template": templates.name, "template_stamp": templates.stamp, "revision": generator.backend.revision}
