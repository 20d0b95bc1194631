"""The renewal worker: renews stale summaries with the inference model.

A worker claims one due job at a time under a lease, reads an old summary and the signals since, and calls the inference
model without holding anything in the database. It writes the new version only if it still holds the lease (no other
worker took over, and the user was not erased) and the summary is still at the version that it read (no person edited
it). `material` and `Worker._call_model` describe when other signals are read instead. Locked clauses stay word for
word, and forbidden statements are removed, as is content that a summary must not carry (popi.profiles.screening).
Failures are retried with a growing delay; a job that can't succeed waits for new signals. A job that is over a quota
(store.usage) waits until the quota's window ends.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from sqlalchemy import Connection

from popi.errors import AnswerError, BatchError, DataError, PopiError, StoreError
from popi.models.remote.usage import Prices, Usage, metered
from popi.profiles import clauses as parts
from popi.profiles.fields import LONGEST_TEXT
from popi.profiles.screening import screened
from popi.profiles.statements import says_nothing, storable
from popi.serving.proxy.metrics import RenewalMetrics
from popi.serving.settings import RenewalSettings
from popi.serving.store import forbidden, jobs, summaries, usage, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Job
from popi.serving.store.summaries import Version, VersionConflict
from popi.serving.store.usage import OverQuota, Window
from popi.serving.worker.claims import charge, holding
from popi.serving.worker.inference import Provider, is_provider_fault, reason_of
from popi.serving.worker.material import Material, material
from popi.serving.worker.provenance import Explainer
from popi.serving.worker.restating import RestatementCheck
from popi.serving.worker.sources import explained, sources_of
from popi.serving.worker.writer import SummaryWriter, write
from popi.signals.render import NANO
from popi.summary import Summary

log = logging.getLogger("popi.gateway.renewal")

Outcome = Literal["renewed", "same", "nothing", "edited", "lost", "failed", "given_up", "waiting"]

RETRIED_SECONDS = 600.0
"""Minimum time between two mass retries, which happen when an outage ends."""
CORRECT_SECONDS = 30.0
"""Interval of looking for times that a clock which was ahead has written."""


class Worker:
    """Renews summaries in its own threads.

    Args:
        database: the store.
        model: writes summaries; called from several threads if `threads` is more than one.
        settings: renewal settings.
        threads: number of parallel renewals.
        changed: called with tenant and user id, from the worker's threads, when a summary has been written. Can be
            replaced later.
        explainer: finds the signals that statements rest on; `None` disables it.
        restatement_check: finds statements that restate forbidden ones; `None` checks for identical wording only.
        keep: maximum number of summary versions, and of their bytes.
        provider: health of the model, if it is behind an API.
        check: whether to check `provider` at startup.
    """

    def __init__(
        self,
        database: Database,
        model: SummaryWriter,
        settings: RenewalSettings | None = None,
        threads: int = 1,
        changed: Callable[[str, str], None] = lambda tenant, user_id: None,
        explainer: Explainer | None = None,
        keep: tuple[int, int] = (summaries.VERSIONS_KEPT, summaries.VERSIONS_BYTES),
        provider: Provider | None = None,
        check: bool = False,
        restatement_check: RestatementCheck | None = None,
    ) -> None:
        self._database, self._model, self._settings = database, model, settings or RenewalSettings()
        self._explainer = explainer if self._settings.reasons else None
        self._restatement_check = restatement_check
        self._wishes = getattr(getattr(model, "templates", None), "name", None) == NANO
        self._prices = Prices(self._settings.input_price, self._settings.output_price)
        self.changed = changed
        self._keep = keep
        self.provider, self._check, self._retried = provider, check, float("-inf")
        self._released, self._correct_after = False, float("-inf")
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, name=f"popi-renewal-{n}", daemon=True) for n in range(threads)
        ]
        self.metrics = RenewalMetrics()
        if provider is not None:
            self.metrics.inference.set_function(lambda: provider.state != "failing")

    def start(self) -> None:
        """Start the threads. Jobs that wait for a quota are retried, since quotas may have been raised: by the threads,
        so that a store which is busy right now does not prevent the start."""
        if self.provider is not None and self._check:
            threading.Thread(target=self._check_provider, args=(self.provider,), name="popi-check", daemon=True).start()
        for thread in self._threads:
            thread.start()

    def _check_provider(self, provider: Provider) -> None:
        """Check the model. If it works, restart failed jobs: it may have been fixed before this start."""
        if provider.check():
            with suppress(StoreError):
                self._database.write(lambda connection: jobs.revive(connection, self._database.now(connection)))

    def stop(self, seconds: float = 5.0) -> None:
        """Claim no more jobs, and wait up to `seconds` for running ones; their leases expire by themselves."""
        self._stop.set()
        give_up = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, give_up - time.monotonic()))

    def wait(self) -> None:
        """Block until `stop` is called, for example from a signal handler."""
        while not self._stop.wait(1.0):
            pass

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                if not self._released:
                    self._database.write(lambda connection: jobs.release(connection, self._database.now(connection)))
                    self._released = True
                if time.monotonic() >= self._correct_after:
                    self._correct_after = time.monotonic() + CORRECT_SECONDS
                    self.correct_times()
                outcome = self.run_one()
            except StoreError as error:
                log.error("the store failed", extra={"fields": {"error": str(error)}})
                outcome = None
            except Exception as error:  # a bug must not stop the worker
                log.error("a renewal failed", extra={"fields": {"error": type(error).__name__}}, exc_info=False)
                outcome = None
            if outcome is None:
                self._stop.wait(self._settings.poll_interval_s)

    def run_one(self) -> Outcome | None:
        """Run the next job; returns `None` if none is due.

        Raises:
            StoreError: the database failed; the job's lease expires by itself.
        """
        database = self._database
        if not database.read(lambda connection: jobs.any_due(connection, database.now(connection))):
            return None
        job = database.write(
            lambda connection: jobs.claim(connection, database.now(connection), self._settings.lease_s)
        )
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
            windows = database.write(
                lambda connection: charge(connection, job, database.now(connection), self._settings)
            )
        except OverQuota as over:
            held = database.write(jobs.hold, job, over)
            return ("waiting" if held else "lost"), over.reason
        if windows is None:
            return "lost", None
        with metered(self._prices) as used:
            try:
                return self._renew_and_write(job, read)
            finally:
                self._record_usage(windows, used)

    def _record_usage(self, windows: list[Window], used: Usage) -> None:
        self.metrics.calls.inc(used.requests)
        self.metrics.tokens.labels("input").inc(used.input_tokens)
        self.metrics.tokens.labels("output").inc(used.output_tokens)
        self.metrics.cost.inc(used.cost or 0.0)
        if used.requests:
            self._database.write(usage.spend, windows, used.requests, used.input_tokens, used.output_tokens)

    def _renew_and_write(self, job: Job, read: Material) -> tuple[Outcome, str | None]:
        database = self._database
        try:
            with holding(database, job, self._settings.lease_s):
                summary = self._call_model(read)
                if not summary.statements and read.old is not None and not read.by_hand:
                    read = database.read(self._material, job, whole=True)
                    summary = self._call_model(read)
                statements = self._allowed(read, summary)
                unchanged = _unchanged(summary, statements, read.version)
                sources = {} if unchanged else sources_of(self._explainer, read, summary, statements)
        except Exception as error:
            if isinstance(error, BatchError):
                error = next(one for one in error.results if isinstance(one, PopiError))
            if self.provider is not None:
                self.provider.record_failure((job.tenant, job.user_id), error)
            return self._failed(job, error)
        self._record_success()
        if not summary.statements and read.old is not None:
            return self._finished(job, "same")
        try:
            outcome = database.write(self._write, job, summary, statements, read, sources)
        except VersionConflict:
            postponed = database.write(self._postpone, job, self._settings.conflict_delay_s)
            return ("edited" if postponed else "lost"), None
        except StoreError:
            raise
        except Exception as error:  # don't retry forever what can't be stored
            return self._failed(job, error)
        return outcome, None

    def _material(self, connection: Connection, job: Job, whole: bool = False) -> Material:
        model = self._model if self._settings.from_old_summary else None
        return material(connection, job.tenant, job.user_id, model, self._settings.min_signals, whole)

    def _call_model(self, read: Material) -> Summary:
        """Get a summary in statements from the model; without statements if it found no preference.

        When shown an old summary, that may refer to the new signals only. The caller then retries with all signals; or
        if a person has edited the summary, it stays, and the signals are read again in the next renewal.
        """
        summary = write(self._model, [*read.signals, *read.unlocked_statements], read.rules.disclosed, read.old)
        text = screened(storable(summary.text)).text.strip()[:LONGEST_TEXT]
        if not text:  # empty, or nothing passed the screening: the old summary stays
            raise AnswerError("nothing in the answer can be used: it has only content that a summary must not carry")
        if summary.abstained or says_nothing(text):
            return replace(summary, text="", statements=())
        statements = summary.statements if text == summary.text else ()
        return replace(summary, text=text, statements=statements or tuple(parts.split(text, wishes=self._wishes)))

    def _finished(self, job: Job, outcome: Outcome) -> tuple[Outcome, None]:
        return (outcome if self._database.write(jobs.finish, job) else "lost"), None

    def _allowed(self, read: Material, summary: Summary) -> tuple[str, ...]:
        """The statements that say nothing forbidden, neither in the same words nor, if there is a model that may be
        asked, in others.

        Raises:
            UpstreamError: the model gave no answer.
            AnswerError: its answer can't be parsed; then the statements must not be used.
        """
        allowed = tuple(text for text in summary.statements if not read.rules.bans.hit(text))
        check = self._restatement_check
        forbidden_texts = () if check is None else read.rules.disclosed if check.sends else read.rules.words
        if check is None or not forbidden_texts or not allowed:
            return allowed
        restated = check.restated(allowed, forbidden_texts)
        return tuple(text for index, text in enumerate(allowed) if index not in restated)

    def _write(
        self,
        connection: Connection,
        job: Job,
        summary: Summary,
        statements: tuple[str, ...],
        read: Material,
        sources: dict[str, tuple[str, ...]],
    ) -> Outcome:
        """Write the new version and finish the job, in one transaction."""
        # Lock the user's row first: a concurrent erasure waits for us, or has finished and there is no row or lease.
        if not users.lock_existing(connection, job.tenant, job.user_id) or not jobs.finish(connection, job):
            return "lost"
        before = read.version
        old, version = (before.clauses, before.version) if before else ((), 0)
        text, clauses = parts.renewed(_text(summary, statements), statements, old)
        same = before is not None and text == before.text
        if summary.statements:  # otherwise no summary covers the signals, and they are read again
            users.set_signals_read(connection, job.tenant, job.user_id, read.read_to, read.read_from)
            base = read.next_base(version if same else version + 1, self._settings.min_signals)
            users.set_base(connection, job.tenant, job.user_id, *base)
        elif not read.by_hand:
            users.set_base(connection, job.tenant, job.user_id, None, 0)
        if before is None and not text:
            return "nothing"  # too little evidence for a summary
        if same:
            current = summaries.current(connection, job.tenant, job.user_id)
            if current is None or current.version != version:
                raise VersionConflict(current.version if current else 0)
            return "same"
        clauses = [explained(self._explainer, clause, sources, read.clauses) for clause in clauses]
        now, user = self._database.now(connection), (job.tenant, job.user_id)
        summaries.put(
            connection, *user, text, clauses, "model", now, expected=version, model=summary.model, keep=self._keep
        )
        forbidden.store_words(connection, *user, {})  # delete words that only removed versions refer to
        return "renewed"

    def _record_success(self) -> None:
        """Record that the model answered. When an outage ends, retry waiting jobs at once, but not too often."""
        if self.provider is None or not self.provider.record_success():
            return
        if time.monotonic() - self._retried >= RETRIED_SECONDS:
            self._retried = time.monotonic()
            self._database.write(lambda connection: jobs.skip_backoff(connection, self._database.now(connection)))

    def _failed(self, job: Job, error: Exception) -> tuple[Outcome, str]:
        """Retry the job later. If the provider is not at fault, give up: at once if the answer can't be used, otherwise
        after some tries.
        """
        reason, settings = reason_of(error), self._settings
        last = not is_provider_fault(error) and (
            isinstance(error, DataError) or job.attempts + 1 >= settings.max_attempts
        )

        def postpone(connection: Connection) -> bool:
            now = self._database.now(connection)
            wait = min(settings.backoff_s * 2.0 ** min(job.attempts, 60), settings.max_backoff_s)
            return jobs.postpone(connection, job, now + wait, now=now, error=reason, give_up_at=now if last else None)

        held = self._database.write(postpone)
        return ("lost" if not held else "given_up" if last else "failed"), reason

    def _postpone(self, connection: Connection, job: Job, seconds: float) -> bool:
        now = self._database.now(connection)
        return jobs.postpone(connection, job, now + seconds, now=now)

    def correct_times(self) -> int:
        """Make jobs due that a clock which was ahead has put off. Returns how many there were.

        Raises:
            StoreError: the database failed.
        """
        database, lease = self._database, self._settings.lease_s
        if not database.read(lambda connection: jobs.any_ahead(connection, database.now(connection), lease)):
            return 0
        corrected = database.write(lambda connection: jobs.correct(connection, database.now(connection), lease))
        log.warning("the clock was ahead: renewals that waited for it are due", extra={"fields": {"jobs": corrected}})
        return corrected


def _unchanged(new: Summary, statements: tuple[str, ...], before: Version | None) -> bool:
    return before is not None and parts.renewed(_text(new, statements), statements, before.clauses)[0] == before.text


def _text(new: Summary, statements: tuple[str, ...]) -> str:
    """The model's own text, unless statements were removed."""
    return new.text if statements == new.statements else "\n".join(statements)
