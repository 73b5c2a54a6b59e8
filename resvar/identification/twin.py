"""The network found and resvar's own, with the same weights: do they compute the same?

Structure is what a reader compares; this is what a machine can. The weights are drawn anew, so that
no zero scale of a BN hides a branch, and the statistics of BN are those of the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resvar.identification.structure import Step, Structure
from resvar.identification.trace import logits_of

WEIGHT_SEED = 20160316
"""Of the weights and images of a comparison: the day of arXiv:1603.05027."""


@dataclass(frozen=True)
class FunctionDistance:
    """The largest differences between the two networks, relative to the largest value.

    Attributes:
        logits, gradients: in evaluation mode; gradients are those of all weights.
        training_logits: in training mode; None if it was not compared.
        precision: `float64`, or `float32` where the network computes in nothing else.
    """

    logits: float
    gradients: float
    training_logits: float | None
    precision: str

    @property
    def values(self) -> dict[str, float]:
        """What was compared, each with its largest difference."""
        values = {"logits": self.logits, "gradients": self.gradients}
        if self.training_logits is not None:
            values["logits in training mode"] = self.training_logits
        return values

    @property
    def largest(self) -> float:
        """The largest of the differences."""
        return max(self.values.values())

    @property
    def differing(self) -> list[str]:
        """What differs by more than rounding."""
        bound = 1e-6 if self.precision == "float64" else 1e-3
        return [what for what, value in self.values.items() if not value <= bound]  # also NaN

    @property
    def equal(self) -> bool:
        """Whether the differences are those of rounding."""
        return not self.differing


def redraw(network: nn.Module) -> None:
    """Draw all weights of a network anew: He normal by fan-in, positive scales, shifts near 0."""
    generator = torch.Generator().manual_seed(WEIGHT_SEED)

    def normal(tensor: Tensor, scale: float) -> Tensor:
        drawn = torch.randn(tensor.shape, generator=generator) * scale
        return drawn.to(tensor)

    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.dim() > 1:
                tensor.copy_(normal(tensor, (2 / tensor[0].numel()) ** 0.5))
        for name, tensor in network.named_parameters():
            if tensor.dim() <= 1:
                drawn = normal(tensor, 0.1)
                tensor.copy_(drawn if name.endswith("bias") else 1 + drawn)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer, 0.1))
            elif name.endswith("running_var"):
                buffer.copy_(1 + normal(buffer, 0.1).abs())


def compare_functions(
    theirs: nn.Module, structure: Structure, ours: nn.Module, images: Tensor, training: bool
) -> FunctionDistance | None:
    """Compare two networks of the same structure; None if their layers do not correspond.

    Args:
        theirs: the network from whose trace the structure was found, with its weights redrawn.
        images: float32 [N, 3, H, W].
        training: whether to compare in training mode too.
    """
    try:
        return _compared(theirs, structure, ours, images.double(), training)
    except RuntimeError:  # it creates fp32 tensors of its own
        return _compared(theirs, structure, ours, images, training)


def _compared(
    theirs: nn.Module, structure: Structure, ours: nn.Module, images: Tensor, training: bool
) -> FunctionDistance | None:
    theirs, ours = (deepcopy(network).to(images.dtype) for network in (theirs, ours))
    layers = [m for m in ours.modules() if isinstance(m, nn.Conv2d | nn.Linear | _BatchNorm)]
    steps = list(weighted_steps(structure))
    if len(layers) != len(steps):
        return None
    take_statistics(theirs, images)
    named = {**dict(theirs.named_buffers()), **dict(theirs.named_parameters())}
    with torch.no_grad():
        for layer, step in zip(layers, steps, strict=True):
            for key, tensor in _tensors(layer):
                tensor.copy_(_together(named, step, key).reshape(tensor.shape))
    both = theirs, ours
    trained = [_logits(network.train(), images) for network in both] if training else None
    for layer, step in zip(layers, steps, strict=True):
        if isinstance(layer, _BatchNorm):  # training mode has moved both
            with torch.no_grad():
                for key in ("running_mean", "running_var"):
                    getattr(layer, key).copy_(_together(named, step, key))
    logits = [_logits(network.eval(), images) for network in both]
    weighting = torch.linspace(-1, 1, logits[0].numel(), dtype=images.dtype).reshape(
        logits[0].shape
    )
    torch.autograd.backward((logits[1] * weighting).sum())
    slopes = _weight_gradients((logits[0] * weighting).sum(), dict(theirs.named_parameters()))
    gradients = [
        _distance(_together(slopes, step, key).flatten(), weights.grad.flatten())
        for layer, step in zip(layers, steps, strict=True)
        for key, weights in layer.named_parameters()
        if weights.grad is not None
    ]
    return FunctionDistance(
        logits=_distance(*logits),
        gradients=max(gradients),
        training_logits=_distance(*trained) if trained else None,
        precision=str(images.dtype).removeprefix("torch."),
    )


def _weight_gradients(loss: Tensor, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients; infinite where none arrives, or where the backward pass fails."""
    for weights in named.values():
        if not weights.is_leaf:  # those of a copied TorchScript module
            weights.retain_grad()
    failed = True
    with suppress(RuntimeError):
        torch.autograd.backward(loss)
        failed = False
    return {
        name: torch.full_like(weights, inf) if failed or weights.grad is None else weights.grad
        for name, weights in named.items()
    }


def weighted_steps(structure: Structure) -> Iterator[Step]:
    """The steps with weights, in the order in which resvar registers its modules."""
    paths: list[Sequence[Step]] = [structure.stem]
    for unit in structure.units:
        paths += [unit.before, unit.branch, unit.shortcut]
    for path in (*paths, structure.head):
        yield from (step for step in path if step.op in ("conv", "bn", "linear"))


def _tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(layer, key, None)
        if isinstance(tensor, Tensor):
            yield key, tensor


def _together(named: dict[str, Tensor], step: Step, key: str) -> Tensor:
    """A tensor of a step: that of its lane, or those of all lanes."""
    dimension = step.join if key == "weight" else 0
    parts = [_as_read(named[lane.names[key]], lane.tensors[key]) for lane in step.lanes]
    return torch.cat(parts, dimension)


def _as_read(tensor: Tensor, read: Tensor) -> Tensor:
    """A matrix [in, out] as [out, in] where the network's product transposes it."""
    transposed = tensor.dim() == 2 and tensor.t().stride() == read.stride() != tensor.stride()
    return tensor.t() if transposed else tensor


def take_statistics(network: nn.Module, images: Tensor) -> None:
    """Set the statistics of BN to those of the images, so that no signal grows with depth."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    try:
        with torch.no_grad():
            network.train()(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    return logits_of(network(images)).flatten(1)


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value."""
    a, b = a.detach(), b.detach()
    return float(
        (a - b).abs().max() / b.abs().max().clamp(min=1e-300 if b.dtype == torch.float64 else 1e-30)
    )
