"""`prompts.toml`: other ways to ask an untrained model for a summary."""

from pathlib import Path

import pytest

from popi.errors import ConfigError
from popi.nano.answers import READ_AS
from popi.signals.asking import OWN, SummaryPrompt, summary_prompts
from popi.signals.render import Templates
from popi.signals.types import StatementSignal


def of(folder: Path, text: str) -> list[SummaryPrompt]:
    folder.mkdir()
    (folder / "set.toml").write_text('inherits = "default"\n')
    (folder / "prompts.toml").write_text(text)
    return summary_prompts(Templates.load(folder), {"upper": str.upper})


def test_the_nano_set_has_ten_prompts_and_more() -> None:
    asked = summary_prompts(Templates.load("nano"), READ_AS)
    assert len(asked) >= 10 and asked[0] == SummaryPrompt()
    assert len({(one.text, one.read_as) for one in asked}) == len(asked)


def test_a_set_without_the_file_has_its_own_prompt() -> None:
    assert summary_prompts(Templates.load("default"), {}) == [SummaryPrompt(OWN)]


def test_a_prompt_takes_the_place_of_the_sets_own(tmp_path: Path) -> None:
    _, short = of(tmp_path / "set", '[short]\ntext = "Say in {{ 2 + 3 }} words what they like."\n')
    templates = Templates.load(tmp_path / "set")
    [_, request] = short.templates(templates).inference_messages([StatementSignal(text="i like tea.")])
    assert request == {"role": "user", "content": "Say in 5 words what they like."}
    assert templates.inference_messages([])[1] != request
    assert short.templates(templates).stamp != templates.stamp


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a]\n", r"\[a\] must have text"),
        ("[a]\ntext = 3\n", r"\[a\] must have text"),
        ('[a]\ntext = "x"\nmore = 1\n', r"\[a\] must have text"),
        ('[own]\ntext = "x"\n', "name of the set's own prompt"),
        ('[a]\ntext = "x"\nread_as = "lower"\n', "'lower' is not one of upper"),
        ('[a]\ntext = "{{ x"\n', r"\[a\] text"),
        ("[a\n", "prompts.toml"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        of(tmp_path / "set", text)
