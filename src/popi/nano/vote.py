"""The simplest reader of the nano world: a vote over the marked values of a user's pairs and edits. No model.

A value gets a vote for each pair (or edit) whose better text shows it and whose worse text does not, and loses one
where it is the other way round. What leads by enough is named; the lead is chosen on training users.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from popi.nano.attributes import ATTRIBUTES, Preference
from popi.nano.truth import shown_values
from popi.nano.world import state
from popi.signals.types import InteractionSignal, PairSignal, Signal, TargetPair, User

LEADS = range(1, 8)


def votes(signals: Sequence[Signal]) -> Counter[Preference]:
    """Votes of every value that differs in a pair or an edit."""
    found: Counter[Preference] = Counter()
    for signal in signals:
        if isinstance(signal, PairSignal):
            better, worse = signal.chosen, signal.rejected
        elif isinstance(signal, InteractionSignal) and signal.edit is not None:
            better, worse = signal.edit, signal.response
        else:
            continue
        found.update(shown_values(better))
        found.subtract(shown_values(worse))
    return found


def named(counted: Counter[Preference], lead: int) -> list[Preference]:
    """Of each attribute the value with most votes, where it has `lead` or more."""
    best = [max(((a, v) for v in values), key=lambda one: counted[one]) for a, values in ATTRIBUTES.items()]
    return sorted(one for one in best if counted[one] >= lead)


def summary(signals: Sequence[Signal], lead: int) -> str:
    """What is named, as a summary."""
    return state(named(votes(signals), lead))


def differences(target: TargetPair) -> dict[Preference, int]:
    """What the two responses differ in: 1 for a value that the chosen one alone shows, −1 for the other's."""
    chosen, rejected = shown_values(target.chosen), shown_values(target.rejected)
    return {one: (one in chosen) - (one in rejected) for one in chosen ^ rejected}


def choice(preferences: Iterable[Preference], differing: Mapping[Preference, int]) -> float:
    """1 where the preferences speak for the chosen response, 0 for the rejected one, ½ for neither."""
    balance = sum(differing.get(one, 0) for one in preferences)
    return 1.0 if balance > 0 else 0.0 if balance < 0 else 0.5


def best_lead(users: Iterable[User]) -> int:
    """The lead that tells most target pairs of these users right, the smallest of equals; no model is asked."""
    people = [(votes(user.signals), [differences(target) for target in user.targets]) for user in users]

    def right(lead: int) -> float:
        return sum(choice(named(counted, lead), target) for counted, targets in people for target in targets)

    return max(LEADS, key=right)
