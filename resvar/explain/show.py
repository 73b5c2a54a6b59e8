"""`resvar show`: units drawn, stage tables, layers, parameters, multiply-adds.

One network in one or several orderings, several networks, two with their differences marked, or the
table of a family; for a terminal, as JSON, as Markdown, or as a vector figure. Nothing is trained,
and no modules are built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from resvar.console import deliver, deliver_drawn, log, output_format, print_line
from resvar.errors import UserError
from resvar.explain.complexity import Complexity, comparison_as_dict
from resvar.explain.drawing import Drawing, Figure, figures_svg
from resvar.explain.family import FamilyTable, family_as_dict, family_as_markdown, family_title
from resvar.explain.family_picture import family_svg
from resvar.explain.request import Request
from resvar.explain.tables import (
    comparison_as_markdown,
    networks_as_markdown,
    print_comparison,
    print_networks,
)
from resvar.files import shipped, write_output
from resvar.models.architecture import Family
from resvar.models.names import title
from resvar.models.ordering import Ordering
from resvar.strict_yaml import read_yaml
from resvar.table import Prose

CAPTIONS = {"original": " · V1", "full-preact": " · V2"}

LESSON = """\
The signal x runs down. The shortcut carries it past the branch, and ⊕ adds the
two. BN and ReLU always come between two convolutions. An ordering says where
one more BN and one more ReLU go: before the first convolution (lead), after the
last (trail), or after the addition (after_add). The published variants differ
only in this."""

LESSON_NEXT = (
    ("resvar show original full-preact", "two orderings side by side"),
    ("resvar show resnet50", "a network by its name"),
    ("resvar show --compare resnet50 resnext50_32x4d", "what differs, at what cost"),
    ("resvar show --table imagenet", "ResNet-18 to 152 in one table"),
    ("resvar show mine.yaml --out unit.svg", "your ordering, as a figure"),
)


def show_networks(
    names: Sequence[str] = (),
    variants: str | None = None,
    options: Mapping[str, Any] | None = None,
    compare: bool = False,
    table: Family | None = None,
    num_classes: int | None = None,
    format: str | None = None,
    out: Path | None = None,
) -> None:
    """Print networks, the comparison of two, or a family; or write them to `out`.

    An `out` that ends in .svg receives the drawing of the units, or the family's table as a
    picture, and the rest is printed.

    Args:
        names: networks, orderings, or both, see `resvar.models.names`.
        variants: names or YAML files of orderings, separated by commas.
        options: arguments of `plan` by name; None means that the option was not given.
        table: the family whose table is shown.
        format: `table`, `json` or `markdown`; None: by the suffix of `out`.

    Raises:
        UserError: a name is unknown or contradicts an option, or `out` cannot be written.
    """
    drawn = out is not None and out.suffix.lower() == ".svg"
    text_file = None if drawn else out
    format = output_format(text_file, format, ("table", "json", "markdown", "svg"))
    request = Request.of(names, variants, options or {}, num_classes)
    view = _view(request, compare, table)
    if out is not None and drawn:
        write_output(out, view.svg().encode())
    if format == "json":
        deliver(json.dumps(view.values(), indent=2, ensure_ascii=False) + "\n", text_file)
    elif format == "markdown":
        deliver("\n".join(view.markdown()) + "\n", text_file)
    else:
        deliver_drawn(view.draw, text_file)
    if drawn:
        (print_line if format == "table" else log)(f"Wrote {out}")


# --- views ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What is shown, in each format."""

    draw: Callable[[Console], None]
    markdown: Callable[[], Iterator[str]]
    values: Callable[[], Any]
    svg: Callable[[], str]


def _view(request: Request, compare: bool, table: Family | None) -> View:
    if table is not None:
        if compare:
            raise UserError("--table and --compare cannot be combined; use one at a time.")
        return _family_view(request.family(table))
    networks = request.networks()
    if compare:
        if len(networks) != 2:
            given = f", not {len(networks)}" if len(networks) > 2 else ""
            raise UserError(
                f"--compare takes two networks{given}; an example is --compare resnet50 resnet101."
            )
        return _comparison_view(*networks)
    networks = list(dict.fromkeys(networks))
    if len({network.architecture for network in networks}) > 1:
        return _several_view(networks)
    return _orderings_view(networks, teach=request.is_empty)


def _family_view(networks: Sequence[Complexity]) -> View:
    def draw(console: Console) -> None:
        console.print(Prose(family_title(networks), "bold"), crop=False)
        console.print()
        console.print(FamilyTable(networks), crop=False)

    return View(
        draw,
        markdown=lambda: family_as_markdown(networks),
        values=lambda: family_as_dict(networks),
        svg=lambda: family_svg(networks),
    )


def _orderings_view(networks: Sequence[Complexity], teach: bool) -> View:
    """One architecture: an object in JSON for one ordering, a list for several."""
    figures = _distinct_figures(networks)

    def draw(console: Console) -> None:
        print_networks(networks, Drawing(figures), console)
        if teach:
            _teach(console)

    values = [network.as_dict() for network in networks]
    return View(
        draw,
        markdown=lambda: networks_as_markdown(networks),
        values=lambda: values if len(values) > 1 else values[0],
        svg=lambda: figures_svg(figures),
    )


def _several_view(networks: Sequence[Complexity]) -> View:
    """Several architectures: units and the table of a family."""
    figures = _distinct_figures(networks)

    def draw(console: Console) -> None:
        console.print(Prose(family_title(networks), "bold"), crop=False)
        console.print()
        console.print(Drawing(figures))
        console.print()
        console.print(FamilyTable(networks), crop=False)

    return View(
        draw,
        markdown=lambda: family_as_markdown(networks),
        values=lambda: [network.as_dict() for network in networks],
        svg=lambda: figures_svg(figures),
    )


def _comparison_view(a: Complexity, b: Complexity) -> View:
    figures = _distinct_figures([a, b])

    def draw(console: Console) -> None:
        print_comparison(a, b, Drawing(figures) if len(figures) > 1 else None, console)

    return View(
        draw,
        markdown=lambda: comparison_as_markdown(a, b),
        values=lambda: comparison_as_dict(a, b),
        svg=lambda: figures_svg(figures),
    )


# --- units ----------------------------------------------------------------------------------------


def caption(ordering: Ordering) -> str:
    """The paper's figure of an ordering, such as `figure 4(a) · V1`; empty if there is none."""
    file = shipped("variants").get(ordering.name)
    letter = read_yaml(file).get("figure") if file is not None else None
    return f"figure {letter}{CAPTIONS.get(ordering.name, '')}" if letter else ""


def _distinct_figures(networks: Sequence[Complexity]) -> list[Figure]:
    """The distinct units, captioned with the network's name if the architectures differ."""
    units = [Figure.of(n.ordering, n.architecture, caption(n.ordering)) for n in networks]
    distinct = list(dict.fromkeys(units))
    if len(distinct) == 1 or len({network.architecture for network in networks}) == 1:
        return distinct
    return [
        replace(unit, caption=title(network.architecture))
        for unit, network in zip(units, networks, strict=True)
    ]


def _teach(console: Console) -> None:
    console.print()
    console.print(Prose(" ".join(LESSON.split())), crop=False)
    console.print()
    console.print(Prose("Next", "bold"), crop=False)
    width = max(len(command) for command, _ in LESSON_NEXT)
    for command, meaning in LESSON_NEXT:
        console.print(Prose(f"  {command:<{width}}  {meaning}"), crop=False)
