"""The report's content, from a run's files, as plain values, tables and SVG."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from popi.evaluation import curves, plots
from popi.evaluation.methods import METHODS
from popi.evaluation.report import compare, tables
from popi.evaluation.report.files import read_json, read_lines
from popi.evaluation.report.people import shown_users
from popi.evaluation.tables import REASONS

CURVES = (
    ("reward", "Summary reward", "Mean over the step's sampled summaries; higher is better."),
    ("eval_reward_accuracy", "Reward accuracy while training", "On training users set aside, with greedy summaries."),
    ("kl", "KL to the initial inference model", "How far the inference model has moved; nats per summary or token."),
    ("loss", "Loss", "What the phase's optimizer minimises. Losses of different phases are not comparable."),
    ("chosen_drift", "Drift of chosen responses", "Their log-prob minus the base's on the plain prompt; nats each."),
    ("summary_tokens", "Length of sampled summaries", "Tokens, including the end token."),
    ("length_penalty", "Length penalty", "Mean reward that the sampled summaries lost to tokens beyond the target."),
)
SYNTHETIC = ("nano", "persona", "personamem", "hicupid", "elix", "review", "roleplay", "psoups")
"""Sources with synthetic users: a program or a model decided what they prefer."""
KNOW_THE_TRUTH = ("oracle", "exact_reader")
"""Methods that are given the true preferences, or the world that they were drawn from: bounds, not baselines."""
OWN_PLOTS = {
    "evidence.json": ("signals", "Accuracy against the number of signals"),
    "streaming.json": ("batches", "Accuracy against the number of batches of signals"),
}
"""Result files that also get a plot, and come first: file → x-axis and title."""


def report_content(runs: Sequence[compare.Compared]) -> dict[str, Any]:
    """The content of the page and the Markdown: the first run, compared with the others."""
    run = runs[0]
    run_dir, metrics = run.path, run.metrics
    methods, config = metrics["methods"], metrics["config"]
    phases = sorted(run.run.glob("phases/*/samples.jsonl"))
    return {
        "name": config["name"],
        "directory": str(run_dir),
        "headline": headline(methods, config["data"]["source"]),
        "metrics": metrics,
        "config": config,
        "tiles": tiles(methods),
        "skipped_methods": {reason: [METHODS[name].label for name in metrics.get(reason, [])] for reason in REASONS},
        "results": tables.results(methods),
        "differences": tables.differences(methods),
        "calibration": tables.calibration(methods),
        "loss_terms": tables.loss_terms(metrics),
        "transfer": tables.transfer(run.transfers),
        "studies": [{"table": tables.generic(one), "plot": None} for one in run.tables] + studies(run.results),
        "others": [run.name for run in runs[1:]],
        "side_by_side": compare.side_by_side(runs) if len(runs) > 1 else None,
        "settings_that_differ": compare.settings(runs) if len(runs) > 1 else None,
        "plots": drawn(methods, runs),
        "curves": learning(read_lines(run.run / "log.jsonl")),
        "users": shown_users(run.run, [other.run for other in runs[1:]]),
        "samples": [shown for shown in (samples(path) for path in phases) if shown],
        "versions": metrics["versions"],
        "seconds": {f"{_name(key)}": value for key, value in metrics["seconds"].items()},
        "settings": {key: json.dumps(value, ensure_ascii=False) for key, value in compare.flat(config).items()},
    }


def best_popi(methods: Mapping[str, Any]) -> str | None:
    """The last POPI method that a run trained, in the order plug-and-play, alternating, simultaneous."""
    return next((name for name in reversed(list(METHODS)) if name.startswith("popi_") and name in methods), None)


def better_popi(methods: Mapping[str, Any]) -> str | None:
    """The POPI method with the highest reward accuracy; the last one in case of a tie."""
    trained = [name for name in METHODS if name.startswith("popi_") and name in methods]
    return max(reversed(trained), key=lambda name: _accuracy(methods, name), default=None)


def _accuracy(methods: Mapping[str, Any], name: str) -> float:
    return float(methods[name]["reward_accuracy"]["value"])


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def headline(methods: Mapping[str, Any], source: str) -> str:
    """The result in one line: the better POPI method's accuracy and tokens, and whether the users are synthetic."""
    best, synthetic = better_popi(methods), source in SYNTHETIC
    if best is None:
        return f"Held-out {'synthetic ' if synthetic else ''}users, without a trained POPI method"
    tokens, owner = methods[best]["context_overhead_tokens"], " of synthetic users" if synthetic else ""
    return f"{_percent(_accuracy(methods, best))} of held-out preferences{owner}, for {tokens:.0f} tokens per prompt"


