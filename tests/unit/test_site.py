"""The documentation site: `make check` builds it strictly; what a build can't see is tested here."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import popi
import popi.client

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> Any:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site" / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented() -> set[str]:
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    return {name for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}


def test_every_public_name_has_its_place_in_the_reference() -> None:
    assert {f"popi.{name}" for name in popi.__all__} - documented() == set()
    of_the_client = {f"popi.client.{name}" for name in popi.client.__all__} - {
        f"popi.client.{name}" for name in popi.__all__
    }
    assert of_the_client - documented() == set()


def test_every_page_is_in_the_navigation() -> None:
    """The strict build says so too, a minute later."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"([\w/]+\.md)$", settings, re.MULTILINE))
    docs = ROOT / "docs"
    assert {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} - listed == set()


def test_readme_is_short_and_holds_its_tables() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    marks = re.findall(r"<!-- (\w+):(start|end) -->", text)
    assert {("real", "start"), ("demo", "start")} <= set(marks)
    assert marks == [(name, end) for name in dict(marks) for end in ("start", "end")]
    places = [
        text.index(part) for part in ("make demo", "make test", "## Results", "## Three ways in", "docs/tutorials/")
    ]
    assert places == sorted(places)


def test_nothing_is_fetched_from_elsewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings and "strict: true" in settings and "- offline" in settings
    assert not re.search(r"https?://", settings)


def test_lists_become_those_of_python_markdown(pages: Any) -> None:
    written = [
        "**Reading.**",
        "- one",
        "  goes on",
        "",
        "  | a | b |",
        "",
        "  - nested",
        "    more",
        "- two",
        "",
        "    code",
    ]
    assert pages.as_python_markdown([*written[:9], "", "Plain.", "", "    code"]) == [
        "**Reading.**",
        "",
        "- one",
        "    goes on",
        "",
        "    | a | b |",
        "",
        "    - nested",
        "        more",
        "",
        "- two",
        "",
        "Plain.",
        "",
        "    code",
    ]


def test_bars_in_code_of_a_table(pages: Any) -> None:
    assert pages.as_python_markdown([r"| `a \| b` | c \| d |", r"outside `a \| b`"]) == [
        r"| `a | b` | c \| d |",
        r"outside `a \| b`",
    ]


@pytest.mark.parametrize(
    ("page", "link", "with_address", "without"),
    [
        ("data.md", "models.md#gguf", "models.md#gguf", "models.md#gguf"),
        ("data.md", "../CONTRIBUTING.md", "project/contributing.md", "project/contributing.md"),
        ("results.md", "../README.md#results", "index.md#results", "index.md#results"),
        ("tutorials/a.md", "../../examples/README.md", "../examples.md", "../examples.md"),
        ("examples.md", "../docs/client.md", "client.md", "client.md"),
        ("project/contributing.md", "docs/method.md", "../method.md", "../method.md"),
        (
            "data.md",
            "../configs/nano.toml",
            "https://x.example/popi/blob/main/configs/nano.toml",
            "repository/configs/nano.toml",
        ),
        ("data.md", "../configs", "https://x.example/popi/tree/main/configs", None),
    ],
)
@pytest.mark.parametrize("address", ["https://x.example/popi/", ""])
def test_links_that_leave_the_docs(
    pages: Any, page: str, link: str, with_address: str, without: str | None, address: str
) -> None:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File, Files
    from mkdocs.structure.pages import Page

    config = MkDocsConfig()
    config.load_dict({"site_name": "popi", "docs_dir": str(ROOT / "docs"), "repo_url": address, "plugins": []})
    config.validate()
    config.plugins._current_plugin = "pages"  # as MkDocs has it while it runs a hook
    files = Files([])
    shown = Page(None, File(page, None, config.site_dir, False), config)
    made = pages.on_page_markdown(f"see [it]({link}), too\n", shown, config, files)
    wanted = with_address if address else without
    assert made.startswith("see it," if wanted is None else f"see [it]({wanted}),")
    copied = [file.src_uri for file in files]
    assert copied == ([wanted] if wanted and wanted.startswith("repository/") else [])
