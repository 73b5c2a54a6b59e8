"""Networks with weights that no initialisation gives."""

from __future__ import annotations

import torch

from resvar.models.network import build_model


def randomise(network, seed: int = 0):
    """Fill all weights and BN statistics: outputs stay of the size of one."""
    draw = torch.Generator().manual_seed(seed)
    for key, tensor in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
            tensor.uniform_(0.5, 1.0, generator=draw)
        else:
            fan = tensor[0].numel() if tensor.ndim > 1 else 100
            width = (3 / fan) ** 0.5
            tensor.uniform_(-width, width, generator=draw)
    return network.eval()


def quickly(make, **options):
    """A network whose weights are not drawn: `randomise` does that, or a state dict."""
    with torch.device("meta"):
        network = make(**options)
    return network.to_empty(device="cpu").eval()


def trained(variant="full-preact", depth=8, **options):
    """A small network with random BN statistics."""
    return randomise(build_model(variant, depth, **options))


def same_bits(found, wanted) -> bool:
    return list(found) == list(wanted) and all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key])
        for key in wanted
    )
