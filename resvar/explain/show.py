"""`resvar show`: the unit drawn, the stage table, layers, parameters, multiply-adds.

One network in one or several orderings, or two networks side by side with their differences marked,
for a terminal, as JSON, or as Markdown. Nothing is trained, and no modules are built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from resvar.console import deliver, deliver_drawn, log, output_format, print_line
from resvar.errors import UserError
from resvar.explain.complexity import Complexity, comparison_as_dict
from resvar.explain.drawing import Drawing, Figure, figures_svg
from resvar.explain.tables import (
    comparison_as_markdown,
    networks_as_markdown,
    print_comparison,
    print_networks,
)
from resvar.files import shipped, write_output
from resvar.models.architecture import plan
from resvar.models.names import named, title
from resvar.models.ordering import Ordering, find_ordering
from resvar.strict_yaml import read_yaml
from resvar.table import Prose

DEFAULT_VARIANT = "full-preact"
DEFAULT_DEPTH = {"cifar": 164, "imagenet": 50}

CAPTIONS = {"original": " · V1", "full-preact": " · V2"}

LESSON = """\
The signal x runs down. The shortcut carries it past the branch, and ⊕ adds the
two. BN and ReLU always come between two convolutions. An ordering says where
one more BN and one more ReLU go: before the first convolution (lead), after the
last (trail), or after the addition (after_add). The published variants differ
only in this."""

LESSON_NEXT = (
    ("resvar show --variant original,full-preact", "two orderings side by side"),
    ("resvar show --family imagenet --depth 50", "ResNet-50"),
    ("resvar show --compare resnet50 resnext50_32x4d", "what differs, and what it costs"),
    ("resvar show --variant mine.yaml --out unit.svg", "your ordering, as a figure"),
)


def show_networks(
    variants: str | None = None,
    options: Mapping[str, Any] | None = None,
    compare: tuple[str, str] | None = None,
    num_classes: int | None = None,
    format: str | None = None,
    out: Path | None = None,
) -> None:
    """Print a network, or the comparison of two, or write it to `out`.

    An `out` that ends in .svg receives the drawing of the unit, and the rest is printed.

    Args:
        variants: names or YAML files of orderings, separated by commas.
        options: arguments of `plan` by name; None means that the option was not given.
        compare: two names such as `resnet50`, see `resvar.models.names`.
        format: `table`, `json` or `markdown`; None: by the suffix of `out`.

    Raises:
        UserError: the ordering, network or name is unknown, or `out` cannot be written.
    """
    drawn = out is not None and out.suffix.lower() == ".svg"
    text_file = None if drawn else out
    format = output_format(text_file, format, ("table", "json", "markdown", "svg"))
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if compare is not None:
        networks = _named_pair(compare, variants, given, num_classes)
    else:
        networks = _one_in_several_orderings(variants, given, num_classes)
    figures = _distinct_figures(networks)
    if out is not None and drawn:
        write_output(out, figures_svg(figures).encode())
    if format == "json":
        values = _as_json(networks, compare is not None)
        deliver(json.dumps(values, indent=2, ensure_ascii=False) + "\n", text_file)
    elif format == "markdown":
        lines = comparison_as_markdown(*networks) if compare else networks_as_markdown(networks)
        deliver("\n".join(lines) + "\n", text_file)
    else:

        def draw(console: Console) -> None:
            if compare is not None:
                drawing = Drawing(figures) if len(figures) > 1 else None
                print_comparison(networks[0], networks[1], drawing, console)
            else:
                print_networks(networks, Drawing(figures), console)
                if not given and variants is None:
                    _teach(console)

        deliver_drawn(draw, text_file)
    if drawn:
        (print_line if format == "table" else log)(f"Wrote {out}")


# --- networks -------------------------------------------------------------------------------------


def _one_in_several_orderings(
    variants: str | None, given: Mapping[str, Any], num_classes: int | None
) -> list[Complexity]:
    depth = given.get("depth", DEFAULT_DEPTH[given.get("family", "cifar")])
    orderings = _orderings(variants) or [find_ordering(DEFAULT_VARIANT)]
    arguments = {**given, "depth": depth}
    return [_complexity(ordering, arguments, num_classes) for ordering in orderings]


def _named_pair(
    names: tuple[str, str],
    variants: str | None,
    given: Mapping[str, Any],
    num_classes: int | None,
) -> list[Complexity]:
    """Two networks by name; the `given` choices apply to both, two variants to one each."""
    for option in ("depth", "family", "cardinality", "base_width"):
        if option in given:
            raise UserError(
                f"--compare names whole networks: leave out --{option.replace('_', '-')}, or make "
                "it part of a name, such as resnext50_32x4d."
            )
    orderings = _orderings(variants)
    if len(orderings) > 2:
        raise UserError(f"--compare takes one or two variants, not {len(orderings)}.")
    networks = []
    for index, name in enumerate(names):
        arguments = named(name)
        usual = find_ordering(arguments.pop("variant"))
        ordering = orderings[min(index, len(orderings) - 1)] if orderings else usual
        del arguments["num_classes"]  # the stem decides, and `given` may replace it
        networks.append(_complexity(ordering, {**arguments, **given}, num_classes))
    return networks


def _orderings(variants: str | None) -> list[Ordering]:
    names = [] if variants is None else [name.strip() for name in variants.split(",")]
    if "" in names:
        raise UserError("--variant: a name is empty; write names like original,full-preact.")
    return [find_ordering(name) for name in names]


def _complexity(
    ordering: Ordering, arguments: Mapping[str, Any], num_classes: int | None
) -> Complexity:
    try:
        architecture = plan(**arguments)
    except UserError as error:
        # A run takes its settings from --set; this command has an option for each.
        raise UserError(str(error).replace("(--set unit=…)", "(--unit …)")) from error
    return Complexity.of(ordering, architecture, num_classes)


# --- output ---------------------------------------------------------------------------------------


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


def _as_json(networks: Sequence[Complexity], compared: bool) -> Any:
    """An object for one network or a comparison, a list for several orderings."""
    if compared:
        return comparison_as_dict(*networks)
    values = [network.as_dict() for network in networks]
    return values if len(values) > 1 else values[0]


def _teach(console: Console) -> None:
    console.print()
    console.print(Prose(" ".join(LESSON.split())), crop=False)
    console.print()
    console.print(Prose("Next", "bold"), crop=False)
    width = max(len(command) for command, _ in LESSON_NEXT)
    for command, meaning in LESSON_NEXT:
        console.print(Prose(f"  {command:<{width}}  {meaning}"), crop=False)
