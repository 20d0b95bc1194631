"""Follows a tutorial as a reader does: saves its files, types its commands in order, opens its terminals."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from popi.cli import app

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "tutorials"
FENCE = re.compile(
    r'^(?P<skipped><!-- not run by the tests: .+? -->\n)?```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
READY = re.compile(r"popi listens on|renewing summaries")
DEMO = re.compile(r"export POPI_URL=(\S+) POPI_KEY=(\S+)")
PATIENCE = 900.0
"""Seconds. Only a hung process takes that long, even on a machine with thirty busy processes on two cores."""


@dataclass(frozen=True)
class Block:
    """A code block. Its title is the name of a file to save, or of the terminal that it is typed into."""

    language: str
    title: str | None
    text: str


def blocks(name: str) -> list[Block]:
    """A tutorial's code blocks in order, without those that a comment above them excludes."""
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    return [
        Block(match["language"], match["title"], match["text"])
        for match in FENCE.finditer(page)
        if not match["skipped"]
    ]


def commands(text: str) -> list[str]:
    """The commands of a shell block, one per line."""
    joined = re.sub(r" *\\\n *", " ", text)
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


class Reader:
    """One reader in one folder.

    Args:
        folder: where files are saved and commands run; the clone's examples and configs are there too.
        changes: what this reader writes in place of what the tutorial says: another port, fewer users. Each must occur.
        closed: titles of terminals that this reader leaves out.
        in_process: run plain popi commands in this process, which has torch already; else all as a shell does.
        until: beginnings of commands that are repeated until their output matches: a pattern for each time that the
            tutorial says them.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        changes: Mapping[str, str],
        *,
        closed: Sequence[str] = (),
        in_process: bool = False,
        until: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.folder, self.changes, self.in_process = folder, changes, in_process
        self._until = {start: list(patterns) for start, patterns in (until or {}).items()}
        self.unused = set(changes)
        self.outputs: dict[str, str] = {}
        self._closed = closed
        self._monkeypatch = monkeypatch
        self._terminals: dict[str, subprocess.Popen[str]] = {}
        for name in ("examples", "configs"):
            (folder / name).symlink_to(ROOT / name)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def follow(self, name: str) -> None:
        """All of a tutorial; its terminals are closed at the end."""
        try:
            for block in blocks(name):
                self._do(block)
        finally:
            for title in list(self._terminals):
                self._close(title)
        assert not self.unused, f"the tutorial no longer says {self.unused}"

    def _do(self, block: Block) -> None:
        text = block.text
        if there := [old for old in self.changes if old in text]:
            text = re.sub("|".join(map(re.escape, there)), lambda old: self.changes[old[0]], text)
            self.unused -= set(there)
        if block.language in ("python", "toml"):
            assert block.title is not None, text
            (self.folder / block.title).write_text(text, encoding="utf-8")
        else:
            assert block.language == "bash", block
            for command in commands(text):
                if block.title is None:
                    self.outputs[command] = self._type(command)
                elif block.title not in self._closed:
                    self._open(block.title, command)

    def _type(self, command: str) -> str:
        wanted = next((left.pop(0) for start, left in self._until.items() if command.startswith(start)), "")
        give_up = time.monotonic() + PATIENCE
        while not re.search(wanted, output := self._run(command)):
            assert time.monotonic() < give_up, f"$ {command}\n{output}\nnever matched {wanted}"
            time.sleep(0.5)
        return output

    def _run(self, command: str) -> str:
        words = shlex.split(command)
        if self.in_process and words[0] == "popi" and not re.search(r"[$|><]", command):
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, f"$ {command}\n{result.output}\n{result.exception}"
            return result.output
        exported = self.folder / ".environment"
        script = f"{command}\nenv -0 > {shlex.quote(str(exported))}"
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        for line in exported.read_text().split("\0"):
            name, _, value = line.partition("=")
            if name.startswith("POPI_"):
                self._monkeypatch.setenv(name, value)
        return done.stdout

    def _open(self, title: str, command: str) -> None:
        self._close(title)
        process = subprocess.Popen(["bash", "-c", f"exec {command}"], stderr=subprocess.PIPE, text=True)
        self._terminals[title] = process
        lines: list[str] = []
        threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
        give_up = time.monotonic() + PATIENCE
        demo = "--demo" in command
        while not (ready := (DEMO if demo else READY).search("".join(lines))):
            assert process.poll() is None and time.monotonic() < give_up, f"$ {command}\n{''.join(lines)}"
            time.sleep(0.1)
        if demo:  # the reader copies the line
            self._monkeypatch.setenv("POPI_URL", ready[1])
            self._monkeypatch.setenv("POPI_KEY", ready[2])

    def _close(self, title: str) -> None:
        process = self._terminals.pop(title, None)
        if process is not None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                process.kill()
