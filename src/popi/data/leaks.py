"""Find leaked target pairs: the answer appears in the same user's signals, or the models were trained on it.

Files are checked when they are read (popi.data.check) and benchmarks when they are cut into users. This is the final
check before scoring, for every source.

The preferences of training users with *other* ids are not a leak: a population is learned from people who judge the
same pair, and many datasets show one pair to many people.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence

from popi.data.jsonl import PROGRESS_EVERY, Problem, listing
from popi.data.store import Progress
from popi.errors import DataError
from popi.signals.similarity import leak, normal, prompt_text
from popi.signals.types import PairSignal, TargetPair, User

PairKey = tuple[str, frozenset[str]]
"""A normalised prompt and its two normalised responses, regardless of which was preferred."""


def refuse_leaks(
    users: Sequence[User], source: str, trained: Sequence[User] = (), report: Progress | None = None
) -> None:
    """Refuse held-out users with leaked targets. Memory grows with the held-out users, not with the training users.

    Args:
        users: the held-out users; windows of one user share an id.
        source: the file or dataset name, for the message.
        trained: the users that the models were trained on.
        report: called with the number of training users compared so far.

    Raises:
        DataError: if a target appears among the same user's signals, exactly, swapped or nearly; if it was a training
            pair of that user; or if a user with the same signals and targets was trained on under another id. The
            message lists the source, user and target of each leak.
    """
    problems = [*_among_signals(users), *_trained_on(users, trained, report)]
    if problems:
        raise DataError(listing(source, problems))


def _among_signals(users: Sequence[User]) -> Iterator[Problem]:
    for user in users:
        for t, target in enumerate(user.targets):
            for s, signal in enumerate(user.signals):
                if how := leak(target, signal):
                    yield _problem(user, t, f"{how} signals[{s}]")
                    break


def _trained_on(users: Sequence[User], trained: Sequence[User], report: Progress | None) -> Iterator[Problem]:
    if not trained:
        return
    tested = {user.user_id for user in users}
    twins: dict[bytes, str | None] = {_record(user): None for user in users}
    known: dict[str, set[PairKey]] = {}
    for n, user in enumerate(trained, start=1):
        if (record := _record(user)) in twins:
            twins[record] = user.user_id
        if user.user_id in tested:
            pairs = known.setdefault(user.user_id, set())
            pairs.update(map(_key, user.targets))
            pairs.update(_key(signal) for signal in user.signals if isinstance(signal, PairSignal))
        if report and (n % PROGRESS_EVERY == 0 or n == len(trained)):
            report("comparing with training users", n, len(trained))
    for user in users:
        if (twin := twins[_record(user)]) is not None:
            yield _problem(user, 0, f"the models were trained on this same user, as {twin!r}")
            continue
        for t, target in enumerate(user.targets):
            if _key(target) in known.get(user.user_id, ()):
                yield _problem(user, t, "the models were trained on this pair of this user")


def _problem(user: User, target: int, message: str) -> Problem:
    return Problem(0, "leak", f"user {user.user_id!r}, targets[{target}]", message)


def _key(pair: TargetPair | PairSignal) -> PairKey:
    return normal(prompt_text(pair.prompt)).text, frozenset((normal(pair.chosen).text, normal(pair.rejected).text))


def _record(user: User) -> bytes:
    """A hash of a user's signals and targets, ignoring the user id and the signals' ids and times."""
    signals = [signal.model_dump(mode="json", exclude={"id", "time"}) for signal in user.signals]
    content = json.dumps([signals, [target.model_dump(mode="json") for target in user.targets]])
    return hashlib.sha256(content.encode()).digest()
