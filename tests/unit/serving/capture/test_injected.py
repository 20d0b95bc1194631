"""The injected block and the summary's statements, taken out of what would be learned from."""

import time

import pytest

from popi.profiles.clauses import all_parts
from popi.serving.capture.injected import MAX_WORDS, MIN_WORDS, Injected
from popi.serving.capture.texts import CUT, MAX_TEXT_CHARS
from popi.serving.demo import BLOCK
from popi.serving.proxy.block import Blocks

SUMMARY = "Prefers short answers with one example. Cooks at home."
SAID = ["Prefers short answers with one example.", "Cooks at home."]


@pytest.mark.parametrize(
    "text",
    [
        Blocks().text(SUMMARY),
        Blocks().text(SUMMARY).replace("<", "&lt;").replace(">", "&gt;"),
        Blocks().text(SUMMARY).removesuffix("</user_preferences>"),
        Blocks().text(SUMMARY).replace("user_preferences>", "USER_PREFERENCES >"),
        "I was told: prefers   short answers - with one EXAMPLE.",
        "prefers short answers, with one example; prefers short answers with one example",
    ],
)
def test_the_injected_block_never_comes_back(text: str) -> None:
    found = Injected().remove_from(f"Sure. {text} Here is your tea.", SAID)
    assert "one example" not in found.lower() and "short" not in found and "preferences" not in found.lower()
    assert found.startswith("Sure.")


def test_a_block_of_ones_own() -> None:
    mine = "Known of them so far:\n<about_user>{summary}</about_user>"
    text = f"Sure. {Blocks(mine).text('Likes tea.')} Done."
    assert "Likes tea" not in Injected(mine).remove_from(text, []) and "Likes tea" in Injected().remove_from(text, [])
    nano = "wants any tone, expert level, short replies."
    assert (
        Injected(BLOCK).remove_from(f"why {Blocks(BLOCK).text(nano)} so?", all_parts(nano)) == f"why {CUT} : {CUT}. so?"
    )


def test_a_text_that_is_the_block_alone_is_nothing() -> None:
    assert Injected().remove_from(Blocks().text(SUMMARY), SAID) == ""


def test_short_statements_are_not_looked_for() -> None:
    assert MIN_WORDS == 4
    assert (
        Injected().remove_from("I cook at home, and cooks at home are many.", SAID).endswith("cooks at home are many.")
    )


def test_of_two_statements_the_longer_is_taken_out() -> None:
    said = ["Likes green tea much", "Likes green tea much in the morning"]
    assert Injected().remove_from("Yes: likes green tea much in the morning!", said) == f"Yes: {CUT}!"


def test_long_in_any_parts() -> None:
    said = " ".join(f"word{n}" for n in range(MAX_WORDS + 20))
    assert Injected().remove_from(f"So: {said}.", [said]) == f"So: {CUT} {CUT}."


@pytest.mark.parametrize(
    "text", ["<" + " " * 300_000, "<user_preferences " * 20_000, "</" * 200_000, "prefers " * 50_000, "&lt;" * 90_000]
)
def test_hostile_texts_take_no_time_and_are_cut(text: str) -> None:
    said = {f"Prefers {'prefers ' * n}tea" for n in range(0, 5000, 10)}
    began = time.process_time()
    assert len(Injected().remove_from(text, said)) <= MAX_TEXT_CHARS
    assert time.process_time() - began < 5
