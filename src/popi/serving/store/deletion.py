"""What a user deletes: one statement, one version, one signal, the words of one ban; gone from every row that has it.

Versions are rewritten in place. The current one gets the next number, so that neither a worker nor anybody who saw it
as it was can write it back. A renewal that waits or is under way begins anew, and a worker at it writes nothing.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, or_, select, update
from sqlalchemy.sql.schema import Table

from popi.errors import DataError
from popi.profiles.clauses import join
from popi.profiles.fields import MOST_FORBIDDEN, MOST_REASONS, Author, Forbidden, StoredClause
from popi.profiles.forbidden import from_edits
from popi.profiles.requests import ForbiddenEdit
from popi.profiles.statements import normal
from popi.serving.store import controls, erasure, forbidden, jobs, outbox, signals, summaries, users
from popi.serving.store.jobs import Debounce
from popi.serving.store.summaries import Version
from popi.serving.store.tables import answers
from popi.serving.store.tables import jobs as jobs_table
from popi.serving.store.tables import signals as signals_table
from popi.serving.store.tables import summaries as summaries_table
from popi.signals.types import InteractionSignal, PairSignal, Signal

Change = Callable[[Version, StoredClause], StoredClause | None]
"""A clause of a version as it is from now on; None: it goes."""


@dataclass
class Deletion:
    """What went of one user.

    Attributes:
        signals, versions, answers: how many rows.
        clauses: how many statements, by id.
        rewritten: versions that say less now.
        version: the current one now; 0: there is none.
    """

    signals: int = 0
    clauses: int = 0
    versions: int = 0
    rewritten: int = 0
    answers: int = 0
    version: int = 0


class Deleting:
    """Deletes of one user, in a transaction that writes; the user's row is held.

    Args:
        connection: the transaction.
        tenant: whose user.
        user_id: the user.
        now: seconds since 1970.
        debounce: when the renewal is due that reads what is left.
        key_id: the key that it is charged to.
    """

    def __init__(
        self,
        connection: Connection,
        tenant: str,
        user_id: str,
        now: float,
        debounce: Debounce,
        key_id: str | None = None,
    ) -> None:
        self._connection, self._who, self._now = connection, (tenant, user_id), now
        self._debounce, self._key_id = debounce, key_id
        self.done = Deletion()

    def clause(self, clause_id: str, author: Author, *, with_signals: bool = False, ban: bool = False) -> bool:
        """Delete a statement: its words in every version, and where else they stand. False where there is none of it.

        Args:
            clause_id: its id in any version that is kept; all wordings that it had go.
            author: who deletes.
            with_signals: the signals that it rests on, too, as `signal` does.
            ban: it must not be said again: a hash of its words stays.
        """
        there = [one for version in self._versions() for one in version.clauses if one.id == clause_id]
        if not there:
            return False
        wordings = {normal(one.text) for one in there}
        if ban:
            self._ban([one.text for one in there], author)

        def goes(_: Version, one: StoredClause) -> StoredClause | None:
            return None if one.id == clause_id or normal(one.text) in wordings else one

        self._rewrite(goes, author)
        self._drop_words(wordings)
        self._drop_answers(lambda text: any(f" {one} " in f" {normal(text)} " for one in wordings))
        if with_signals:
            for name in dict.fromkeys(name for one in there for name in one.signals):
                self.signal(name)
        self._finish()
        return True

    def version(self, number: int, author: Author) -> bool:
        """Delete a version; instead of the current one the one before it is current, under the next number. False where
        there is no such version."""
        current = summaries.current(self._connection, *self._who)
        if summaries.find(self._connection, *self._who, number) is None or current is None:
            return False
        before = summaries.below(self._connection, *self._who, number)
        if number == current.version and before is None:
            summaries.put(self._connection, *self._who, "", (), author, self._now, expected=number, forbidden=())
        elif number == current.version and before is not None:
            self._renumber(before.version, current.version + 1, None)
        of_it = answers.c.version == number
        self.done.answers += self._connection.execute(delete(answers).where(*_of(answers, self._who), of_it)).rowcount
        rows = delete(summaries_table).where(*_of(summaries_table, self._who), summaries_table.c.version == number)
        self.done.versions += self._connection.execute(rows).rowcount
        forbidden.keep(self._connection, *self._who, {})
        self._finish()
        return True

    def signal(self, name: str) -> bool:
        """Delete a signal, and the statements of the model's that rest on it, in every version. False where there is no
        such signal.

        Of a statement for which nobody found what it rests on, that can't be ruled out: it goes, unless it is older
        than the signal. What a person wrote, edited or locked stays. Then the summary is renewed from all signals that
        are left, unless a person has changed it: these may say again what was taken out.
        """
        mine = (*_of(signals_table, self._who), signals_table.c.signal_id == name)
        row = self._connection.execute(select(signals_table).where(*mine)).first()
        if row is None:
            return False
        signals.delete_for_good(self._connection, *self._who, name)
        self.done.signals += 1
        older = {c.id for v in self._versions() if v.created_at < row.added_at for c in v.clauses}

        def goes(_: Version, one: StoredClause) -> StoredClause | None:
            unknown = not one.signals or len(one.signals) >= MOST_REASONS
            if one.author == "model" and not one.locked and (name in one.signals or (unknown and one.id not in older)):
                return None
            return one.model_copy(update={"signals": tuple(other for other in one.signals if other != name)})

        self._rewrite(goes, None)
        [signal] = signals.parsed([row.signal])
        self._drop_answers_of(signal)
        if not summaries.by_hand(self._connection, *self._who):
            users.set_signals_read(self._connection, *self._who, None)
        self._finish()
        return True

    def words(self, forbidden_id: str, author: Author) -> bool:
        """Delete the words of what is forbidden, from every row, as `clause` does; a hash of them stays, and they stay
        forbidden. False where there is no such entry."""
        current = summaries.current(self._connection, *self._who)
        one = next((one for one in (current.forbidden if current else ()) if one.id == forbidden_id), None)
        if one is None:
            return False
        text = one.text if one.text is not None else forbidden.words(self._connection, *self._who).get(one.hash)
        if text is not None:
            said = normal(text)
            if one.text is not None:
                self._ban([text], author)
            self._rewrite(lambda _, clause: None if normal(clause.text) == said else clause, author)
            self._drop_words({said})
            self._drop_answers(lambda kept: f" {said} " in f" {normal(kept)} ")
        self._finish()
        return True

    # -- steps -----------------------------------------------------------------------------------------------------

    def _versions(self) -> list[Version]:
        found: list[Version] = []
        while page := summaries.versions(self._connection, *self._who, below=found[-1].version if found else 2**62):
            found += page
        return found

    def _rewrite(self, change: Change, author: Author | None) -> None:
        """Change the clauses of every version; the current one gets the next number if it was changed.

        `author`: whose the current version is then; None: whose it was.
        """
        gone: set[str] = set()
        for index, version in enumerate(self._versions()):
            after = [change(version, one) for one in version.clauses]
            left = [one for one in after if one is not None]
            if left == list(version.clauses):
                continue
            gone |= {one.id for one, now in zip(version.clauses, after, strict=True) if now is None}
            values: dict[str, object] = {"clauses": json.dumps([one.model_dump(mode="json") for one in left])}
            if len(left) < len(version.clauses):
                values["text"] = join(left)
                self.done.rewritten += 1
            rows = (*_of(summaries_table, self._who), summaries_table.c.version == version.version)
            self._connection.execute(update(summaries_table).where(*rows).values(**values))
            if index == 0 and "text" in values:
                self._renumber(version.version, version.version + 1, author)
        self.done.clauses += len(gone)

    def _renumber(self, before: int, after: int, author: Author | None) -> None:
        rows = (*_of(summaries_table, self._who), summaries_table.c.version == before)
        values: dict[str, object] = {"version": after, "created_at": self._now} | ({"author": author} if author else {})
        self._connection.execute(update(summaries_table).where(*rows).values(**values))
        reading = users.reading(self._connection, *self._who)
        if reading.base_version == before:
            users.set_base(self._connection, *self._who, after, reading.base_read)
        outbox.add(self._connection, *self._who, "summary.changed", self._now, version=after)

    def _ban(self, texts: Collection[str], author: Author) -> None:
        """Forbid texts from the current version on, without keeping their words."""
        current = summaries.current(self._connection, *self._who)
        was = current.forbidden if current is not None else ()
        edits = [ForbiddenEdit(id=one.id) for one in was] + [ForbiddenEdit(text=text) for text in texts]
        banned, _ = from_edits(edits, was, forbidden.drawn_secret(self._connection))
        if len(banned) > MOST_FORBIDDEN:
            raise DataError(f"a user may forbid {MOST_FORBIDDEN} statements; allow one again first")
        if current is not None:
            self._set_forbidden(current.version, banned)

    def _set_forbidden(self, version: int, banned: Collection[Forbidden]) -> None:
        rows = (*_of(summaries_table, self._who), summaries_table.c.version == version)
        listed = json.dumps([one.model_dump(mode="json", exclude_defaults=True) for one in banned])
        self._connection.execute(update(summaries_table).where(*rows).values(forbidden=listed))

    def _drop_words(self, wordings: set[str]) -> None:
        """Delete a user's own words of what they forbade, in versions from before there were hashes, too."""
        kept = forbidden.words(self._connection, *self._who)
        forbidden.drop(self._connection, *self._who, [key for key, text in kept.items() if normal(text) in wordings])
        for version in self._versions():
            left = [one for one in version.forbidden if one.text is None or normal(one.text) not in wordings]
            if len(left) < len(version.forbidden):
                self._set_forbidden(version.version, left)

    def _drop_answers(self, says: Callable[[str], bool]) -> None:
        rows = self._connection.execute(select(answers).where(*_of(answers, self._who))).all()
        for row in rows:
            if says(row.prompt) or says(row.answer):
                self._drop_answer(answers.c.answer_id == row.answer_id)

    def _drop_answers_of(self, signal: Signal) -> None:
        """Delete what was kept of the chat that a signal came from."""
        if isinstance(signal, InteractionSignal):
            texts = [signal.response]
        elif isinstance(signal, PairSignal):
            texts = [signal.chosen, signal.rejected]
        else:
            return
        if isinstance(signal.prompt, str):
            self._drop_answer(answers.c.prompt == signal.prompt, or_(*(answers.c.answer == text for text in texts)))

    def _drop_answer(self, *which: ColumnElement[bool]) -> None:
        rows = delete(answers).where(*_of(answers, self._who), *which)
        self.done.answers += self._connection.execute(rows).rowcount

    def _finish(self) -> None:
        """Begin a renewal anew, if there is anything left to read."""
        waited = self._connection.execute(delete(jobs_table).where(*_of(jobs_table, self._who))).rowcount
        reading = users.reading(self._connection, *self._who)
        unread = waited or (self.done.signals and reading.read is None)
        if (
            unread
            and signals.size(self._connection, *self._who)[0]
            and controls.find(self._connection, *self._who).learn
        ):
            jobs.request(self._connection, *self._who, self._now, self._debounce, key_id=self._key_id)
        current = summaries.current(self._connection, *self._who)
        self.done.version = current.version if current is not None else 0
        erasure.scrub_later(self._connection, self._now)


def _of(table: Table, who: tuple[str, str]) -> tuple[ColumnElement[bool], ...]:
    return table.c.tenant == who[0], table.c.user_id == who[1]
