"""The three forms of ResNeXt's unit compute the same function, in plain PyTorch.

    python examples/three_forms.py

Xie et al., "Aggregated Residual Transformations for Deep Neural Networks" (arXiv:1611.05431,
figure 3), draw one unit in three ways: (a) 32 thin paths, added up; (b) 32 thin paths,
concatenated, and one convolution; (c) three convolutions, the middle one in 32 groups. Here all
three use the same weights, in float64. Read `aggregated`, `concatenated` and `grouped` first.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, relu


class Path(NamedTuple):
    """The weights of one path: 256 channels → d → d → 256."""

    reduce: Tensor  # [d, 256, 1, 1]
    transform: Tensor  # [d, d, 3, 3]
    restore: Tensor  # [256, d, 1, 1]


def bn(x: Tensor) -> Tensor:
    """BatchNorm in training mode. Each channel is normalised alone, so channels can be split."""
    return batch_norm(x, None, None, training=True)


def thin_path(x: Tensor, path: Path) -> Tensor:
    """The first two convolutions of a path: float [N, 256, H, W] → [N, d, H, W]."""
    reduced = relu(bn(conv2d(x, path.reduce)))
    return relu(bn(conv2d(reduced, path.transform, padding=1)))


def aggregated(x: Tensor, paths: list[Path]) -> Tensor:
    """Figure 3(a): every path ends with its own 1×1 convolution, and the results are added."""
    ends = torch.stack([conv2d(thin_path(x, path), path.restore) for path in paths])
    return relu(bn(ends.sum(dim=0)) + x)


def concatenated(x: Tensor, paths: list[Path]) -> Tensor:
    """Figure 3(b): the thin paths are concatenated, and one 1×1 convolution does the adding."""
    together = torch.cat([thin_path(x, path) for path in paths], dim=1)
    restore = torch.cat([path.restore for path in paths], dim=1)
    return relu(bn(conv2d(together, restore)) + x)


def grouped(x: Tensor, paths: list[Path]) -> Tensor:
    """Figure 3(c): one wide unit, whose 3×3 convolution keeps the paths apart as groups."""
    reduce = torch.cat([path.reduce for path in paths])
    transform = torch.cat([path.transform for path in paths])
    restore = torch.cat([path.restore for path in paths], dim=1)
    reduced = relu(bn(conv2d(x, reduce)))
    transformed = relu(bn(conv2d(reduced, transform, padding=1, groups=len(paths))))
    return relu(bn(conv2d(transformed, restore)) + x)


FORMS = {"(a) aggregated": aggregated, "(b) concatenated": concatenated, "(c) grouped": grouped}


def make_paths(cardinality: int, width: int, channels: int = 256) -> list[Path]:
    """Random weights for so many paths of so many channels."""
    shapes = (width, channels, 1, 1), (width, width, 3, 3), (channels, width, 1, 1)
    return [
        Path(*(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes))
        for _ in range(cardinality)
    ]


def outcome(form: str, x: Tensor, paths: list[Path]) -> list[Tensor]:
    """The output of a form, and the gradients of its sum of squares for x and every weight."""
    output = FORMS[form](x, paths)
    weights = [weight for path in paths for weight in path]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), [x, *weights])]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of two outcomes, each tensor relative to its largest value."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def main() -> None:
    torch.manual_seed(0)
    for cardinality, width in (1, 64), (32, 4):
        weights = sum(w.numel() for path in make_paths(cardinality, width) for w in path)
        print(f"{cardinality:2} × {width}d: {weights:,} weights in the convolutions")
    paths = make_paths(cardinality=32, width=4)
    x = torch.randn(2, 256, 14, 14, dtype=torch.float64, requires_grad=True)
    reference = outcome("(a) aggregated", x, paths)
    for form in FORMS:
        found = difference(outcome(form, x, paths), reference)
        print(f"{form:16}  outputs and gradients differ from (a) by at most {found:.0e}")


if __name__ == "__main__":
    main()
