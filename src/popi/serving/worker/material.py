"""What a renewal reads: which signals, and which old summary (popi.signals.renewal)."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from popi.profiles import clauses as parts
from popi.profiles.fields import StoredClause
from popi.serving.store import forbidden, signals, summaries, users
from popi.serving.store.forbidden import Rules
from popi.serving.store.summaries import Version
from popi.serving.worker.writer import SummaryWriter
from popi.signals.renewal import becomes_base, first_read
from popi.signals.types import Signal, StatementSignal
from popi.summary import Summary

SIGNALS_READ = 1_000
"""Maximum number of a user's newest signals to read; the inference model's token budget selects from them."""
CHARACTERS_READ = 2_000_000
"""Their maximum total length as stored: above any token budget, it bounds a renewal's memory."""


@dataclass(frozen=True)
class Material:
    """What a renewal reads.

    Attributes:
        signals: all signals, or those since the base and a few before; empty if none arrived since the last renewal.
        old: the base without its locked clauses, if it is renewed.
        clauses: the parts of `old`.
        version: the current version.
        base: the version that the renewal starts from, if any. A version that a person wrote is the base even if all
            signals are read.
        base_read: the base covers signals before this position.
        read_from, read_to: the current summary covers signals before `read_from`; the new one, those before `read_to`.
        by_hand: a person wrote one of the stored versions.
        rules: what the summary must not say. Statements whose words must not be sent to a provider are also removed
            from the fields above, as far as the wording matches.
    """

    signals: list[Signal]
    old: Summary | None
    clauses: list[StoredClause]
    version: Version | None
    base: Version | None
    base_read: int
    read_from: int | None
    read_to: int
    by_hand: bool
    rules: Rules

    @property
    def unlocked_statements(self) -> list[Signal]:
        """What a person wrote and did not lock, as statements for the inference model, which may rephrase them."""
        start = self.base or self.version
        written = parts.by_hand(start.clauses if start is not None else ())
        return [StatementSignal(text=text) for text in written if not self.rules.private.hit(text)]

    def next_base(self, written: int, min_signals: int) -> tuple[int | None, int]:
        """Version and position from which the next renewal starts if this one creates version `written`."""
        if becomes_base(self.base_read, self.read_to, min_signals):
            return written, self.read_to
        return (None if self.base is None else self.base.version), self.base_read


def material(
    connection: Connection,
    tenant: str,
    user_id: str,
    model: SummaryWriter | None,
    min_signals: int,
    whole: bool = False,
) -> Material:
    """What the next renewal of a user's summary reads.

    It reads all signals if `whole` is set, if it is unknown which signals the summary covers (the first time, or after
    `signals_read` was reset), if the model can't renew, or if the model found no preference. Signals read before a
    person's edit are never reread, even if no unlocked clause remains: they would bring back what the person removed.

    Args:
        connection: a transaction.
        tenant: the user's tenant.
        user_id: the user.
        model: the model that renews; `None` reads all signals.
        min_signals: as in popi.signals.renewal.
        whole: read all signals in any case.
    """
    user = tenant, user_id
    version, reading = summaries.current(connection, *user), users.reading(connection, *user)
    by_hand = summaries.by_hand(connection, *user)
    rules = forbidden.rules(connection, *user, version.forbidden if version is not None else ())
    base, base_read = (None, 0) if whole or version is None else _base(connection, user, version, reading)
    since, old, clauses = 0, None, []
    if base is not None and base_read and model is not None and model.renews:
        unlocked = [one for one in parts.unlocked(base.clauses) if not rules.bans.hit(one.text)]
        text = parts.join(unlocked)
        renewable = bool(text) and model.renewable(text)
        if renewable or base.author != "model":
            since = base_read if by_hand else first_read(base_read, reading.next_position, min_signals)
        if renewable and since:
            old, clauses = Summary(text, 0, signals_total=base_read), unlocked
    if not since:
        base, base_read = (base if base is not None and base.author != "model" else None), 0
    recent, read_to = signals.since(connection, *user, since, SIGNALS_READ, CHARACTERS_READ)
    if (since and read_to <= (reading.read or 0)) or not users.learns(connection, *user):
        recent = []  # no new signals, or learning is off
    sent = [one for one in recent if not any(map(rules.private.within, _texts(one)))]
    return Material(sent, old, clauses, version, base, base_read, reading.read, read_to, by_hand, rules)


def _texts(signal: Signal) -> Iterator[str]:
    """Yield all texts of a signal."""
    for value in signal.model_dump(exclude={"id", "time", "type"}, exclude_none=True).values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (str(message.get("content", "")) for message in value if isinstance(message, dict))


def _base(
    connection: Connection, who: tuple[str, str], current: Version, reading: users.Reading
) -> tuple[Version | None, int]:
    """The version to start from, and how far it has read. A version that a person wrote always becomes the base."""
    if current.author != "model":
        return current, reading.read or 0
    if reading.read is None:
        return None, 0
    if reading.base_version is not None:
        stored = summaries.find(connection, *who, reading.base_version)
        if stored is not None:
            return stored, reading.base_read or 0
    return (None, 0) if reading.base_read == 0 else (current, reading.read)
