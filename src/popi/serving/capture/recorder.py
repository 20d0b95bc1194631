"""Record answers as the proxy streams them, without delaying it: answers that are too long or too many are skipped."""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from popi.errors import StoreError
from popi.profiles.clauses import all_parts
from popi.serving.capture.answers import choice_id, read_answer
from popi.serving.capture.injected import Injected
from popi.serving.capture.texts import MAX_TEXT_CHARS, last_message, own_words
from popi.serving.interfaces import StoredSummary
from popi.serving.proxy.inject import Api
from popi.serving.settings import CaptureSettings
from popi.serving.store import answers
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.threads import Store

log = logging.getLogger("popi.gateway.capture")

MAX_ANSWER_BYTES = 2**20
"""Maximum bytes of an answer to buffer while it is streamed."""
MAX_PENDING = 256
"""Maximum answers waiting to be written; further ones are skipped."""
MAX_UPSTREAM_ID_CHARS = 280
"""Maximum characters of an upstream's answer id; a longer one is not stored."""
MAX_AGE_S = 3000.0
"""Maximum seconds from request to storage. Must be under an hour, for which erasures are remembered."""


class Recorder:
    """Records answers for tenants that opted in (interfaces.Recorder).

    Args:
        store: where to store them.
        settings: which tenants opted in.
        injected: the block around a summary, which is never stored.
    """

    def __init__(self, store: Store, settings: CaptureSettings, injected: Injected) -> None:
        self._store, self._settings, self._injected = store, settings, injected
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self, tenant: str, user_id: str, api: Api, body: Mapping[str, Any], summary: StoredSummary | None
    ) -> "Tap | None":
        """Start recording one request; None if it is not to be recorded."""
        opted_in = tenant in self._settings.tenants or "*" in self._settings.tenants
        if not opted_in or len(self._tasks) >= MAX_PENDING:
            return None
        message = last_message(api, body)[: 2 * MAX_TEXT_CHARS]
        return Tap(self, tenant, user_id, api, message, summary)

    def store(self, tap: "Tap", encoding: str) -> None:
        """Store an answer in the background."""
        task = asyncio.get_running_loop().create_task(self._write(tap, encoding))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait until all pending answers are stored."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, tap: "Tap", encoding: str) -> None:
        try:
            records = await asyncio.to_thread(self._read, tap, encoding)
            if records and time.monotonic() - tap.began < MAX_AGE_S:
                seconds = self._settings.retention_hours * 3600.0

                def write(connection: Connection) -> None:
                    # By the clock that dates erasures, which may differ from this machine's.
                    now = self._store.database.now(connection)
                    began = now - (time.monotonic() - tap.began)
                    answers.put(connection, tap.tenant, tap.user_id, records, began, now, seconds)

                await self._store.write(write)
        except StoreError as error:
            log.warning("can't store an answer", extra={"fields": {"error": str(error)}})
        except Exception as error:  # models and clients may send anything; the chat itself is long over
            log.warning("can't store an answer", extra={"fields": {"error": type(error).__name__}})

    def _read(self, tap: "Tap", encoding: str) -> list[StoredAnswer]:
        clauses = all_parts(tap.summary.text) if tap.summary is not None else set()
        prompt = self._injected.remove_from(own_words(tap.message), clauses)
        if not prompt:
            return []
        version = tap.summary.version if tap.summary is not None else 0
        upstream_id, choices = read_answer(tap.api, bytes(tap.answer), encoding)
        if len(upstream_id) > MAX_UPSTREAM_ID_CHARS or "\x00" in upstream_id:
            upstream_id = ""
        clean = {choice: self._injected.remove_from(text, clauses) for choice, text in choices.items()}
        return [
            StoredAnswer(
                choice_id(tap.answer_id, choice),
                _storable(prompt),
                _storable(text),
                version,
                choice_id(upstream_id, choice),
            )
            for choice, text in clean.items()
            if text
        ]


class Tap:
    """Records one answer.

    Attributes:
        answer_id: our id for the answer, sent to the client in a header.
    """

    def __init__(
        self, recorder: Recorder, tenant: str, user_id: str, api: Api, message: str, summary: StoredSummary | None
    ) -> None:
        self._recorder = recorder
        self.tenant, self.user_id, self.api, self.message, self.summary = tenant, user_id, api, message, summary
        self.answer_id = f"popi-{secrets.token_hex(12)}"
        self.answer, self._too_long = bytearray(), False
        self.began = time.monotonic()

    def feed(self, piece: bytes) -> None:
        """Record a piece of the answer."""
        if len(self.answer) + len(piece) > MAX_ANSWER_BYTES:
            self._too_long = True
        if not self._too_long:
            self.answer += piece

    def done(self, encoding: str) -> None:
        """The answer is complete."""
        if not self._too_long and self.answer:
            self._recorder.store(self, encoding)


def _storable(text: str) -> str:
    """Remove NULs, which PostgreSQL can't store, and lone surrogates, which can't be encoded."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
