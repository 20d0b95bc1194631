from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from popi.evaluation.labels import Named, name_points
from popi.evaluation.methods import METHODS


def test_names_meet_neither_each_other_nor_a_mark() -> None:
    figure = Figure(figsize=(4, 3.5))
    axes = figure.subplots()
    axes.set(xlim=(0, 100), ylim=(0.4, 1))
    labels = [method.label for method in METHODS.values() if not method.nano]
    points = [Named(label, 13.0, 0.60 + 0.026 * i) for i, label in enumerate(labels)]
    points += [Named("raw signals", 60.0, 0.61), Named("at the edge", 100.0, 1.0)]
    name_points(figure, axes, points, "black")
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.get_children() if isinstance(text, Annotation)]
    assert len(boxes) == len(points)
    marks = [axes.transData.transform((point.x, point.y)) for point in points]
    for i, box in enumerate(boxes):
        assert not any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for x, y in marks)
        assert axes.bbox.x0 - 1 <= box.x0 and box.x1 <= axes.bbox.x1 + 1 and box.y1 <= axes.bbox.y1 + 1
        for other in boxes[i + 1 :]:
            assert box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 + 0.5 or other.y1 <= box.y0 + 0.5


def test_points_that_look_like_one_share_a_name_with_a_line_for_each() -> None:
    figure = Figure(figsize=(4, 3.5))
    axes = figure.subplots()
    axes.set(xlim=(0, 100), ylim=(0.4, 1))
    apart = Named("apart", 20.0, 0.6)
    near = [Named("one", 20.0, 0.9), Named("two", 20.1, 0.901, bold=True), Named("three", 20.0, 0.899)]
    name_points(figure, axes, [apart, *near], "black")
    texts = {text.get_text(): text for text in axes.get_children() if isinstance(text, Annotation)}
    assert set(texts) == {"apart", "one,\ntwo,\nthree"}
    assert texts["one,\ntwo,\nthree"].get_fontweight() == "bold"
