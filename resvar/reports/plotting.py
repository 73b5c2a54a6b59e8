"""The style of the figures, and their files. Matplotlib is imported when a figure is drawn.

Each ordering has a colour of the Okabe-Ito palette, which colour-blind readers can tell apart, and
its own line style and marker, which remain in greyscale. Text stays text in SVG and PDF, and the
same numbers give the same bytes. Without pyplot, so without state in the process.
"""

from __future__ import annotations

import io
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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

LETTER = 0.062
"""Inches per letter of a title, about; titles are wrapped to the width of the figure."""


@dataclass(frozen=True)
class Picture:
    """A figure with the name of its file and a title.

    Attributes:
        caption: explanations, which the figure contains too.
        creator: the command, for the file's metadata.
    """

    name: str
    title: str
    figure: Figure
    caption: str = ""
    creator: str = "resvar report"


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


def titled(title: str, heading: str, figure: Figure, caption: str) -> Picture:
    """The figure with its title and the group's heading above and its caption below."""
    letters = int(figure.get_figwidth() / LETTER)
    above = "\n".join(textwrap.wrap(plain(heading), letters))
    figure.suptitle(f"{title}\n{above}", x=0.01, ha="left", fontsize=9)
    below = "\n".join(textwrap.wrap(caption, int(letters * 1.18)))
    figure.supxlabel(below, x=0.01, ha="left", fontsize=7, color="#444444")
    return Picture("", f"{title}: {plain(heading)}", figure, caption)


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


def inline_svg(picture: Picture) -> str:
    """The figure as an `<svg>` element for an HTML page; its ids start with the figure's name."""
    text = saved(picture, "svg").decode()
    element = text[text.index("<svg") :]
    prefix = f"{picture.name}-"
    element = re.sub(r'\bid="', f'id="{prefix}', element)
    element = re.sub(r"url\(#", f"url(#{prefix}", element)
    return re.sub(r'href="#', f'href="#{prefix}', element)


def saved(picture: Picture, suffix: str) -> bytes:
    """The content of the picture's file: `svg`, `pdf` or `png`."""
    import matplotlib

    file = io.BytesIO()
    salted: dict[Any, Any] = {**SETTINGS, "svg.hashsalt": picture.name}  # ids follow from the name
    metadata = METADATA[suffix] | ({} if suffix == "png" else {"Creator": picture.creator})
    with matplotlib.rc_context(salted):
        picture.figure.savefig(file, format=suffix, dpi=DOTS_PER_INCH, metadata=metadata)
    return file.getvalue()
