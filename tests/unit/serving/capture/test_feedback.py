"""From a chat through the gateway to a signal: what is captured, of whom, for how long, and what never is."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from page_stack import LONG, SHORT, Stack, stack
from serving_client import Clock
from sqlalchemy import Connection, event

from popi.profiles.answers import SignalsAnswer
from popi.profiles.requests import Feedback
from popi.serving.api.service import Profiles
from popi.serving.api.stored import NotFound
from popi.serving.keys import create
from popi.serving.store import answers, controls, erasure, expiry, users
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.threads import Store

KEPT = [StoredAnswer("a", "ask", "answer", 0)]
NOW = Clock().now


@pytest.fixture
def tea(tmp_path: Path) -> Any:
    with stack(tmp_path) as running:
        yield running


def signals(tea: Stack, user: str = "ada") -> list[dict[str, Any]]:
    return list(tea.client.get(f"/users/{user}/export").json()["signals"])


def ask(tea: Stack, text: str) -> str:
    return tea.chat("ada", text).headers["x-popi-answer-id"]


def test_thumbs_edits_regenerations_and_picks(tea: Stack) -> None:
    one, two, three = (ask(tea, f"Tea number {n}?") for n in range(3))
    assert tea.feedback("ada", answer=one, thumbs="up").json()["added"] == 1
    assert tea.feedback("ada", answer=one, thumbs="up").json()["added"] == 0  # sent again
    assert tea.feedback("ada", answer=one, thumbs="down").json()["added"] == 1  # thought again: the later counts
    assert [(one["prompt"], one["response"], one["rating"]) for one in signals(tea)] == [("Tea number 0?", LONG, -1.0)]
    assert tea.feedback("ada", answer=two, edit=f" {LONG}\n").json()["added"] == 0  # nothing was changed
    assert tea.feedback("ada", answer=two, edit=SHORT).json()["added"] == 1
    assert (signals(tea)[1]["edit"], signals(tea)[1]["response"]) == (SHORT, LONG)
    tea.settled("ada")
    four = ask(tea, "Tea number 4?")  # short now
    assert tea.feedback("ada", answer=three, replaced_by=four).json()["added"] == 1
    assert (signals(tea)[2]["chosen"], signals(tea)[2]["rejected"]) == (SHORT, LONG)
    assert tea.feedback("ada", answer=four, preferred_over=[one, two]).json()["added"] == 2
    assert {one["type"] for one in signals(tea)[2:]} == {"pair"}


def test_a_chat_alone_teaches_nothing_and_feedback_wants_one_thing(tea: Stack) -> None:
    name = ask(tea, "My boss hates numbers and loves rhymes. Write to him.")
    assert tea.feedback("ada", answer=name, thumbs="up", edit="x").status_code == 422
    assert tea.feedback("ada", answer=name).status_code == 422
    assert tea.feedback("ada", answer=name, edit="…").json()["added"] == 0  # kept by now, and nothing was said
    assert signals(tea) == []


def test_a_chat_about_a_third_person_gives_the_signal_of_one_without_their_words(tea: Stack) -> None:
    mine = "Help me to answer this, please."
    plain, quoting = ask(tea, mine), ask(tea, f"{mine}\n\n> bob wants everything in rhyme\n> and hates numbers")
    for name in (plain, quoting):
        tea.feedback("ada", answer=name, edit=SHORT)
    first, second = signals(tea)
    assert second["prompt"].replace("[…]", "").strip() == first["prompt"] == mine
    assert {key: first[key] for key in ("response", "edit")} == {key: second[key] for key in ("response", "edit")}
    assert "rhyme" not in str(signals(tea))


def test_the_injected_summary_is_in_no_signal(tea: Stack) -> None:
    secret = "Prefers short answers about marmalade and bees."
    tea.client.put("/users/ada/summary", json={"text": secret})
    block = tea.upstream.seen
    name = ask(tea, "What do you know of me?")
    assert secret in block[-1]["messages"][0]["content"]  # it was injected
    told = f"{SHORT} <user_preferences>\nData about the user.\n{secret}\n</user_preferences> And: {secret}"
    assert tea.feedback("ada", answer=name, edit=told).json()["added"] == 1
    pasted = ask(tea, f"Why do you say this? {block[-1]['messages'][0]['content']}")
    assert tea.feedback("ada", answer=pasted, thumbs="up").json()["added"] == 1
    assert "marmalade" not in str(signals(tea)) and "user_preferences" not in str(signals(tea))
    only = ask(tea, "One more?")
    assert tea.feedback("ada", answer=only, edit=secret).json()["added"] == 0


def test_of_whom_answers_are_kept(tea: Stack) -> None:
    name = ask(tea, "Green tea?")
    assert tea.feedback("ada", answer=name, thumbs="up").status_code == 200
    assert tea.client.post("/users/ben/feedback", json={"answer": name, "thumbs": "up"}).status_code == 404
    other = create(tea.gateway.store.database, "app", "elsewhere")[0]
    head = {"authorization": f"Bearer {other}", "x-popi-user": "ada"}
    body = {"model": "m", "messages": [{"role": "user", "content": "Green tea?"}]}
    tea.client.post("/v1/chat/completions", json=body, headers=head)
    off = tea.client.post(
        "/v1/chat/completions", json=body, headers={"x-popi-user": "ada", "x-popi-personalize": "off"}
    )
    assert "x-popi-answer-id" not in off.headers
    tea.client.put("/users/ada/controls", json={"use": False})
    unused = ask(tea, "Mint tea?")
    last = ask(tea, "White tea?")
    tea.feedback("ada", answer=last, thumbs="up")  # so all before it are written, or never will be
    kept = {one["id"] for one in tea.client.get("/users/ada/export").json()["answers"]}
    assert {name, unused, last} == kept
    tea.client.put("/users/ada/paused", json={"paused": True})
    assert tea.client.get("/users/ada/export").json()["answers"] == []  # kept to learn from
    paused = ask(tea, "Black tea?")
    tea.client.put("/users/ada/paused", json={"paused": False})
    last = ask(tea, "Oolong?")
    tea.feedback("ada", answer=last, thumbs="up")
    assert {one["id"] for one in tea.client.get("/users/ada/export").json()["answers"]} == {last} != {paused}
    assert tea.gateway.store.database.read(users.find, "elsewhere", "ada") is None  # this tenant did not opt in


def test_answers_with_the_same_id_of_the_upstreams_are_kept_apart(tea: Stack) -> None:
    tea.upstream.same_id = "chatcmpl-999"
    first, second = ask(tea, "Green tea?"), ask(tea, "Black tea?")
    streamed = tea.chat("ada", "White tea?", stream=True).headers["x-popi-answer-id"]
    assert len({first, second, streamed}) == 3
    for name, prompt in ((second, "Black tea?"), (first, "Green tea?"), (streamed, "White tea?")):
        assert tea.feedback("ada", answer=name, thumbs="up").json()["added"] == 1
        assert (signals(tea)[-1]["prompt"], signals(tea)[-1]["response"]) == (prompt, LONG)
    refused = tea.feedback("ada", answer="chatcmpl-999", thumbs="down")
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "ambiguous_answer"
    assert "x-popi-answer-id" in refused.json()["error"]["message"]
    assert {one["rating"] for one in signals(tea)} == {1.0}  # nobody's thumb was turned
    kept = tea.client.get("/users/ada/export").json()["answers"]
    assert {first, second, streamed} <= {one["id"] for one in kept}  # and those that a busy machine was asked again for
    assert {one["upstream_id"] for one in kept} == {"chatcmpl-999"}


def test_an_id_of_the_upstreams_that_fits_one_answer_is_taken(tea: Stack) -> None:
    reply = tea.chat("ada", "Green tea?")
    name = reply.headers["x-popi-answer-id"]
    assert tea.feedback("ada", answer=reply.json()["id"], thumbs="up").json()["added"] == 1
    assert tea.feedback("ada", answer=name, thumbs="up").json()["added"] == 0  # the same answer


def test_answers_expire_and_go_with_the_user(database: Database) -> None:
    assert database.write(answers.put, "t", "u", KEPT, 100.0, 100.0, 60.0) == 1
    assert database.read(answers.find, "t", "u", "a", 159.0) == KEPT[0]
    assert database.read(answers.find, "t", "u", "a", 160.0) is None
    assert database.read(answers.find, "other", "u", "a", 159.0) is None
    assert not database.read(expiry.any_expired, 159.0) and database.read(expiry.any_expired, 160.0)
    assert database.write(expiry.expire, 160.0) == 2  # and the user, of whom nothing else is stored
    database.write(answers.put, "t", "u", KEPT, 100.0, 100.0, 60.0)
    assert database.write(erasure.erase, "t", "u", 200.0).answers == 1
    assert database.read(answers.newest_page, "t", "u", 0.0) == []


def test_a_chat_under_way_at_an_erasure_is_not_written_down(database: Database) -> None:
    database.write(erasure.erase, "t", "u", 200.0)
    assert database.write(answers.put, "t", "u", KEPT, 199.0, 210.0, 60.0) == 0
    assert database.write(answers.put, "t", "u", KEPT, 204.0, 210.0, 60.0) == 0  # clocks may differ
    assert database.read(users.find, "t", "u") is None
    assert database.write(answers.put, "t", "u", KEPT, 206.0, 210.0, 60.0) == 1  # a new life


def test_feedback_holds_the_user_before_it_reads_their_answers(database: Database) -> None:
    profiles, said = Profiles(Store(database)), list[str]()
    database.write(answers.put, "t", "u", KEPT, NOW, NOW, 60.0)
    event.listen(database._engine, "before_cursor_execute", lambda *about: said.append(about[2]))
    assert asyncio.run(profiles.feedback("t", "u", Feedback(answer="a", thumbs="up"))).added == 1
    held, read = (next(n for n, line in enumerate(said) if part in line) for part in ("UPDATE users", "FROM answers"))
    assert held < read


def test_feedback_during_an_erasure_brings_nothing_back(database: Database) -> None:
    profiles, began, end = Profiles(Store(database)), threading.Event(), threading.Event()
    database.write(answers.put, "t", "u", KEPT, NOW, NOW, 60.0)

    def erase(connection: Connection) -> None:
        erasure.erase(connection, "t", "u", NOW)
        began.set()
        end.wait(20)

    def tell() -> SignalsAnswer:
        return asyncio.run(profiles.feedback("t", "u", Feedback(answer="a", thumbs="up")))

    with ThreadPoolExecutor() as pool:
        erased = pool.submit(database.write, erase)
        assert began.wait(20)
        told = pool.submit(tell)
        wait([told], 0.3)
        end.set()
        erased.result()
        with pytest.raises(NotFound, match="no answer"):
            told.result()
    assert database.read(users.find, "t", "u") is None


def test_a_chat_from_a_time_without_learning_is_not_written_down(database: Database) -> None:
    assert database.write(answers.put, "t", "u", KEPT, 100.0, 101.0, 60.0) == 1
    for now, learn in ((110.0, False), (120.0, True), (130.0, True)):  # said again: nothing went on then
        database.write(controls.put, "t", "u", now, Debounce(), learn=learn)
    chats = {"before": 105.0, "within": 115.0, "after": 121.0}
    for name, began in chats.items():
        database.write(answers.put, "t", "u", [StoredAnswer(name, "ask", "answer", 0)], began, 140.0, 60.0)
    assert {one.answer_id for one in database.read(answers.newest_page, "t", "u", 140.0)} == {"after"}
