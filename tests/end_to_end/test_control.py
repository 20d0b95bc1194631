"""A user in control, with `popi serve` in a process: opt out before the first message, opt in, feedback, edit, lock,
undo, forbid, delete, erase. Checks what the provider receives and what is left on disk."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from chromium import traces
from end_to_end.gateway_process import GatewayProcess, running
from fake_upstream import FakeUpstream, serving

from popi import Client, StatementSignal
from popi.client import SummaryAnswer, SummaryEdit
from popi.errors import GatewayError
from popi.profiles.requests import ClauseEdit, ForbiddenEdit
from popi.serving.keys import create
from popi.serving.store.database import Database

KINDS = {"tea": "Likes tea.", "diabetes": "Has diabetes.", "sweet": "Watches what is sweet.", "poem": "Writes poems."}
SETTINGS = """
[renewal]
quiet_s = 0
max_wait_s = 0
poll_interval_s = 0.05
min_signals = 1
[capture]
tenants = ["shop"]
"""


def answer(messages: Sequence[Mapping[str, Any]]) -> str:
    """Respond to a request for a summary with a statement per word of `KINDS` in the prompt, and one that is not
    allowed; for reasons, with the signals that have the word; for forbidden clauses, with anything about sweet things.
    Respond to any other request with an answer."""
    text = str(messages[-1]["content"])
    if "has forbidden stand between" in text:
        return _lines(text, lambda statement: "1" if "sweet" in statement else "none")
    if text.startswith("Numbered signals"):
        signals = re.findall(r"^\[(\d+)\] (.*(?:\n(?!\[|</).*)*)", text, re.MULTILINE)

        def rests_on(statement: str) -> str:
            word = next((word for word, clause in KINDS.items() if clause.rstrip(".") in statement), "nothing")
            return ", ".join(number for number, text in signals if word in text.casefold()) or "none"

        return _lines(text, rests_on)
    if "Give at most" in text:
        return "\n".join(dict.fromkeys([*(clause for word, clause in KINDS.items() if word in text), "has DIABETES"]))
    return f"An answer to: {text}"


def _lines(prompt: str, of: Callable[[str], str]) -> str:
    statements = re.findall(r"<statements>\n(.*?)\n</statements>", prompt, re.DOTALL)[-1].splitlines()
    return "\n".join(f"{number}: {of(statement)}" for number, statement in enumerate(statements, 1))


class World:
    """A gateway, its folder, and the upstream, which also writes summaries."""

    def __init__(self, gateway: GatewayProcess, upstream: FakeUpstream, folder: Path, key: str) -> None:
        self.gateway, self.upstream, self.folder, self.key = gateway, upstream, folder, key
        self.client = Client(gateway.url, key)

    def chat(self, user: str, text: str) -> Any:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        headers = {"authorization": f"Bearer {self.key}", "x-popi-user": user}
        return httpx2.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30)

    def settled(self, user: str) -> SummaryAnswer:
        give_up = time.monotonic() + 60
        while self.client.user(user).renewal is not None:
            assert time.monotonic() < give_up, self.client.user(user).renewal
            time.sleep(0.05)
        summary = self.client.summary(user)
        assert summary is not None
        return summary

    def say(self, user: str, **texts: str) -> SummaryAnswer:
        self.client.add_signals(user, [StatementSignal(id=name, text=text) for name, text in texts.items()])
        return self.settled(user)

    def sent_since(self, number: int) -> str:
        """Everything the upstream received about summaries, as one text."""
        sent = [str(one.body["messages"]) for one in self.upstream.received[number:]]
        return "\n".join(text for text in sent if "statements" in text).casefold()


@contextmanager
def world(folder: Path) -> Iterator[World]:
    store, file = f"sqlite:///{folder}/popi.db", folder / "gateway.toml"
    file.write_text(SETTINGS)
    database = Database.open(store)
    key = create(database, "app", "shop")[0]
    database.close()
    with serving() as upstream:
        upstream.answer = answer  # type: ignore[assignment]
        upstream.change = lambda reply: reply | {"id": "chatcmpl-999"}
        inference = ("--inference-url", f"{upstream.url}/v1", "--inference-model", "m")
        with running(store, "--config", str(file), *inference, upstream=f"{upstream.url}/v1") as gateway:
            yield World(gateway, upstream, folder, key)


def texts(summary: SummaryAnswer) -> list[str]:
    return [one.text for one in summary.clauses]


def test_a_user_decides(tmp_path: Path) -> None:
    with world(tmp_path) as here:
        client, eve = here.client, "eve-of-the-story"

        # Opted out before the first message: nothing is ever learned.
        assert client.set_controls(eve, learn=False).learn is False
        first = here.chat(eve, "A poem, please?").headers["x-popi-answer-id"]
        assert client.feedback(eve, first, thumbs="up").ignored == 1
        assert client.add_signals(eve, [StatementSignal(text="i like poems")]).ignored == 1
        assert (client.user(eve).signals, client.user(eve).renewal) == (0, None)

        # Opted in: two answers with the same upstream id are distinct, and a rating goes to the right one.
        client.set_controls(eve, learn=True)
        one, two = (here.chat(eve, text).headers["x-popi-answer-id"] for text in ("Black or green?", "Two or three?"))
        captured(client, eve, one, two)
        assert client.feedback(eve, two, thumbs="up").added == 1
        [thumb] = client.export(eve).signals
        assert "Two or three?" in str(thumb.model_dump()) and "Black or green?" not in str(thumb.model_dump())
        with pytest.raises(GatewayError) as refused:
            client.feedback(eve, "chatcmpl-999", thumbs="down")
        assert (refused.value.status, refused.value.code) == (409, "ambiguous_answer")

        # Statements, and the signals they rest on.
        here.settled(eve)
        summary = here.say(eve, s1="i have diabetes", s2="i like tea")
        assert {one.casefold().rstrip(".") for one in texts(summary)} >= {"likes tea", "has diabetes"}
        assert next(clause.signals for clause in summary.clauses if clause.text == "Likes tea.") == ["s2"]

        # Her own statement in two languages: edited, undone, redone and locked, it stays word for word.
        own = "Duzen, bitte; and no titles in English."
        for text, locked in (("Siezen, bitte.", False), (own, False), (own, True)):
            edit = with_own(text, locked)
            client.edit_summary(eve, edit)
        versions = client.versions(eve)
        assert own in versions[1].text and "Siezen" in versions[2].text
        assert "Siezen" in client.rollback(eve, versions[2].version).text
        assert own in client.rollback(eve, versions[0].version).text
        assert texts(here.say(eve, s2b="tea at noon"))[:2] == [own, "Likes tea."]

        # Forbidden: the words are not sent again, and not used again, although the model repeats them each time.
        sent = len(here.upstream.received)
        edits = [ForbiddenEdit(text="Has diabetes.")]
        client.edit_summary(eve, lambda _: SummaryEdit(forbidden=edits))
        assert texts(here.say(eve, s3="more tea")) == [own, "Likes tea."]
        assert "diabetes" not in here.sent_since(sent) and "more tea" in here.sent_since(sent)

        # What the model may see is also recognised in other words, by asking the model.
        bans = [
            ForbiddenEdit(id=client.summary(eve).forbidden[0].id),
            ForbiddenEdit(text="Avoids sugar.", send_to_model=True),
        ]  # type: ignore[union-attr]
        client.edit_summary(eve, lambda _: SummaryEdit(forbidden=bans))
        assert texts(here.say(eve, s4="nothing sweet")) == [own, "Likes tea."]
        assert "avoids sugar." in here.sent_since(sent) and "diabetes" not in here.sent_since(sent)

        # Delete a signal, with what rests on it; delete a statement and forbid it without its words.
        for name in ("s2", "s2b", "s3"):
            client.delete_signal(eve, name)
        assert "Likes tea." not in here.settled(eve).text and own in here.settled(eve).text
        client.delete_signal(eve, "s1")
        now = here.settled(eve)
        client.delete_words(eve, next(one.id for one in now.forbidden if one.text == "Has diabetes."))
        here.settled(eve)
        assert traces(tmp_path, "diabetes", "Diabetes", "Likes tea") == []
        assert {one.text for one in client.summary(eve).forbidden} == {None, "Avoids sugar."}  # type: ignore[union-attr]
        assert "diabetes" not in here.say(eve, s5="i write a poem").text.casefold()

        # Erase everything.
        assert traces(tmp_path, eve, "poem", "Duzen")
        client.erase(eve)
        assert traces(tmp_path, eve, "poem", "sugar", "Duzen", "Siezen") == []


def with_own(text: str, locked: bool) -> Callable[[SummaryAnswer | None], SummaryEdit]:
    """The current clauses, with the user's own as the last one, replacing their previous one."""

    def edit(now: SummaryAnswer | None) -> SummaryEdit:
        assert now is not None
        mine = next((one.id for one in now.clauses if one.author == "user" or "zen, bitte" in one.text), None)
        others = [ClauseEdit(id=one.id, text=one.text) for one in now.clauses if one.id != mine]
        return SummaryEdit(clauses=[*others, ClauseEdit(id=mine, text=text, locked=locked)])

    return edit


def captured(client: Client, user: str, *names: str) -> None:
    """Answers are stored a moment after they were sent."""
    give_up = time.monotonic() + 60
    while {one.id for one in client.export(user).answers} != set(names):
        assert time.monotonic() < give_up
        time.sleep(0.05)
