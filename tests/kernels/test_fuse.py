"""The pass that puts the operators under a network: hooks, copies, exceptions, whole networks."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from resvar.files import shipped
from resvar.kernels.fuse import add, fork, fuse
from resvar.models.network import build_model
from tests.kernels.rows import (
    FILTERS,
    MARKS,
    TYPES,
    assert_close,
    calls,
    chain,
    layers,
    signal,
)

pytestmark = MARKS

VARIANTS = sorted(shipped("variants"))


# --- hooks and copies -----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["lead", "branch", "add"])
def test_a_hook_at_a_row_sees_its_output(where):
    lead, branch, seen = chain(16), layers(16, 16, 1), []
    x, own = signal(4, 16, 8, 8), nn.ModuleList([lead, branch])
    (lead if where == "lead" else branch).register_forward_hook(lambda *a: seen.append(a[2]))
    fuse(own)
    if where == "add":
        out, added = add(branch, lead(x), x), x
    else:
        out, added = fork(lead, branch, x, lambda x: 2 * x), 2 * x
    assert len(seen) == 1
    if where != "lead":
        assert torch.equal(out, seen[0] + added)


KINDS = ["forward_pre", "forward", "full_backward_pre", "full_backward"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["original", "full-preact"])
def test_hooks_see_the_same_plain_and_fused(variant, kind):
    """At every module of a network: as often, and the same to rounding."""
    torch.manual_seed(15)
    images, found = torch.randn(4, 3, 32, 32), []
    for fused in (False, True):
        network = build_model(variant, depth=11, seed=2).to(memory_format=torch.channels_last)
        if fused:
            fuse(network)
        seen = []
        for name, module in network.named_modules():
            getattr(module, f"register_{kind}_hook")(partial(note, seen, name))
        out = network(images.to(memory_format=torch.channels_last))
        out.square().sum().backward()
        found.append(seen)
    assert [name for name, _ in found[0]] == [name for name, _ in found[1]]
    for (name, plain), (_, own) in zip(*found, strict=True):
        assert torch.allclose(plain, own, rtol=1e-3, atol=1e-3), name


def note(seen, name, _module, *given):
    last = given[-1]  # what enters or leaves the module, or its gradient
    seen.append((name, (last if isinstance(last, torch.Tensor) else last[0]).detach().clone()))


def test_a_global_hook_sees_every_module():
    network, seen = build_model("full-preact", depth=8, seed=2), []
    fuse(network)
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    network(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last))
    handle.remove()
    assert seen.count(nn.BatchNorm2d) == 7
    assert seen.count(nn.Conv2d) == 7


def test_a_deep_copy_is_fused_and_stands_alone(monkeypatch):
    network = build_model("full-preact", depth=8, seed=2).to(memory_format=torch.channels_last)
    fuse(network)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weights in network.parameters():
            weights.fill_(float("nan"))
    used = calls(monkeypatch)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    assert copied(images).isfinite().all()
    assert len(used) == 7


# --- exceptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda c, x: (c.eval(), x),
        lambda c, x: (c, x.contiguous()),
        lambda c, x: (c, x[:, :, ::2]),
        lambda c, x: (c.to(torch.bfloat16), x.to(torch.bfloat16)),
        lambda c, x: (c[0].register_forward_hook(lambda *_: None) and c, x),
        lambda c, x: (c[0].register_forward_pre_hook(lambda *_: None) and c, x),
        lambda c, x: (setattr(c[0], "momentum", None) or c, x),
        lambda c, x: (nn.Sequential(nn.ReLU(), c[1]), x),
        lambda c, x: (nn.Sequential(nn.BatchNorm2d(16, affine=False), c[1]), x),
    ],
)
def test_otherwise_the_modules_run_one_by_one(monkeypatch, change):
    one, x = change(chain(16), signal(2, 16, 8, 8))
    plain = copy.deepcopy(one)(x)
    used = calls(monkeypatch)
    fuse(one)
    assert torch.equal(one(x), plain)
    assert torch.equal(fork(one, nn.Sequential(), x, torch.zeros_like), plain)
    assert used == []


def test_a_hook_at_relu_sees_what_enters_it(monkeypatch):
    one, seen = chain(16), []
    used = calls(monkeypatch)
    one[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    fuse(one)
    one(signal(2, 16, 8, 8))
    assert len(used) == len(seen) == 1
    assert seen[0].min() < 0


def test_one_value_per_channel_is_refused_as_torch_does():
    one = chain(16)
    fuse(one)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        one(signal(1, 16, 1, 1))


# --- whole networks -------------------------------------------------------------------------------


def trained(network, images, dtype):
    """Logits, gradients and running statistics of one update's passes."""
    network = network.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = network(images)
    logits.float().square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return {"logits": logits.detach()}, gradients, dict(network.named_buffers())


