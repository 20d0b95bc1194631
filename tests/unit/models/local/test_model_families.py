"""docs/models.md says of every family how it runs; this is whether that is so."""

import importlib.util
from pathlib import Path

import pytest
from model_families import verdicts

PAGE = Path(__file__).parents[4] / "docs" / "model_families.py"


@pytest.mark.slow
def test_the_page_says_how_each_family_runs() -> None:
    spec = importlib.util.spec_from_file_location("docs_model_families", PAGE)
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    found = {name: verdict for name, verdict, *_ in verdicts() if verdict != "not built"}
    assert found == page.written()
    assert len(found) > 140 and list(found.values()).count("tree rows") > 80
