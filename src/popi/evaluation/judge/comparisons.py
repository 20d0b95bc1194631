"""Every pair of responses in both orders, each verdict kept as it comes."""

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
"""The reason that stands beside a tie that nobody was asked about."""
_WON: dict[Verdict, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True)
class Comparison:
    """Both methods' responses to one task prompt of one user, judged in both orders.

    Attributes:
        key: index of window and target.
        user_id: whose it is.
        prompt: the task prompt as text.
        ours, theirs: the response of the method and of what it is compared with; None where there is none.
        verdicts: with the method's response first, and second; None where missing.
        missing: per missing verdict its kind and reason.
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
        """Whether the responses are the same text: a tie that nobody was asked about."""
        return self.ours is not None and self.ours == self.theirs

    @property
    def outcome(self) -> float | None:
        """What the method won, 0 … 1: the mean over both orders, a tie ½. None where a verdict is missing.

        One order alone does not count: a judge's leaning to the first response would count with it.
        """
        straight, swapped = self.verdicts
        return None if straight is None or swapped is None else (_WON[straight] + 1 - _WON[swapped]) / 2

    @property
    def agrees(self) -> bool:
        """Whether both orders name the same response, or both a tie."""
        straight, swapped = self.verdicts
        return straight is not None and swapped is not None and _WON[straight] == 1 - _WON[swapped]


def ask_again(row: Row) -> bool:
    """Whether a resume asks a kept row's question again: its verdict never came. What was answered is kept."""
    return row["missing"] in ("no response", "failed")


def compare(
    judge: Judge,
    people: Sequence[Person],
    ours: dict[RowKey, str | None],
    theirs: dict[RowKey, str | None],
    kept: ResumableRows,
    progress: Progress,
) -> list[Comparison]:
    """Have every pair judged in both orders; what the file holds is not asked again.

    Args:
        judge: decides.
        people: the users, by window.
        ours, theirs: (window, target) → response, of the same keys in the same order.
        kept: gets a row for each pair and order: everything that the judge was asked, and its verdict.
        progress: told how many of how many verdicts are there.

    Raises:
        RunError: the file holds verdicts on other responses.
    """
    rows: list[Row] = []
    questions: list[Question] = []
    for key in ours:
        for order in ORDERS:
            row = _row(people, key, order, ours[key], theirs[key])
            before = kept.rows.get((*key, order))
            if before is not None:
                if any(before[side] != row[side] for side in ("first", "second")):
                    raise RunError(f"{kept.path}: holds verdicts on other responses; name another --out")
            elif row["first"] is None or row["second"] is None:
                kept.add(row | {"missing": "no response", "reason": "a method gave no response"})
            elif row["first"] == row["second"]:
                kept.add(row | {"verdict": "tie", "reason": IDENTICAL})
            else:
                rows.append(row)
                prompt = people[key[0]].user.targets[key[1]].prompt
                questions.append(Question(people[key[0]], prompt, row["first"], row["second"]))
    done = 0

    def decided(index: int, verdict: Verdict | Missing) -> None:
        nonlocal done
        if isinstance(verdict, Missing):
            kept.add(rows[index] | {"missing": verdict.kind, "reason": verdict.reason})
        else:
            kept.add(rows[index] | {"verdict": verdict})
        done += 1
        progress("verdicts", 2 * len(ours) - len(questions) + done, 2 * len(ours))

    try:
        if questions:
            judge.ask(questions, decided)
    finally:
        kept.close()
    return [_comparison(people, key, ours[key], theirs[key], kept) for key in ours]


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
    people: Sequence[Person], key: RowKey, ours: str | None, theirs: str | None, kept: ResumableRows
) -> Comparison:
    user = people[key[0]].user
    straight, swapped = (kept.rows[(*key, order)] for order in ORDERS)
    missing = tuple((row["missing"], row["reason"]) for row in (straight, swapped) if row["missing"])
    verdicts = straight["verdict"], swapped["verdict"]
    return Comparison(key, user.user_id, flat(user.targets[key[1]].prompt), ours, theirs, verdicts, missing)
