import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

from popi.data.jsonl import read_lines

ROOT = Path(__file__).parents[2]


def load_generator() -> object:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = load_generator().files()  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == FILES[path], "run `make docs`"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"(?:\]\(|src=\")([^)\"#:]+)(?:#[^)]*)?[)\"]", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_examples_of_the_file_format_are_good_lines(tmp_path: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        (tmp_path / "example.jsonl").write_text(json.dumps(json.loads(block)))
        [(_, parsed)] = read_lines(tmp_path / "example.jsonl")
        assert not isinstance(parsed, list), parsed


def test_the_newcomers_questions_lead_somewhere() -> None:
    table = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| Question | Answer |")[2].partition("##")[0]
    )
    paths = re.findall(r"`([a-z_]+/[a-z_/.]*)`", table)
    assert table.count("? |") == 10 and len(paths) >= 15
    for path in paths:
        assert (ROOT / "src" / "popi" / path).exists(), path


def test_every_table_of_make_results_has_its_place() -> None:
    """Its marks are looked for once hours of runs are over."""
    for table in tomllib.loads((ROOT / "docs/results.toml").read_text(encoding="utf-8"))["tables"]:
        for file in table["files"]:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert all(text.count(f"<!-- {table['name']}:{end} -->") == 1 for end in ("start", "end")), (table, file)
