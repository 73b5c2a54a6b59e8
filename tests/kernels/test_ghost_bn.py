"""Ghost BN in Triton, run by its interpreter, against nn.BatchNorm2d on one group after another."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from resvar.kernels import ghost_bn
from resvar.kernels.ghost_bn import accepts, ghost_batch_norm, split_rows, trial_failure
from tests.support.interpreter import interpreted

SHAPES = {  # N, C, H, W and images of a group
    "one group": ((3, 16, 5, 7), 3),
    "three groups": ((3, 80, 5, 3), 1),
    "1×1 images": ((8, 64, 1, 1), 4),
    "last part shorter": ((2, 16, 23, 23), 1),
}
VARIANTS = list(itertools.product(["none", "before", "after"], [False, True], [False, True]))


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreted():
        yield


def signal(*shape, dtype=torch.float64):
    x = torch.randn(shape, dtype=torch.float64) * 2 + 3
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def make_bn(channels, dtype=torch.float64, **kwargs):
    """BN with random parameters and statistics."""
    bn = nn.BatchNorm2d(channels, dtype=dtype, **kwargs)
    with torch.no_grad():
        for values in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            if values is not None:
                values.uniform_(0.5, 1.5)
    return bn


def plain(bn, x, group, relu="none", added=None, _=False):
    """The same in torch's modules, one group after another."""
    out = torch.cat([bn(images) for images in x.split(group)])
    if relu == "before":
        out = out.relu()
    if added is not None:
        out = out + added
    return out.relu() if relu == "after" else out, x


def ghost(bn, x, group, relu="none", added=None, fork=False):
    return ghost_batch_norm(
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var,
        group=group, momentum=bn.momentum, eps=bn.eps, relu=relu, added=added, fork=fork,
    )  # fmt: skip


def outcome(norm, bn, x, group, relu="none", added=None, fork=False):
    """Outputs, gradients and running statistics of `norm` on a copy of everything, in x's type."""
    wide = torch.float32 if x.dtype is torch.bfloat16 else x.dtype
    own = nn.BatchNorm2d(x.shape[1], momentum=bn.momentum, dtype=wide)
    own.load_state_dict(bn.state_dict())
    x = x.clone().requires_grad_()
    added = added.clone().to(x.dtype).requires_grad_() if added is not None else None
    y, raw = norm(own, x, group, relu, added, fork)
    assert y.dtype is raw.dtype is x.dtype
    angles = torch.arange(y.numel()).view(y.shape)
    loss = (y * angles.sin().to(y.dtype)).sum()
    if fork:
        loss = loss + (raw * angles.cos().to(y.dtype)).sum()
    loss.backward()
    found = {"y": y.detach(), "dx": x.grad, "dweight": own.weight.grad, "dbias": own.bias.grad}
    found |= {"mean": own.running_mean, "var": own.running_var}
    return found if added is None else found | {"dadded": added.grad}


def assert_close(found, reference, limit):
    """No element differs by more than `limit` times the largest element of its tensor."""
    for name, right in reference.items():
        error = (found[name].double() - right).abs().max() / right.abs().max()
        assert error < limit, (name, error)


