"""safetensors files: the weights under the names of the network's modules, and a description.

`load_model` rebuilds the network from the description in the metadata. The format contains only
numbers and text, so reading a file runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from resvar.errors import UserError, first_line
from resvar.export.description import (
    DESCRIPTION_FORMAT,
    DESCRIPTION_KEY,
    NO_PROVENANCE,
    Description,
    Provenance,
)
from resvar.files import open_regular, refuse_newer
from resvar.models.network import ResidualNetwork


class LoadedModel(ResidualNetwork):
    """A network read from a file, with the `provenance` of its weights."""

    provenance: Provenance

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """The probability of each class: uint8 [N, H, W, 3] (RGB) → float [N, classes].

        Raises:
            UserError: the type or shape is wrong, the file has no normalisation, or its mean per
                pixel belongs to images of another size.
        """
        normalization = self.provenance.normalization
        shape = pixels.shape
        if pixels.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
            raise UserError(
                "images must be uint8 [N, height, width, 3], not "
                f"{_type_text(pixels.dtype, shape)}."
            )
        if normalization is None:
            raise UserError(
                "the model's file does not contain the normalisation of its images: export the run "
                "again with its dataset (--data DIR)."
            )
        if normalization.mean.ndim == 3 and normalization.mean.shape != shape[1:]:
            height, width, _ = normalization.mean.shape
            raise UserError(
                f"the model subtracts a mean per pixel, so images must be {height}×{width}, not "
                f"{shape[1]}×{shape[2]}: resize them, or train with --set normalize=channel."
            )
        device = self.classifier.weight.device
        images = normalization.to(device)(pixels.to(device))
        return self(images.contiguous()).softmax(dim=1)  # type: ignore[no-any-return]


def to_safetensors(network: ResidualNetwork, provenance: Provenance = NO_PROVENANCE) -> bytes:
    """The content of a safetensors file; equal networks give equal bytes.

    Raises:
        UserError: the weights are not fp32.
    """
    if odd := {p.dtype for p in network.parameters()} - {torch.float32}:
        raise UserError(f"only fp32 weights can be written, not {odd.pop()}: call .float() first.")
    # A single key, since safetensors writes several in random order.
    metadata = {DESCRIPTION_KEY: Description.of(network, provenance).model_dump_json()}
    return save(cpu_state(network), metadata)


def load_model(path: str | Path) -> LoadedModel:
    """The network in a file of `resvar export --out FILE.safetensors`, in evaluation mode.

    Raises:
        UserError: the file is missing, damaged, not safetensors, or without a valid description.
    """
    path = Path(path)
    try:
        if not path.exists() or path.is_dir():
            raise UserError(f"{path}: there is no such file.")
        open_regular(path).close()  # refuses a pipe, on which the library would wait
        with safe_open(path, framework="pt") as file:
            network = _empty_network(path, _read_description(path, file.metadata()))
            _check_tensors(path, network, file)
            # Copies: safetensors returns views of the file, mapped into memory.
            state = {key: file.get_tensor(key).clone() for key in network.state_dict()}
    except SafetensorError as error:
        raise UserError(
            f"{path}: this is damaged or not a safetensors file ({first_line(error)})."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    network.load_state_dict(state, assign=True)
    return network.eval()


def cpu_state(network: ResidualNetwork) -> dict[str, Tensor]:
    """The state dict as contiguous copies on the CPU."""
    return {
        key: tensor.detach().to("cpu", copy=True).contiguous()
        for key, tensor in network.state_dict().items()
    }


# --- reading --------------------------------------------------------------------------------------


def _read_description(path: Path, metadata: Mapping[str, str] | None) -> Description:
    text = (metadata or {}).get(DESCRIPTION_KEY)
    if text is None:
        raise UserError(
            f"{path}: the file does not describe the network of its weights; files written by "
            "`resvar export` do."
        )
    with suppress(ValueError, RecursionError):  # malformed JSON is refused below
        found = json.loads(text)
        refuse_newer(path, isinstance(found, dict) and found.get("format"), DESCRIPTION_FORMAT)
    try:
        return Description.from_json(text)
    except ValueError as error:
        raise UserError(f"{path}: its description is damaged ({error}).") from None


def _empty_network(path: Path, description: Description) -> LoadedModel:
    """The described network on the meta device, without memory: its sizes may be hostile."""
    described, settings = description.network, description.settings
    try:
        ordering, architecture = described.ordering, described.architecture
        if settings and (settings.ordering, settings.architecture) != (ordering, architecture):
            raise ValueError("'settings' and 'network' describe different networks")
        with torch.device("meta"):
            network = LoadedModel(ordering, architecture, described.num_classes)
        network.provenance = description.provenance
    except (UserError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: its description is damaged ({first_line(error)}).") from None
    return network


def _check_tensors(path: Path, network: LoadedModel, file: Any) -> None:
    """Raises UserError if a tensor is missing, unknown, or has the wrong type or shape."""
    wanted = {key: _type_text(t.dtype, t.shape) for key, t in network.state_dict().items()}
    found = {key: _type_in_file(file.get_slice(key)) for key in file.keys()}  # noqa: SIM118
    for problem, keys in (
        ("lacks", [key for key in wanted if key not in found]),
        ("contains the unknown", [key for key in found if key not in wanted]),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(
                f"{path} {problem} '{keys[0]}'{more}, so it belongs to another network."
            )
    for key, type_text in wanted.items():
        if found[key] != type_text:
            raise UserError(f"{path}: '{key}' is {found[key]}, but should be {type_text}.")


def _type_text(dtype: Any, shape: Any) -> str:
    """Such as `float32 [64, 3, 7, 7]`."""
    return f"{dtype} {list(shape)}".removeprefix("torch.")


def _type_in_file(tensor: Any) -> str:
    names = {"F32": torch.float32, "I64": torch.int64}
    return _type_text(names.get(tensor.get_dtype(), tensor.get_dtype()), tensor.get_shape())