def pair(variant, dtype=torch.float64, **options):
    """Plain and fused: the same network, trained on the same images."""
    torch.manual_seed(6)
    size = 40 if options.get("family") == "imagenet" else 16
    images = torch.randn(6, 3, size, size, dtype=torch.float32)
    network = build_model(variant, **options, seed=7)
    if dtype is torch.float64:
        network, images = network.double(), images.double()
    again = copy.deepcopy(network)
    fuse(again)
    assert list(again.state_dict()) == list(network.state_dict())
    return trained(network, images, dtype), trained(again, images, dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "options",
    [{"depth": 14, "unit": "basic"}, {"depth": 11}, {"depth": 18, "family": "imagenet"}],
    ids=["basic", "bottleneck", "imagenet"],
)
def test_every_ordering_trains_as_it_does_without(monkeypatch, variant, options):
    used = calls(monkeypatch)
    plain, fused = pair(variant, **options)
    for found in zip(plain, fused, strict=True):
        assert_close(found, 1e-10)
    bns = sum(isinstance(m, nn.BatchNorm2d) for m in build_model(variant, **options).modules())
    assert len(used) == bns


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_fp32_to_1e_5(variant):
    """Of the largest in each tensor. ReLU may clip on one side a number that rounding puts on the
    other; among so few images none is as near to zero as that."""
    plain, fused = pair(variant, torch.float32, depth=8)
    for found in zip(plain, fused, strict=True):
        assert_close(found, 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_bf16_no_farther_from_the_truth_than_the_plain_ones(variant):
    """Both round each result to 8 bits. Against fp32 the fused ones err no more, within half."""
    truth = pair(variant, torch.float32, depth=8)[0]
    plain, fused = pair(variant, torch.bfloat16, depth=8)

    def error(found):
        """The mean over all tensors of the share by which they are off."""
        parts = []
        for there, here in zip(truth, found, strict=True):
            for name, wanted in there.items():
                if wanted.numel() > 1:
                    apart = (here[name].float() - wanted).norm()
                    parts.append(float(apart / wanted.norm().clamp(min=1e-6)))
        return sum(parts) / len(parts)

    assert 0 < error(fused) <= 1.5 * error(plain)
    assert error(plain) < 0.2


@TYPES
def test_a_network_gives_it_every_convolution_that_it_takes(monkeypatch, dtype):
    """ResNet-11 in full-preact, by hand: three units of three convolutions. Not taken: the stem's 3
    input channels, two strided 1×1 and three projections, of which the first is not strided."""
    used, real, alone = calls(monkeypatch), torch.ops.resvar.conv, []
    monkeypatch.setattr(torch.ops.resvar, "conv", lambda *a: alone.append(a) or real(*a))
    network = build_model("full-preact", depth=11, seed=1)
    fuse(network)
    trained(network, torch.randn(4, 3, 32, 32), dtype)
    assert len([given for given in used if given[FILTERS] is not None]) == 6
    assert len(alone) == 2  # the first convolution and the projection of the first unit
