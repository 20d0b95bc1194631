"""Has every pair of responses judged in both orders and saves each verdict as it arrives."""

from collections.abc import Sequence
from dataclasses import dataclass

from popi.data.users import Person
from popi.errors import RunError
from popi.evaluation.judge.question import Judge, Missing, Progress, Question, Verdict
from popi.evaluation.methods import RowKey
from popi.runs.rows import ResumableRows, Row
from popi.signals.render import flat

KEY = ("window", "target", "order")
ORDERS = ("method first", "against first")
IDENTICAL = "identical responses"
"""The reason recorded for a tie without asking the judge."""
_SCORE: dict[Verdict, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True)
class Comparison:
    """Both methods' responses to one task prompt of one user, judged in both orders.

    Attributes:
        key: indices of window and target.
        user_id: the user.
        prompt: the task prompt as text.
        ours, theirs: the responses of the method and of its opponent; None if missing.
        verdicts: with the method's response shown first, and second; None if missing.
        missing: (kind, reason) of each missing verdict.
    """

    key: RowKey
    user_id: str
    prompt: str
    ours: str | None
    theirs: str | None
    verdicts: tuple[Verdict | None, Verdict | None]
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def identical(self) -> bool:
        """Whether the responses are identical, which is a tie without asking the judge."""
        return self.ours is not None and self.ours == self.theirs

    @property
    def outcome(self) -> float | None:
        """The method's score in [0, 1]: the mean over both orders, ½ for a tie. None if a verdict is missing.

        A single order does not count, because a judge's preference for the first response would bias it.
        """
        straight, swapped = self.verdicts
        return None if straight is None or swapped is None else (_SCORE[straight] + 1 - _SCORE[swapped]) / 2

    @property
    def agrees(self) -> bool:
        """Whether both orders favour the same response, or both are a tie."""
        straight, swapped = self.verdicts
        return straight is not None and swapped is not None and _SCORE[straight] == 1 - _SCORE[swapped]


def ask_again(row: Row) -> bool:
    """Whether to retry a stored row's question on resume: only if there was no answer."""
    return row["missing"] in ("no response", "failed")


def compare(
    judge: Judge,
    people: Sequence[Person],
    ours: dict[RowKey, str | None],
    theirs: dict[RowKey, str | None],
    store: ResumableRows,
    progress: Progress,
) -> list[Comparison]:
    """Have every pair judged in both orders, except for stored verdicts.

    Args:
        judge: the judge.
        people: the users, by window.
        ours, theirs: (window, target) → response, with the same keys in the same order.
        store: receives a row for each pair and order: everything that the judge was shown, and its verdict.
        progress: called with the number of verdicts so far and in total.

    Raises:
        RunError: the file holds verdicts on other responses.
    """
    rows: list[Row] = []
    questions: list[Question] = []
    for key in ours:
        for order in ORDERS:
            row = _row(people, key, order, ours[key], theirs[key])
            before = store.rows.get((*key, order))
            if before is not None:
                if any(before[side] != row[side] for side in ("first", "second")):
                    raise RunError(f"{store.path}: holds verdicts on other responses; name another --out")
            elif row["first"] is None or row["second"] is None:
                store.add(row | {"missing": "no response", "reason": "a method gave no response"})
            elif row["first"] == row["second"]:
                store.add(row | {"verdict": "tie", "reason": IDENTICAL})
            else:
                rows.append(row)
                prompt = people[key[0]].user.targets[key[1]].prompt
                questions.append(Question(people[key[0]], prompt, row["first"], row["second"]))
    done = 0

    def decided(index: int, verdict: Verdict | Missing) -> None:
        nonlocal done
        if isinstance(verdict, Missing):
            store.add(rows[index] | {"missing": verdict.kind, "reason": verdict.reason})
        else:
            store.add(rows[index] | {"verdict": verdict})
        done += 1
        progress("verdicts", 2 * len(ours) - len(questions) + done, 2 * len(ours))

    try:
        if questions:
            judge.ask(questions, decided)
    finally:
        store.close()
    return [_comparison(people, key, ours[key], theirs[key], store) for key in ours]


def _row(people: Sequence[Person], key: RowKey, order: str, ours: str | None, theirs: str | None) -> Row:
    user = people[key[0]].user
    first, second = (ours, theirs) if order == ORDERS[0] else (theirs, ours)
    return {
        "user_id": user.user_id,
        "window": key[0],
        "target": key[1],
        "order": order,
        "prompt": flat(user.targets[key[1]].prompt),
        "first": first,
        "second": second,
        "verdict": None,
        "missing": None,
        "reason": None,
    }


def _comparison(
    people: Sequence[Person], key: RowKey, ours: str | None, theirs: str | None, store: ResumableRows
) -> Comparison:
    user = people[key[0]].user
    straight, swapped = (store.rows[(*key, order)] for order in ORDERS)
    missing = tuple((row["missing"], row["reason"]) for row in (straight, swapped) if row["missing"])
    verdicts = straight["verdict"], swapped["verdict"]
    return Comparison(key, user.user_id, flat(user.targets[key[1]].prompt), ours, theirs, verdicts, missing)
