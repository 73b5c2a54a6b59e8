"""The style of the figures, and their files. Matplotlib is imported when a figure is drawn.

Each ordering has a colour of the Okabe-Ito palette, which colour-blind readers can tell apart, and
its own line style and marker, which remain in greyscale. Text stays text in SVG and PDF, and the
same numbers give the same bytes. Files have a white background; the page's figures have none, and
follow the reader's light or dark mode. Without pyplot, so without state in the process.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.console import plain
from resvar.errors import UserError
from resvar.files import replacing
from resvar.reports.cells import CellKey
from resvar.reports.findings import Group
from resvar.reports.tables import row_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colour, line style and marker.
STYLES = {
    "original": ("#000000", "-", "o"),
    "bn-after-add": ("#D55E00", "--", "s"),
    "relu-before-add": ("#E69F00", ":", "^"),
    "relu-only-preact": ("#56B4E9", "-.", "v"),
    "full-preact": ("#0072B2", (0, (6, 1)), "D"),
}
SPARE = (("#009E73", (0, (1, 1)), "P"), ("#CC79A7", (0, (3, 1, 1, 1)), "X"))
"""For orderings that are not in the paper, in turn."""

MARKERS = ("o", "s", "^", "v", "D", "P", "X", "h", "*")
"""Markers of the page's charts, coloured by report.css; the first five are those of `STYLES`."""

SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name with two $ is a name
    "text.hinting": "no_hinting",  # the same widths at every resolution
    "axes.titlesize": "medium",
    "pdf.fonttype": 42,  # TrueType: what journals ask for
}

# Metadata of the files, without date and version, so that the same numbers give the same bytes.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Producer": None},
    "png": {},
}

DOTS_PER_INCH = 160

INK, GREY = "#000000", "#767676"
"""Text and lines, and less important items."""

NOT_COMPARABLE = "Published figures are left out: these runs are not comparable with them."

INTERIM = "some of the declared seeds, by default five, have no result yet."

TITLE_POINTS, CAPTION_POINTS = 9.0, 7.0
LINE_SPACING = 1.2

IN_THE_DARK = {
    "#000000": "#e6e3dc", "#ffffff": "#16171a",  # ink and page
    "#444444": "#b4b0a8", "#555555": "#b4b0a8", "#767676": "#a09b92", "#777777": "#a09b92",
    "#999999": "#8f8b84", "#b0b0b0": "#8f8b84", "#bbbbbb": "#5d5a54",
    "#d55e00": "#ff8f4a", "#e69f00": "#e2b54a", "#56b4e9": "#9bd6f7", "#0072b2": "#4a9be8",
    "#009e73": "#39c99e", "#cc79a7": "#ee9bcb",
}  # fmt: skip
"""Colour → the one that replaces it in dark mode. Colours that are not listed stay, such as the
fill of a cell on the map and the text on it."""


@dataclass(frozen=True)
class Picture:
    """A figure with the name of its file and a title.

    Attributes:
        caption: explanations, which the figure contains too.
        creator: the command, for the file's metadata.
        body: inches from the figure's lower edge at which what is between caption and title begins
            and ends; None: everything.
    """

    name: str
    title: str
    figure: Figure
    caption: str = ""
    creator: str = "resvar report"
    body: tuple[float, float] | None = None


@contextmanager
def house_style(changes: dict[Any, Any] | None = None) -> Iterator[None]:
    """Within, Matplotlib draws with `SETTINGS` and `changes`; outside, nothing has changed."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS | (changes or {})):
        yield


def style(variant: str) -> tuple[str, Any, str]:
    """Colour, line style and marker of an ordering."""
    return STYLES.get(variant) or SPARE[sum(variant.encode()) % len(SPARE)]


def panels(
    rows: int, columns: int, size: tuple[float, float], **sharing: Any
) -> tuple[Figure, list[list[Axes]]]:
    """Small multiples in the house style.

    Args:
        size: width and height of the figure, in inches.
        sharing: `sharex`, `sharey` and so on, as `Figure.subplots` takes them.
    """
    from matplotlib.figure import Figure

    with house_style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **sharing)
    return figure, [list(row) for row in axes]


def titled(title: str, heading: str, figure: Figure, caption: str = "") -> Picture:
    """The figure with its title and the group's heading above and its caption below.

    They are wrapped to the width of the figure, which grows in height by their lines. The layout is
    settled here: a file does not depend on the formats that were saved before it.
    """
    room = 0.95 * figure.get_figwidth()  # renderers round the widths of letters
    above = [*_in_lines(title, room, TITLE_POINTS), *_in_lines(plain(heading), room, TITLE_POINTS)]
    below = _in_lines(caption, room, CAPTION_POINTS)
    more = (len(above) - 1) * TITLE_POINTS + len(below) * CAPTION_POINTS
    figure.set_figheight(figure.get_figheight() + more * LINE_SPACING / 72)
    look: dict[str, Any] = {"x": 0.01, "ha": "left", "linespacing": LINE_SPACING}
    head = figure.suptitle("\n".join(above), fontsize=TITLE_POINTS, **look)
    foot = figure.supxlabel("\n".join(below), fontsize=CAPTION_POINTS, color="#444444", **look)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    body = tuple(edge / figure.dpi for edge in (foot.get_window_extent().y1 if below else 0.0,
                                                head.get_window_extent().y0))  # fmt: skip
    whole = ": ".join(filter(None, (title, plain(heading))))
    return Picture("", whole, figure, caption, body=(body[0], body[1]))


def legend_below(figure: Figure) -> None:
    """A legend of all panels, each label once, in as many columns as the width allows."""
    named = {
        label: handle
        for panel in figure.axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    for columns in range(min(4, len(named)), 0, -1):
        legend = figure.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=columns,
            frameon=False, fontsize=8,
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            more = (math.ceil(len(named) / columns) - 1) * 8 * 1.5
            figure.set_figheight(figure.get_figheight() + more / 72)
            return
        legend.remove()


def plain_log_axis(axis: Axis) -> None:
    """Numbers such as 0.02 and 2 instead of powers on a logarithmic axis with all its data."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = math.log10(high) - math.log10(low)
    subs = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.3 else (1,)
    axis.set_major_locator(MaxNLocator(5) if decades < 0.8 else LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,g}")