def check(size, group, *variant):
    x = signal(*size)
    added = signal(*size) - 3 if variant[1] else None
    bn = make_bn(size[1])
    variant = (variant[0], added, variant[2])
    reference = outcome(plain, bn, x, group, *variant)
    assert_close(outcome(ghost, bn, x, group, *variant), reference, 1e-12)
    assert_close(outcome(ghost, bn, x.float(), group, *variant), reference, 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_batch_norm_of_one_group_after_another(variant):
    torch.manual_seed(0)
    check((4, 32, 8, 8), 2, *variant)


@pytest.mark.parametrize("variant", [("none", False, False), ("after", True, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_other_shapes_too(shape, variant):
    torch.manual_seed(1)
    check(*SHAPES[shape], *variant)


@pytest.mark.heavy
@pytest.mark.parametrize(("height", "empty"), [(256, 0), (641, 1)])
def test_in_several_tiles(monkeypatch, height, empty):
    """Of the 641 rows in 8 parts, the last part has too few for its last tile."""
    torch.manual_seed(2)
    monkeypatch.setattr(ghost_bn, "TILE", 16)
    split = split_rows(16, 2, height)
    tiles = -(-split.each // split.tile)
    last = split.rows - (split.parts - 1) * split.each
    assert tiles - -(-last // split.tile) == empty
    check((2, 16, height, 1), 1, "before", True, True)


@pytest.mark.parametrize(("relu", "adds"), [("before", False), ("before", True), ("after", True)])
def test_in_bf16_it_is_as_accurate_as_torch(relu, adds):
    """torch rounds after each of BN and addition, the kernels once."""
    torch.manual_seed(3)
    size = (4, 32, 8, 8)
    x = signal(*size, dtype=torch.bfloat16)
    added = signal(*size, dtype=torch.bfloat16) - 3 if adds else None
    bn = make_bn(32)
    reference = outcome(plain, bn, x.double(), 2, relu, added, True)
    torchs = outcome(plain, bn, x, 2, relu, added, True)
    for name, found in outcome(ghost, bn, x, 2, relu, added, True).items():
        ours, theirs = (
            (values.double() - reference[name]).norm() for values in (found, torchs[name])
        )
        assert ours <= 1.5 * theirs + 1e-6 * reference[name].norm(), (name, ours, theirs)


def test_a_mean_far_from_zero_does_not_drown_the_variance():
    torch.manual_seed(4)
    x = (torch.randn(2, 16, 16, 16) * 0.1 + 1000).contiguous(memory_format=torch.channels_last)
    bn = make_bn(16)
    reference, torchs = (outcome(plain, bn, of, 1) for of in (x.double(), x))
    found = outcome(ghost, bn, x, 1)
    assert_close({"var": found["var"]}, {"var": reference["var"]}, 1e-5)
    for name in ("y", "dx"):
        ours, theirs = ((of[name] - reference[name]).norm() for of in (found, torchs))
        assert ours <= 2 * theirs, (name, ours, theirs)


def test_the_bits_repeat_and_a_group_depends_on_no_other():
    torch.manual_seed(5)
    x, bn = signal(4, 16, 9, 9, dtype=torch.float32), make_bn(16)
    first, second = (outcome(ghost, bn, x, 2, "before") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = x.clone()
    other[2:] = 100
    changed = outcome(ghost, bn, other, 2, "before")
    assert torch.equal(changed["y"][:2], first["y"][:2])
    assert torch.equal(changed["dx"][:2], first["dx"][:2])
    assert not torch.equal(changed["y"][2:], first["y"][2:])


@pytest.mark.parametrize(("momentum", "tracks"), [(0.0, True), (0.3, True), (0.1, False)])
def test_running_statistics_are_optional_and_momentum_0_keeps_them(momentum, tracks):
    bn = make_bn(16, momentum=momentum, track_running_stats=tracks)
    before = {name: values.clone() for name, values in bn.state_dict().items()}
    x = signal(4, 16, 3, 3)
    y, _ = ghost(bn, x, 2)
    if not tracks or not momentum:
        assert all(torch.equal(values, before[name]) for name, values in bn.state_dict().items())
    assert torch.allclose(y, plain(bn, x, 2)[0], rtol=1e-12)


@pytest.mark.parametrize("adds", [True, False])
def test_two_kernels_each_way(monkeypatch, adds):
    """A test may count launches without running any kernel."""
    launched = {}
    monkeypatch.setattr(
        ghost_bn, "_launch", lambda kernel, _, *args, **__: launched.update({kernel.__name__: args})
    )
    bn, x = make_bn(16), signal(4, 16, 3, 3).requires_grad_()
    y, raw = ghost(bn, x, 2, "after", x.detach() if adds else None, fork=True)
    assert list(launched) == ["moments", "apply"]
    torch.autograd.backward([y, raw], [torch.ones_like(y)] * 2)
    assert list(launched) == ["moments", "apply", "sums", "through"]
    own_gradient = launched["through"][1] is not launched["sums"][1]
    assert own_gradient == adds  # without the addition, ReLU's mask costs no pass over memory


def test_outputs_without_a_gradient(monkeypatch):
    bn, x = make_bn(16), signal(4, 16, 3, 3).requires_grad_()
    y, raw = ghost(bn, x, 2, fork=True)
    assert raw is not x
    assert raw.data_ptr() == x.data_ptr()
    (alone,) = torch.autograd.grad((y * y).sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad((plain(bn, x, 2)[0] ** 2).sum(), x)
    assert torch.allclose(alone, expected, rtol=1e-11, atol=1e-11)
    monkeypatch.setattr(ghost_bn, "_launch", lambda *_, **__: pytest.fail("no kernel is needed"))
    (passed,) = torch.autograd.grad(raw.sum(), x)
    assert torch.equal(passed, torch.ones_like(x))
    with torch.no_grad():
        monkeypatch.undo()
        assert ghost(bn, x, 2)[1] is x


def test_gradients_in_any_memory_format():
    """The mean over pixels, in the network's head, sends an expanded gradient back."""
    bn, x = make_bn(16), signal(2, 16, 3, 3).requires_grad_()
    weights = torch.randn(2, 16, dtype=torch.float64)
    added = signal(2, 16, 3, 3).contiguous().requires_grad_()
    found, expected = (
        torch.autograd.grad(
            (norm(bn, x, 1, "after", added)[0].mean((2, 3)) * weights).sum(), (x, added)
        )
        for norm in (ghost, plain)
    )
    for ours, right in zip(found, expected, strict=True):
        assert torch.allclose(ours, right, rtol=1e-11, atol=1e-12)


def test_relu_passes_nan():
    x = signal(2, 16, 3, 3)
    x[0, 3, 1, 1] = torch.nan
    y, _ = ghost(make_bn(16), x, 1, "before")
    assert y[0, 3].isnan().all()
    assert y.isnan().sum() == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    bn, x = make_bn(16, torch.float32), signal(2, 16, 3, 3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = ghost(bn, x, 1)
        assert y.dtype is bn(x).dtype is dtype
    assert torch.equal(y, ghost(bn, x, 1)[0])


def test_recomputed_by_a_checkpoint():
    torch.manual_seed(6)
    x, found = signal(4, 16, 3, 3), []
    for norm in (ghost, plain):
        bn, own = make_bn(16), x.clone().requires_grad_()
        bn.load_state_dict({name: torch.ones_like(v) for name, v in bn.state_dict().items()})
        y = checkpoint(lambda *a: norm(*a)[0], bn, own, 2, "before", use_reentrant=False)  # noqa: B023
        (y**3).sum().backward()
        found.append([y, own.grad, bn.weight.grad, bn.bias.grad, bn.running_mean, bn.running_var])
    for ours, right in zip(*found, strict=True):
        assert torch.allclose(ours, right, rtol=1e-11, atol=1e-12)


def test_small_differences_give_the_gradients():
    torch.manual_seed(7)
    bn, x = make_bn(16), signal(2, 16, 2, 2).requires_grad_()
    added = signal(2, 16, 2, 2).requires_grad_()

    def work(x, added, *_):
        return ghost(bn, x, 1, "after", added, fork=True)

    assert torch.autograd.gradcheck(work, (x, added, bn.weight, bn.bias), fast_mode=True)


def test_what_it_accepts():
    x = signal(2, 16, 3, 3, dtype=torch.bfloat16)
    assert accepts(x)
    assert accepts(x.double())
    assert not accepts(x.contiguous())
    assert not accepts(x.half())
    assert not accepts(x[0])
    assert not accepts(signal(2, 24, 3, 3))
    assert not accepts(signal(0, 16, 3, 3))


def test_what_it_refuses():
    bn = make_bn(16)
    with pytest.raises(ValueError, match="5 images are not a multiple of a group of 2"):
        ghost(bn, signal(5, 16, 3, 3), 2)
    with pytest.raises(ValueError, match="more than one value per channel"):
        ghost(bn, signal(2, 16, 1, 1), 1)


def test_a_trial_says_why_the_kernels_do_not_run(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Failed to find C compiler.\nMore.")

    def clear(*args, **_):  # new memory may contain the right numbers of an earlier trial
        for given in args:
            if isinstance(given, torch.Tensor) and not given.requires_grad:
                given.zero_()

    cpu = torch.device("cpu")
    with torch.no_grad():
        assert trial_failure(cpu) is None
    with monkeypatch.context() as patch:
        patch.setattr(ghost_bn, "_launch", clear)
        assert trial_failure(cpu) == "they compute wrong numbers on this device"
    monkeypatch.setattr(ghost_bn, "_launch", fail)
    why = "Triton cannot compile or run them here (Failed to find C compiler)"
    assert trial_failure(cpu) == why


def test_a_full_gpu_is_not_a_fault_of_the_kernels(monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(ghost_bn, "_launch", fail)
    with pytest.raises(torch.OutOfMemoryError):
        trial_failure(torch.device("cpu"))


@pytest.mark.parametrize(
    ("channels", "side", "parts"), [(16, 32, 64), (32, 16, 32), (64, 8, 16), (256, 8, 16)]
)
def test_the_stages_of_a_cifar_network_fill_a_gpu(channels, side, parts):
    split = split_rows(channels, 2, 64 * side**2)
    assert split.parts == parts
    assert 2 * parts * channels // 16 >= 128
    assert parts * split.each == split.rows


@pytest.mark.parametrize("groups", [1, 2])
def test_a_split_has_no_empty_part(groups):
    for rows in range(1, 5000):
        split = split_rows(16, groups, rows)
        assert split.parts == 1 or 8 * split.parts**2 <= rows
        assert (split.parts - 1) * split.each < rows <= split.parts * split.each


@pytest.mark.process
def test_without_triton_it_can_be_imported_and_accepts_nothing():
    program = """
import sys
sys.modules["triton"] = None
import torch
from resvar.kernels.ghost_bn import accepts
sys.exit(accepts(torch.zeros(2, 16, 3, 3).to(memory_format=torch.channels_last)))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_outside_the_interpreter_a_processor_is_not_accepted(monkeypatch):
    from triton.runtime.jit import JITFunction

    from resvar.kernels import ghost_bn_kernels

    x = signal(2, 16, 3, 3)
    monkeypatch.setattr(ghost_bn_kernels, "moments", JITFunction(ghost_bn_kernels.moments.fn))
    assert not accepts(x)
