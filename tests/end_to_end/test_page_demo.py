"""A user of `popi serve --demo` in Chromium, with the nano model as both upstream and inference model.

The user rewrites answers, and the summary and the next answer change; they edit and lock a sentence and forbid another;
after more feedback they undo and erase, and nothing of theirs is left on disk.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from chromium import accessible, chromium, clause, needs_chromium, new_page, press, sentences, traces
from demo_process import demo

pytestmark = needs_chromium
USER = "dora-of-the-demo"
PROMPTS = ("tell me about tea.", "explain soap.", "what is chess?", "tell me about bikes.", "explain maps.")
MORE = ("how do i start with bread?", "what is wool?", "tell me about honey.", "explain boats.")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


class User:
    """Dora, who asks questions and rewrites answers; the app sends her feedback."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def ask(self, prompt: str) -> tuple[str, str]:
        """The answer's id and text."""
        body = {"model": "nano", "messages": [{"role": "user", "content": prompt}]}
        reply = self._client.post("/v1/chat/completions", json=body, headers={"x-popi-user": USER})
        return reply.headers["x-popi-answer-id"], reply.json()["choices"][0]["message"]["content"]

    def rewrite(self, prompt: str, pattern: str, wanted: str) -> bool:
        """Ask, and replace `pattern` in the answer by `wanted`. Returns whether anything was replaced."""
        name, text = self.ask(prompt)
        mine = re.sub(pattern, wanted, text)
        if mine == text:
            return False
        deadline = time.monotonic() + 60  # answers are stored a moment after they were sent
        while (reply := self._client.post(f"/users/{USER}/feedback", json={"answer": name, "edit": mine})).is_error:
            assert reply.status_code == 404 and time.monotonic() < deadline, reply.text
            time.sleep(0.05)
        return True

    def settled(self) -> str:
        """The summary once no renewal is pending; empty without one."""
        deadline = time.monotonic() + 60
        while self._client.get(f"/users/{USER}").json()["renewal"] is not None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        reply = self._client.get(f"/users/{USER}/summary")
        return str(reply.json()["text"]) if reply.status_code == 200 else ""

    def answers(self, prompt: str, pattern: str) -> bool:
        """Wait for a matching answer: another process renews, and the gateway rereads the store after 2 seconds."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.ask(prompt)[1]):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.3)
        return True

    def link(self) -> str:
        return str(self._client.post(f"/users/{USER}/link").json()["url"])


FORMAL, CASUAL = r"^(dear|good|kind|honored) \w+,", r"^(hey|hi|yo|okay) \w+,"
PLAYFUL, SERIOUS = r"\w+ (funny|silly|giggle|wink)!", r"\w+ (grave|solemn|weighty|sober)\."


def test_a_user_of_the_demo(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    with demo("--store", f"sqlite:///{folder}/popi.db") as (_, client):
        dora = User(client)

        # Feedback: she rewrites two answers in a formal tone. The summary changes, the next answer changes.
        before = dora.ask(PROMPTS[0])[1]
        assert re.search(CASUAL, before) and re.search(SERIOUS, before)
        assert dora.rewrite(PROMPTS[0], CASUAL, "dear sir,") and dora.rewrite(PROMPTS[1], CASUAL, "dear sir,")
        assert re.search("formal|polite|courteous|proper", dora.settled())
        assert dora.answers(PROMPTS[0], FORMAL)

        # Her page shows it, with the reasons; she rewords it and locks it.
        page = new_page(browser, 390)
        page.goto(dora.link())
        [text] = sentences(page)
        page.get_by_text("Why? Learned from").click()
        assert page.get_by_text(f"You rewrote the answer to “{PROMPTS[0]}”.", exact=True).is_visible()
        assert page.get_by_text("we left out each thing you did in turn").is_visible()
        accessible(page)
        wording = "wants a formal tone"
        clause(page, text).locator("details.edit > summary").click()
        clause(page, text).get_by_label("Your wording").fill(wording)
        press(page, page, "Save")
        assert sentences(page) == [wording] and page.get_by_text("Kept word for word").is_visible()
        assert re.search(FORMAL, dora.ask(PROMPTS[2])[1])

        # More feedback: she adds jokes. The lock holds, and the next answer is playful.
        assert sum(dora.rewrite(prompt, SERIOUS, "haha giggle!") for prompt in PROMPTS[1:]) >= 3
        assert dora.settled().startswith(wording)
        page.goto(f"{client.base_url}/me")
        assert sentences(page)[0] == wording
        moods = [one for one in sentences(page) if re.search("humor|jokes|playful", one)]
        assert moods, sentences(page)
        assert dora.answers(PROMPTS[0], PLAYFUL) and re.search(FORMAL, dora.ask(PROMPTS[0])[1])

        # She forbids that sentence: it stays away despite more of the same feedback.
        for mood in moods:
            if mood in sentences(page):
                press(page, clause(page, mood), "Don’t use again")
        assert not re.search(PLAYFUL, dora.ask(PROMPTS[0])[1])
        rewritten = sum(dora.rewrite(prompt, SERIOUS, "yay silly!") for prompt in MORE)
        assert rewritten >= 2
        text = dora.settled()
        assert text.startswith(wording) and not re.search("humor|jokes|playful", text), text

        # Undo: what she takes out by mistake comes back.
        page.goto(f"{client.base_url}/me")
        sentences_before = sentences(page)
        press(page, clause(page, wording), "Don’t use again")
        assert wording not in sentences(page)
        press(page, page, "Undo last change")
        assert sentences(page) == sentences_before and re.search(FORMAL, dora.ask(PROMPTS[0])[1])

        # With and without, side by side.
        page.get_by_role("link", name="Try it").click()
        page.get_by_label("Your question").fill(PROMPTS[0])
        press(page, page, "Ask")
        mine, plain = page.locator(".answer p").all_inner_texts()
        assert re.search(FORMAL, mine) and re.search(CASUAL, plain)

        # She erases: nothing of her is found in any file of the store.
        assert traces(folder, USER, "wants a formal tone", "dear sir")
        page.get_by_role("link", name="My data").click()
        page.get_by_role("link", name="Erase my data").click()
        page.get_by_label("Yes, erase everything about me").check()
        press(page, page, "Erase everything")
        assert page.get_by_role("heading", name="Everything is erased").is_visible()
        deadline = time.monotonic() + 60  # the worker's process may be reading: then the bytes go soon after
        while traces(folder, USER, "wants a formal tone", "dear sir"):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert dora.ask(PROMPTS[0])[1] == before
        assert page.troubles == []