def tiles(methods: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures at the top of the page, for the better POPI method."""
    best = better_popi(methods)
    if best is None:
        return []
    entry, label = methods[best], METHODS[best].label
    beside = [
        f"{METHODS[name].label.split(' (')[0]} {_percent(_accuracy(methods, name))}"
        for name in ("no_personalization", "untrained_summary", "oracle")
        if name in methods
    ]
    result = [
        {"title": f"Reward accuracy, {label}", "big": _percent(_accuracy(methods, best)), "beside": "; ".join(beside)}
    ]
    result += [against] if (against := _against_strongest(methods, best)) else []
    raw = methods.get("raw_signals")
    if raw:
        tokens, raw_tokens = entry["context_overhead_tokens"], raw["context_overhead_tokens"]
        note = f"Raw signals: {raw_tokens:,.0f} tokens, {_percent(_accuracy(methods, 'raw_signals'))} accurate"
        fewer = f"{raw_tokens / tokens:.0f}× fewer" if tokens else "none"
        result.append({"title": "Tokens, compared with raw signals", "big": fewer, "beside": note})
    if entry["attribute_recall"] is not None:
        note = f"Precision {_percent(entry['attribute_precision'])}" if entry["attribute_precision"] is not None else ""
        before = methods.get("untrained_summary", {}).get("attribute_recall")
        note += f"; untrained recall {_percent(before)}" if before is not None else ""
        result.append({"title": "Attribute recall", "big": _percent(entry["attribute_recall"]), "beside": note})
    return result


def _against_strongest(methods: Mapping[str, Any], best: str) -> dict[str, str] | None:
    """The tile that compares with the most accurate method that is neither POPI nor given the truth."""
    baselines = [name for name in methods if not name.startswith("popi_") and name not in KNOW_THE_TRUTH]
    if not baselines:
        return None
    strongest = max(baselines, key=lambda name: _accuracy(methods, name))
    points = 100 * (_accuracy(methods, best) - _accuracy(methods, strongest))
    note = f"{METHODS[strongest].label} {_percent(_accuracy(methods, strongest))}"
    note += f" for {methods[strongest]['context_overhead_tokens']:.0f} tokens"
    paired = methods[strongest].get("differences", {}).get(best, {}).get("reward_accuracy")
    if paired and paired["low"] is not None:  # the baseline minus POPI
        note += f"; difference {_points(-100 * paired['high'])} to {_points(-100 * paired['low'])}"
    return {"title": "Points above the strongest baseline", "big": _points(points), "beside": note}


def _points(value: float) -> str:
    """A signed difference in points with one decimal; zero without a sign."""
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def drawn(methods: Mapping[str, Any], runs: Sequence[compare.Compared]) -> dict[str, Any]:
    """The plots by name; None for a plot without data."""
    alt = "; ".join(f"{METHODS[name].label} {_percent(_accuracy(methods, name))}" for name in methods)
    tokens = "; ".join(f"{METHODS[n].label} {m['context_overhead_tokens']:.0f} tokens" for n, m in methods.items())
    shown: dict[str, Any] = {
        "accuracy": plot(
            "Reward accuracy by method",
            "Mark: value; band: 95 % interval. Circles: POPI; diamond: oracle; squares: all others.",
            alt,
            plots.reward_accuracy(methods),
        ),
        "overhead": plot(
            "Accuracy against context tokens",
            "Upper left is best: high accuracy for few tokens.",
            tokens,
            plots.accuracy_by_overhead(methods),
        ),
    }
    with_truth = {name: entry for name, entry in methods.items() if entry["attribute_recall"] is not None}
    alt = "; ".join(f"{METHODS[n].label}: recall {_percent(m['attribute_recall'])}" for n, m in with_truth.items())
    note = "Precision (filled circle): share of named attributes that are true. Recall (open diamond): vice versa."
    svg = plots.attribute_scores(with_truth) if with_truth else ""
    shown["attributes"] = plot("Named against true preferences", note, alt, svg)

    pick = ["raw_signals", "untrained_summary", *filter(None, [better_popi(methods)])]
    calibrated = {name: methods[name] for name in pick if methods.get(name, {}).get("calibration")}
    note = "Share of right predictions by predicted confidence; bins of 10 pairs or more."
    svg = curves.reliability(calibrated)
    shown["reliability"] = plot("Confidence and accuracy", note, ", ".join(METHODS[n].label for n in calibrated), svg)

    way = "world" if any("world" in entry.get("loss_terms", {}) for entry in methods.values()) else "fitted"
    note = "Solid: information that the generator lacks. Hatched: poor use of the information that it has."
    svg = curves.loss_terms(methods, way)
    shown["terms"] = plot("The loss in two terms", note, "see the table", svg)

    shown["frontier"] = None
    if len(runs) > 1:
        points = compare.points(runs)
        alt = "; ".join(f"{p.label} {_percent(p.accuracy['value'] or 0)} for {p.tokens:.0f} tokens" for p in points)
        note = "Upper left is best. Lines join one POPI method over the runs; bands: 95 % intervals."
        shown["frontier"] = plot("Accuracy against tokens, over runs", note, alt, curves.frontier(points))
    return shown


def plot(title: str, note: str, alt: str, svg: str) -> dict[str, Any] | None:
    """A plot with its title, note and alternative text; None if there is no SVG."""
    return {"title": title, "note": note, "alt": alt, "svg": Markup(svg)} if svg else None


def studies(folder: Path) -> list[dict[str, Any]]:
    """Result files of the run's other evaluations, as tables; some also as plots (`OWN_PLOTS`)."""
    parts = []
    first = list(OWN_PLOTS)
    for path in sorted(folder.glob("*.json"), key=lambda path: (path.name not in first, path.name)):
        content = read_json(path)
        if not tables.is_generic(content):
            continue
        shown = None
        if path.name in OWN_PLOTS:
            x, title = OWN_PLOTS[path.name]
            rows = content["rows"]
            series = next((key for key in ("series", "method", "label") if any(key in row for row in rows)), None)
            if series == "series":  # several curves per method: show only the last method's, the most complete
                rows = [row for row in rows if row["method"] == rows[-1]["method"]]
            svg = curves.evidence(rows, x, series)
            shown = plot(title, "Bands: 95 % intervals.", "see the table", svg)
        parts.append({"table": tables.generic(content), "plot": shown})
    return parts


def learning(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Learning curves of the values in the log."""
    shown = (plot(title, note, "over steps", plots.learning_curves(log, key)) for key, title, note in CURVES)
    return [one for one in shown if one]


def samples(path: Path) -> dict[str, Any] | None:
    """One user's group of summaries at the first and at the last step of a phase."""
    rows = [row for row in read_lines(path) if row.get("reward") is not None]
    if not rows:
        return None
    low, high = min(row["reward"] for row in rows), max(row["reward"] for row in rows)
    groups = []
    for step in dict.fromkeys((min(row["step"] for row in rows), max(row["step"] for row in rows))):
        at = [row for row in rows if row["step"] == step]
        group = sorted((r for r in at if r["user_id"] == at[0]["user_id"]), key=lambda r: -r["reward"])
        share = [{**row, "share": (row["reward"] - low) / ((high - low) or 1)} for row in group]
        mean = sum(row["reward"] for row in group) / len(group)
        groups.append({"step": step, "user_id": at[0]["user_id"], "rows": share, "mean": mean})
    return {"phase": path.parent.name, "groups": groups}


def _name(key: str) -> str:
    return METHODS[key].label if key in METHODS else key.replace("_", " ")
