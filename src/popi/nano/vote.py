"""The simplest reader of the nano world: a vote over the values shown in a user's pairs and edits, without a model.

A value gets a vote for each pair (or edit) where only the better text shows it, and loses one where only the worse text
does. Values with enough votes are named; the required lead is tuned on training users.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from popi.nano.attributes import ATTRIBUTES, Preference
from popi.nano.truth import shown_values
from popi.nano.world import state
from popi.signals.types import InteractionSignal, PairSignal, Signal, TargetPair, User

LEADS = range(1, 8)


def votes(signals: Sequence[Signal]) -> Counter[Preference]:
    """Votes for every value that differs within a pair or an edit."""
    counts: Counter[Preference] = Counter()
    for signal in signals:
        if isinstance(signal, PairSignal):
            better, worse = signal.chosen, signal.rejected
        elif isinstance(signal, InteractionSignal) and signal.edit is not None:
            better, worse = signal.edit, signal.response
        else:
            continue
        counts.update(shown_values(better))
        counts.subtract(shown_values(worse))
    return counts


def named(counted: Counter[Preference], lead: int) -> list[Preference]:
    """Each attribute's value with the most votes, if it has at least `lead`."""
    best = [max(((a, v) for v in values), key=lambda one: counted[one]) for a, values in ATTRIBUTES.items()]
    return sorted(one for one in best if counted[one] >= lead)


def summary(signals: Sequence[Signal], lead: int) -> str:
    """The values with enough votes, as a summary."""
    return state(named(votes(signals), lead))


def differences(target: TargetPair) -> dict[Preference, int]:
    """Values in which the two responses differ: 1 if only the chosen one shows it, −1 if only the rejected one does."""
    chosen, rejected = shown_values(target.chosen), shown_values(target.rejected)
    return {one: (one in chosen) - (one in rejected) for one in chosen ^ rejected}


def choice(preferences: Iterable[Preference], differing: Mapping[Preference, int]) -> float:
    """1 if the preferences favour the chosen response, 0 for the rejected one, ½ for neither."""
    balance = sum(differing.get(one, 0) for one in preferences)
    return 1.0 if balance > 0 else 0.0 if balance < 0 else 0.5


def best_lead(users: Iterable[User]) -> int:
    """The lead that predicts most of these users' target pairs correctly; the smallest one in case of a tie."""
    people = [(votes(user.signals), [differences(target) for target in user.targets]) for user in users]

    def right(lead: int) -> float:
        return sum(choice(named(counted, lead), target) for counted, targets in people for target in targets)

    return max(LEADS, key=right)
