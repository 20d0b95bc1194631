"""Write summaries of users whose signals arrive in batches, after each batch, renewed or from scratch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from popi.evaluation.users import users_stamp
from popi.inference_model import InferenceModel
from popi.runs.formats import current_names
from popi.signals.fading import HALF_LIFE
from popi.signals.renewal import MIN_SIGNALS, becomes_base, first_read
from popi.signals.types import Signal
from popi.studies.streaming.batches import Streamed, batches
from popi.studies.study import Row, Study
from popi.summary import Summary

Way = Literal["renewed", "from scratch"]
WAYS: tuple[Way, ...] = ("renewed", "from scratch")


@dataclass(frozen=True)
class After:
    """A user's summary after a batch.

    Attributes:
        summary: the summary.
        seen: number of the user's signals so far.
        read: tokens of the prompt for this summary; 0 if the batch was empty.
    """

    summary: Summary
    seen: int
    read: int


@dataclass
class Writer:
    """An inference model with a cache of its summaries.

    Attributes:
        study: provides the models.
        name: name of the method whose inference model writes.
        min_signals: signals until a summary becomes the base of renewals (popi.signals.renewal).
    """

    study: Study
    name: str
    min_signals: int = MIN_SIGNALS
    _model: InferenceModel | None = None
    _known: dict[tuple[str, str], tuple[Summary, int]] = field(default_factory=dict)

    def after_each(self, users: Sequence[Streamed], kind: str, n: int, way: Way) -> list[list[After]]:
        """Each user's summary after each of `n` batches; stored in the evaluation's `studies/`."""
        people = [user.person for user in users]
        facts = {"streaming": way, "batches": n, "users": users_stamp(people), "half_life": HALF_LIFE}
        if way == "renewed":
            facts["min_signals"] = self.min_signals
        rows = self.study.cached(self.name, f"streaming {kind} {n} {way}", facts, lambda: self._write(users, n, way))
        after: list[list[After]] = [[] for _ in users]
        for row in rows:
            fields = current_names(row["summary"])
            lists = {name: tuple(fields[name]) for name in ("signals_dropped", "removed_content")}
            summary = Summary(**fields | lists)
            after[row["window"]].append(After(summary, row["seen"], row["read"]))
        return after

    @property
    def model(self) -> InferenceModel:
        """The inference model, loaded on first access."""
        if self._model is None:
            self._model = self.study.inference_model(self.name)
        return self._model

    def _write(self, users: Sequence[Streamed], n: int, way: Way) -> list[Row]:
        parts = [batches(user.person.user.signals, n) for user in users]
        last: list[Summary | None] = [None] * len(users)
        base: list[Summary | None] = [None] * len(users)  # stays None when writing from scratch
        rows: list[Row] = []
        for b in range(n):
            seen = [[signal for part in p[: b + 1] for signal in part] for p in parts]
            due = [w for w in range(len(users)) if parts[w][b]]
            base_read = [summary.signals_total if summary is not None else 0 for summary in base]
            shown = [seen[w][first_read(base_read[w], len(seen[w]), self.min_signals) :] for w in due]
            written = self._summarize(shown, [base[w] for w in due])
            read = dict.fromkeys(range(len(users)), 0)
            for w, (summary, tokens) in zip(due, written, strict=True):
                last[w], read[w] = summary, tokens
                if way == "renewed" and becomes_base(base_read[w], len(seen[w]), self.min_signals):
                    base[w] = replace(summary, signals_total=len(seen[w]))
            for w in range(len(users)):
                latest = last[w] or self.model.summarize([])
                rows.append({"window": w, "batch": b, "seen": len(seen[w]), "read": read[w], "summary": asdict(latest)})
        return rows

    def _summarize(
        self, signals: Sequence[Sequence[Signal]], bases: Sequence[Summary | None]
    ) -> list[tuple[Summary, int]]:
        keys = [
            (
                "\n".join(signal.model_dump_json() for signal in part),
                "" if old is None else f"{old.signals_total} {old.text}",
            )
            for part, old in zip(signals, bases, strict=True)
        ]
        todo = {key: i for i, key in enumerate(keys) if key not in self._known}
        parts, previous = [signals[i] for i in todo.values()], [bases[i] for i in todo.values()]
        summaries = self.model.summarize_many(parts, previous=previous)
        for key, part, old, summary in zip(todo, parts, previous, summaries, strict=True):
            self._known[key] = summary, len(self.model.prompt_ids(part, None, old)[0])
        return [self._known[key] for key in keys]
