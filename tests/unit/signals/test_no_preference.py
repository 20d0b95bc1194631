"""Summaries that name no preference, and what stands in a prompt then."""

from pathlib import Path

import pytest

from popi.errors import ConfigError
from popi.signals.render import Templates, shipped
from popi.signals.types import StatementSignal

PLAIN = [{"role": "user", "content": "what is tea?"}]


@pytest.mark.parametrize("name", shipped())
@pytest.mark.parametrize("said", ["", " \n", "No preference is known.", "no clear preference.", "No preferences known"])
def test_every_set_knows_every_sets_statement(name: str, said: str) -> None:
    templates = Templates.load(name)
    assert templates.names_no_preference(said)
    assert templates.names_no_preference(templates.no_preference)
    assert templates.generator_messages("what is tea?", said) == PLAIN


@pytest.mark.parametrize(
    ("said", "nothing"),
    [
        ("wants any tone, any level, any layout, any length, any mood, any support and any closing.", True),
        ("Prefers any level, any level,, any layout and any mood.", True),
        ("wants any tone, any level, bullet lists, any length and any closing.", False),
        ("no clear preference, but short answers.", False),
        ("no clear preference of tone. wants numbers.", False),
        ("likes clear preferences.", False),
    ],
)
def test_a_preference_beside_it_is_a_preference(said: str, nothing: bool) -> None:
    templates = Templates.load("nano")
    assert templates.names_no_preference(said) is nothing
    assert (templates.generator_messages("what is tea?", said) == PLAIN) is nothing


def test_without_signals_the_raw_baseline_reads_the_plain_prompt() -> None:
    for name in shipped():
        templates = Templates.load(name)
        assert templates.raw_signals_messages("what is tea?", []) == PLAIN
        assert len(templates.raw_signals_messages("what is tea?", [StatementSignal(text="i like tea.")])) == 2


def test_instructed_models_are_told_what_to_write() -> None:
    for name in ("default", "alignx", "elix", "polis", "review", "roleplay"):
        templates = Templates.load(name)
        request = templates.inference_messages([StatementSignal(text="x")])[-1]["content"]
        assert request.endswith(f"write only this sentence: {templates.no_preference}")


def test_a_set_words_it_itself(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    words = 'inherits = "default"\nno_preference = "Nichts bekannt."\n'
    (folder / "set.toml").write_text(words)
    with pytest.raises(ConfigError, match="'Nichts bekannt.' would be read as a preference"):
        Templates.load(folder)
    (folder / "set.toml").write_text(words + "says_nothing = ['nichts bekannt\\.?']\n")
    templates = Templates.load(folder)
    assert templates.names_no_preference("nichts bekannt") and not templates.names_no_preference("nichts")
    (folder / "set.toml").write_text(words + "says_nothing = ['(']\n")
    with pytest.raises(ConfigError, match="unterminated"):
        Templates.load(folder)
