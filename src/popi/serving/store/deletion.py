"""Deletion by the user of one statement, version, signal or the words of one ban, from every row that contains it.

Versions are rewritten in place. The current one gets the next number, so that neither a worker nor anyone who read the
old one can write it back. A pending or running renewal restarts; its worker writes nothing.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, or_, select, update
from sqlalchemy.sql.schema import Table

from popi.errors import DataError
from popi.profiles.clauses import join
from popi.profiles.fields import MAX_FORBIDDEN, MAX_REASONS, Author, Forbidden, StoredClause
from popi.profiles.forbidden import from_edits
from popi.profiles.requests import ForbiddenEdit
from popi.profiles.statements import normal
from popi.serving.store import changes, controls, erasure, forbidden, jobs, outbox, signals, summaries, users
from popi.serving.store.jobs import Debounce
from popi.serving.store.summaries import Version
from popi.serving.store.tables import answers
from popi.serving.store.tables import jobs as jobs_table
from popi.serving.store.tables import signals as signals_table
from popi.serving.store.tables import summaries as summaries_table
from popi.signals.types import InteractionSignal, PairSignal, Signal

Change = Callable[[Version, StoredClause], StoredClause | None]
"""Returns the new form of a version's clause; `None` removes it."""


@dataclass
class Deletion:
    """What was deleted from one user's data.

    Attributes:
        signals, versions, answers: number of rows.
        clauses: number of statements, by id.
        rewritten: number of versions that lost statements.
        version: the current version now; 0 for none.
    """

    signals: int = 0
    clauses: int = 0
    versions: int = 0
    rewritten: int = 0
    answers: int = 0
    version: int = 0


