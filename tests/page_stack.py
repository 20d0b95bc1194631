"""A gateway with pages and capture, a model behind it and an inference model, all small and in this process."""

import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from popi.serving.app import Gateway
from popi.serving.connections import uvicorn_settings
from popi.serving.keys import create
from popi.serving.pages.settings import PageSettings
from popi.serving.proxy.settings import ProxySettings
from popi.serving.server import free_port
from popi.serving.settings import CaptureSettings, GatewaySettings, RenewalSettings, ServerSettings
from popi.serving.store.database import Database
from popi.serving.worker.renewal import Worker
from popi.signals.types import InteractionSignal, PairSignal, Signal, StatementSignal
from popi.summary import Summary

ADMIN = "an-admin-key-of-the-tests"
SHORT = "Steep green tea for two minutes at 80 degrees."
LONG = (
    "Green tea has a long and fascinating history. To prepare it well you should first consider the water, then the "
    "vessel, then the leaves; each of them deserves a few words. Begin with fresh, soft water, heated to 80 degrees."
)


class Upstream:
    """Answers in short where the system message says that the user likes it so, and keeps what it was sent.

    Attributes:
        seen: the bodies that it was sent.
        same_id: the id of every answer, as some servers have it; None: each gets its own.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.same_id: str | None = None
        self._numbers = itertools.count(1)
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.seen.append(body)
        system = " ".join(m["content"] for m in body["messages"] if m["role"] == "system").casefold()
        text = SHORT if any(word in system for word in ("short", "brief", "concise")) else LONG
        if "example" in system:
            text += " For example, a spoon of sencha in a small cup."
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        name = self.same_id or f"chatcmpl-{next(self._numbers)}"
        if not body.get("stream"):
            return JSONResponse({"id": name, "object": "chat.completion", "choices": [choice]})
        pieces = [{"index": 0, "delta": {"content": word}} for word in re.findall(r"\S+\s*", text)]
        events = [{"id": name, "object": "chat.completion.chunk", "choices": [piece]} for piece in pieces]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return Response("".join(lines) + "data: [DONE]\n\n", media_type="text/event-stream")


class Learner:
    """An inference model by rules, which words things anew each time and keeps what the old summary says; and says
    which signals it went by.
    """

    how: Literal["leave_one_out", "named"] = "named"
    JOKES = ("Enjoys a good joke now and then.", "Likes humorous, witty replies.", "Appreciates some fun in answers.")
    SHORT = ("Prefers short answers.", "Likes answers that are brief.")
    COOKS = ("Cooks at home most evenings, for two.",)
    renews = True

    def __init__(self) -> None:
        self.renewals = 0

    def renewable(self, summary: str) -> bool:
        return True

    def summarize(
        self, signals: Sequence[Signal], temperature: float = 0.0, *, previous: Summary | None = None
    ) -> Summary:
        old = previous.text if previous is not None else ""
        said = []
        for words, test in self._kinds():
            if any(map(test, signals)) or any(one in old for one in words):
                said.append(words[self.renewals % len(words)])
        self.renewals += 1
        return Summary(" ".join(said) or "none", 5, len(signals), model="learner")

    def explain(
        self,
        signals: Sequence[Signal],
        summary: str,
        clauses: Sequence[str],
        before: Sequence[str] = (),
        previous_signals: int | None = None,
    ) -> list[list[int]]:
        found = []
        for clause in clauses:
            words, test = next((kind for kind in self._kinds() if clause in kind[0]), ((), _cooks))
            new = [i for i, one in enumerate(signals) if test(one)]
            found.append([*new, *(len(signals) + i for i, text in enumerate(before) if text in words)])
        return found

    sends = False

    def restated(self, statements: Sequence[str], forbidden: Sequence[str]) -> set[int]:
        """By what a statement is about."""
        banned = {number for text in forbidden for number, (words, _) in enumerate(self._kinds()) if text in words}
        return {
            index
            for index, text in enumerate(statements)
            for number, (words, _) in enumerate(self._kinds())
            if number in banned and text in words
        }

    def _kinds(self) -> "list[tuple[tuple[str, ...], Callable[[Signal], bool]]]":
        return [(self.SHORT, _short), (self.JOKES, _jokes), (self.COOKS, _cooks)]


def _short(signal: Signal) -> bool:
    if isinstance(signal, InteractionSignal):
        return signal.edit is not None and len(signal.edit) < len(signal.response)
    return isinstance(signal, PairSignal) and len(signal.chosen) < len(signal.rejected)


def _jokes(signal: Signal) -> bool:
    return isinstance(signal, StatementSignal) and "joke" in signal.text


def _cooks(signal: Signal) -> bool:
    return isinstance(signal, StatementSignal) and "cook" in signal.text


@dataclass
class Stack:
    """What `stack` gives: where the gateway is, keys, and what is behind it."""

    url: str
    key: str
    gateway: Gateway
    upstream: Upstream
    learner: Learner
    folder: Path
    client: httpx2.Client = field(repr=False)

    def chat(self, user: str, text: str, **more: Any) -> httpx2.Response:
        """Ask; again where this machine was too busy to read the summary in time."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
        for _ in range(20):
            reply = self.client.post("/v1/chat/completions", json=body, headers={"x-popi-user": user})
            if reply.headers["x-popi-personalized"] != "failed":
                break
            time.sleep(1.0)
        return reply

    def answer(self, user: str, text: str) -> str:
        return str(self.chat(user, text).json()["choices"][0]["message"]["content"])

    def answers(self, user: str, text: str, wanted: str) -> bool:
        """Whether an answer comes to be: the proxy hears of a renewal a moment after it is written."""
        give_up = time.monotonic() + 60
        while wanted not in self.answer(user, text):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.1)
        return True

    def feedback(self, user: str, **told: Any) -> httpx2.Response:
        """Answers are written down a moment after they have passed."""
        give_up = time.monotonic() + 60
        while True:
            reply = self.client.post(f"/users/{user}/feedback", json=told)
            if reply.status_code != 404 or time.monotonic() > give_up:
                return reply
            time.sleep(0.05)

    def say(self, user: str, *texts: str) -> None:
        sent = {"signals": [{"type": "statement", "text": text} for text in texts]}
        assert self.client.post(f"/users/{user}/signals", json=sent).status_code == 200

    def summary(self, user: str) -> dict[str, Any]:
        reply = self.client.get(f"/users/{user}/summary")
        return dict(reply.json()) if reply.status_code == 200 else {"version": 0, "text": "", "clauses": []}

    def settled(self, user: str) -> dict[str, Any]:
        """The summary once no renewal waits."""
        give_up = time.monotonic() + 60
        while self.client.get(f"/users/{user}").json()["renewal"] is not None:
            assert time.monotonic() < give_up
            time.sleep(0.03)
        return self.summary(user)

    def link(self, user: str) -> str:
        return str(self.client.post(f"/users/{user}/link").json()["url"])


