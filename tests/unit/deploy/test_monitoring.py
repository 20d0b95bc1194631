"""The dashboard and the alerts ask for what a gateway exports, and the alerts fire when they should."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import promql_parser
import pytest
import yaml
from end_to_end.gateway_process import ADMIN, running
from fake_upstream import FakeUpstream, cut, serving
from prometheus_client.parser import text_string_to_metric_families

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "popi.json").read_text("utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text("utf-8"))["groups"][0]["rules"]
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

Exported = dict[str, dict[str, set[str]]]
"""Labels and their values, by series."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """What a gateway that renews exports once it has met everything that it counts."""
    folder = tmp_path_factory.mktemp("monitoring")
    with serving() as upstream:
        (folder / "gateway.toml").write_text(
            f'[inference]\nurl = "{upstream.url}"\nmodel = "m"\n[renewal]\n'
            "quiet_s = 0.05\npoll_interval_s = 0.05\ninput_price = 1\n"
        )
        store = f"sqlite:///{folder}/popi.db"
        with running(store, "--config", str(folder / "gateway.toml"), upstream=upstream.url) as gateway:
            headers = {"authorization": f"Bearer {ADMIN}"}
            with httpx2.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
                _live(client, upstream)
                yield _exported(client)


def _live(client: httpx2.Client, upstream: FakeUpstream) -> None:
    def personalized(user: str, body: dict[str, Any]) -> str:
        reply = client.post("/v1/chat/completions", json=body, headers={"x-popi-user": user})
        return reply.headers["x-popi-personalized"]

    sent = {"signals": [{"type": "statement", "text": "Please be brief."}]}
    assert client.post("/users/ada/signals", json=sent).status_code == 200
    _until(lambda: client.get("/users/ada/summary").status_code == 200)
    _until(lambda: personalized("ada", CHAT) == "applied")
    _until(lambda: personalized("nobody", CHAT) == "none")
    assert personalized("ada", {"model": "m", "messages": "none"}) == "failed"
    upstream.faults.append(cut)
    with pytest.raises(httpx2.TransportError):
        client.post("/v1/chat/completions", json=CHAT)
    assert client.post("/v1/chat/completions", content="{").status_code == 400
    _until(lambda: "waiting" in _exported(client)["popi_renewal_jobs"]["state"])


def _until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def _exported(client: httpx2.Client) -> Exported:
    found: Exported = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return {name: labels for name, labels in found.items() if name.startswith("popi_")}


def panels() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard, in PromQL, with its panel's title."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m").replace("$job", ".*")


QUERIES = [*panels(), *((rule["alert"], rule["expr"]) for rule in RULES)]


def parts(expression: Any) -> Iterator[Any]:
    """An expression and all that it is made of."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (inner := getattr(expression, name, None)) is not None:
            yield from parts(inner)
    for inner in getattr(expression, "args", ()):
        yield from parts(inner)


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_queries_ask_for_what_there_is(exported: Exported, title: str, query: str) -> None:
    found = list(parts(promql_parser.parse(query)))
    selectors = [one for one in found if isinstance(one, promql_parser.VectorSelector)]
    assert selectors
    known = set(SCRAPED)
    for one in selectors:
        assert one.name in exported, f"{one.name} is no metric of popi's"
        known |= exported[one.name].keys()
        for matcher in one.matchers.matchers:
            values = exported[one.name].get(matcher.name)
            assert values is not None or matcher.name in SCRAPED, f"{one.name} has no label {matcher.name}"
            if values and matcher.name in ("state", "personalized"):  # of which all values were met, and no 5xx, say
                assert any(re.fullmatch(matcher.value, value) for value in values), matcher.value
    for one in found:
        if isinstance(one, promql_parser.AggregateExpr) and one.modifier is not None:
            assert set(one.modifier.labels) <= known, f"{title}: by {one.modifier.labels}"


def test_the_dashboard_shows_every_metric(exported: Exported) -> None:
    asked = {
        one.name
        for _, query in panels()
        for one in parts(promql_parser.parse(query))
        if isinstance(one, promql_parser.VectorSelector)
    }
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in exported}
    assert {re.sub("_bucket$", "", name) for name in asked} == families


