import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from popi.errors import RunError
from popi.evaluation import plots
from popi.evaluation.methods import METHODS
from popi.evaluation.report import content, print_table, prompt_text, write_report

NASTY = "<script>alert('no')</script>"
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


def test_the_report_is_one_file_that_loads_nothing(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert page.links and all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", html)


def test_only_its_own_script_may_run(html: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1 and html.count("<script") == 1
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy is not None and policy[1].startswith("default-src 'none';") and f"'sha256-{digest}'" in policy[1]


def test_without_script_all_users_are_shown(html: str) -> None:
    assert html.count('<article class="card user">') == 3
    assert '<div class="browse" hidden>' in html  # what only the script can work


def test_users_have_their_scores(html: str) -> None:
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "POPI alternating margin +12.3, right" in text and "No personalisation margin 0.0, no opinion" in text
    assert "Raw signals in context margin −1.5, wrong" in text  # no answer of it is kept, but a score


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
    assert "Not trained in this run, so not in the table: Population DPO; POPI simultaneous." in text
    assert "95.6" in text and "93.8 to 97.4" in text
    assert "missed support: numbers" in text and "✗ mood: playful" in text
    assert "Read by other generators" in text and "second-base" in text and "94 % kept" in text
    assert "Differences, pair by pair" in text and "+45.6" in text and "Against raw signals" in text
    assert "Expected calibration error" in text and "0.266" in text
    assert "Generator error (estimate)" in text and "0.678 given nothing" in text
    assert "Cost per thousand prompts" not in text  # no price was set
    assert "inference-1, step 80" in text and "training.inference.beta" in text


def test_plots_follow_the_page_and_keep_their_text(html: str) -> None:
    svgs = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(svgs) == 8
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
    for entry in metrics["methods"].values():
        for key in ("calibration", "differences", "loss_terms"):  # of an evaluation before these were measured
            del entry[key]
    del metrics["loss_of_the_best"]
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
    with pytest.raises(RunError, match="not written by popi evaluate"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_table_in_the_terminal(finished_run: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    print_table(json.loads((finished_run / "metrics.json").read_text()), console)
    shown = console.file.getvalue()
    assert "95.6 ± 1.8" in shown and "342.6" in shown and "…" not in shown
    assert "not trained here: Population DPO; POPI simultaneous" in shown


def test_prompts_as_text() -> None:
    assert prompt_text("hi") == prompt_text([{"role": "user", "content": "hi"}]) == "hi"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert prompt_text(chat) == "user: a\nassistant: b"


def test_markdown_holds_the_same_figures(finished_run: Path) -> None:
    write_report(finished_run)
    text = (finished_run / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# 95.6 % of held-out preferences of synthetic users, for 14 tokens per prompt\n")
    assert "| **POPI alternating** | 95.6 \\[93.8 to 97.4\\] |" in text
    for title in ("Every method", "Differences, pair by pair", "Where the loss comes from", "Read by other generators"):
        assert f"\n## {title}\n" in text
    assert "<script>" not in text and "\\<script\\>alert('no')" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows[:8]}) == 1


def test_result_files_of_other_evaluations_are_shown(finished_run: Path) -> None:
    folder = finished_run / "evaluation"
    curve = [{"method": "oracle", "signals": k, "value": v, "low": v - 0.1, "high": v} for k, v in ((0, 0.5), (4, 0.9))]
    content = {"title": "Accuracy by signals", "columns": ["method", "signals", "value", "low", "high"], "rows": curve}
    (folder / "evidence.json").write_text(json.dumps({**content, "percent": ["value"], "notes": ["of three users"]}))
    rows = [{"effect": NASTY, "value": -0.002, "low": -0.01, "high": None}]
    (folder / "side_effects.json").write_text(
        json.dumps({"title": "Side effects", "columns": ["effect"], "rows": rows})
    )
    (folder / "other.json").write_text('["no table"]')
    html = write_report(finished_run).read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "Accuracy by signals" in text and "of three users" in text and "90.0" in text and "80.0 to 90.0" in text
    assert "Side effects" in text and "−0.002" in text and "<script>alert" not in html
    assert len(re.findall("<svg", html)) == 9  # the curve is drawn, too


def test_signals_in_batches_are_drawn_way_by_way(finished_run: Path) -> None:
    rows = [
        {"method": method, "batches": n, "way": way, "series": f"stable, {way}", "value": 0.9 - n / 100}
        for method in ("untrained_summary", "popi_alternating")
        for n in (1, 4)
        for way in ("renewed", "from scratch")
    ]
    content = {"title": "In batches", "columns": ["method", "batches", "way", "value"], "rows": rows}
    (finished_run / "evaluation" / "streaming.json").write_text(json.dumps(content))
    content["rows"] = [{"method": "oracle", "signals": k, "value": 0.9} for k in (0, 4)]
    (finished_run / "evaluation" / "evidence.json").write_text(json.dumps(content))
    html = write_report(finished_run).read_text(encoding="utf-8")
    drawn = [svg for svg in re.findall("<svg.*?</svg>", html, re.DOTALL) if "batches of a user" in svg]
    assert len(drawn) == 1 and "stable, from scratch" in drawn[0] and "stable, renewed" in drawn[0]
    assert "signals of a user" in html
    ids = re.findall(r'\bid="([^"]+)"', "".join(re.findall("<svg.*?</svg>", html, re.DOTALL)))
    assert len(ids) == len(set(ids)), "on one page no two plots share an id"


def test_runs_side_by_side(finished_run: Path, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    other = make_run("second")
    html = write_report(finished_run, [other]).read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", Page(html).text)
    assert (
        "Compared with second" in text
        and "second: accuracy, %" in text
        and "Accuracy against tokens, over runs" in text
    )
    assert "POPI alternating · run second" in text
    with pytest.raises(RunError, match="nowhere: not a run directory, and no metrics"):
        write_report(finished_run, [tmp_path / "nowhere"])


def test_the_contents_lead_to_every_part_in_its_order(finished_run: Path) -> None:
    page = write_report(finished_run).read_text()
    parts = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', page)
    links = re.findall(r'<li><a href="#([^"]+)">(.*?)</a></li>', page)
    assert links == parts and len(parts) == page.count("<h2") > 4
    assert len({anchor for anchor, _ in parts}) == len(parts) and ("users", "Users, one by one") in parts
    assert page.index("<nav") < page.index("<h2")


def test_the_headline_is_of_the_better_method_and_says_whose_preferences(make_run: Callable[..., Path]) -> None:
    accuracies = {"no_personalization": 0.5, "popi_plug_and_play": 0.71, "popi_alternating": 0.68}
    run = make_run("people", {name: (value, 1.0, 20.0, None, None) for name, value in accuracies.items()})
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["config"]["data"]["source"] = "movielens"
    (run / "metrics.json").write_text(json.dumps(metrics))
    write_report(run)
    text = (run / "report.md").read_text()
    assert text.startswith("# 71.0 % of held-out preferences, for 20 tokens per prompt\n")
    page = (run / "report.html").read_text()
    assert "Reward accuracy, POPI plug-and-play" in page and "synthetic users" not in page


def test_a_tile_compares_with_the_strongest_baseline_not_with_the_truth() -> None:
    def entry(accuracy: float, **more: object) -> dict[str, object]:
        return {
            "reward_accuracy": {"value": accuracy},
            "context_overhead_tokens": 40.0,
            "attribute_recall": None,
            **more,
        }

    paired = {"popi_plug_and_play": {"reward_accuracy": {"value": 0.02, "low": -0.01, "high": 0.05}}}
    methods = {
        "no_personalization": entry(0.5),
        "copy_dpo": entry(0.73, differences=paired),
        "oracle": entry(0.9),
        "popi_plug_and_play": entry(0.71),
    }
    strongest = content.tiles(methods)[1]
    assert strongest["big"] == "−2.0" and strongest["title"] == "Points above the strongest baseline"
    assert strongest["beside"] == "DPO on copies 73.0 % for 40 tokens; difference −5.0 to +1.0"
    assert content.tiles(methods | {"popi_plug_and_play": entry(0.73)})[1]["big"] == "0.0"
    assert [tile["title"] for tile in content.tiles({"popi_plug_and_play": entry(0.7)})] == [
        "Reward accuracy, POPI plug-and-play"
    ]
