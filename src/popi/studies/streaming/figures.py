"""Drift, and how soon a changed preference is stated: pure functions of the preferences that summaries name.

A summary states an attribute *correctly* if it names the value preferred at that time and no other value of it.

- **Drift**: of the attributes stated correctly before a renewal and whose truth did not change, the share that is no
  longer stated correctly after it.
- **Wait** (`until_stated`): the number of summaries after a preference's change until one states the new value, 1 for
  the first summary that has read a signal from after the change. If none does, it is one more than the number of
  summaries.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

Preference = tuple[str, str]


@dataclass(frozen=True)
class Stream:
    """The preferences named by a user's summaries after each batch, and the true ones.

    Attributes:
        named: for each batch, the (attribute, value) pairs that the summary names.
        changed: for each batch, whether the summary has read signals from after the change.
        before: preferences before the change; equal to `preferred` for users who do not change.
        preferred: final preferences.
    """

    named: Sequence[AbstractSet[Preference]]
    changed: Sequence[bool]
    before: Mapping[str, str]
    preferred: Mapping[str, str]

    def truth(self, batch: int) -> Mapping[str, str]:
        """The preferences at the time of the batch."""
        return self.preferred if self.changed[batch] else self.before

    def right(self, batch: int) -> set[str]:
        """Attributes that the summary after a batch states correctly."""
        stated: dict[str, set[str]] = {}
        for attribute, value in self.named[batch]:
            stated.setdefault(attribute, set()).add(value)
        return {attribute for attribute, value in self.truth(batch).items() if stated.get(attribute) == {value}}


def lost(stream: Stream) -> tuple[int, int]:
    """Over a user's renewals: the number of correctly stated attributes that were lost, and that could have been."""
    gone = total = 0
    for batch in range(1, len(stream.named)):
        now, then = stream.truth(batch), stream.truth(batch - 1)
        unchanged = {attribute for attribute in stream.right(batch - 1) if now.get(attribute) == then.get(attribute)}
        total += len(unchanged)
        gone += len(unchanged - stream.right(batch))
    return gone, total


def until_stated(stream: Stream) -> list[int]:
    """The wait for each changed preference of a user (see the module's docstring)."""
    after = [batch for batch, changed in enumerate(stream.changed) if changed]
    waits = []
    for attribute, value in stream.preferred.items():
        if stream.before.get(attribute) != value:
            stated = (n for n, batch in enumerate(after, start=1) if attribute in stream.right(batch))
            waits.append(next(stated, len(after) + 1))
    return waits


def stated_in_the_end(stream: Stream) -> tuple[int, int]:
    """The number of a user's changed preferences that the last summary states, and their total."""
    changed = {attribute for attribute, value in stream.preferred.items() if stream.before.get(attribute) != value}
    return len(changed & stream.right(len(stream.named) - 1)), len(changed)
