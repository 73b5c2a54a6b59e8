"""The commands `resvar evaluate` and `resvar export`."""

from __future__ import annotations

import json
from pathlib import Path

from resvar.console import (
    deliver,
    deliver_drawn,
    log,
    output_format,
    print_line,
)
from resvar.data.cifar import default_folder
from resvar.errors import UserError
from resvar.evaluation.examine import examine
from resvar.evaluation.render import after_iteration, print_findings
from resvar.evaluation.trained import open_trained
from resvar.export.formats import choose_format, save_network
from resvar.export.torchvision_state import torchvision_constructor
from resvar.training.machine import choose_device


def evaluate_source(
    source: Path, data: Path, device: str, format: str | None, out: Path | None
) -> None:
    """Evaluate the network in `source`; print the findings or write them to `out`.

    Args:
        source: see `open_trained`.
        data: the folder with the dataset.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        format: `table` or `json`; None: by the suffix of `out`.

    Raises:
        UserError: wrong input, or `out` cannot be written.
        RunError: all checkpoints of the run are damaged, or the network's outputs are not finite.
    """
    format = output_format(out, format, ("table", "json"))
    findings = examine(open_trained(source), data, choose_device(device))
    if format == "json":
        deliver(json.dumps(findings, indent=2, allow_nan=False) + "\n", out)
    else:
        deliver_drawn(lambda console: print_findings(findings, console), out)


def export_source(source: Path, out: Path, to: str | None, data: Path | None, force: bool) -> None:
    """Write the network in `source` to `out`, and print a line about it.

    Args:
        source: see `open_trained`.
        to: a format of `SUFFIXES`; None: by the suffix of `out`.
        data: the folder with the dataset, for the normalisation in the file; None: the default
            folder, which may lack the dataset.
        force: replace an existing `out`.

    Raises:
        UserError: wrong input, or `out` cannot be written.
        RunError: all checkpoints of the run are damaged.
    """
    to = choose_format(out, to, force)
    trained = open_trained(source)
    network = trained.network
    name = f"{network.ordering.name}-{network.architecture.depth}"
    if to == "torchvision":
        name += f", for torchvision.models.{torchvision_constructor(network)}"
    else:
        try:
            trained = trained.with_images(data or default_folder())
        except UserError as error:
            if data is not None:
                raise
            log(f"Note: the file will not say how images are normalised: {error}")
    save_network(network, out, to, trained.provenance)
    settings = trained.provenance.settings
    after = after_iteration(trained.provenance.iteration, settings.iterations) if settings else ""
    print_line(f"Wrote {out}: {name}{after}.")
