"""Looks on while the proxy passes an answer through. Never in its way: what is too long or too much is not kept."""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

from popi.errors import StoreError
from popi.profiles.clauses import all_parts
from popi.serving.capture.answers import named, read_answer
from popi.serving.capture.injected import Injected
from popi.serving.capture.texts import LONGEST_TEXT, last_message, own_words
from popi.serving.interfaces import StoredSummary
from popi.serving.proxy.inject import Api
from popi.serving.settings import CaptureSettings
from popi.serving.store import answers
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.threads import Store

log = logging.getLogger("popi.gateway.capture")

LONGEST_ANSWER = 2**20
"""Most bytes of an answer that are held while it passes."""
UNDER_WAY = 256
"""Answers that may wait to be written; further ones are not kept."""
LONGEST_ID = 280
"""Characters of an upstream's id; of a longer one nothing is kept."""
LONGEST_CHAT = 3000.0
"""Seconds after which an answer is not kept: erasures are noted for an hour."""


class Recorder:
    """Keeps answers of tenants that opted in (interfaces.Recorder).

    Args:
        store: where they are kept.
        settings: who opted in.
        injected: the block around a summary; it is never kept.
    """

    def __init__(self, store: Store, settings: CaptureSettings, injected: Injected) -> None:
        self._store, self._settings, self._injected = store, settings, injected
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self, tenant: str, user_id: str, api: Api, body: Mapping[str, Any], summary: StoredSummary | None
    ) -> "Tap | None":
        """Look on at one request; None where nothing is kept of it."""
        opted_in = tenant in self._settings.tenants or "*" in self._settings.tenants
        if not opted_in or len(self._tasks) >= UNDER_WAY:
            return None
        message = last_message(api, body)[: 2 * LONGEST_TEXT]
        return Tap(self, tenant, user_id, api, message, summary)

    def keep(self, tap: "Tap", encoding: str) -> None:
        """Write an answer down, later."""
        task = asyncio.get_running_loop().create_task(self._keep(tap, encoding))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait for what is being written down."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, tap: "Tap", encoding: str) -> None:
        try:
            kept = await asyncio.to_thread(self._read, tap, encoding)
            if kept and time.time() - tap.began < LONGEST_CHAT:
                seconds = self._settings.hours * 3600.0
                database = self._store.database
                await self._store.write(
                    lambda connection: answers.put(
                        connection, tap.tenant, tap.user_id, kept, tap.began, database.now(connection), seconds
                    )
                )
        except StoreError as error:
            log.warning("an answer could not be kept", extra={"fields": {"error": str(error)}})
        except Exception as error:  # whatever a model or a client may send: a chat has long passed
            log.warning("an answer could not be kept", extra={"fields": {"error": type(error).__name__}})

    def _read(self, tap: "Tap", encoding: str) -> list[StoredAnswer]:
        said = all_parts(tap.summary.text) if tap.summary is not None else set()
        prompt = self._injected.out_of(own_words(tap.message), said)
        if not prompt:
            return []
        version = tap.summary.version if tap.summary is not None else 0
        upstream_id, choices = read_answer(tap.api, bytes(tap.answer), encoding)
        if len(upstream_id) > LONGEST_ID or "\x00" in upstream_id:
            upstream_id = ""
        clean = {choice: self._injected.out_of(text, said) for choice, text in choices.items()}
        return [
            StoredAnswer(
                named(tap.answer_id, choice), _storable(prompt), _storable(text), version, named(upstream_id, choice)
            )
            for choice, text in clean.items()
            if text
        ]


class Tap:
    """One answer on its way.

    Attributes:
        answer_id: ours, which the client is told in a header.
    """

    def __init__(
        self, recorder: Recorder, tenant: str, user_id: str, api: Api, message: str, summary: StoredSummary | None
    ) -> None:
        self._recorder = recorder
        self.tenant, self.user_id, self.api, self.message, self.summary = tenant, user_id, api, message, summary
        self.answer_id = f"popi-{secrets.token_hex(12)}"
        self.answer, self._too_long = bytearray(), False
        self.began = time.time()

    def feed(self, piece: bytes) -> None:
        """A piece of the answer has passed."""
        if len(self.answer) + len(piece) > LONGEST_ANSWER:
            self._too_long = True
        if not self._too_long:
            self.answer += piece

    def done(self, encoding: str) -> None:
        """The answer is through, whole."""
        if not self._too_long and self.answer:
            self._recorder.keep(self, encoding)


def _storable(text: str) -> str:
    """PostgreSQL's text holds no NUL; halves of surrogate pairs are no text."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
