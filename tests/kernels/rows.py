"""Rows of modules, plain and fused: how the tests of the operators make and compare them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from resvar.kernels import build
from resvar.kernels.fuse import fork, fuse, is_fused

MARKS = [
    pytest.mark.build,
    pytest.mark.usefixtures("built"),
    pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler"),
]
TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


def chain(channels, relu=True, dtype=torch.float32):
    """BN with random parameters, and ReLU."""
    bn = nn.BatchNorm2d(channels).to(dtype)
    with torch.no_grad():
        bn.weight.uniform_(0.5, 1.5)
        bn.bias.uniform_(-0.5, 0.5)
    return nn.Sequential(bn, nn.ReLU()) if relu else nn.Sequential(bn)


def signal(*shape, dtype=torch.float32):
    x = torch.randn(shape, dtype=torch.float64) * 2 + 3
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def both(one, x, work):
    """Outputs, gradients and statistics of `work(one, x)`, plain and fused."""
    found = []
    for fused in (False, True):
        own, given = copy.deepcopy(one), x.clone().requires_grad_()
        if fused:
            fuse(own)
        out = work(own, given)
        weights = torch.arange(out.numel()).remainder(7).sub(3).view(out.shape).to(out.dtype)
        (out * weights).sum().backward()
        found.append(
            {"out": out.detach(), "x": given.grad}
            | {name: p.grad for name, p in own.named_parameters()}
            | dict(own.named_buffers())
        )
    return found


def forked(lead, branch, x, shortcut=lambda x: x):
    """`branch(lead(x)) + shortcut(x)`, by the operators if the lead is fused."""
    return fork(lead, branch, x, shortcut) if is_fused(lead) else branch(lead(x)) + shortcut(x)


FILTERS, ADDED = 9, 10  # positions of two arguments of the operator


def calls(monkeypatch):
    """A list to which each call of the operator adds its arguments."""
    used, real = [], torch.ops.resvar.bn
    monkeypatch.setattr(torch.ops.resvar, "bn", lambda *a: used.append(a) or real(*a))
    return used


def assert_close(found, tolerance):
    plain, fused = found
    assert list(plain) == list(fused)
    for name, wanted in plain.items():
        assert fused[name].dtype == wanted.dtype
        scale = wanted.double().abs().max().clamp(min=1)
        apart = float((fused[name].double() - wanted.double()).abs().max() / scale)
        assert apart <= tolerance, f"{name}: {apart:.1e} of its largest"


def layers(channels_in, channels_out, kernel, *before):
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(*before, conv)


def autocast(dtype):
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)