def whole_number_axis(axis: Axis, most: int = 6) -> None:
    """Ticks at whole numbers only: units and iterations have no halves."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def brief(text: str, most: int, mark: str = "…") -> str:
    """A text of at most `most` characters; a longer one is cut and ends in a hash of the whole."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text if len(text) <= most else f"{text[: most - len(mark + digest)]}{mark}{digest}"


def interim_cells(group: Group) -> set[CellKey]:
    """The cells of V1 and V2 in which declared runs have no result yet."""
    return {
        (cell.variant, cell.depth)
        for pair in group.v1_v2
        for cell, side in zip((pair.v1, pair.v2), pair.sides, strict=True)
        if side.missing
    }


def variant_label(variant: str, most: int = 32) -> str:
    """The name of a variant in a figure."""
    return brief(plain(row_name(variant)), most)


def text_inches(text: str, points: float) -> float:
    """The width of one line in the figures' font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def _in_lines(text: str, inches: float, points: float) -> list[str]:
    """The text in lines of at most this width."""
    if not text:
        return []
    letters = math.ceil(1.3 * len(text) * inches / text_inches(text, points))  # slightly too many
    while any(text_inches(line, points) > inches for line in textwrap.wrap(text, letters)):
        letters -= 1
    return textwrap.wrap(text, letters)


# --- files ----------------------------------------------------------------------------------------


def write_pictures(
    found: Sequence[Picture], folder: Path, suffixes: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Write each picture in each format; returns the files.

    Raises:
        UserError: they cannot be written.
    """
    written = []
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--figures {folder}: this is a file; name a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in found:
            for suffix in suffixes:
                path = folder / f"{picture.name}.{suffix}"
                with replacing(path, durable=False) as file:
                    file.write(saved(picture, suffix))
                written.append(path)
    except OSError as error:
        raise UserError(f"--figures {folder}: cannot be written ({error.strerror}).") from error
    return written


def page_svg(picture: Picture) -> str:
    """The figure as an SVG image for a page: no background, in colours of light and dark mode.

    Title and caption are left out, since the page shows them itself.
    """
    text = saved(picture, "svg", on_page=True).decode()
    coloured = re.sub(
        r"""((?:fill|stroke)(?:: |="))(#[0-9a-f]{6})""",
        lambda m: f"{m[1]}var(--{m[2][1:]}, {m[2]})" if m[2] in IN_THE_DARK else m[0],
        text[text.index("<svg") :],
    )
    dark = " ".join(f"--{colour[1:]}: {other};" for colour, other in IN_THE_DARK.items())
    style = (
        "svg { fill: var(--000000, #000000); } "  # Matplotlib leaves out black
        f"@media screen and (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    )
    return coloured.replace("<defs>", f"<defs>\n  <style>{style}</style>", 1)


def inline_svg(picture: Picture) -> str:
    """The figure as an `<svg>` element for an HTML page; its ids start with the figure's name."""
    text = saved(picture, "svg").decode()
    element = text[text.index("<svg") :]
    prefix = f"{picture.name}-"
    element = re.sub(r'\bid="', f'id="{prefix}', element)
    element = re.sub(r"url\(#", f"url(#{prefix}", element)
    return re.sub(r'href="#', f'href="#{prefix}', element)


def saved(picture: Picture, suffix: str, on_page: bool = False) -> bytes:
    """The content of the picture's file: `svg`, `pdf` or `png`.

    Args:
        on_page: without background, title and caption.
    """
    import matplotlib
    from matplotlib.transforms import Bbox

    width, height = picture.figure.get_size_inches()
    bottom, top = picture.body or (0.0, height)
    file = io.BytesIO()
    salted: dict[Any, Any] = {**SETTINGS, "svg.hashsalt": picture.name}  # ids follow from the name
    metadata = METADATA[suffix] | ({} if suffix == "png" else {"Creator": picture.creator})
    with matplotlib.rc_context(salted):
        picture.figure.savefig(
            file, format=suffix, dpi=DOTS_PER_INCH, metadata=metadata, transparent=on_page,
            bbox_inches=Bbox.from_extents(0, bottom, width, top) if on_page else None,
        )  # fmt: skip
    return file.getvalue()
