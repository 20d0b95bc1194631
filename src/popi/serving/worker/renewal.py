"""The renewal worker: renews stale summaries with the inference model.

A worker takes one due job at a time under a lease, reads an old summary and the signals that came since, asks the
inference model without holding anything in the database, and writes the new version only if all of this still holds:
the lease is its own (nobody took the job over, and the user was not erased), and the summary is at the version that it
read (no human edit came since). What is read instead, and when, `material` and `Worker._asked` say. Locked clauses
stay, word for word, and what is forbidden stays away. What a summary may not carry is left out
(popi.profiles.screening). A failure is tried again later and later; what can't succeed waits for new signals. What is
over a quota (store.usage) waits until the quota's window ends.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from typing import Literal

from sqlalchemy import Connection

from popi.errors import AnswerError, BatchError, DataError, PopiError, StoreError
from popi.models.remote.usage import Prices, Usage, metered
from popi.profiles import clauses as parts
from popi.profiles.fields import LONGEST_TEXT, StoredClause
from popi.profiles.screening import screened
from popi.profiles.statements import ended, says_nothing, storable
from popi.serving.proxy.metrics import RenewalMetrics
from popi.serving.settings import RenewalSettings
from popi.serving.store import forbidden, jobs, summaries, usage, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Job
from popi.serving.store.summaries import Version, VersionConflict
from popi.serving.store.usage import DAY, HOUR, OverQuota, Quota, Window
from popi.serving.worker.inference import Provider, passes, reason_of
from popi.serving.worker.material import Material, material
from popi.serving.worker.provenance import Explains
from popi.serving.worker.restating import Restates
from popi.serving.worker.writer import Writes, write
from popi.signals.render import NANO
from popi.summary import Summary

log = logging.getLogger("popi.gateway.renewal")

Outcome = Literal["renewed", "same", "nothing", "edited", "lost", "failed", "given_up", "waiting"]

RETRIED_SECONDS = 600.0
"""After an outage that ended, another one has to end so much later to have all who wait tried at once again."""
MOST_REASONS = 100
"""Signals that a clause is said to rest on; of one that has been carried over for long, the latest found."""


class Worker:
    """Renews summaries, in threads of its own.

    Args:
        database: the store.
        model: writes summaries; called from several threads if `threads` is more than one.
        settings: how it goes about its work.
        threads: renewals at once.
        changed: called with tenant and user id when a summary was written, from the worker's threads; may be set anew.
        explains: finds the signals behind what the model wrote; None: nobody does.
        restates: finds in what the model wrote what is forbidden, in other words; None: the same words are found alone.
        keep: how many versions of a summary stay, and their bytes.
        provider: how the model does, where it is behind an API; checked at the start if `check`.
        check: see `provider`.
    """

    def __init__(
        self,
        database: Database,
        model: Writes,
        settings: RenewalSettings | None = None,
        threads: int = 1,
        changed: Callable[[str, str], None] = lambda tenant, user_id: None,
        explains: Explains | None = None,
        keep: tuple[int, int] = (summaries.VERSIONS_KEPT, summaries.VERSIONS_BYTES),
        provider: Provider | None = None,
        check: bool = False,
        restates: Restates | None = None,
    ) -> None:
        self._database, self._model, self._settings = database, model, settings or RenewalSettings()
        self._explains = explains if self._settings.reasons else None
        self._restates = restates
        self._wishes = getattr(getattr(model, "templates", None), "name", None) == NANO
        self._prices = Prices(self._settings.input_price, self._settings.output_price)
        self.changed = changed
        self._keep = keep
        self.provider, self._check, self._retried = provider, check, float("-inf")
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, name=f"popi-renewal-{n}", daemon=True) for n in range(threads)
        ]
        self.metrics = RenewalMetrics()
        if provider is not None:
            self.metrics.inference.set_function(lambda: provider.state != "failing")

    def start(self) -> None:
        """Begin to work. What waits for a quota tries again: quotas may have been raised.

        Raises:
            StoreError: the database failed.
        """
        self._database.write(lambda connection: jobs.release(connection, self._database.now(connection)))
        if self.provider is not None and self._check:
            threading.Thread(target=self._checked, args=(self.provider,), name="popi-check", daemon=True).start()
        for thread in self._threads:
            thread.start()

    def _checked(self, provider: Provider) -> None:
        """What was wrong with the model may have been put right before this start: what was given up begins anew."""
        if provider.check():
            with suppress(StoreError):
                self._database.write(lambda connection: jobs.revive(connection, self._database.now(connection)))

    def stop(self, seconds: float = 5.0) -> None:
        """Take no further job, and wait a little for those under way; their leases end by themselves."""
        self._stop.set()
        give_up = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, give_up - time.monotonic()))

    def wait(self) -> None:
        """Until `stop` is called, from a signal handler say."""
        while not self._stop.wait(1.0):
            pass

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                found = self.run_one()
            except StoreError as error:
                log.error("the store failed", extra={"fields": {"error": str(error)}})
                found = None
            except Exception as error:  # a fault of ours stops no worker
                log.error("a renewal failed", extra={"fields": {"error": type(error).__name__}}, exc_info=False)
                found = None
            if found is None:
                self._stop.wait(self._settings.idle)

    def run_one(self) -> Outcome | None:
        """Do the next job; None where none is due.

        Raises:
            StoreError: the database failed; the job's lease ends by itself.
        """
        database = self._database
        if not database.read(lambda connection: jobs.any_due(connection, database.now(connection))):
            return None
        job = database.write(lambda connection: jobs.claim(connection, database.now(connection), self._settings.lease))
        if job is None:
            return None
        began = time.monotonic()
        outcome, error = self._renew(job)
        self.metrics.renewals.labels(outcome).inc()
        if outcome == "renewed":
            self.changed(job.tenant, job.user_id)
        fields = {"outcome": outcome, "tenant": job.tenant, "attempt": job.attempts + 1, "error": error}
        log.info("renewal", extra={"fields": fields | {"total_ms": (time.monotonic() - began) * 1e3}})
        return outcome

    def _renew(self, job: Job) -> tuple[Outcome, str | None]:
        database = self._database
        read = database.read(self._material, job)
        if not read.signals:
            return self._finished(job, "nothing" if read.old is None else "same")
        try:
            charged = database.write(self._charge, job)
        except OverQuota as over:
            held = database.write(jobs.hold, job, over)
            return ("waiting" if held else "lost"), over.reason
        if charged is None:
            return "lost", None
        with metered(self._prices) as used:
            try:
                return self._ask_and_write(job, read)
            finally:
                self._spent(charged, used)

    def _charge(self, connection: Connection, job: Job) -> list[Window] | None:
        """Count the renewal in its quotas; None where the lease is lost. The job's row is locked meanwhile: an erasure
        waits, and takes away what is counted here.
        """
        now, limits = self._database.now(connection), self._settings
        if not jobs.keep(connection, job, now, limits.lease):
            return None
        user, key, tenant = (job.tenant, job.user_id, ""), ("", "", job.key_id or ""), (job.tenant, "", "")
        quotas = [
            Quota("user_quota", user, HOUR, limits.user_renewals_per_hour),
            Quota("user_quota", user, DAY, limits.user_renewals_per_day, limits.user_tokens_per_day),
            Quota("key_quota", key, DAY, limits.key_renewals_per_day, limits.key_tokens_per_day),
            Quota("tenant_quota", tenant, DAY, limits.tenant_renewals_per_day, limits.tenant_tokens_per_day),
        ]
        return usage.charge(connection, [one for one in quotas if any(one.subject)], now)

    def _spent(self, charged: list[Window], used: Usage) -> None:
        self.metrics.calls.inc(used.requests)
        self.metrics.tokens.labels("input").inc(used.input_tokens)
        self.metrics.tokens.labels("output").inc(used.output_tokens)
        self.metrics.cost.inc(used.cost or 0.0)
        if used.requests:
            self._database.write(usage.spend, charged, used.requests, used.input_tokens, used.output_tokens)

    def _ask_and_write(self, job: Job, read: Material) -> tuple[Outcome, str | None]:
        database = self._database
        try:
            with self._kept(job):
                summary = self._asked(read)
                if not summary.statements and read.old is not None and not read.by_hand:
                    read = database.read(self._material, job, whole=True)
                    summary = self._asked(read)
                said = self._allowed(read, summary)
                behind = {} if _as_before(summary, said, read.version) else self._behind(read, summary, said)
        except Exception as error:
            if isinstance(error, BatchError):
                error = next(one for one in error.results if isinstance(one, PopiError))
            if self.provider is not None:
                self.provider.failed((job.tenant, job.user_id), error)
            return self._failed(job, error)
        self._worked()
        if not summary.statements and read.old is not None:
            return self._finished(job, "same")
        try:
            written = database.write(self._write, job, summary, said, read, behind)
        except VersionConflict:
            again = database.write(
                lambda connection: jobs.postpone(connection, job, database.now(connection) + self._settings.edited)
            )
            return ("edited" if again else "lost"), None
        except StoreError:
            raise
        except Exception as error:  # what can't be stored is not asked for forever
            return self._failed(job, error)
        return written, None

    def _material(self, connection: Connection, job: Job, whole: bool = False) -> Material:
        model = self._model if self._settings.from_old_summary else None
        return material(connection, job.tenant, job.user_id, model, self._settings.least_signals, whole)

    def _asked(self, read: Material) -> Summary:
        """What the model wrote, in statements; without any where it says that nothing is known.

        Shown an old summary, it may say so of the new signals alone: then it is asked again with all signals, or,
        where a person has changed the summary, this stays as it is and the signals are read again with the next.
        """
        summary = write(self._model, [*read.signals, *read.heard], read.rules.told, read.old)
        text = screened(storable(summary.text)).text.strip()[:LONGEST_TEXT]
        if not text:  # or nothing that a summary may carry: the old one stays
            raise AnswerError("nothing in the answer can be used: a summary may not carry what it says")
        if summary.abstained or says_nothing(text):
            return replace(summary, text="", statements=())
        said = summary.statements if text == summary.text else ()
        return replace(summary, text=text, statements=said or tuple(parts.split(text, wishes=self._wishes)))

    def _finished(self, job: Job, outcome: Outcome) -> tuple[Outcome, None]:
        return (outcome if self._database.write(jobs.finish, job) else "lost"), None

    def _allowed(self, read: Material, summary: Summary) -> tuple[str, ...]:
        """The statements that say nothing forbidden: not in the same words; nor in others, as far as there is a model
        that may be asked.

        Raises:
            UpstreamError: the model gave no answer.
            AnswerError: its answer can't be read: what it wrote is not used then.
        """
        said = tuple(text for text in summary.statements if not read.rules.bans.hit(text))
        ask = self._restates
        about = () if ask is None else read.rules.told if ask.sends else read.rules.words
        if ask is None or not about or not said:
            return said
        again = ask.said_again(said, about)
        return tuple(text for index, text in enumerate(said) if index not in again)

    def _behind(self, read: Material, summary: Summary, texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Ids of the signals that each clause rests on, by its text; by way of the old summary's clauses, too, those
        that these rest on. That they are not found stops no renewal.
        """
        if self._explains is None or not texts:
            return {}
        shown = [one for one in read.signals if one.id not in summary.signals_dropped]
        before, rests_on = ended(clause.text for clause in read.clauses), read.old.rests_on if read.old else None
        try:
            found = self._explains.explain(shown, summary.text, texts, before, rests_on)
        except Exception as error:
            log.warning("provenance not found", extra={"fields": {"error": type(error).__name__}})
            return {}
        ids = [(one.id or "",) for one in shown] + [clause.signals for clause in read.clauses]
        return {text: _each_once(ids[i] for i in reasons) for text, reasons in zip(texts, found, strict=True)}

    def _explained(
        self, clause: StoredClause, behind: dict[str, tuple[str, ...]], old: Sequence[StoredClause]
    ) -> StoredClause:
        """A person's own words rest on no signal; what is locked stays as it is, its reasons too. What stood in the
        same words in the old summary still rests on what it rested on.
        """
        if self._explains is None or clause.locked or clause.author != "model" or clause.text not in behind:
            return clause
        carried = next((one.signals for one in old if one.id == clause.id), None)
        rests_on = _each_once((behind[clause.text], carried or ()))
        if carried is not None and not behind[clause.text]:
            return clause
        return clause.model_copy(update={"signals": rests_on, "found": self._explains.how})

    def _write(
        self,
        connection: Connection,
        job: Job,
        summary: Summary,
        said: tuple[str, ...],
        read: Material,
        behind: dict[str, tuple[str, ...]],
    ) -> Outcome:
        """Write the new version and end the job, both or neither."""
        # The user's row first: an erasure waits for us, or is over, and then there is no row and no lease.
        if not users.lock_existing(connection, job.tenant, job.user_id) or not jobs.finish(connection, job):
            return "lost"
        before = read.version
        old, version = (before.clauses, before.version) if before else ((), 0)
        text, clauses = parts.renewed(_text(summary, said), said, old)
        same = before is not None and text == before.text
        if summary.statements:  # else the signals are in no summary, and are read again
            users.set_signals_read(connection, job.tenant, job.user_id, read.upto, read.read)
            base = read.next_base(version if same else version + 1, self._settings.least_signals)
            users.set_base(connection, job.tenant, job.user_id, *base)
        elif not read.by_hand:
            users.set_base(connection, job.tenant, job.user_id, None, 0)
        if before is None and not text:
            return "nothing"  # too little evidence: no clause, and no summary
        if same:
            now_current = summaries.current(connection, job.tenant, job.user_id)
            if now_current is None or now_current.version != version:
                raise VersionConflict(now_current.version if now_current else 0)
            return "same"  # no new version: what was told of this one still holds
        clauses = [self._explained(clause, behind, read.clauses) for clause in clauses]
        now, who = self._database.now(connection), (job.tenant, job.user_id)
        summaries.put(
            connection, *who, text, clauses, "model", now, expected=version, model=summary.model, keep=self._keep
        )
        forbidden.keep(connection, *who, {})  # words that only a version forbade which is not kept any more
        return "renewed"

    def _worked(self) -> None:
        """The model answered. After an outage, those who wait for it are tried at once, but not again and again."""
        if self.provider is None or not self.provider.worked():
            return
        if time.monotonic() - self._retried >= RETRIED_SECONDS:
            self._retried = time.monotonic()
            self._database.write(lambda connection: jobs.hasten(connection, self._database.now(connection)))

    def _failed(self, job: Job, error: Exception) -> tuple[Outcome, str]:
        """Try again later. What is not the provider's fault is given up: at once where the answer can't be used, else
        after some tries.
        """
        reason, settings = reason_of(error), self._settings
        last = not passes(error) and (isinstance(error, DataError) or job.attempts + 1 >= settings.tries)

        def back(connection: Connection) -> bool:
            now = self._database.now(connection)
            wait = min(settings.back_off * 2.0 ** min(job.attempts, 60), settings.longest_back_off)
            return jobs.postpone(connection, job, now + wait, error=reason, give_up_at=now if last else None)

        held = self._database.write(back)
        return ("lost" if not held else "given_up" if last else "failed"), reason

    @contextmanager
    def _kept(self, job: Job) -> Iterator[None]:
        """Show signs of life while the model writes."""
        over = threading.Event()
        database = self._database

        def longer(connection: Connection) -> bool:
            return jobs.keep(connection, job, database.now(connection), self._settings.lease)

        def keep() -> None:
            while not over.wait(self._settings.lease / 3):
                try:
                    if not database.write(longer):
                        return
                except StoreError:
                    continue  # if it lasts, the lease ends, and another worker takes over

        thread = threading.Thread(target=keep, name="popi-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _as_before(new: Summary, said: tuple[str, ...], before: Version | None) -> bool:
    return before is not None and parts.renewed(_text(new, said), said, before.clauses)[0] == before.text


def _text(new: Summary, said: tuple[str, ...]) -> str:
    """The model's own text, unless something was taken out."""
    return new.text if said == new.statements else "\n".join(said)


def _each_once(ids: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(ids)))[:MOST_REASONS]