@contextmanager
def served(app: Any) -> Iterator[str]:
    """An ASGI application under uvicorn, in a thread."""
    port = free_port()
    settings = uvicorn_settings(ServerSettings())
    # An upstream that hangs up while a busy machine lets the client wait would look like one that fails.
    config = uvicorn.Config(app, port=port, log_level="warning", lifespan="auto", timeout_keep_alive=75, **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    give_up = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < give_up
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def stack(folder: Path, **page: Any) -> Iterator[Stack]:
    """Everything, on a store in `folder`; `page`: settings of the pages."""
    upstream, learner = Upstream(), Learner()
    with served(upstream.app) as behind:
        database = Database.open(f"sqlite:///{folder}/popi.db")
        key = create(database, "app", "shop")[0]
        settings = GatewaySettings(
            proxy=ProxySettings(upstream=behind),
            renewal=RenewalSettings(quiet_s=0.05, max_wait_s=0.5),
            capture=CaptureSettings(tenants=("shop",)),
            page=PageSettings(**{"name": "Teahouse", "model": "m"} | page),
        )
        worker = Worker(
            database, learner, RenewalSettings(poll_interval_s=0.05), explainer=learner, restatement_check=learner
        )
        gateway = Gateway(database, settings, worker, ADMIN)
        with (
            served(gateway) as url,
            httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) as client,
        ):
            yield Stack(url, key, gateway, upstream, learner, folder, client)
