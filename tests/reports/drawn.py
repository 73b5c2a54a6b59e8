"""What a reader sees of a picture: its texts with their places, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from resvar.reports.plotting import DOTS_PER_INCH, house_style, saved


def texts(figure) -> Iterator[Text]:
    """The visible texts; of the tick labels those within the axis."""
    shown = {}
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            room = 1e-9 * (high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                inside = panel.axison and low - room <= tick.get_loc() <= high + room
                shown |= dict.fromkeys((tick.label1, tick.label2), inside)
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and shown.get(text, True):
            yield text


def ticks(axis) -> list[float]:
    """The major ticks within an axis."""
    low, high = sorted(axis.get_view_interval())
    return [float(at) for at in axis.get_majorticklocs() if low <= at <= high]


def faults(picture) -> list[str]:
    """Texts that leave the picture, overlap by more than a hair, or are raw LaTeX."""
    figure = picture.figure
    found = []
    with house_style():
        figure.set_dpi(DOTS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts(figure)]
        wide, high = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > wide + 1 or box.y1 > high + 1:
            found.append(f"{picture.name}: {text!r} is clipped")
    for (one, a), (other, b) in combinations(boxes, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 2 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2:
            found.append(f"{picture.name}: {one!r} and {other!r} overlap")
    if "mathdefault" in saved(picture, "svg").decode() or any("$" in text for text, _ in boxes):
        found.append(f"{picture.name}: raw LaTeX")
    return found
