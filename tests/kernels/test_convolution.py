"""The convolution after BN and ReLU, in one operator with them, against torch's."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from resvar.kernels.fuse import add, fuse
from tests.kernels.rows import (
    ADDED,
    FILTERS,
    MARKS,
    TYPES,
    autocast,
    calls,
    chain,
    forked,
    layers,
    signal,
)

pytestmark = MARKS

CONVOLUTIONS = [  # images, channels in and out, height, width, kernel
    (64, 16, 64, 32, 32, 1), (5, 64, 16, 6, 8, 1), (9, 256, 64, 8, 8, 1), (3, 80, 208, 4, 2, 1),
    (7, 16, 16, 32, 32, 3), (64, 64, 64, 8, 8, 3), (3, 48, 32, 5, 6, 3), (1, 16, 16, 1, 2, 3),
    (2, 80, 208, 4, 2, 3), (2, 16, 32, 2, 80, 3),
]  # fmt: skip


def at_any_size(test):
    """Images, channels in sixteens, height, width (in pairs for bf16) and kernel, by Hypothesis."""
    sizes = given(
        images=st.integers(1, 20), inputs=st.integers(1, 6), outputs=st.integers(1, 6),
        height=st.integers(1, 12), width=st.integers(1, 20), kernel=st.sampled_from([1, 3]),
    )  # fmt: skip
    return sizes(settings(max_examples=60)(test))


def has_amx():
    return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def weights_gradients(shape, ops, dtype):
    """That of our own, and torch's in double of the same signals."""
    images, channels_in, channels_out, height, width, kernel = shape
    before = chain(channels_in, relu="relu" in ops) if ops else nn.Sequential()
    one = layers(channels_in, channels_out, kernel, *before)
    x = signal(images, channels_in, height, width, dtype=dtype)
    fuse(one)
    fuse(before)
    enters = before(x).detach()
    with autocast(dtype):
        out = one(x)
    gradient = signal(*out.shape, dtype=dtype)
    out.backward(gradient)
    weights = one[-1].weight.detach().double().requires_grad_()
    true = nn.functional.conv2d(enters.double(), weights, padding=kernel // 2)
    true.backward(gradient.double())
    return one[-1].weight.grad, weights.grad


@TYPES
@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("ops", ["bn relu", "bn", ""])
def test_the_weights_gradient_is_torchs_in_double(shape, ops, dtype):
    """To what sums in fp32 lose: products of bf16 are exact, nothing is rounded to bf16 again."""
    torch.manual_seed(8)
    own, true = weights_gradients(shape, ops, dtype)
    assert float((own - true).abs().max() / true.abs().max()) < 4e-6


@TYPES
@at_any_size
def test_the_weights_gradient_is_torchs_at_any_size(
    dtype, images, inputs, outputs, height, width, kernel
):
    width *= 2 if dtype is torch.bfloat16 else 1  # pairs of pixels
    assume(images * height * width > 1)
    shape = (images, 16 * inputs, 16 * outputs, height, width, kernel)
    own, true = weights_gradients(shape, "bn relu", dtype)
    assert float((own - true).abs().max() / true.abs().max()) < 4e-6


@TYPES
@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("forks", [True, False])
def test_with_a_convolution_all_else_has_the_same_bits_as_without(shape, forks, dtype):
    """But for a kernel of 3 in bf16 with AMX: our own product adds up the taps, and BN its sums, in
    another order."""
    torch.manual_seed(9)
    images, channels_in, channels_out, height, width, kernel = shape
    bn = chain(channels_in)
    conv = layers(channels_in, channels_out, kernel)
    x = signal(images, channels_in, height, width, dtype=dtype)

    def train(separate):
        (norm, _), branch, given = *copy.deepcopy([bn, conv]), x.clone().requires_grad_()
        filters = None if separate else branch[0].weight
        with autocast(dtype):
            out, *raw = torch.ops.resvar.bn(
                given, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                norm.momentum, norm.eps, True, forks, filters,
            )  # fmt: skip
            if separate:
                out = branch(out)
        torch.manual_seed(10)
        weights = torch.randn_like(out)
        loss = (out * weights).sum() + (raw[0].square().sum() if forks else 0)
        loss.backward()
        return [out, given.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()]

    for alone, together in zip(train(True), train(False), strict=True):
        if kernel == 1 or dtype is torch.float32 or not has_amx():
            assert torch.equal(alone, together)
        else:
            apart = (alone.double() - together.double()).abs().max() / alone.double().abs().max()
            assert apart.item() < (4e-3 if alone.dtype is dtype else 2e-5)  # 4e-3: one rounding


@TYPES
@pytest.mark.parametrize("alone", [True, False], ids=["conv alone", "bn relu conv"])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_what_is_added_to_a_convolution_has_the_same_bits_as_an_addition(
    monkeypatch, shape, alone, dtype
):
    torch.manual_seed(12)
    images, channels_in, channels_out, height, width, kernel = shape
    one = layers(channels_in, channels_out, kernel, *([] if alone else chain(channels_in)))
    fuse(one)
    name = "conv" if alone else "bn"
    used, real = [], getattr(torch.ops.resvar, name)
    monkeypatch.setattr(torch.ops.resvar, name, lambda *a: used.append(a) or real(*a))
    given = signal(images, channels_in, height, width, dtype=dtype)
    other = signal(images, channels_out, height, width, dtype=dtype)
    gradient = signal(images, channels_out, height, width, dtype=dtype)
    found = []
    for inside in (False, True):
        x, added = given.clone().requires_grad_(), other.clone().requires_grad_()
        with autocast(dtype):
            out = add(one, x, added) if inside else one(x) + added
        gradients = torch.autograd.grad(out, [x, added, *one.parameters()], gradient)
        found.append([out, *gradients])
    place = 2 if alone else ADDED
    assert [call[place] is not None for call in used] == [False, True]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@TYPES
@pytest.mark.parametrize("last", ["conv", "bn", "stride"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_fork_adds_its_shortcut_wherever_the_branch_ends(last, layout, dtype):
    """In the convolution that the branch ends with where both lie alike; else after it."""
    torch.manual_seed(13)
    branch = layers(16, 16, 3)
    if last == "bn":
        branch.append(chain(16, relu=False)[0])
    if last == "stride":
        branch[0].stride = (2, 2)
    lead, pick = chain(16), slice(None, None, 2 if last == "stride" else 1)
    x = signal(4, 16, 8, 8, dtype=dtype)
    found = []
    for fused in (False, True):
        own, given = copy.deepcopy(nn.ModuleList([lead, branch])), x.clone().requires_grad_()
        if fused:
            fuse(own)
        with autocast(dtype):
            out = forked(
                *own, given, lambda x: (2 * x[:, :, pick, pick]).contiguous(memory_format=layout)
            )
        torch.manual_seed(14)
        out.backward(torch.randn_like(out))
        found.append([out.detach(), given.grad, own[1][0].weight.grad])
    for plain, own in zip(*found, strict=True):
        apart = float((plain.double() - own.double()).abs().max() / plain.double().abs().max())
        assert apart < (0.02 if dtype is torch.bfloat16 else 1e-5)


@TYPES
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("narrowing", [True, False])
def test_with_a_convolution_the_bits_are_the_same_with_other_threads(kernel, narrowing, dtype):
    torch.manual_seed(11)
    wide = 96 if narrowing else 32
    one = layers(48, 128 - wide, kernel, *chain(48))
    fuse(one)
    x = signal(16, 48, 16, 16, dtype=dtype).requires_grad_()
    gradient = signal(16, 128 - wide, 16, 16, dtype=dtype)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            with autocast(dtype):
                out = one(x)
            found.append([out, *torch.autograd.grad(out, [x, *one.parameters()], gradient)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@TYPES
@at_any_size
def test_a_convolution_is_torchs_in_double_at_any_size(
    dtype, images, inputs, outputs, height, width, kernel
):
    """Output and gradient of the input, to one rounding to bf16."""
    width *= 2 if dtype is torch.bfloat16 else 1
    assume(images * height * width > 1)
    before, one = chain(16 * inputs), layers(16 * inputs, 16 * outputs, kernel)
    fuse(before)
    fuse(one)
    x = signal(images, 16 * inputs, height, width, dtype=dtype)
    y = before(x).detach().requires_grad_()
    with autocast(dtype):
        out = one(y)
        both = nn.Sequential(*before, *one)
        fuse(both)
        together = both(x)
    gradient = signal(*out.shape, dtype=dtype)
    out.backward(gradient)
    filters = one[0].weight.detach().to(dtype).double()
    exact = y.detach().double().requires_grad_()
    true = nn.functional.conv2d(exact, filters, padding=kernel // 2)
    (back,) = torch.autograd.grad(true, exact, gradient.double())
    for own, wanted in ((out, true), (together, true), (y.grad, back)):
        apart = (own.double() - wanted).detach().abs().max() / wanted.detach().abs().max()
        assert float(apart) < (4e-3 if dtype is torch.bfloat16 else 1e-5)


@TYPES
def test_for_backward_only_the_signal_before_bn_is_kept(dtype):
    x = signal(4, 16, 8, 8, dtype=dtype).requires_grad_()
    kept = {}
    for fused in (False, True):
        one = layers(16, 16, 3, *chain(16))
        if fused:
            fuse(one)
        sizes = kept[fused] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda t, sizes=sizes: sizes.append(t.shape) or t, lambda t: t
            ),
            autocast(dtype),
        ):
            one(x)
    assert kept[True].count(x.shape) == 1
    assert kept[False].count(x.shape) > 1


@TYPES
@pytest.mark.parametrize(
    "change",
    [
        {"stride": 2}, {"groups": 2}, {"bias": True}, {"dilation": 2, "padding": 2},
        {"padding": 0}, {"padding_mode": "reflect"}, {"kernel_size": 5, "padding": 2},
        {"out_channels": 8},
    ],
    ids=str,
)  # fmt: skip
def test_convolutions_that_it_cannot_take_are_torchs(monkeypatch, change, dtype):
    options = {"out_channels": 16, "kernel_size": 3, "padding": 1, "bias": False} | change
    one = nn.Sequential(*chain(16), nn.Conv2d(16, **options))
    x = signal(4, 16, 8, 8, dtype=dtype)
    used = calls(monkeypatch)
    fuse(one)
    with autocast(dtype):
        out = one(x)
        assert [given[FILTERS] for given in used] == [None]
        before = one[:2]
        fuse(before)
        assert torch.equal(out, one[2](before(x)))


@TYPES
@pytest.mark.parametrize("case", ["odd width", "hook", "evaluation", "autocast"])
def test_convolutions_stay_torchs_where_something_else_is_asked(monkeypatch, case, dtype):
    """`autocast`: switched on for fp32, whose convolution it would turn into bf16; off for bf16."""
    one = layers(16, 16, 3, *chain(16))
    x = signal(4, 16, 8, 7 if case == "odd width" else 8, dtype=dtype)
    seen = []
    if case == "hook":
        one[2].register_forward_hook(lambda *_: seen.append(1))
    if case == "evaluation":
        one[2].eval()
    used = calls(monkeypatch)
    fuse(one)
    if case == "autocast" and dtype is torch.bfloat16:
        with pytest.raises(RuntimeError, match="type"):
            one(x)
    else:
        with autocast(torch.bfloat16 if case == "autocast" else dtype):
            one(x)
    if case == "odd width" and dtype is torch.float32:
        assert used[0][FILTERS] is one[2].weight  # only pairs of pixels need an even one
    else:
        assert [given[FILTERS] for given in used] == [None]
    assert len(seen) == (case == "hook")


@TYPES
@pytest.mark.parametrize(
    ("channels", "width", "kernel"), [(16, 3, 1), (24, 4, 1), (16, 4, 5), (16, 4, (1, 3))]
)
def test_the_operator_itself_refuses_what_it_would_get_wrong(dtype, channels, width, kernel):
    if dtype is torch.float32 and width % 2:
        pytest.skip("only pairs of pixels need an even width")
    filters = nn.Conv2d(channels, 16, kernel).weight
    with pytest.raises(RuntimeError, match="channels in sixteens, and a kernel of 1 or 3"):
        torch.ops.resvar.conv(signal(2, channels, 4, width, dtype=dtype), filters)