def test_legends_name_labels_that_are_left() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "5m")
            aggregates = [
                one for one in parts(promql_parser.parse(query)) if isinstance(one, promql_parser.AggregateExpr)
            ]
            left = {label for one in aggregates if one.modifier is not None for label in one.modifier.labels}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= left, panel["title"]


def test_the_dashboard_fits_together() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def series(name: str, values: str) -> dict[str, str]:
    return {"series": name, "values": values}


# Of each alert, what it fires at and what it does not; a minute between two values.
FIRES: dict[str, tuple[list[dict[str, str]], list[dict[str, str]]]] = {
    "PopiGone": ([], [series("popi_requests_in_flight", "0x90")]),
    "PopiErrors": (
        [series('popi_refusals_total{reason="gateway_fault"}', "0+2x90"), series("popi_requests_total", "0+100x90")],
        [series('popi_refusals_total{reason="rate_limit"}', "0+50x90"), series("popi_requests_total", "0+100x90")],
    ),
    "PopiNotPersonalized": (
        [
            series('popi_requests_total{personalized="failed"}', "0+2x90"),
            series('popi_requests_total{personalized="applied"}', "0+100x90"),
        ],
        [
            series('popi_requests_total{personalized="none"}', "0+100x90"),
            series('popi_requests_total{personalized="applied"}', "0+100x90"),
        ],
    ),
    "PopiStoreSlow": (
        [series("popi_stale_summaries_total", "0+60x90")],
        [
            series('popi_summary_lookup_seconds_bucket{le="0.005"}', "0+100x90"),
            series('popi_summary_lookup_seconds_bucket{le="+Inf"}', "0+100x90"),
        ],
    ),
    "PopiUpstreamFaults": (
        [
            series('popi_upstream_failures_total{kind="upstream_timeout", upstream="a"}', "0+10x90"),
            series('popi_requests_total{upstream="a"}', "0+100x90"),
        ],
        [
            series('popi_upstream_failures_total{kind="models", upstream="a"}', "0+10x90"),
            series('popi_requests_total{upstream="a"}', "0+100x90"),
        ],
    ),
    "PopiInferenceModelFails": ([series("popi_inference_up", "0x90")], [series("popi_inference_up", "0x5 1x85")]),
    "PopiRenewalsStand": (
        [series('popi_renewal_jobs{state="due"}', "3x90"), series('popi_renewals_total{outcome="renewed"}', "7x90")],
        [series('popi_renewal_jobs{state="due"}', "3x90"), series('popi_renewals_total{outcome="renewed"}', "0+1x90")],
    ),
    "PopiRenewalsBehind": (
        [series('popi_renewal_jobs{state="due"}', "2000x90")],
        [series('popi_renewal_jobs{state="waiting"}', "2000x90")],
    ),
    "PopiRenewalsGivenUp": (
        [series('popi_renewal_jobs{state="failed"}', "1x90")],
        [series('popi_renewal_jobs{state="failed"}', "0x90")],
    ),
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (.ci/helm installs Debian's)")
def test_alerts_fire_when_they_should_and_not_else(tmp_path: Path) -> None:
    assert set(FIRES) == {rule["alert"] for rule in RULES}
    tests = []
    for rule in RULES:
        for fires, given in zip((True, False), FIRES[rule["alert"]], strict=True):
            query = f'count(ALERTS{{alertname="{rule["alert"]}", alertstate="firing"}})'
            wanted = [{"labels": "{}", "value": 1}] if fires else []
            checked = {"expr": query, "eval_time": "80m", "exp_samples": wanted}
            tests.append({"interval": "1m", "input_series": given, "promql_expr_test": [checked]})
    file = tmp_path / "tests.json"
    rules = str(DEPLOY / "prometheus" / "rules.yaml")
    file.write_text(json.dumps({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests}))
    for command in (("check", "rules", "--lint-fatal", rules), ("test", "rules", str(file))):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
