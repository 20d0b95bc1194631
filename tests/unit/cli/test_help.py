"""The help of every command, on narrow terminals; and the names that commands used to have."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import typer.rich_utils

from popi.cli import COMMANDS, app


def every_command(command: Any, context: Any = None, name: str = "popi") -> Iterator[tuple[str, Any, Any]]:
    """(name, command, its context) of the command and all below it."""
    context = command.context_class(command, info_name=name, parent=context)
    yield context.command_path, command, context
    for child, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from every_command(below, context, child)


def plain(text: str) -> str:
    """The words of a text, without Markdown; two spaces where a paragraph ends."""
    paragraphs = re.sub(r"[`*]", "", text).split("\n\n")
    return "  ".join(" ".join(paragraph.split()) for paragraph in paragraphs)


@pytest.mark.parametrize("width", [80, 100])
def test_no_help_is_cut_off(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", width)
    monkeypatch.setattr(typer.rich_utils, "FORCE_TERMINAL", False)
    names = []
    for name, command, context in every_command(typer.main.get_command(app)):
        command.get_help(context)
        shown = capsys.readouterr().out
        words = " ".join(re.sub("[│*]", " ", shown).split())
        assert "…" not in shown and max(map(len, shown.splitlines())) <= width, f"{name}:\n{shown}"
        for below in getattr(command, "commands", {}).values():
            assert below.hidden or f" {below.name} {plain(below.help).split('  ')[0]}" in words, f"{name} {below.name}"
        for option in command.params:
            assert option.help and plain(option.help) in words, f"{name} {option.opts[0]}:\n{shown}"
            assert option.opts[0][0] != "-" or f" {option.opts[0]} " in words, f"{name} {option.opts[0]}"
        names.append(name)
    assert len(names) > 30 and {"popi study side-effects", "popi users erase"} < set(names)


def test_everyday_commands_come_first(run: Any) -> None:
    code, out, _ = run("--help")
    assert code == 0 and [*COMMANDS][0] == "Everyday" and len(COMMANDS["Everyday"]) == 6
    places = [out.index(f" {title} ") for title in COMMANDS]
    assert places == sorted(places)
    for command in COMMANDS["Everyday"]:
        assert places[0] < out.index(f"│ {command} ") < places[1]


@pytest.mark.parametrize("name", ["evidence", "streaming", "abstention", "side-effects"])
@pytest.mark.parametrize("rest", [[], ["--run", "runs/nano", "--signals", "1,2"], ["--help"]])
def test_former_names_say_what_the_command_is_called_now(run: Any, name: str, rest: list[str]) -> None:
    assert run(name, *rest) == (2, "", f"popi: `popi {name}` is now `popi study {name}`\n")
    code, out, _ = run("--help")
    assert code == 0 and f"│ {name} " not in out


def test_wrong_options_are_one_message_that_names_the_help(run: Any) -> None:
    assert run("train") == (2, "", "popi: Missing argument 'config'.\nTry `popi train --help`.\n")
    code, out, err = run("users", "show", "ada", "--nonsense")
    assert (code, out, err) == (2, "", "popi: No such option: --nonsense\nTry `popi users show --help`.\n")
    code, out, err = run("study")
    assert (code, err) == (2, "") and "evidence" in out
