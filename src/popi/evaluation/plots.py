"""The report's plots, as inline SVG.

They are drawn once and follow the page's theme: each colour below stands for a CSS variable, and text stays text.
Colour is never the only cue: methods are named at their marks, kinds have their own marker, curves their own dash.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from popi.evaluation.labels import Named, name_points
from popi.evaluation.methods import METHODS

COLOURS = {
    "ink": "#101112",
    "muted": "#707172",
    "line": "#d0d1d2",
    "card": "#fafbfc",
    "popi": "#3050c0",
    "plain": "#808892",
    "truth": "#b07010",
    "second": "#108070",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "popi",
    "font.size": 9.5,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
}
OPEN: Any = {
    "markerfacecolor": COLOURS["card"],
    "markeredgecolor": COLOURS["second"],
    "markeredgewidth": 1.8,
}
"""An open mark; a filled mark behind it still shows around the rim."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5)))
COVER: Any = {"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 1.0}
"""Background of text that is drawn over a line."""
WIDTH = 3.9  # inches: close to a phone's width in CSS pixels, so that text stays readable there


def colour_and_marker(method: str) -> tuple[str, str]:
    """Colour and marker of a method: circles for POPI, a diamond for the truth, squares for everything else."""
    if method.startswith("popi_"):
        return COLOURS["popi"], "o"
    return (COLOURS["truth"], "D") if METHODS[method].needs_truth else (COLOURS["plain"], "s")


def to_svg(figure: Figure, name: str) -> str:
    """Convert a figure to an `<svg>` element whose colours are CSS variables and whose ids start with `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", FONT, svg)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg


def reward_accuracy(methods: Mapping[str, Any]) -> str:
    """Reward accuracy by method with its 95 % interval, on a common axis."""
    rows = list(reversed(list(methods)))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.55 + 0.43 * len(rows)), layout="constrained")
        axes = figure.subplots()
        lowest = min([0.5, *(_low(methods[name]["reward_accuracy"]) for name in rows)])
        left = max(0.0, lowest - 0.04)
        axes.axvline(0.5, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
        for y, name in enumerate(rows):
            estimate, (colour, marker) = methods[name]["reward_accuracy"], colour_and_marker(name)
            axes.plot([left, 1], [y, y], color=COLOURS["line"], linewidth=0.6, zorder=0)
            if estimate["low"] is not None:
                axes.plot([estimate["low"], estimate["high"]], [y, y], color=colour, linewidth=2.6, alpha=0.55)
            axes.plot(estimate["value"], y, marker, color=colour, markersize=6, markeredgecolor=COLOURS["card"])
            bold = "bold" if name.startswith("popi_") else "normal"
            axes.text(left, y + 0.2, METHODS[name].label, va="bottom", fontweight=bold, bbox=COVER)
            value = f"{100 * estimate['value']:.1f} %"
            axes.text(1.0, y + 0.2, value, va="bottom", ha="right", fontweight=bold)
        axes.set(xlim=(left, 1.0), ylim=(-0.5, len(rows) - 0.25), yticks=[])
        axes.set_xlabel("reward accuracy (dotted: chance, 50 %)", fontsize=8.5)
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
        axes.spines["left"].set_visible(False)
        return to_svg(figure, "accuracy")


def accuracy_by_overhead(methods: Mapping[str, Any]) -> str:
    """Reward accuracy against context overhead, on an axis that is logarithmic from one token up."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
        axes = figure.subplots()
        points = []
        for name, entry in methods.items():
            if METHODS[name].nano:  # shown in the table only; here they would crowd the plot
                continue
            colour, marker = colour_and_marker(name)
            x, y = entry["context_overhead_tokens"], entry["reward_accuracy"]["value"]
            axes.plot(x, y, marker, color=colour, markersize=7, markeredgecolor=COLOURS["card"], zorder=3)
            points.append((name, x, y))
        longest = max([10.0, *(x for _, x, _ in points)])
        axes.set_xscale("symlog", linthresh=1, linscale=0.35)
        ticks = [0, *(10**k for k in range(6) if 10**k <= longest * 3)]
        axes.set_xlim(-0.25, max(longest * 3, ticks[-1]))
        axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        low, high = min(y for *_, y in points), max(y for *_, y in points)
        axes.set_ylim(low - 0.06, min(high + 0.08, 1.04))
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
        axes.grid(axis="both", alpha=0.7)
        axes.set_xlabel("tokens added to the task prompt (log scale from 1)", fontsize=8.5)
        axes.set_ylabel("reward accuracy", fontsize=8.5)
        named = [Named(METHODS[name].label.split(" (")[0], x, y, name.startswith("popi_")) for name, x, y in points]
        name_points(figure, axes, named, COLOURS["muted"])
        return to_svg(figure, "overhead")


def attribute_scores(methods: Mapping[str, Any]) -> str:
    """Precision (circle) and recall (diamond) of the attributes that each method's summaries name."""
    rows = [name for name in reversed(list(methods)) if methods[name]["attribute_recall"] is not None]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.75 + 0.5 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, name in enumerate(rows):
            axes.text(0, y + 0.17, METHODS[name].label, va="bottom")
            precision, recall = methods[name]["attribute_precision"], methods[name]["attribute_recall"]
            axes.plot([0, 1], [y, y], color=COLOURS["line"], linewidth=0.6, zorder=0)
            shown = [f"P {100 * precision:.0f} %" if precision is not None else "P –", f"R {100 * recall:.0f} %"]
            axes.text(1, y + 0.17, "   ".join(shown), va="bottom", ha="right", color=COLOURS["muted"])
            if precision is not None:
                axes.plot([precision, recall], [y, y], color=COLOURS["line"], linewidth=3, zorder=1)
                axes.plot(precision, y, "o", color=COLOURS["popi"], markersize=7, clip_on=False, zorder=3)
            axes.plot(recall, y, "D", markersize=6.5, clip_on=False, zorder=4, **OPEN)
        axes.set(xlim=(0, 1), ylim=(-0.45, len(rows) - 0.25), yticks=[])
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
        axes.spines["left"].set_visible(False)
        marks = [
            Line2D([], [], marker="o", linestyle="", color=COLOURS["popi"], markersize=7, label="precision"),
            Line2D([], [], marker="D", linestyle="", markersize=6.5, label="recall", **OPEN),
        ]
        figure.legend(handles=marks, loc="outside upper left", ncols=2, frameon=False, fontsize=8.5, handletextpad=0.2)
        return to_svg(figure, "attributes")


def learning_curves(log: Sequence[Mapping[str, Any]], key: str) -> str:
    """A logged value over the steps of each phase: raw values faint, a running mean on top."""
    phases: dict[str, list[tuple[float, float]]] = {}
    for row in log:
        if isinstance(row.get(key), int | float):
            phases.setdefault(str(row.get("phase", "")), []).append((row.get("step", 0), row[key]))
    if not phases:
        return ""
    colours = (COLOURS["popi"], COLOURS["second"], COLOURS["truth"], COLOURS["plain"])
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        axes = figure.subplots()
        for i, (phase, curve) in enumerate(phases.items()):
            steps, values = zip(*sorted(curve), strict=True)
            colour = colours[i % len(colours)]
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
            smooth = _running_mean(values)
            axes.plot(steps, smooth, color=colour, linewidth=1.9, linestyle=DASHES[i % len(DASHES)], label=phase)
        axes.grid(axis="y", alpha=0.7)
        axes.set_xlabel("optimizer step of the phase", fontsize=8.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(phases) > 1:
            figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, handlelength=3)
        return to_svg(figure, f"curve-{key}")


def _running_mean(values: Sequence[float], share: float = 0.08) -> list[float]:
    width = max(1, int(len(values) * share))
    windows = [values[max(0, i - width) : i + width + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _low(estimate: Mapping[str, float | None]) -> float:
    low = estimate["low"] if estimate["low"] is not None else estimate["value"]
    assert low is not None
    return low
