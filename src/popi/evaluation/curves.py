"""The report's comparison plots: accuracy against tokens over runs, calibration, the loss's terms, evidence.

They follow the conventions of plots.py: the page's colours, and never colour as the only cue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from popi.evaluation.labels import Named, name_points
from popi.evaluation.methods import METHODS
from popi.evaluation.plots import COLOURS, DASHES, STYLE, WIDTH, colour_and_marker, to_svg

FEW = 10
"""Bins of the reliability plot with fewer pairs are omitted: their accuracy is mostly noise."""
FAR_BELOW = 0.1
"""A point without tokens whose accuracy is this far below all others becomes a note at the foot of the plot."""
SERIES = ("popi", "second", "truth", "plain")
MARKERS = ("o", "s", "D", "^", "v", "P")


@dataclass(frozen=True)
class Point:
    """A run's method on the frontier plot. Points with the same `line` are joined, in order of their tokens."""

    label: str
    method: str
    tokens: float
    accuracy: Mapping[str, float | None]
    line: str = ""


def frontier(points: Sequence[Point]) -> str:
    """Reward accuracy against tokens added to the prompt, on a logarithmic axis, with a name beside each point.

    Points without tokens have no place on such an axis: their accuracy is drawn as a dotted line, or as a note at the
    foot if it is far below all others.
    """
    placed = [point for point in points if point.tokens > 0]
    if not placed:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        values = [_known(p.accuracy, key) for p in placed for key in ("value", "low", "high")]
        least, most = min(values), max(values)
        near = [p for p in points if p.tokens <= 0 and _known(p.accuracy, "value") > least - FAR_BELOW]
        lowest = min([least, *(_known(p.accuracy, "value") for p in near)])
        room = max(0.02, 0.12 * (most - lowest))
        axes.set_ylim(lowest - 1.6 * room, most + room)
        xs = [point.tokens for point in placed]
        axes.set_xlim(min(xs) / 1.8, max(xs) * 1.8)
        for i, line in enumerate(dict.fromkeys(p.line for p in placed if p.line)):
            joined = sorted((p.tokens, _known(p.accuracy, "value")) for p in placed if p.line == line)
            axes.plot(*zip(*joined, strict=True), color=COLOURS["popi"], linewidth=1.3, linestyle=DASHES[i % 4])
        for point in placed:
            colour, marker = colour_and_marker(point.method)
            low, high = (_known(point.accuracy, key) for key in ("low", "high"))
            axes.plot([point.tokens] * 2, [low, high], color=colour, linewidth=2.2, alpha=0.45)
            value = _known(point.accuracy, "value")
            axes.plot(point.tokens, value, marker, color=colour, markersize=7, markeredgecolor=COLOURS["card"])
        for point in near:
            value, place = _known(point.accuracy, "value"), axes.get_yaxis_transform()
            axes.axhline(value, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
            axes.text(0.99, value, point.label, transform=place, ha="right", va="bottom", fontsize=8.5)
        far = [p for p in points if p.tokens <= 0 and p not in near]
        note = "\n".join(f"↓ {p.label}: {100 * _known(p.accuracy, 'value'):.1f} %, no tokens" for p in far)
        axes.text(0.01, 0.01, note, transform=axes.transAxes, va="bottom", fontsize=8.5, color=COLOURS["muted"])
        ticks = [t * 10**k for k in range(6) for t in (1, 2, 5)]
        inside = [t for t in ticks if min(xs) / 1.8 <= t <= max(xs) * 1.8]
        if len(inside) > 8:
            inside = [t for t in inside if str(t)[0] == "1"]
        axes.set_xticks(inside, labels=[f"{t:,}" for t in inside])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
        axes.grid(axis="both", alpha=0.7)
        axes.set_xlabel("tokens added to the task prompt (log scale)", fontsize=8.5)
        axes.set_ylabel("reward accuracy", fontsize=8.5)
        named = [Named(p.label, p.tokens, _known(p.accuracy, "value"), p.method.startswith("popi_")) for p in placed]
        name_points(figure, axes, named, COLOURS["muted"])
        return to_svg(figure, "frontier")


def reliability(methods: Mapping[str, Any]) -> str:
    """Accuracy against confidence, in bins, for some methods; the diagonal is perfect calibration."""
    drawn = {}
    for name, entry in methods.items():
        bins = [b for b in entry["calibration"]["reliability"] if b["pairs"] >= FEW]
        if len(bins) > 1:
            drawn[name] = [(b["confidence"], b["accuracy"]["value"]) for b in bins]
    if not drawn:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        axes = figure.subplots()
        axes.plot([0.5, 1], [0.5, 1], color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 2)))
        axes.text(
            0.985,
            0.965,
            "perfectly calibrated",
            ha="right",
            va="top",
            rotation=38,
            color=COLOURS["muted"],
            fontsize=8.5,
        )
        for i, (name, curve) in enumerate(drawn.items()):
            colour, marker = colour_and_marker(name)
            xs, ys = zip(*curve, strict=True)
            kind = {"linestyle": DASHES[i % 4], "marker": marker, "markersize": 5, "markeredgecolor": COLOURS["card"]}
            axes.plot(xs, ys, color=colour, linewidth=1.5, label=METHODS[name].label, **kind)
        low = min(0.5, *(y for curve in drawn.values() for _, y in curve))
        axes.set(xlim=(0.5, 1.005), ylim=(max(0.0, low - 0.03), 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        axes.grid(axis="both", alpha=0.7)
        axes.set_xlabel("confidence, σ(β·|h|)", fontsize=8.5)
        axes.set_ylabel("how often right", fontsize=8.5)
        figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=8.5, handlelength=3.6)
        return to_svg(figure, "reliability")


def loss_terms(methods: Mapping[str, Any], way: str) -> str:
    """Each method's loss as a bar of two parts; `way` is `world` or `fitted`."""
    rows = [name for name in reversed(list(methods)) if way in methods[name].get("loss_terms", {})]
    if not rows:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.85 + 0.46 * len(rows)), layout="constrained")
        axes = figure.subplots()
        longest = max(methods[name]["loss_terms"][way]["loss"]["value"] for name in rows)
        for y, name in enumerate(rows):
            terms = methods[name]["loss_terms"][way]
            error, unsaid = (max(0.0, terms[key]["value"]) for key in ("generator_error", "left_unsaid"))
            axes.barh(y, unsaid, 0.28, color=COLOURS["popi"])
            axes.barh(y, error, 0.28, left=unsaid, color=COLOURS["card"], edgecolor=COLOURS["plain"], hatch="////")
            bold = "bold" if name.startswith("popi_") else "normal"
            axes.text(0, y + 0.2, METHODS[name].label, va="bottom", fontweight=bold)
            unsaid, error = (
                round(terms[name]["value"], 2) + 0.0 for name in ("left_unsaid", "generator_error")
            )  # no -0.0
            value = f"{unsaid:.2f} + {error:.2f}".replace("-", "−")
            axes.text(longest, y + 0.2, value, va="bottom", ha="right", color=COLOURS["muted"])
        axes.set(xlim=(0, longest * 1.02), ylim=(-0.4, len(rows) - 0.2), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("loss, nats per choice (guessing: 0.69)", fontsize=8.5)
        marks = [
            Patch(color=COLOURS["popi"], label="left unsaid"),
            Patch(facecolor=COLOURS["card"], edgecolor=COLOURS["plain"], hatch="////", label="generator error"),
        ]
        figure.legend(handles=marks, loc="outside upper left", ncols=2, frameon=False, fontsize=8.5, handlelength=1.4)
        return to_svg(figure, "terms")


def evidence(rows: Sequence[Mapping[str, Any]], x: str = "signals", series: str | None = None) -> str:
    """A value with its interval against the number of signals, with one curve per value of the column `series`."""
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if isinstance(row.get(x), int | float) and row.get("value") is not None:
            curves.setdefault(str(row.get(series, "")) if series else "", []).append(row)
    if not curves:
        return ""
    counts = sorted({row[x] for curve in curves.values() for row in curve})
    place = {count: i for i, count in enumerate(counts)}  # 0, 1, 2, 4, 8: evenly spaced, since log 0 has no place
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for i, (name, curve) in enumerate(curves.items()):
            known = name in METHODS
            colour, marker = (
                colour_and_marker(name) if known else (COLOURS[SERIES[i % len(SERIES)]], MARKERS[i % len(MARKERS)])
            )
            ordered = sorted(curve, key=lambda row: row[x])
            xs = [place[row[x]] for row in ordered]
            for at, row in zip(xs, ordered, strict=True):
                axes.plot([at, at], [_known(row, "low"), _known(row, "high")], color=colour, linewidth=2.2, alpha=0.4)
            kind = {"linestyle": DASHES[i % 4], "marker": marker, "markersize": 6, "markeredgecolor": COLOURS["card"]}
            label = METHODS[name].label if known else name
            axes.plot(xs, [row["value"] for row in ordered], color=colour, linewidth=1.6, label=label, **kind)
        axes.set_xticks(range(len(counts)), labels=[f"{count:g}" for count in counts])
        axes.grid(axis="y", alpha=0.7)
        axes.set_xlabel(f"{x.replace('_', ' ')} of a user", fontsize=8.5)
        if any(curves):
            figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=8.5, handlelength=3.6)
        return to_svg(figure, "evidence" if x == "signals" else x)


def _known(estimate: Mapping[str, Any], key: str) -> float:
    """The value or an end of its interval; falls back to the value if there is no interval."""
    bound = estimate.get(key)
    value = estimate["value"] if bound is None else bound
    assert value is not None
    return float(value)
