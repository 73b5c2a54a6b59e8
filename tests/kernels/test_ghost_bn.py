"""Ghost BN in Triton, run by its interpreter, against nn.BatchNorm2d on one group after another."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from resvar.kernels.ghost_bn import ghost_batch_norm
from tests.support.interpreter import interpreted

pytest.importorskip("triton")

SHAPES = {  # N, C, H, W and images of a group
    "one group": ((3, 16, 5, 7), 3),
    "two groups": ((4, 32, 8, 8), 2),
    "three groups": ((3, 80, 5, 3), 1),
    "1×1 images": ((8, 64, 1, 1), 4),
    "several tiles": ((6, 16, 27, 27), 3),
    "last part shorter": ((2, 16, 23, 23), 1),
}
VARIANTS = list(itertools.product(["none", "before", "after"], [False, True], [False, True]))


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreted():
        yield


def signal(*shape, dtype=torch.float64):
    return (torch.randn(shape, dtype=torch.float64) * 2 + 3).to(dtype).contiguous(
        memory_format=torch.channels_last
    )  # fmt: skip


def make_bn(channels, dtype=torch.float64, **kwargs):
    bn = nn.BatchNorm2d(channels, dtype=dtype, **kwargs)
    with torch.no_grad():
        for values in (bn.weight, bn.bias, *(bn.running_mean, bn.running_var)):
            if values is not None:
                values.uniform_(0.5, 1.5)
    return bn


def plain(bn, x, group, relu="none", added=None):
    """The same from torch's modules: each group by itself."""
    out = torch.cat([bn(images) for images in x.split(group)])
    if relu == "before" or (relu == "after" and added is None):
        out = out.relu()
    if added is not None:
        out = out + added
    return out.relu() if relu == "after" else out


def ghost(bn, x, group, relu="none", added=None, fork=False):
    return ghost_batch_norm(
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var,
        group=group, momentum=bn.momentum, eps=bn.eps, relu=relu, added=added, fork=fork,
    )  # fmt: skip


def outcome(bn, x, group, relu, added, fork, dtype=None, use=ghost):
    """Output, gradients and running statistics of a copy of everything in `dtype`."""
    dtype = dtype or x.dtype
    wide = torch.float32 if dtype is torch.bfloat16 else dtype
    own = make_bn(x.shape[1], wide, momentum=bn.momentum)
    own.load_state_dict(bn.state_dict())
    x = x.clone().to(dtype).requires_grad_()
    added = added.clone().to(dtype).requires_grad_() if added is not None else None
    if use is ghost:
        y, raw = ghost(own, x, group, relu, added, fork)
    else:
        y, raw = plain(own, x, group, relu, added), x
    assert y.dtype is dtype
    weights = torch.arange(y.numel()).remainder(7).sub(3).view(y.shape).to(dtype)
    (y * weights).sum().backward(retain_graph=fork)
    if fork:
        (raw * weights.flip(0)).sum().backward()
    found = {"y": y.detach(), "dx": x.grad, "dweight": own.weight.grad, "dbias": own.bias.grad}
    found |= {"mean": own.running_mean, "var": own.running_var}
    return found | ({} if added is None else {"dadded": added.grad})


def distance(found, reference):
    """The largest error of each tensor, relative to its largest element."""
    return {
        name: ((found[name].double() - right.double()).abs().max() / right.abs().max()).item()
        for name, right in reference.items()
    }


@pytest.mark.parametrize(("relu", "adds", "fork"), VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_batch_norm_of_one_group_after_another(shape, relu, adds, fork):
    torch.manual_seed(0)
    size, group = SHAPES[shape]
    x, added = signal(*size), signal(*size) - 3 if adds else None
    bn = make_bn(size[1])
    reference = outcome(bn, x, group, relu, added, fork, use=plain)
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = distance(outcome(bn, x, group, relu, added, fork, dtype), reference)
        assert max(found.values()) < limit, (dtype, found)
