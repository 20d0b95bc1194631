"""Copied spans and private items, on texts that can be checked by eye."""

import pytest

from popi.signals.types import InteractionSignal, Message, PairSignal, PostSignal, StatementSignal
from popi.studies.side_effects.copied import (
    CHARACTERS,
    WORDS,
    Span,
    copied_span,
    flags,
    longest_common,
    private_items,
    reappearing,
    text_of,
)

NONE = {"email": set(), "url": set(), "phone": set(), "number": set(), "name": set()}


def test_longest_common_run() -> None:
    assert longest_common("abcde", ["xbcdx", "cde"]) == 3
    assert longest_common(["a", "b", "c"], [["b", "c"], ["a", "c", "b"]]) == 2
    assert longest_common("abc", ["xyz"]) == longest_common("", ["a"]) == longest_common("abc", []) == 0
    assert longest_common("abc", ["abc"]) == 3


def test_longest_common_run_is_that_of_trying_all() -> None:
    one, other = "abracadabra and more", "cad and more abra"
    runs = [one[i:j] for i in range(len(one)) for j in range(i, len(one) + 1)]
    assert longest_common(one, [other]) == max(len(run) for run in runs if run in other) == len(" and more")


def test_copied_span_counts_words_and_characters() -> None:
    texts = ["My sister Anna lives in Lisbon.", "I like short answers"]
    # "lives in lisbon" is three words; with the blank before it " lives in lisbon." 17 characters
    assert copied_span("The user's sister  LIVES in Lisbon.", texts) == Span(3, 17)
    # nothing but single letters and blanks
    assert copied_span("zzz", texts) == Span(0, 0)
    assert copied_span("", texts) == Span(0, 0)
    assert copied_span("short, answers!", texts) == Span(2, len(" answers"))
    # no span runs over the border of two texts
    assert copied_span("lisbon i", ["in lisbon", "i like"]).words == 1


@pytest.mark.parametrize(
    ("text", "kind", "items"),
    [
        ("Write to Ann.Lee+x@mail.example.org, please.", "email", {"ann.lee+x@mail.example.org"}),
        ("See https://Example.org/a?b=1. Or www.site.org!", "url", {"https://example.org/a?b=1", "www.site.org"}),
        ("Call +49 30 123456 or (030) 123-4567 or 555-123-4567.", "phone", {"4930123456", "0301234567", "5551234567"}),
        ("I am 42 and earn 1,500 a month; 3 points.", "number", {"42", "1500"}),
        ("it was in 2019-2020", "number", {"20192020"}),
        ("version v12 and 3d are words", "number", set()),
        ("My boss Dr. Weber met Élodie in Porto.", "name", {"Weber", "Élodie", "Porto"}),
        ("Anna came. Then she left.\n- Maria stayed.", "name", set()),
        ("I said: Please, on Monday, NASA and I will. “Yes”", "name", set()),
        ("I know O'Neil and Jean-Luc.", "name", {"O'Neil", "Jean-Luc"}),
    ],
)
def test_private_items(text: str, kind: str, items: set[str]) -> None:
    assert private_items(text)[kind] == items


def test_an_address_is_counted_once() -> None:
    assert private_items("call 555-123-4567") == NONE | {"phone": {"5551234567"}}
    assert private_items("see https://example.org/2024/12") == NONE | {"url": {"https://example.org/2024/12"}}


def test_what_reappears() -> None:
    texts = ["Ask my sister Anna, she is 42: anna@example.org", "I asked Bruno at 42"]
    counts = reappearing("Anna is 42 years old; bruno is not.", texts)
    assert counts == {"email": (0, 1), "url": (0, 0), "phone": (0, 0), "number": (1, 1), "name": (1, 2)}
    assert flags(Span(2, 9), counts) == ["number", "name"]
    assert reappearing("likes short answers", [])["name"] == (0, 0)


def test_flags_begin_at_the_thresholds() -> None:
    nothing = reappearing("", [])
    assert flags(Span(WORDS - 1, CHARACTERS - 1), nothing) == []
    assert flags(Span(WORDS, CHARACTERS - 1), nothing) == ["words"]
    assert flags(Span(WORDS - 1, CHARACTERS), nothing) == ["characters"]


def test_every_text_of_a_signal_is_looked_at() -> None:
    chat = [Message(role="system", content="s"), Message(role="user", content="u")]
    signals = [
        PairSignal(prompt=chat, chosen="c", rejected="r", id="no"),
        InteractionSignal(prompt="p", response="a", edit="e", rating=3),
        PostSignal(text="t", context="x"),
        StatementSignal(text="o"),
    ]
    assert sorted(text_of(signals)) == sorted("sucrpaetxo")
