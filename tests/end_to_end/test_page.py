"""A user and their page, in Chromium: feedback, renewal, edit, lock, forbid, undo, switch off, try, erase; and axe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import accessible, chromium, clause, needs_chromium, new_page, press, sentences, shot, switch, traces
from page_stack import ADMIN, LONG, SHORT, Stack, stack

pytestmark = needs_chromium
USER = "ada-lovelace-1815"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def tea(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path) as running:
        yield running


@pytest.mark.parametrize("scripts", [True, False], ids=["with script", "without script"])
def test_a_user_and_their_page(browser: Any, tea: Stack, scripts: bool) -> None:
    # A user gives feedback, the summary changes, the next answer changes.
    first = tea.chat(USER, "How do I make green tea?")
    assert first.headers["x-popi-personalized"] == "none" and first.json()["choices"][0]["message"]["content"] == LONG
    assert tea.feedback(USER, answer=first.headers["x-popi-answer-id"], edit=SHORT).status_code == 200
    assert tea.settled(USER)["text"] == "Prefers short answers."
    assert tea.answers(USER, "And black tea?", SHORT)

    # The page shows it, with the reasons.
    page = new_page(browser, scripts=scripts)
    page.goto(tea.link(USER))
    assert page.url.endswith("/me") and sentences(page) == ["Prefers short answers."]
    page.get_by_text("Why? Learned from 1 thing you did").click()
    assert page.get_by_text("You rewrote the answer to “How do I make green tea?”.", exact=True).is_visible()
    assert page.get_by_text("How we know: the model that wrote this sentence named these").is_visible()

    # They edit and keep it.
    clause(page, "short").locator("details.edit > summary").click()
    clause(page, "short").get_by_label("Your wording").fill("Prefers short answers, with one example.")
    press(page, clause(page, "short"), "Save")
    assert sentences(page) == ["Prefers short answers, with one example."]
    assert page.get_by_role("status").filter(has_text="Saved.").is_visible()
    assert clause(page, "short").get_by_text("Kept word for word").is_visible()
    assert "sencha" in tea.answer(USER, "And white tea?")

    # More feedback arrives; the locked sentence stays.
    tea.say(USER, "tell me a joke with it", "i cook at home for two")
    assert tea.settled(USER)["version"] == 3
    page.goto(f"{tea.url}/me")
    locked = "Prefers short answers, with one example."
    assert sentences(page)[0] == locked and len(sentences(page)) == 3  # the original wording is not learned again
    assert tea.settled(USER)["text"].startswith(locked)

    # The forbidden sentence stays away, in other words too.
    press(page, clause(page, "humorous"), "Don’t use again")
    assert not any("humorous" in one for one in sentences(page))
    assert page.locator(".forbidden li").count() == 1
    for number in range(4):
        tea.say(USER, f"one more joke, number {number}")
        text = tea.settled(USER)["text"]
        assert not any(joke in text for joke in tea.learner.JOKES) and text.startswith(locked)
    page.goto(f"{tea.url}/me")
    if scripts:
        accessible(page)

    # Undo works.
    before = sentences(page)
    press(page, clause(page, "Cooks at home"), "Don’t use again")
    assert not any("Cooks" in one for one in sentences(page))
    press(page, page, "Undo last change")
    assert sentences(page) == before and page.locator(".forbidden li").count() == 1

    # History with differences; restoring a version; pausing; trying.
    page.get_by_role("link", name="History").click()
    page.locator("ins").first.wait_for()
    assert page.get_by_text("in use now").count() == 1
    if scripts:
        accessible(page)
    page.get_by_role("link", name="Try it").click()
    page.get_by_label("Your question").fill("How do I make oolong?")
    press(page, page, "Ask")
    assert SHORT in page.locator(".answer.mine p").inner_text() and page.get_by_text(LONG).count() == 1
    if scripts:
        accessible(page)
    page.get_by_role("link", name="About me").click()
    switch(page, "Use what you know about me")
    assert tea.chat(USER, "And mint tea?").headers["x-popi-personalized"] == "none"
    switch(page, "Use what you know about me")
    assert tea.chat(USER, "And mint tea?").headers["x-popi-personalized"] == "applied"
    page.get_by_role("link", name="My data").click()
    if scripts:
        accessible(page)

    # They erase everything, and nothing is left on disk.
    assert traces(tea.folder, "sencha", "one example", "green tea", "joke", USER)
    page.get_by_role("link", name="Erase my data").click()
    if scripts:
        accessible(page)
    page.get_by_label("Yes, erase everything about me").check()
    press(page, page, "Erase everything")
    assert page.get_by_role("heading", name="Everything is erased").is_visible()
    if scripts:
        accessible(page)
    assert traces(tea.folder, "sencha", "one example", "green tea", "joke", USER) == []
    assert tea.client.get("/users/" + USER).status_code == 404
    page.goto(f"{tea.url}/me")
    assert page.get_by_role("heading", name="You are signed out").is_visible()
    assert [line for line in page.troubles if "401" not in line] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_is_accessible_and_fits(browser: Any, tea: Stack, width: int, dark: bool) -> None:
    name = f"{'dark' if dark else 'light'}-{width}"
    first = tea.chat("ada", "How do I make green tea?").headers["x-popi-answer-id"]
    page = new_page(browser, width, dark)
    page.goto(tea.link("ada"))
    shot(page, f"empty-{name}")
    accessible(page)
    tea.feedback("ada", answer=first, edit=SHORT)
    tea.settled("ada")
    tea.say("ada", "i like a joke now and then", "i cook at home for two")
    tea.settled("ada")
    page.goto(f"{tea.url}/me")
    press(page, clause(page, "Cooks"), "Keep")
    press(page, clause(page, "witty"), "Don’t use again")
    page.get_by_label("Your sentence").fill("Assume that I have a kettle with a thermometer, and no teapot.")
    press(page, page, "Add")
    accessible(page)
    assert page.locator(".said.floating").count() == 1  # the scroll position is restored
    page.goto(f"{tea.url}/me")
    clause(page, "brief").get_by_text("Why?").click()
    page.mouse.move(0, 0)
    accessible(page)
    shot(page, f"profile-{name}")
    clause(page, "brief").locator("details.edit > summary").click()
    accessible(page)
    shot(page, f"edit-{name}")
    for path in ("history", "data", "erase"):
        page.goto(f"{tea.url}/me/{path}")
        accessible(page)
        shot(page, f"{path}-{name}")
    page.goto(f"{tea.url}/me/try")
    page.get_by_label("Your question").fill("How do I make oolong?")
    press(page, page, "Ask")
    accessible(page)
    shot(page, f"try-{name}")
    page.goto(f"{tea.url}/me")
    switch(page, "Use what you know about me")
    switch(page, "Learn from what I do")
    accessible(page)
    shot(page, f"paused-{name}")
    page.goto(f"{tea.url}/admin")
    accessible(page)
    shot(page, f"sign-in-{name}")
    page.get_by_label("Admin key").fill(ADMIN)
    press(page, page, "Sign in")
    page.goto(f"{tea.url}/admin?tenant=shop")
    accessible(page)
    shot(page, f"people-{name}")
    page.get_by_role("link", name="ada").click()
    accessible(page)
    shot(page, f"team-{name}")
    assert page.troubles == []


def test_what_they_decide_before_anything_is_known_and_what_they_delete(browser: Any, tea: Stack) -> None:
    # The switches can be set first, and apply to everything later.
    page = new_page(browser, 390)
    page.goto(tea.link("ada"))
    use, learn = (page.get_by_role("switch", name=name) for name in ("Use what you know", "Learn from what I do"))
    assert use.get_attribute("aria-checked") == learn.get_attribute("aria-checked") == "true"
    switch(page, "Learn from what I do")
    assert learn.get_attribute("aria-checked") == "false" and use.get_attribute("aria-checked") == "true"
    assert page.get_by_role("status").filter(has_text="We learn nothing").is_visible()
    tea.say("ada", "i like a joke now and then")
    assert tea.client.get("/users/ada").json()["signals"] == 0
    switch(page, "Learn from what I do")

    # Forbidden: the model does not see it unless they allow that; the words can be deleted, and it stays forbidden.
    tea.say("ada", "i like a joke now and then", "i cook at home for two")
    tea.settled("ada")
    page.goto(f"{tea.url}/me")
    press(page, clause(page, "joke"), "Don’t use again")
    assert page.get_by_text("Only these very words are kept away.").is_visible()
    press(page, page, "Let the model know")
    assert page.get_by_text("is told them, so that it avoids them in other words").is_visible()
    accessible(page)
    press(page, page, "Delete the words")
    assert page.locator(".forbidden .words").all_inner_texts() == ["A sentence that you deleted"]
    now = tea.summary("ada")["forbidden"]
    assert [(one["text"], one["send_to_model"]) for one in now] == [(None, True)]

    # Delete a sentence with the signals it was learned from; nothing of it is left on disk.
    assert traces(tea.folder, "Cooks at home", "cook at home for two")
    clause(page, "Cooks").locator("details.delete > summary").click()
    accessible(page)
    clause(page, "Cooks").get_by_label("Delete the one thing that it was learned from").check()
    press(page, clause(page, "Cooks"), "Delete for good")
    assert sentences(page) == [] and page.get_by_role("status").filter(has_text="Deleted for good.").is_visible()
    assert traces(tea.folder, "Cooks at home", "cook at home for two") == []

    # Delete a signal, and what rested on it.
    tea.say("ada", "i cook at home for three")
    tea.settled("ada")
    page.goto(f"{tea.url}/me")
    clause(page, "Cooks").get_by_text("Why?").click()
    press(page, clause(page, "Cooks"), "Delete this, and what was learned from it")
    assert sentences(page) == [] and traces(tea.folder, "for three") == []
    tea.settled("ada")

    # Delete a version.
    page.goto(f"{tea.url}/me/history")
    before = page.locator(".versions > li").count()
    page.locator(".versions > li").last.locator("details.delete > summary").click()
    accessible(page)
    press(page, page.locator(".versions > li").last, "Delete this version for good")
    assert page.locator(".versions > li").count() == before - 1
    assert page.troubles == []


def test_by_keyboard_alone(browser: Any, tea: Stack) -> None:
    tea.say("ada", "i cook at home for two")
    tea.settled("ada")
    page = new_page(browser)
    page.goto(tea.link("ada"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for _ in range(5):  # use, learn, why, edit, keep
        page.keyboard.press("Tab")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert tea.summary("ada")["clauses"][0]["locked"] is True
