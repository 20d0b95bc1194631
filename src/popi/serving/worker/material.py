"""What a renewal reads: which signals, and beside which of the old summaries (popi.signals.renewal)."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from popi.profiles import clauses as parts
from popi.profiles.fields import StoredClause
from popi.serving.store import forbidden, signals, summaries, users
from popi.serving.store.forbidden import Rules
from popi.serving.store.summaries import Version
from popi.serving.worker.writer import Writes
from popi.signals.renewal import becomes_base, first_read
from popi.signals.types import Signal, StatementSignal
from popi.summary import Summary

SIGNALS_READ = 1_000
"""The newest signals of a user, from which the inference model's token budget takes its choice."""
CHARACTERS_READ = 2_000_000
"""Maximum length of these together, as stored: more than any token budget takes, and bounds a renewal's memory."""


@dataclass(frozen=True)
class Material:
    """What a renewal reads.

    Attributes:
        signals: all, or those since the base and a few before; none where nothing came since the last renewal.
        old: the base without its locked clauses, if it is renewed.
        clauses: the same in parts.
        version: the current one.
        base: the version that the renewal starts from, one that a person wrote also where all signals are read; None:
            there is none.
        base_read: the position up to which signals are in the base.
        read, upto: the position up to which signals were in the current summary, and will be.
        by_hand: a person wrote one of the versions that are kept.
        rules: what must not be said. What forbids a provider to be told it is in none of the above either, where it
            stands there in the same words.
    """

    signals: list[Signal]
    old: Summary | None
    clauses: list[StoredClause]
    version: Version | None
    base: Version | None
    base_read: int
    read: int | None
    upto: int
    by_hand: bool
    rules: Rules

    @property
    def heard(self) -> list[Signal]:
        """What a person wrote and did not lock: the inference model hears it as statements, and may put it anew."""
        start = self.base or self.version
        written = parts.by_hand(start.clauses if start is not None else ())
        return [StatementSignal(text=text) for text in written if not self.rules.private.hit(text)]

    def next_base(self, written: int, least: int) -> tuple[int | None, int]:
        """Version and position from which the next renewal starts, where this one made version `written`."""
        if becomes_base(self.base_read, self.upto, least):
            return written, self.upto
        return (None if self.base is None else self.base.version), self.base_read


def material(
    connection: Connection, tenant: str, user_id: str, model: Writes | None, least: int, whole: bool = False
) -> Material:
    """What the next renewal of a user's summary reads.

    All signals if `whole`, or where the summary is not known to have them in it (the first time, or `signals_read` was
    unset), or the model does not renew, or said that nothing is known. What was read before a person edited is not read
    again, not even where they left nothing unlocked: it would say again what they took out.

    Args:
        connection: a transaction.
        tenant: whose user.
        user_id: the user.
        model: what renews; None: nothing does, all signals are read.
        least: as popi.signals.renewal has it.
        whole: read all, whatever is known.
    """
    who = tenant, user_id
    version, reading = summaries.current(connection, *who), users.reading(connection, *who)
    by_hand = summaries.by_hand(connection, *who)
    rules = forbidden.rules(connection, *who, version.forbidden if version is not None else ())
    base, base_read = (None, 0) if whole or version is None else _base(connection, who, version, reading)
    since, old, clauses = 0, None, []
    if base is not None and base_read and model is not None and model.renews:
        unlocked = [one for one in parts.unlocked(base.clauses) if not rules.bans.hit(one.text)]
        text = parts.join(unlocked)
        can = bool(text) and model.renewable(text)
        if can or base.author != "model":
            since = base_read if by_hand else first_read(base_read, reading.upto, least)
        if can and since:
            old, clauses = Summary(text, 0, rests_on=base_read), unlocked
    if not since:
        base, base_read = (base if base is not None and base.author != "model" else None), 0
    found, upto = signals.since(connection, *who, since, SIGNALS_READ, CHARACTERS_READ)
    if (since and upto <= (reading.read or 0)) or not users.learns(connection, *who):
        found = []  # those shown anew beside none that came; or nothing may be learned
    sent = [one for one in found if not any(map(rules.private.within, _texts(one)))]
    return Material(sent, old, clauses, version, base, base_read, reading.read, upto, by_hand, rules)


def _texts(signal: Signal) -> Iterator[str]:
    """All that a signal says."""
    for value in signal.model_dump(exclude={"id", "time", "type"}, exclude_none=True).values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (str(message.get("content", "")) for message in value if isinstance(message, dict))


def _base(
    connection: Connection, who: tuple[str, str], current: Version, reading: users.Reading
) -> tuple[Version | None, int]:
    """The version to start from, and what it has read. What a person wrote is the base, whatever was it before."""
    if current.author != "model":
        return current, reading.read or 0
    if reading.read is None:
        return None, 0
    if reading.base_version is not None:
        kept = summaries.find(connection, *who, reading.base_version)
        if kept is not None:
            return kept, reading.base_read or 0
    return (None, 0) if reading.base_read == 0 else (current, reading.read)
