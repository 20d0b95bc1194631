"""The summaries of users whose signals come in batches: after each batch, renewed or from scratch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from popi.evaluation.users import users_stamp
from popi.inference_model import InferenceModel
from popi.signals.fading import HALF_LIFE
from popi.signals.renewal import LEAST, becomes_base, first_read
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
        summary: what it says.
        seen: how many of the user's signals had come by then.
        read: tokens of the prompt that it was written from; 0 where the batch brought nothing.
    """

    summary: Summary
    seen: int
    read: int


@dataclass
class Writer:
    """An inference model, and what it wrote: the same is not written twice.

    Attributes:
        study: whose models.
        name: of the method whose inference model writes.
        least: signals until a summary is renewed upon, as popi.signals.renewal has it.
    """

    study: Study
    name: str
    least: int = LEAST
    _model: InferenceModel | None = None
    _known: dict[tuple[str, str], tuple[Summary, int]] = field(default_factory=dict)

    def after_each(self, users: Sequence[Streamed], kind: str, n: int, way: Way) -> list[list[After]]:
        """For each user the summary after each of `n` batches; kept in the evaluation's `studies/`."""
        people = [one.person for one in users]
        facts = {"streaming": way, "batches": n, "users": users_stamp(people), "half_life": HALF_LIFE}
        if way == "renewed":
            facts["least"] = self.least
        rows = self.study.kept(self.name, f"streaming {kind} {n} {way}", facts, lambda: self._write(users, n, way))
        found: list[list[After]] = [[] for _ in users]
        for row in rows:
            told = row["summary"]
            lists = {name: tuple(told[name]) for name in ("signals_dropped", "left_out")}
            summary = Summary(**told | lists)
            found[row["window"]].append(After(summary, row["seen"], row["read"]))
        return found

    @property
    def model(self) -> InferenceModel:
        """The inference model, loaded when it is first asked for."""
        if self._model is None:
            self._model = self.study.inference_model(self.name)
        return self._model

    def _write(self, users: Sequence[Streamed], n: int, way: Way) -> list[Row]:
        parts = [batches(one.person.user.signals, n) for one in users]
        last: list[Summary | None] = [None] * len(users)
        base: list[Summary | None] = [None] * len(users)  # from scratch: none, ever
        rows: list[Row] = []
        for b in range(n):
            seen = [[signal for part in p[: b + 1] for signal in part] for p in parts]
            due = [w for w in range(len(users)) if parts[w][b]]
            behind = [one.rests_on if one is not None else 0 for one in base]
            shown = [seen[w][first_read(behind[w], len(seen[w]), self.least) :] for w in due]
            written = self._ask(shown, [base[w] for w in due])
            read = dict.fromkeys(range(len(users)), 0)
            for w, (summary, tokens) in zip(due, written, strict=True):
                last[w], read[w] = summary, tokens
                if way == "renewed" and becomes_base(behind[w], len(seen[w]), self.least):
                    base[w] = replace(summary, rests_on=len(seen[w]))
            for w in range(len(users)):
                told = last[w] or self.model.summarize([])
                rows.append({"window": w, "batch": b, "seen": len(seen[w]), "read": read[w], "summary": asdict(told)})
        return rows

    def _ask(self, signals: Sequence[Sequence[Signal]], olds: Sequence[Summary | None]) -> list[tuple[Summary, int]]:
        keys = [
            ("\n".join(one.model_dump_json() for one in part), "" if old is None else f"{old.rests_on} {old.text}")
            for part, old in zip(signals, olds, strict=True)
        ]
        todo = {key: i for i, key in enumerate(keys) if key not in self._known}
        asked, before = [signals[i] for i in todo.values()], [olds[i] for i in todo.values()]
        found = self.model.summarize_many(asked, previous=before)
        for key, part, old, summary in zip(todo, asked, before, found, strict=True):
            self._known[key] = summary, len(self.model.prompt_ids(part, None, old)[0])
        return [self._known[key] for key in keys]
