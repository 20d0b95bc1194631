"""Summaries that are the signals themselves: which words of which kind, and what a token budget leaves of them."""

from pathlib import Path

import pytest

from popi.errors import ConfigError
from popi.signals.copying import copy_signals
from popi.signals.render import Templates, shipped
from popi.signals.types import (
    DemographicSignal,
    InteractionSignal,
    PairSignal,
    PostSignal,
    Signal,
    StatementSignal,
)

SIGNALS: list[Signal] = [
    PairSignal(prompt="tea?", chosen="Green tea.", rejected="rum and gin"),
    InteractionSignal(prompt="tea?", response="black tea", rating=2, id="rated"),
    InteractionSignal(prompt="tea?", response="a cup", edit="a small cup"),
    PostSignal(text="i drank it all", context="who did?"),
    StatementSignal(text="I am short of time."),
    DemographicSignal(text="a nurse"),
]


def words(text: str) -> int:
    return len(text.split())


def test_the_preferred_side_is_copied_and_nothing_else() -> None:
    copy, dropped = copy_signals(Templates.load("default"), SIGNALS, 100, words)
    assert copy == (
        "This user preferred, said or wrote:\n- Green tea.\n- black tea (rated 2)\n- a small cup\n- i drank it all\n"
        "- I am short of time.\n- a nurse"
    )
    assert dropped == ()


def test_a_set_says_how_it_stands_there(tmp_path: Path) -> None:
    copy, _ = copy_signals(Templates.load("persona"), SIGNALS, 100, words)
    assert copy == "says: Green tea. black tea. a small cup. i drank it all. I am short of time. a nurse."
    assert Templates.load("persona").summary_text(copy) == f"You are a person who {copy}"
    own = tmp_path / "own"
    own.mkdir()
    (own / "set.toml").write_text('inherits = "default"\ncopy_opening = "likes "\ncopy_separator = ", "\n')
    (own / "copy.j2").write_text("{{ chosen if type == 'pair' }}\n")
    both = [*SIGNALS, PairSignal(prompt="x", chosen="red", rejected="blue")]
    assert copy_signals(Templates.load(own), both, 100, words) == ("likes Green tea., red", ())


@pytest.mark.parametrize("budget", range(0, 30))
def test_the_budget_holds_for_the_whole_text_and_signals_go_whole(budget: int) -> None:
    templates = Templates.load("default")
    copy, dropped = copy_signals(templates, SIGNALS, budget, words)
    assert words(copy) <= budget
    lines = copy.splitlines()[1:]
    whole, _ = copy_signals(templates, SIGNALS, 100, words)
    assert [line for line in whole.splitlines()[1:] if line in lines] == lines, "in the order given"
    assert len(lines) + len(dropped) == len(SIGNALS)
    assert set(dropped) <= {"#1", "rated", "#3", "#4", "#5", "#6"}


def test_the_newest_stay(tmp_path: Path) -> None:
    posts: list[Signal] = [StatementSignal(text=f"word{n} more") for n in range(6)]
    copy, dropped = copy_signals(Templates.load("persona"), posts, 5, words)
    assert (copy, dropped) == ("says: word4 more. word5 more.", ("#1", "#2", "#3", "#4"))
    long: list[Signal] = [StatementSignal(text="long " * 500), *posts]
    assert copy_signals(Templates.load("persona"), long, 5, words)[1] == ("#1", "#2", "#3", "#4", "#5")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_set_copies_and_nothing_is_no_preference(name: str) -> None:
    templates = Templates.load(name)
    copy, _ = copy_signals(templates, SIGNALS, 1000, words)
    assert "rum" not in copy and "who did" not in copy
    for said in ("Green tea", "a small cup", "i drank it all", "short of time", "a nurse"):
        assert said in copy
    nothing, dropped = copy_signals(templates, SIGNALS, 1, words)
    assert templates.names_no_preference(nothing) and len(dropped) == len(SIGNALS)
    assert copy_signals(templates, [], 100, words) == ("", ())


def test_a_set_that_cannot_copy_says_what_is_missing(tmp_path: Path) -> None:
    templates = Templates.load("default")
    bare = Templates(name="own", sources={name: text for name, text in templates.sources.items() if name != "copy.j2"})
    with pytest.raises(ConfigError, match=r"'own' has no copy\.j2.*let the set inherit from default"):
        copy_signals(bare, SIGNALS, 100, words)
