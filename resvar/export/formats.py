"""The formats of `resvar export`: choosing one by file name, and writing it."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from resvar.errors import UserError
from resvar.export.description import NO_PROVENANCE, Provenance
from resvar.export.onnx_file import to_onnx
from resvar.export.safetensors_file import to_safetensors
from resvar.export.torchvision_state import to_torchvision
from resvar.files import require_place, write_output
from resvar.models.network import ResidualNetwork

SUFFIXES = {
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
    "torchvision": (".pt", ".pth"),
}
"""Format → suffixes of its files."""


def choose_format(out: Path, to: str | None = None, force: bool = False) -> str:
    """The format of `--out`: `--to`, otherwise by the suffix.

    Raises:
        UserError: the suffix belongs to another format or to none; the file exists and `force` is
            false; or its folder is missing.
    """
    endings = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    found = [name for name, suffixes in SUFFIXES.items() if out.suffix.lower() in suffixes]
    if not found:
        raise UserError(f"--out {out}: the file's name must end in one of {endings}.")
    if to is not None and to != found[0]:
        ending = " or ".join(SUFFIXES[to])
        raise UserError(f"--out {out}: with --to {to} the file's name must end in {ending}.")
    require_place(out)
    if out.exists() and not force:
        raise UserError(f"--out {out}: the file already exists; --force replaces it.")
    return found[0]


def save_network(
    network: ResidualNetwork, out: Path, to: str, provenance: Provenance = NO_PROVENANCE
) -> None:
    """Write a network to `out`, atomically, in a format of `SUFFIXES`.

    Raises:
        UserError: the format does not support this network, needs more packages, or `out` cannot
            be written.
    """
    if to == "torchvision":
        file = io.BytesIO()
        torch.save(to_torchvision(network), file)
        content = file.getvalue()
    else:
        content = (to_onnx if to == "onnx" else to_safetensors)(network, provenance)
    write_output(out, content)
