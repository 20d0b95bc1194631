"""The plot of the transfer table: every generator against its own rows without personalisation and with raw signals.

A dot plot with one line per generator, drawn from grid.json. Methods are distinguished by the shape of their marks;
colour is redundant.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from popi.evaluation.grid.result import first_judged
from popi.evaluation.grid.settings import REFERENCE
from popi.evaluation.methods import METHODS
from popi.evaluation.plots import COLOURS, STYLE

MARKS: dict[str, tuple[str, str, bool]] = {
    "raw_signals": ("s", COLOURS["plain"], False),
    "untrained_summary": ("^", COLOURS["plain"], True),
    "oracle": ("D", COLOURS["truth"], False),
    "popi_plug_and_play": ("o", COLOURS["popi"], True),
    "popi_alternating": ("P", COLOURS["popi"], True),
    "popi_simultaneous": ("X", COLOURS["popi"], True),
}
"""Method → marker, colour, and whether the marker is filled."""
ACCURACY, WIN_RATE = "reward accuracy", "win rate"


def transfer_figure(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The plot; None if no benchmark has two generators with a figure.

    There is one panel per benchmark and kind of figure: reward accuracy for generators with log-probs (one half is no
    personalisation, by definition), and win rate against no personalisation for judged responses.

    Args:
        rows: the rows of grid.json.
    """
    panels = [panel for kind in (ACCURACY, WIN_RATE) for panel in _panels(rows, kind)]
    if not any(len(generators) > 1 for *_, generators in panels):
        return None
    heights = [0.9 + 0.42 * len(generators) for *_, generators in panels]
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, sum(heights) + 0.6), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        shown: set[str] = set()
        for one, (benchmark, kind, generators) in zip(axes, panels, strict=True):
            one.set_title(f"{benchmark}: {kind}")
            shown |= _draw(one, kind, generators)
        marks = [_legend(name) for name in MARKS if name in shown]
        figure.legend(handles=marks, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    return figure


Points = dict[str, dict[str, Mapping[str, Any]]]
"""Generator → method → estimate."""


def _panels(rows: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[str, str, Points]]:
    panels: dict[str, Points] = {}
    for row in rows:
        estimate = _estimate(row, kind)
        if row["method"] in MARKS and estimate is not None and estimate["value"] is not None:
            panels.setdefault(row["benchmark"], {}).setdefault(row["generator"], {})[row["method"]] = estimate
    return [(benchmark, kind, generators) for benchmark, generators in panels.items()]


def _estimate(row: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    if kind == ACCURACY:
        estimate: Mapping[str, Any] | None = row["reward_accuracy"]
        return estimate
    judged = first_judged(row)
    return judged["win_rate"] if judged is not None and judged["against"] == REFERENCE else None


def _draw(axes: Axes, kind: str, generators: Points) -> set[str]:
    shown: set[str] = set()
    estimates = [one for methods in generators.values() for one in methods.values()]
    ends = [end for one in estimates for end in (one["low"], one["value"], one["high"]) if end is not None]
    left, right = max(0.0, min(0.5, *ends) - 0.03), min(1.0, max(0.5, *ends) + 0.03)
    axes.axvline(0.5, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
    for y, methods in enumerate(generators.values()):
        axes.axhline(y, color=COLOURS["line"], linewidth=0.6, zorder=0)
        for i, (name, estimate) in enumerate(methods.items()):
            at = y + 0.13 * (i - (len(methods) - 1) / 2)  # staggered, so that equal figures stay visible
            marker, colour, filled = MARKS[name]
            if estimate["low"] is not None:
                axes.plot([estimate["low"], estimate["high"]], [at, at], color=colour, linewidth=1.1, alpha=0.7)
            face = colour if filled else COLOURS["card"]
            axes.plot(
                estimate["value"], at, marker, color=colour, markerfacecolor=face, markersize=6, zorder=3, clip_on=False
            )
            shown.add(name)
    axes.set(xlim=(left, right), ylim=(len(generators) - 0.5, -0.5))
    axes.set_yticks(range(len(generators)), labels=list(generators))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    axes.set_xlabel(f"{kind} (dotted: no personalisation, 50 %)", fontsize=8.5)
    axes.spines["left"].set_visible(False)
    return shown


def _legend(name: str) -> Line2D:
    marker, colour, filled = MARKS[name]
    face = colour if filled else COLOURS["card"]
    label = METHODS[name].label.split(" (")[0]
    return Line2D([], [], marker=marker, linestyle="", color=colour, markerfacecolor=face, markersize=6.5, label=label)


def write_transfer(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write transfer.svg and transfer.png beside grid.json, if there is anything to compare."""
    figure = transfer_figure(rows)
    if figure is None:
        return []
    written = []
    with rc_context(STYLE):
        for name, options in (("transfer.svg", {"metadata": {"Date": None}}), ("transfer.png", {"dpi": 160})):
            path = folder / name
            aside = path.with_name(f".{name}")
            figure.savefig(aside, format=path.suffix[1:], facecolor="white", **options)
            aside.replace(path)
            written.append(path)
    return written
