"""The fused operators against the modules one by one, which torch computes."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from resvar.files import shipped
from resvar.kernels import build
from resvar.kernels.fuse import add, fork, fuse, is_fused
from resvar.models.network import build_model

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler"),
]

VARIANTS = sorted(shipped("variants"))


@pytest.fixture(scope="module", autouse=True)
def built():
    build.load()


def chain(channels, relu=True, dtype=torch.float32):
    """BN with made-up parameters, and ReLU."""
    bn = nn.BatchNorm2d(channels).to(dtype)
    with torch.no_grad():
        bn.weight.uniform_(0.5, 1.5)
        bn.bias.uniform_(-0.5, 0.5)
    return nn.Sequential(bn, nn.ReLU()) if relu else nn.Sequential(bn)


def signal(*shape, dtype=torch.float32):
    x = torch.randn(shape, dtype=torch.float64) * 2 + 3
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def both(one, x, work):
    """What `work(chain, x)` gives and leaves, plain and fused: outputs, gradients, statistics."""
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
    """`branch(lead(x)) + shortcut(x)`, by the operators where the lead is fused."""
    return fork(lead, branch, x, shortcut) if is_fused(lead) else branch(lead(x)) + shortcut(x)


FILTERS, ADDED = 9, 10  # places of the operator's arguments


def calls(monkeypatch):
    """The arguments of each use of the operator from here on."""
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


# --- the operator ---------------------------------------------------------------------------------

SHAPES = [
    (4, 16, 8, 8), (2, 64, 5, 7), (3, 1, 4, 4), (2, 17, 3, 3), (1, 37, 2, 1), (2, 3, 1, 1),
    (1, 130, 9, 9), (5, 256, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [True, False])
def test_in_double_it_is_bn_and_relu(shape, relu):
    torch.manual_seed(1)
    x = signal(*shape, dtype=torch.float64)
    found = both(chain(shape[1], relu, torch.float64), x, lambda c, x: c(x))
    assert_close(found, 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [True, False])
def test_a_fork_adds_the_gradient_of_the_second_path(shape, relu):
    torch.manual_seed(2)

    def unit(one, x):
        return forked(one, nn.Sequential(), x, lambda raw: 2 * raw)

    x = signal(*shape, dtype=torch.float64)
    assert_close(both(chain(shape[1], relu, torch.float64), x, unit), 1e-12)


def test_paths_that_nothing_comes_back_from():
    x = signal(2, 16, 4, 4, dtype=torch.float64)
    one = chain(16, dtype=torch.float64)
    plain, fused = both(one, x, lambda c, x: forked(c, nn.Sequential(), x, torch.zeros_like))
    assert torch.allclose(plain["x"], fused["x"], rtol=1e-12, atol=1e-12)
    out, raw = torch.ops.resvar.bn(  # nothing comes back from BN itself
        x.requires_grad_(), one[0].weight, one[0].bias, None, None, 0.1, 1e-5, True, True
    )
    assert torch.equal(raw, x)
    (gradient,) = torch.autograd.grad(raw.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
    del out


@pytest.mark.parametrize("forks", [True, False])
def test_gradients_are_those_of_small_differences(forks):
    torch.manual_seed(3)
    x = signal(2, 3, 2, 3, dtype=torch.float64).requires_grad_()
    weight = torch.rand(3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def operator(x, weight, bias):
        return tuple(torch.ops.resvar.bn(x, weight, bias, None, None, 0.1, 1e-5, True, forks))

    assert torch.autograd.gradcheck(operator, (x, weight, bias))


def test_a_mean_far_from_zero_does_not_drown_the_variance():
    torch.manual_seed(4)
    x = signal(8, 16, 8, 8) + 1000
    truth = chain(16).double()
    out = copy.deepcopy(truth).float()
    fuse(out)
    assert torch.allclose(out(x).double(), truth(x.double()), atol=1e-3)


def test_what_is_not_finite_shows():
    one = chain(16)
    fuse(one)
    x = signal(2, 16, 4, 4)
    x[0, 3, 0, 0] = float("nan")
    out = one(x)
    assert out[:, 3].isnan().all()
    assert out[:, :3].isfinite().all()


def test_the_same_bits_twice_and_with_other_threads():
    torch.manual_seed(5)
    x, one = signal(16, 48, 16, 16, dtype=torch.bfloat16), chain(48)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            runs.append(both(one, x, lambda c, x: forked(c, nn.Sequential(), x))[1])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(other[name], value) for name, value in runs[0].items())


def test_a_second_derivative_is_refused():
    one = chain(16)
    fuse(one)
    x = signal(2, 16, 4, 4).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(one(x).sum(), x, create_graph=True)


# --- with the convolution after it ----------------------------------------------------------------

TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


@pytest.fixture(autouse=True)
def _only_types_that_this_processor_takes(request):
    dtype = getattr(request.node, "callspec", None) and request.node.callspec.params.get("dtype")
    if dtype is not None and not torch.ops.resvar.takes_convolutions(dtype):
        pytest.skip(f"no instructions for convolutions in {dtype} here")


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


def layers(channels_in, channels_out, kernel, *before):
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(*before, conv)


def has_amx():
    return "amx_bf16" in Path("/proc/cpuinfo").read_text()


def autocast(dtype):
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)


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


# --- where it stays out ---------------------------------------------------------------------------


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
