"""A user's browser for tests: Chromium, driven by Playwright; and what is looked at on our pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("POPI_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = os.environ.get("POPI_SHOTS")
"""A folder to put screenshots into; the ones of docs/images are made so."""
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here: pages are not tested in one (`.ci/chromium make test` gets it)"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser. Without Playwright the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no test in a browser")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


def new_page(browser: Any, width: int = 1280, dark: bool = False, scripts: bool = True, language: str = "en-GB") -> Any:
    """A page that fails the test on any error of its own: a script, a refused style, a form that goes astray."""
    context = browser.new_context(
        viewport={"width": width, "height": 844 if width < 500 else 900},
        color_scheme="dark" if dark else "light",
        locale=language,
        java_script_enabled=scripts,
        timezone_id="UTC",
    )
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.troubles = []
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("console", lambda line: page.troubles.append(line.text) if line.type == "error" else None)
    return page


def accessible(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "the page scrolls sideways"


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def sentences(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".sentence").all_text_contents()]


def clause(page: Any, text: str) -> Any:
    return page.locator(".clause", has=page.locator(".sentence", has_text=text))


def press(page: Any, where: Any, name: str) -> None:
    with page.expect_navigation():
        where.get_by_role("button", name=name, exact=False).click()


def switch(page: Any, name: str) -> None:
    """Turn one of the two switches."""
    with page.expect_navigation():
        page.get_by_role("switch", name=name).click()


def traces(folder: Path, *words: str) -> list[str]:
    """Files under a folder in which one of the words stands, as UTF-8 or escaped as JSON has it."""
    wanted = [word.encode() for word in words]
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file in files if any(word in file.read_bytes() for word in wanted)]
