"""ONNX files: normalised `images` [batch, 3, H, W] → `logits` [batch, classes], for any batch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from resvar.errors import UserError
from resvar.export.description import DESCRIPTION_KEY, NO_PROVENANCE, Description, Provenance
from resvar.models.network import ResidualNetwork
from resvar.settings import Settings


def to_onnx(
    network: ResidualNetwork, provenance: Provenance = NO_PROVENANCE, size: int | None = None
) -> bytes:
    """The content of an ONNX file: the network in evaluation mode, its description as metadata.

    Args:
        size: height and width of an image; default: those of the run's images, or without settings
            those of the stem, 32 or 224.

    Raises:
        UserError: the extra packages are missing.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"ONNX needs packages that are not installed ({package}): "
                "pip install 'resvar[onnx]'."
            )
    size = size or input_size(network, provenance.settings)
    # Two images: the exporter would treat a batch size of one as a constant.
    example = torch.zeros(2, 3, size, size, device=network.classifier.weight.device)
    training = network.training
    try:
        with _quiet():
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    finally:
        network.train(training)
    assert program is not None  # None only if `export` writes the file itself
    model: Any = program.model_proto
    # The exporter stores source lines with local paths in every node.
    for node in [*model.graph.node, *(n for f in model.functions for n in f.node)]:
        del node.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key = DESCRIPTION_KEY
    entry.value = Description.of(network, provenance).model_dump_json()
    content: bytes = model.SerializeToString()
    return content


def input_size(network: ResidualNetwork, settings: Settings | None) -> int:
    """Height and width of the network's images."""
    if settings is None:
        return 224 if network.architecture.stem == "imagenet" else 32
    return settings.image_size if settings.dataset == "folder" else 32


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the exporter's own messages and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
