"""On a GPU: the whole batch at once, each BN over groups of it, in few kernels.

A GPU needs the same time to start a kernel whatever the kernel does, and an update of a CIFAR
network is thousands of small ones; two micro-batches double them. Ghost batch normalisation
(Hoffer et al. 2017, arXiv:1705.08741) computes the same function in one pass: only BN looks at
other images, so all other layers take the whole batch, and BN normalises each group of it by the
group's own statistics.

`fuse_ghost(network, group)` replaces the `forward` of BN, of each `nn.Sequential` and of each
residual unit. Where Triton accepts the signal, BN, the ReLU after it and the addition around it are
one operator (ghost_bn.py). Elsewhere BN takes one group after the other, with torch's operators.
The weights, their names and the running statistics are those of micro-batches, up to rounding.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resvar.kernels.fuse import is_hooked
from resvar.kernels.ghost_bn import accepts, ghost_batch_norm, trial_failure
from resvar.models.unit import ResidualUnit

TRITON = "triton"
"""The compiler of the operators: a package that torch for NVIDIA GPUs brings along on Linux."""


def fuse_ghost(network: nn.Module, group: int) -> None:
    """Make a network normalise groups of `group` images; its batches are multiples of that.

    BN no longer counts its batches, since one operation can count for all of them
    (training/multi_tensor.py). A deep copy of the network does the same.
    """
    ghost = Ghost(group)
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.forward = partial(ghost.unit, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Sequential):
            module.forward = partial(ghost.sequence, module)  # type: ignore[method-assign]
        elif type(module) is nn.BatchNorm2d:
            module.forward = partial(ghost.norm, module)  # type: ignore[method-assign]


@dataclass(frozen=True)
class Ghost:
    """The forward passes over a batch of groups, each of `group` images."""

    group: int

    def unit(self, unit: ResidualUnit, x: Tensor) -> Tensor:
        """`ResidualUnit.forward`: after_add(branch(activated) + shortcut)."""
        if unit.projects:
            activated = raw = unit.lead(x)
        else:
            activated, raw = self._fork(unit.lead, x)
        shortcut = unit.shortcut(raw)
        if is_hooked(unit.branch):
            return cast(Tensor, unit.after_add(unit.branch(activated) + shortcut))
        modules, after = [*unit.branch], [*unit.after_add]
        body, bn, relu = _tail(modules)
        out = self._run(body, activated)
        if bn is None or not self._takes(bn, out) or not _alike(shortcut, out):
            return cast(Tensor, unit.after_add(self._run(modules[len(body) :], out) + shortcut))
        where: Literal["none", "before", "after"] = "before" if relu else "none"
        if not relu and _begins_with_relu(after) and not is_hooked(unit.after_add):
            where, after = "after", after[1:]
        out, _ = self._operator(bn, out, where, added=shortcut)
        return self._run(after, out) if where == "after" else cast(Tensor, unit.after_add(out))

    def sequence(self, modules: nn.Sequential, x: Tensor) -> Tensor:
        """`nn.Sequential.forward`."""
        return self._run([*modules], x)

    def norm(self, bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
        """`nn.BatchNorm2d.forward`, over groups."""
        if not bn.training:
            return nn.BatchNorm2d.forward(bn, x)
        if self._takes(bn, x):
            return self._operator(bn, x)[0]
        own = normalise if bn.momentum is not None else nn.BatchNorm2d.forward
        return torch.cat([own(bn, images) for images in torch.split(x, self.group)])

    def _fork(self, lead: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
        """`lead(x)` and x, whose two gradients BN's backward pass adds."""
        bn = lead[0] if len(lead) and not is_hooked(lead) else None
        if bn is None or is_hooked(bn) or not self._takes(bn, x):
            return lead(x), x
        relu = _begins_with_relu([*lead][1:])
        out, raw = self._operator(bn, x, "before" if relu else "none", fork=True)
        return self._run([*lead][1 + relu :], out), raw

    def _run(self, modules: list[nn.Module], x: Tensor) -> Tensor:
        """The modules in order; BN and the ReLU after it as one."""
        while modules:
            bn, relu = modules[0], _begins_with_relu(modules[1:])
            if relu and not is_hooked(bn) and self._takes(bn, x):
                x, _ = self._operator(bn, x, "before")
            else:
                relu = False
                x = bn(x)
            modules = modules[1 + relu :]
        return x

    def _takes(self, bn: nn.Module, x: Tensor) -> bool:
        return (
            type(bn) is nn.BatchNorm2d
            and bn.training
            and bn.affine
            and bn.momentum is not None
            and len(x) % self.group == 0
            and self.group * x[0, 0].numel() > 1  # torch refuses one value per channel
            and accepts(x)
        )

    def _operator(
        self,
        bn: nn.Module,
        x: Tensor,
        relu: Literal["none", "before", "after"] = "none",
        added: Tensor | None = None,
        fork: bool = False,
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(bn, nn.BatchNorm2d)
        assert bn.momentum is not None
        return ghost_batch_norm(
            x, bn.weight, bn.bias, *_running_statistics(bn),
            group=self.group, momentum=bn.momentum, eps=bn.eps,
            relu=relu, added=added, fork=fork,
        )  # fmt: skip


def normalise(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`nn.BatchNorm2d.forward` in training, without counting the batch."""
    assert bn.momentum is not None
    mean, variance = _running_statistics(bn)
    return F.batch_norm(x, mean, variance, bn.weight, bn.bias, True, bn.momentum, bn.eps)


def _running_statistics(bn: nn.BatchNorm2d) -> tuple[Tensor | None, Tensor | None]:
    """Those that training moves; a BN may have others, which it keeps as they are."""
    return (bn.running_mean, bn.running_var) if bn.track_running_stats else (None, None)


def _alike(shortcut: Tensor, out: Tensor) -> bool:
    return shortcut.dtype is out.dtype and shortcut.shape == out.shape and accepts(shortcut)


def triton_obstacle(device: torch.device) -> str | None:
    """Why the operators cannot be used on a GPU; the text is a clause."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return "they need an NVIDIA GPU of compute capability 8.0 or later"
    if importlib.util.find_spec(TRITON) is None:
        return "they need Triton, which is not installed (pip install triton)"
    return trial_failure(device)


def triton_version() -> str:
    """Of the compiler of the operators, which must be installed.

    Torch's preview builds bring it in a package of another name, so the module says it.
    """
    return str(importlib.import_module(TRITON).__version__)


def _tail(branch: list[nn.Module]) -> tuple[list[nn.Module], nn.Module | None, bool]:
    """A branch before its last BN, that BN, and whether a ReLU follows it; no BN: all, None."""
    relu = len(branch) > 1 and _begins_with_relu(branch[-1:])
    at = len(branch) - 1 - relu
    if at >= 0 and type(branch[at]) is nn.BatchNorm2d and not is_hooked(branch[at]):
        return branch[:at], branch[at], relu
    return branch, None, False


def _begins_with_relu(modules: list[nn.Module]) -> bool:
    return bool(modules) and type(modules[0]) is nn.ReLU and not is_hooked(modules[0])
