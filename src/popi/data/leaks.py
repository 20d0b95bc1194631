"""Target pairs that test nothing: their answer stands in the same user's signals, or the models were trained on it.

Files are checked when they are read (popi.data.check) and benchmarks when they are cut into users. This is the last
look at what is about to be scored, whatever the source.

What training users of *other* names preferred is no leak: people who judge the same pair are how a population is
learned, and many sets show one pair to many people.
"""

import json
from collections.abc import Iterable, Iterator, Sequence

from popi.data.jsonl import Problem, listing
from popi.errors import DataError
from popi.signals.similarity import leak, normal, prompt_text
from popi.signals.types import PairSignal, TargetPair, User

PairKey = tuple[str, frozenset[str]]
"""A prompt and its two responses, folded; whichever was preferred."""


def refuse_leaks(users: Sequence[User], source: str, trained: Iterable[User] = ()) -> None:
    """Refuse held-out users whose targets tell nothing.

    Args:
        users: the held-out users; windows of one user share its id.
        source: the file, or the name of the set, for the message.
        trained: the users that the models were trained on.

    Raises:
        DataError: a target stands among the same user's signals, exactly, swapped or nearly; or the training knew it as
            that user's; or a user with the same signals and targets was trained on under another name. The message
            names source, user and target of each.
    """
    problems = [*_among_signals(users), *_trained_on(users, trained)]
    if problems:
        raise DataError(listing(source, problems))


def _among_signals(users: Sequence[User]) -> Iterator[Problem]:
    for user in users:
        for t, target in enumerate(user.targets):
            for s, signal in enumerate(user.signals):
                if how := leak(target, signal):
                    yield _problem(user, t, f"{how} signals[{s}]")
                    break


def _trained_on(users: Sequence[User], trained: Iterable[User]) -> Iterator[Problem]:
    tested = {user.user_id for user in users}
    known: dict[str, set[PairKey]] = {}
    records: dict[str, str] = {}
    for user in trained:
        records[_record(user)] = user.user_id
        if user.user_id in tested:
            mine = known.setdefault(user.user_id, set())
            mine.update(map(_key, user.targets))
            mine.update(_key(signal) for signal in user.signals if isinstance(signal, PairSignal))
    if not records:
        return
    for user in users:
        if (twin := records.get(_record(user))) is not None:
            yield _problem(user, 0, f"the models were trained on this very user, as {twin!r}")
            continue
        for t, target in enumerate(user.targets):
            if _key(target) in known.get(user.user_id, ()):
                yield _problem(user, t, "the models were trained on this pair of this user")


def _problem(user: User, target: int, message: str) -> Problem:
    return Problem(0, "leak", f"user {user.user_id!r}, targets[{target}]", message)


def _key(pair: TargetPair | PairSignal) -> PairKey:
    return normal(prompt_text(pair.prompt)).text, frozenset((normal(pair.chosen).text, normal(pair.rejected).text))


def _record(user: User) -> str:
    """Everything of a user but for their name, and ids and times of signals."""
    signals = [signal.model_dump(mode="json", exclude={"id", "time"}) for signal in user.signals]
    return json.dumps([signals, [target.model_dump(mode="json") for target in user.targets]])
