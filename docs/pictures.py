"""Makes the pictures in docs/images/ of popi's output and pages: `make pictures`.

    terminal-*.svg   the output of commands, exported by rich
    report.png       the report of a run, in Chromium
    page-demo.png    a user's page on `popi serve --demo`, after the edits of docs/tutorials/personalise_an_app.md

python docs/pictures.py [--run runs/demo] [--only NAME ...] [--out docs/images]

Without --run, `popi demo` is run first, which takes a few minutes. With it, that run is shown.
Look at every picture before you commit it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.terminal_theme import MONOKAI
from rich.text import Text

import popi
from popi.evaluation.demo import user_panel
from popi.evaluation.report import print_table

HERE = Path(__file__).parent
POPI = [sys.executable, "-m", "popi.cli"]
WIDTH = 100
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
KEY = re.compile(r"popi_[0-9a-f]{12}_[\w-]+")
QUESTIONS = ("tell me about bread.", "what is chess?", "tell me about honey.")


def save(console: Console, path: Path, title: str) -> None:
    """Write a console's recording, without the font that rich would load from a server."""
    svg = console.export_svg(title=title, theme=MONOKAI, unique_id=path.stem)
    svg = re.sub(r"(?s)@font-face \{.*?\}", "", svg).replace("Fira Code, monospace", FONTS).replace("Fira Code", FONTS)
    svg = "\n".join(line.rstrip() for line in svg.splitlines() if line.strip())
    if re.search(r"(?:src|href|url)\W+https?:", svg):
        raise ValueError(f"{path.name} would load something from a server")
    path.write_text(svg + "\n", encoding="utf-8")


def recorder() -> Console:
    """A console that prints nothing and records everything."""
    return Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True, highlight=False)  # noqa: SIM115


def demo_picture(run: Path, path: Path) -> None:
    """The end of `popi demo`'s output: the table and one user."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    users = json.loads((run / "evaluation" / "examples.json").read_text(encoding="utf-8"))["users"]
    console = recorder()
    console.print(Rule("Held-out users, every method", style="dim"))
    print_table(metrics, console)
    console.print(user_panel(users[0], metrics["methods"]))
    save(console, path, "make demo")


def check_picture(path: Path) -> None:
    """`popi data check` on a bad file."""
    pair = {"prompt": "Which pan?", "chosen": "Iron. It lasts.", "rejected": "There are many pans."}
    users = [
        {"user_id": "u1", "signals": [{"type": "pair", **pair}], "targets": [pair]},
        {"user_id": "u2", "signals": [{"type": "interaction", "prompt": "How?", "response": "So.", "rating": "good"}]},
        {"user_id": "u1", "signals": [{"type": "statement", "text": "Be brief."}]},
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "users.jsonl"
        file.write_text("".join(json.dumps(user) + "\n" for user in users))
        command = [*POPI, "data", "check", file.name]
        environment = os.environ | {"COLUMNS": str(WIDTH)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 2:
        raise RuntimeError(f"the check of a bad file exited with {done.returncode}: {done.stderr}")
    console = recorder()
    console.print(Text("$ popi data check users.jsonl", style="bold"))
    console.print(Text.from_ansi(done.stdout + done.stderr))
    save(console, path, "popi data check")


@contextmanager
def demo_gateway() -> Iterator[tuple[str, popi.Client]]:
    """`popi serve --demo`, ready: its output so far, and a client."""
    process = subprocess.Popen([*POPI, "serve", "--demo", "--port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    printed = ""
    try:
        for line in process.stderr:
            printed += line
            if "POPI_URL=" in printed and "Ctrl-C" in line:  # the last line of the instructions
                break
        named = re.search(r"POPI_URL=(\S+) POPI_KEY=(\S+)", printed)
        if named is None:
            raise RuntimeError(f"the demo did not start:\n{printed}")
        with popi.Client(named[1], named[2]) as client:
            yield printed, client
    finally:
        process.terminate()
        process.communicate(timeout=60)


def serve_picture(printed: str, path: Path) -> None:
    """The demo's output, without the log of its first renewals, with the usual port and a shortened key."""
    lines = [line for line in printed.splitlines() if not line.startswith("{")]
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8600", KEY.sub("popi_…", "\n".join(lines)))
    console = recorder()
    console.print(Text("$ popi serve --demo", style="bold"))
    console.print(Text(text))
    save(console, path, "popi serve --demo")


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("pictures of pages need Chromium: `.ci/chromium make pictures` installs Debian's")
    with sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


def report_picture(run: Path, path: Path) -> None:
    """The top of a run's report, rendered by the current code."""
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        copy = Path(folder) / run.name
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("phases", "tensorboard"))
        if (run / "phases").is_dir():  # logs, not weights
            for log in (run / "phases").rglob("*.jsonl"):
                (copy / log.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(log, copy / log.relative_to(run))
        subprocess.run([*POPI, "report", str(copy)], check=True, stdout=subprocess.DEVNULL)
        page = chromium.new_page(viewport={"width": 1100, "height": 1250})
        page.goto(f"file://{copy}/report.html")
        page.screenshot(path=path)


def page_picture(client: popi.Client, path: Path) -> None:
    """The page of a user who has rewritten three answers; the reasons for the first sentence are open."""
    import httpx2

    with httpx2.Client(base_url=client.url, headers=client._http.headers, timeout=60) as app:
        app.headers["authorization"] = f"Bearer {client._key.get_secret_value()}"
        for question in QUESTIONS:
            body = {"model": "nano", "messages": [{"role": "user", "content": question}]}
            answer = (
                app.post("/v1/chat/completions", json=body, headers={"x-popi-user": "zoe"}).raise_for_status().json()
            )
            given = answer["choices"][0]["message"]["content"]
            edit = re.sub(r"^\w+ \w+,", "dear madam,", given)
            client.add_signals("zoe", [popi.InteractionSignal(prompt=question, response=given, edit=edit)])
    while client.user("zoe").renewal is not None:
        time.sleep(0.2)
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 860, "height": 700}, locale="en-GB")
        page.goto(str(client.link("zoe").url))
        page.get_by_text("Why? Learned from").first.click()
        page.screenshot(path=path, full_page=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="show this finished demo instead of running one")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these pictures, such as report")
    parser.add_argument("--out", type=Path, default=HERE / "images")
    options = parser.parse_args()
    out: Path = options.out

    def of_a_run(make: Callable[[Path, Path], None], name: str) -> None:
        if options.run is None:
            subprocess.run([*POPI, "demo"], check=True, cwd=HERE.parent)
            options.run = HERE.parent / "runs" / "demo"
        make(options.run, out / name)

    def of_the_demo_gateway(serve: bool, page: bool) -> None:
        with demo_gateway() as (printed, client):
            if serve:
                serve_picture(printed, out / "terminal-serve.svg")
            if page:
                page_picture(client, out / "page-demo.png")

    wanted = set(options.only or ["terminal-demo", "terminal-check", "terminal-serve", "report", "page-demo"])
    if "terminal-check" in wanted:
        check_picture(out / "terminal-check.svg")
    if wanted & {"terminal-serve", "page-demo"}:
        of_the_demo_gateway("terminal-serve" in wanted, "page-demo" in wanted)
    if "terminal-demo" in wanted:
        of_a_run(demo_picture, "terminal-demo.svg")
    if "report" in wanted:
        of_a_run(report_picture, "report.png")


if __name__ == "__main__":
    main()