class Deleter:
    """Deletes parts of one user's data in a write transaction that holds the user's row.

    Args:
        connection: the transaction.
        tenant: the user's tenant.
        user_id: the user.
        now: seconds since 1970.
        debounce: when the renewal from the remaining signals is due.
        key_id: the key to charge for that renewal.
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
        """Delete a statement from every version, and its words elsewhere. Returns False if it does not exist.

        Args:
            clause_id: its id in any stored version; all its wordings are deleted.
            author: who deletes it.
            with_signals: also delete the signals that it rests on, as `signal` does.
            ban: forbid it from now on, keeping a hash of its words.
        """
        matches = [one for version in self._versions() for one in version.clauses if one.id == clause_id]
        if not matches:
            return False
        wordings = {normal(one.text) for one in matches}
        if ban:
            self._ban([one.text for one in matches], author)

        def change(_: Version, one: StoredClause) -> StoredClause | None:
            return None if one.id == clause_id or normal(one.text) in wordings else one

        self._rewrite(change, author)
        self._drop_words(wordings)
        self._drop_answers(lambda text: any(f" {one} " in f" {normal(text)} " for one in wordings))
        if with_signals:
            for name in dict.fromkeys(name for one in matches for name in one.signals):
                self.signal(name)
        self._finish()
        return True

    def version(self, number: int, author: Author) -> bool:
        """Delete a version. If it is current, the previous one becomes current under the next number. Returns False if
        it does not exist."""
        current = summaries.current(self._connection, *self._who)
        if summaries.find(self._connection, *self._who, number) is None or current is None:
            return False
        before = summaries.below(self._connection, *self._who, number)
        if number == current.version and before is None:
            summaries.put(self._connection, *self._who, "", (), author, self._now, expected=number, forbidden=())
        elif number == current.version and before is not None:
            self._renumber(before.version, current.version + 1, None)
        saw_it = answers.c.version == number
        self.done.answers += self._connection.execute(delete(answers).where(*_of(answers, self._who), saw_it)).rowcount
        rows = delete(summaries_table).where(*_of(summaries_table, self._who), summaries_table.c.version == number)
        self.done.versions += self._connection.execute(rows).rowcount
        forbidden.store_words(self._connection, *self._who, {})
        self._finish()
        return True

    def signal(self, name: str) -> bool:
        """Delete a signal and, in every version, the model's statements that rest on it. Returns False if it does not
        exist.

        A statement with unknown provenance may rest on the signal, so it is deleted unless it is older. What a person
        wrote, edited or locked stays. The summary is then renewed from all remaining signals, unless a person has
        edited it: those signals might bring back what the person removed.
        """
        is_signal = (*_of(signals_table, self._who), signals_table.c.signal_id == name)
        row = self._connection.execute(select(signals_table).where(*is_signal)).first()
        if row is None:
            return False
        signals.delete_for_good(self._connection, *self._who, name)
        self.done.signals += 1
        older = {c.id for v in self._versions() if v.created_at < row.added_at for c in v.clauses}

        def change(_: Version, one: StoredClause) -> StoredClause | None:
            unknown = not one.signals or len(one.signals) >= MAX_REASONS
            if one.author == "model" and not one.locked and (name in one.signals or (unknown and one.id not in older)):
                return None
            return one.model_copy(update={"signals": tuple(other for other in one.signals if other != name)})

        self._rewrite(change, None)
        [signal] = signals.parsed([row.signal])
        self._drop_answers_of(signal)
        if not summaries.by_hand(self._connection, *self._who):
            users.set_signals_read(self._connection, *self._who, None)
        self._finish()
        return True

    def words(self, forbidden_id: str, author: Author) -> bool:
        """Delete a forbidden statement's words from every row, as `clause` does. A hash of them stays, so it remains
        forbidden. Returns False if there is no such entry."""
        current = summaries.current(self._connection, *self._who)
        one = next((one for one in (current.forbidden if current else ()) if one.id == forbidden_id), None)
        if one is None:
            return False
        text = one.text if one.text is not None else forbidden.words(self._connection, *self._who).get(one.hash)
        if text is not None:
            wording = normal(text)
            if one.text is not None:
                self._ban([text], author)
            self._rewrite(lambda _, clause: None if normal(clause.text) == wording else clause, author)
            self._drop_words({wording})
            self._drop_answers(lambda answer: f" {wording} " in f" {normal(answer)} ")
        self._finish()
        return True

    # -- steps -----------------------------------------------------------------------------------------------------

    def _versions(self) -> list[Version]:
        versions: list[Version] = []
        while page := summaries.versions(
            self._connection, *self._who, below=versions[-1].version if versions else 2**62
        ):
            versions += page
        return versions

    def _rewrite(self, change: Change, author: Author | None) -> None:
        """Change the clauses of every version. If the current one loses any, it gets the next number, and `author`
        unless that is None.
        """
        gone: set[str] = set()
        for index, version in enumerate(self._versions()):
            after = [change(version, one) for one in version.clauses]
            remaining = [one for one in after if one is not None]
            if remaining == list(version.clauses):
                continue
            gone |= {one.id for one, now in zip(version.clauses, after, strict=True) if now is None}
            values: dict[str, object] = {"clauses": json.dumps([one.model_dump(mode="json") for one in remaining])}
            if len(remaining) < len(version.clauses):
                values["text"] = join(remaining)
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
        """Forbid texts in the current version, without storing their words."""
        current = summaries.current(self._connection, *self._who)
        before = current.forbidden if current is not None else ()
        edits = [ForbiddenEdit(id=one.id) for one in before] + [ForbiddenEdit(text=text) for text in texts]
        banned, _ = from_edits(edits, before, forbidden.ensure_secret(self._connection))
        if len(banned) > MAX_FORBIDDEN:
            raise DataError(f"a user may forbid at most {MAX_FORBIDDEN} statements; allow one again first")
        if current is not None:
            self._set_forbidden(current.version, banned)

    def _set_forbidden(self, version: int, banned: Collection[Forbidden]) -> None:
        rows = (*_of(summaries_table, self._who), summaries_table.c.version == version)
        listed = json.dumps([one.model_dump(mode="json", exclude_defaults=True) for one in banned])
        self._connection.execute(update(summaries_table).where(*rows).values(forbidden=listed))

    def _drop_words(self, wordings: set[str]) -> None:
        """Delete the stored words of forbidden statements, also from versions older than the hashes."""
        stored = forbidden.words(self._connection, *self._who)
        forbidden.delete_words(
            self._connection, *self._who, [key for key, text in stored.items() if normal(text) in wordings]
        )
        for version in self._versions():
            remaining = [one for one in version.forbidden if one.text is None or normal(one.text) not in wordings]
            if len(remaining) < len(version.forbidden):
                self._set_forbidden(version.version, remaining)

    def _drop_answers(self, matches: Callable[[str], bool]) -> None:
        rows = self._connection.execute(select(answers).where(*_of(answers, self._who))).all()
        for row in rows:
            if matches(row.prompt) or matches(row.answer):
                self._drop_answer(answers.c.answer_id == row.answer_id)

    def _drop_answers_of(self, signal: Signal) -> None:
        """Delete the stored answers of the chat that a signal came from."""
        if isinstance(signal, InteractionSignal):
            texts = [signal.response]
        elif isinstance(signal, PairSignal):
            texts = [signal.chosen, signal.rejected]
        else:
            return
        if isinstance(signal.prompt, str):
            self._drop_answer(answers.c.prompt == signal.prompt, or_(*(answers.c.answer == text for text in texts)))

    def _drop_answer(self, *conditions: ColumnElement[bool]) -> None:
        rows = delete(answers).where(*_of(answers, self._who), *conditions)
        self.done.answers += self._connection.execute(rows).rowcount

    def _finish(self) -> None:
        """Restart a pending renewal, or request one, if there is anything left to read."""
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
        changes.add_user(self._connection, *self._who, "erased")
        erasure.scrub_later(self._connection, self._now)


def _of(table: Table, who: tuple[str, str]) -> tuple[ColumnElement[bool], ...]:
    return table.c.tenant == who[0], table.c.user_id == who[1]
