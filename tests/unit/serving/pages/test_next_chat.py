"""What a person decides on their page holds from the next chat on, however lately the summary was read."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from page_stack import Stack, stack

CLAUSES = [{"text": "Prefers short answers."}, {"text": "Cooks at home."}]


@pytest.fixture
def tea(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path) as running:
        cache = running.gateway.summaries
        cache._fresh = cache._stale = 1000.0  # so that only being told helps
        yield running


def seen(tea: Stack, personalised: str = "applied") -> str:
    """The system message that the model behind the gateway reads."""
    assert tea.chat("ada", "And now?").headers["x-popi-personalized"] == personalised
    messages = tea.upstream.seen[-1]["messages"]
    return " ".join(one["content"] for one in messages if one["role"] == "system")


class Page:
    """The page of one user, without a browser."""

    def __init__(self, tea: Stack) -> None:
        self._client = httpx2.Client(base_url=tea.url, follow_redirects=False)
        assert self._client.get(tea.link("ada")).status_code == 303

    def do(self, action: str, clause: str = "", **more: str) -> str:
        """Send the form of an action; returns what the page would say."""
        text = self._client.get("/me").text
        fields = dict(reversed(re.findall(r'name="(csrf|version)" value="([^"]*)"', text)))
        ids = {name: value for value, name in re.findall(r'id="text-([^"]*)" name="text"[^>]*>([^<]*)<', text)}
        form = fields | ({"clause": ids[clause]} if clause else {}) | more
        reply = self._client.post(f"/me/{action}", data=form)
        return str(reply.headers.get("location", reply.status_code))


def test_every_decision_holds_at_the_next_chat(tea: Stack) -> None:
    assert tea.client.put("/users/ada/summary", json={"clauses": CLAUSES}).status_code == 200
    assert "Prefers short answers. Cooks at home." in seen(tea)
    page = Page(tea)
    assert page.do("edit", "Cooks at home.", text="Bakes bread.", lock="yes") == "/me?said=edit"
    assert "Prefers short answers. Bakes bread." in seen(tea)
    assert page.do("lock", "Prefers short answers.") == "/me?said=lock"
    assert tea.chat("ada", "And now?").headers["x-popi-summary-version"] == "3"
    assert page.do("forbid", "Prefers short answers.") == "/me?said=forbid"
    assert "short" not in seen(tea) and "Bakes bread." in seen(tea)
    assert page.do("undo") == "/me?said=undo"
    assert "Prefers short answers. Bakes bread." in seen(tea)
    assert page.do("restore", to="1") == "/me/history?said=restore"
    assert "Cooks at home." in seen(tea)
    assert page.do("use", on="no") == "/me?said=use_off"
    assert seen(tea, "none") == ""
    assert page.do("use", on="yes") == "/me?said=use_on"
    assert "Cooks at home." in seen(tea)
    assert page.do("erase", sure="yes") == "200"
    assert seen(tea, "none") == ""


def test_the_api_tells_the_proxy_as_well(tea: Stack) -> None:
    tea.client.put("/users/ada/summary", json={"clauses": CLAUSES})
    assert "Cooks at home." in seen(tea)
    tea.client.put("/users/ada/summary", json={"forbidden": [{"text": "cooks at home"}]}, headers={"if-match": "1"})
    assert "Cooks" not in seen(tea)
    tea.client.put("/users/ada/paused", json={"paused": True})
    assert seen(tea, "none") == ""
    tea.client.put("/users/ada/paused", json={"paused": False})
    tea.client.post("/users/ada/summary/rollback", json={"version": 1})
    assert "Cooks at home." in seen(tea)
    tea.client.delete("/users/ada")
    assert seen(tea, "none") == ""
