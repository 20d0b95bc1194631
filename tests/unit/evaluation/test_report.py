import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from popi.errors import RunError
from popi.evaluation import plots
from popi.evaluation.methods import METHODS
from popi.evaluation.report import print_table, prompt_text, write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags in balance, ids, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


@pytest.fixture
def html(finished_run: Path) -> str:
    return write_report(finished_run).read_text(encoding="utf-8")


def test_the_report_is_one_file_without_script(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert page.links and all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|@import", html)


def test_ids_are_unique_and_references_lead_somewhere(html: str) -> None:
    page = Page(html)
    assert len(set(page.ids)) == len(page.ids)
    wanted = {link[1:] for link in page.links} | set(re.findall(r"url\(#([^)]*)\)", html))
    assert wanted <= set(page.ids)


def test_text_from_models_and_users_is_escaped(html: str) -> None:
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert") > 10
    assert "<script>alert('no')</script> & \"quotes\" $x_1$" in Page(html).text


def test_everything_that_was_measured_is_in_it(html: str, finished_run: Path) -> None:
    text = re.sub(r"\s+", " ", Page(html).text)
    for name in json.loads((finished_run / "metrics.json").read_text())["methods"]:
        assert METHODS[name].label in text
    assert "Not trained in this run, so not in the table: Population DPO, POPI simultaneous." in text
    assert "95.6" in text and "93.8 to 97.4" in text
    assert "missed support: numbers" in text and "✗ mood: playful" in text
    assert "Read by second-base" in text and "94 %" in text
    assert "inference-1, step 80" in text and "training.inference.beta" in text


def test_plots_follow_the_page_and_keep_their_text(html: str) -> None:
    svgs = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(svgs) == 6
    for svg in svgs:
        assert "<text" in svg and "var(--muted)" in svg
        assert not set(re.findall(r"#[0-9a-f]{6}\b", svg)) - {"#000000", "#ffffff"}
    for role in plots.COLOURS:
        assert html.count(f"--{role}:") == 2  # light and dark


def test_a_run_without_logs_examples_or_popi_still_has_a_report(finished_run: Path) -> None:
    (finished_run / "log.jsonl").unlink()
    (finished_run / "evaluation" / "examples.json").unlink()
    metrics = json.loads((finished_run / "metrics.json").read_text())
    for name in ("popi_plug_and_play", "popi_alternating", "untrained_summary", "oracle"):
        del metrics["methods"][name]
    metrics["n_users"] = 1
    metrics["methods"]["raw_signals"]["reward_accuracy"] |= {"low": None, "high": None}
    (finished_run / "metrics.json").write_text(json.dumps(metrics))
    assert "Raw signals in context" in write_report(finished_run).read_text(encoding="utf-8")


def test_a_run_that_was_not_evaluated_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="popi evaluate --run"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(RunError, match="can't be read"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="not what popi evaluate writes"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_names_beside_the_points_do_not_overlap() -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation, Text

    figure = Figure(figsize=(4, 3.5))
    axes = figure.subplots()
    points = [(name, 13.0, 0.90 + 0.002 * i) for i, name in enumerate(METHODS)]
    axes.set(xlim=(0, 100), ylim=(0.4, 1))
    plots._label_points(figure, axes, points)
    figure.draw_without_rendering()
    texts = [child for child in axes.get_children() if isinstance(child, Annotation)]
    assert len(texts) == len(METHODS)
    boxes = sorted((Text.get_window_extent(text) for text in texts), key=lambda box: box.y0)  # without leader lines
    for below, above in zip(boxes, boxes[1:], strict=False):
        assert below.y1 <= above.y0 + 0.5


def test_table_in_the_terminal(finished_run: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    print_table(json.loads((finished_run / "metrics.json").read_text()), console)
    shown = console.file.getvalue()
    assert "95.6 ± 1.8" in shown and "342.6" in shown and "…" not in shown
    assert "not trained here: Population DPO, POPI simultaneous" in shown


def test_prompts_as_text() -> None:
    assert prompt_text("hi") == prompt_text([{"role": "user", "content": "hi"}]) == "hi"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert prompt_text(chat) == "user: a\nassistant: b"
