"""Drift, and how soon a changed preference is told: pure functions of what summaries name.

A summary *tells* an attribute rightly if it names the value preferred at that time, and no other value of it.

- **Drift**: of what the summaries before a renewal told rightly of attributes whose truth did not change, the share
  that the summary after it does not tell rightly any more.
- **Wait** (`until_told`): of a preference that changed, how many summaries since the change it took until one told the
  new value, 1 for the first summary that has read a signal from after the change. One that is never told counts one
  more than there were summaries.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

Preference = tuple[str, str]


@dataclass(frozen=True)
class Stream:
    """What the summaries of one user name, after each batch, and the truth.

    Attributes:
        named: after each batch the (attribute, value) pairs that the summary names.
        changed: of each batch, whether the summary has read signals from after the change.
        before: what is preferred before the change; as `preferred` for users who do not change.
        preferred: what is preferred in the end.
    """

    named: Sequence[AbstractSet[Preference]]
    changed: Sequence[bool]
    before: Mapping[str, str]
    preferred: Mapping[str, str]

    def truth(self, batch: int) -> Mapping[str, str]:
        """What is preferred when the batch has come."""
        return self.preferred if self.changed[batch] else self.before

    def right(self, batch: int) -> set[str]:
        """Attributes that the summary after a batch tells rightly."""
        said: dict[str, set[str]] = {}
        for attribute, value in self.named[batch]:
            said.setdefault(attribute, set()).add(value)
        return {attribute for attribute, value in self.truth(batch).items() if said.get(attribute) == {value}}


def lost(stream: Stream) -> tuple[int, int]:
    """Over a user's renewals: how many attributes told rightly were lost, and how many there were to lose."""
    gone = held = 0
    for batch in range(1, len(stream.named)):
        now, then = stream.truth(batch), stream.truth(batch - 1)
        kept = {attribute for attribute in stream.right(batch - 1) if now.get(attribute) == then.get(attribute)}
        held += len(kept)
        gone += len(kept - stream.right(batch))
    return gone, held


def until_told(stream: Stream) -> list[int]:
    """For each preference of a user that changed, how many summaries since it took until one told it."""
    after = [batch for batch, changed in enumerate(stream.changed) if changed]
    found = []
    for attribute, value in stream.preferred.items():
        if stream.before.get(attribute) != value:
            told = (n for n, batch in enumerate(after, start=1) if attribute in stream.right(batch))
            found.append(next(told, len(after) + 1))
    return found


def told_in_the_end(stream: Stream) -> tuple[int, int]:
    """How many of a user's changed preferences the last summary tells, and how many there are."""
    changed = {attribute for attribute, value in stream.preferred.items() if stream.before.get(attribute) != value}
    return len(changed & stream.right(len(stream.named) - 1)), len(changed)
