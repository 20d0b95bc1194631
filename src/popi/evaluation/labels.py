"""Places names beside the points of a plot so that they overlap neither each other nor a mark."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Box = tuple[float, float, float, float]
"""(left, bottom, right, top) in pixels."""
MARK = 4.0
"""Half a mark's width, in points."""
ONE = 1.5
"""Marks that are at most this many points apart look like one."""
FAR = 9.0
"""A name more than this many points from its mark is joined to it by a thin line."""


@dataclass(frozen=True)
class Named:
    """A point of a plot, in data coordinates."""

    name: str
    x: float
    y: float
    bold: bool = False


def name_points(figure: Figure, axes: Axes, points: Sequence[Named], leader: str) -> None:
    """Name every point as close to its mark as there is room, from top to bottom.

    Points that look like one share a label with one name per line: readers could not match two labels at one mark.
    `leader` is the colour of the lines from names to marks. Freezes the figure's layout: the axes must not move
    afterwards.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    point = figure.dpi / 72
    points = _together(points, axes, ONE * point)
    marks = [tuple(axes.transData.transform((p.x, p.y))) for p in points]
    occupied: list[Box] = [(x - MARK * point, y - MARK * point, x + MARK * point, y + MARK * point) for x, y in marks]
    room = axes.bbox
    for named, (x, y) in sorted(zip(points, marks, strict=True), key=lambda pair: -pair[1][1]):
        style: dict[str, Any] = {"fontsize": 8.5, "fontweight": "bold" if named.bold else "normal"}
        measured = axes.text(0.5, 0.5, named.name, transform=axes.transAxes, **style)
        size = measured.get_window_extent()
        measured.remove()
        best, least = (x, y), float("inf")
        for left, bottom in _spots(x, y, size.width, size.height, point):
            box = (left - point, bottom - point / 2, left + size.width + point, bottom + size.height + point / 2)
            outside = max(0.0, room.x0 - box[0], box[2] - room.x1) + max(0.0, room.y0 - box[1], box[3] - room.y1)
            clash = sum(_shared(box, other) for other in occupied) + outside * size.height
            if clash < least:
                best, least = (left, bottom), clash
            if clash == 0:
                break
        left, bottom = best
        occupied.append((left - point, bottom - point / 2, left + size.width + point, bottom + size.height + point / 2))
        gap = max(left - x, x - left - size.width, bottom - y, y - bottom - size.height, 0.0)
        line = {"arrowstyle": "-", "color": leader, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            named.name,
            (named.x, named.y),
            xytext=((left - x) / point, (bottom - y) / point),
            textcoords="offset points",
            ha="left",
            va="bottom",
            arrowprops=line if gap > FAR * point else None,
            **style,
        )


def _together(points: Sequence[Named], axes: Axes, reach: float) -> list[Named]:
    """Merge points within `reach` pixels of each other into one that has all their names."""
    merged: list[tuple[float, float, Named]] = []
    for named in points:
        x, y = axes.transData.transform((named.x, named.y))
        for i, (left, up, one) in enumerate(merged):
            if max(abs(x - left), abs(y - up)) <= reach:
                bold = one.bold or named.bold
                merged[i] = (left, up, Named(f"{one.name},\n{named.name}", one.x, one.y, bold))
                break
        else:
            merged.append((x, y, named))
    return [one for *_, one in merged]


def _spots(x: float, y: float, width: float, height: float, point: float) -> Iterator[tuple[float, float]]:
    """Candidate lower left corners of a name around a mark, nearest first."""
    for ring in range(24):
        away = (MARK + 2 + 6 * ring) * point
        for up in (y - height / 2, y + away - height / 2, y - away - height / 2) if ring else (y - height / 2,):
            side = (MARK + 2 + (4 if ring else 0)) * point
            yield x + side, up
            yield x - side - width, up
        for across in (x - width / 2, x - width * 0.15, x - width * 0.85):
            yield across, y + away
            yield across, y - away - height


def _shared(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
