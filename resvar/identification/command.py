"""`resvar identify`: load the network, identify it, print the answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rich.console import Console

from resvar.console import deliver, deliver_drawn, output_format
from resvar.errors import UserError, quoted
from resvar.identification.answer import as_dict
from resvar.identification.identify import identify
from resvar.identification.load import contained, load_network
from resvar.identification.render import print_identification


def identify_target(
    target: str, kwargs: str | None, input: str | None, format: str | None, out: Path | None
) -> bool:
    """Print which network `MODULE:CALLABLE` or `FILE.py:CALLABLE` gives; true if it is known.

    Args:
        kwargs: arguments of the callable, see `load_network`.
        input: channels, height and width of an image, such as `3x32x32`.
        format: `table` or `json`; None: by the suffix of `out`.

    Raises:
        UserError: the network cannot be loaded or run, or is not a residual network.
    """
    format = output_format(out, format, ("table", "json"))
    shape = None if input is None else _shape(input)
    subject = f"{target}({kwargs})" if kwargs else target
    network = load_network(target, kwargs)
    claimed = _claimed_depth(target.rpartition(":")[2], kwargs or "")
    with contained(target):
        found = identify(network, shape, claimed)
    if format == "json":
        deliver(json.dumps(as_dict(found, subject), indent=2, ensure_ascii=False) + "\n", out)
    else:

        def draw(console: Console) -> None:
            print_identification(found, subject, console)

        deliver_drawn(draw, out)
    return found.known


def _shape(text: str) -> tuple[int, ...]:
    sides = re.fullmatch(r"(\d{1,5})[x×,](\d{1,5})[x×,](\d{1,5})", text.strip())
    if sides is None:
        raise UserError(
            f"--input: {quoted(text)} is not the shape of an image; an example is 3x32x32."
        )
    return tuple(int(side) for side in sides.groups())


def _claimed_depth(name: str, kwargs: str) -> int | None:
    """The number of layers that a network is asked for, or that its name contains."""
    asked = re.search(r"\bdepth=(\d+)", kwargs)
    named = re.search(
        r"res(?:net|next)(?:_?v\d)?[-_]?(\d{2,4})(?![\dx])", f"{name},{kwargs}".lower()
    )
    found = asked or named
    return int(found[1]) if found else None
