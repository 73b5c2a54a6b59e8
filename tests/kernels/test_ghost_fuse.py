"""Whole networks with ghost BN against micro-batches, with Triton's operators and without.

The operators run in Triton's interpreter. Its arithmetic is that of the processor, so fp64 is too.
"""

from __future__ import annotations

import copy
from collections import Counter
from statistics import median

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resvar.kernels import ghost_bn, ghost_fuse
from resvar.kernels.ghost_fuse import fuse_ghost
from resvar.models.network import build_model
from tests.support.interpreter import interpreted

ORDERINGS = ("original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact")
NETWORKS = [{"variant": name, "depth": 8} for name in ORDERINGS] + [
    {"variant": "full-preact", "depth": 29, "unit": "bottleneck"},
    {"variant": "original", "depth": 14, "shortcut": "project"},
    {"variant": "full-preact", "depth": 18, "family": "imagenet"},
    {"variant": "original", "depth": 50, "family": "imagenet", "cardinality": 32, "base_width": 4},
]


def network_of(dtype=torch.float64, **options):
    network = build_model(**options, seed=0).to(dtype)
    return network.to(memory_format=torch.channels_last).train()


def batch(images, dtype=torch.float64, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last), torch.arange(images) % 10


def backward(network, images, labels):
    """Add the gradient of the loss summed over images; returns the logits."""
    logits = network(images)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    return logits.detach()


def distance(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def distances(ghost, plain, images, labels, group):
    """The relative differences of logits, each gradient and each running statistic."""
    logits = backward(ghost, images, labels)
    micro = [
        backward(plain, *pair)
        for pair in zip(images.split(group), labels.split(group), strict=True)
    ]
    pairs = [(logits, torch.cat(micro))]
    pairs += [(a.grad, b.grad) for a, b in zip(ghost.parameters(), plain.parameters(), strict=True)]
    buffers = zip(ghost.named_buffers(), plain.named_buffers(), strict=True)
    pairs += [(a, b) for (name, a), (_, b) in buffers if "running" in name]
    return [distance(a, b) for a, b in pairs]


def max_distance(ghost, plain, images, labels, group):
    return max(distances(ghost, plain, images, labels, group))


def ghost_of(plain, group):
    ghost = copy.deepcopy(plain)
    fuse_ghost(ghost, group)
    return ghost


@pytest.fixture
def triton():
    """The operators accept tensors on the processor."""
    pytest.importorskip("triton")
    with interpreted():
        yield


@pytest.fixture
def calls(request, monkeypatch):
    """How often the operator was called with which `relu`, `added` and `fork`."""
    request.getfixturevalue("triton")
    found: Counter[tuple[str, bool, bool]] = Counter()

    def counted(*args, relu, added, fork, **others):
        found[relu, added is not None, fork] += 1
        return ghost_bn.ghost_batch_norm(*args, relu=relu, added=added, fork=fork, **others)

    monkeypatch.setattr(ghost_fuse, "ghost_batch_norm", counted)
    return found


@pytest.mark.heavy
@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_with_torchs_operators_it_computes_what_micro_batches_compute(options):
    plain = network_of(**options)
    size = 32 if options.get("family") == "imagenet" else 8
    assert max_distance(ghost_of(plain, 3), plain, *batch(6, size=size), group=3) < 1e-9


@pytest.mark.heavy
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    "options",
    [
        *NETWORKS[:5],
        NETWORKS[6],
        *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS[5:8:2]),
    ],
    ids=str,
)
def test_with_tritons_operators_too(options):
    plain = network_of(**options)
    size = 32 if options.get("family") == "imagenet" else 8
    assert max_distance(ghost_of(plain, 3), plain, *batch(6, size=size), group=3) < 1e-9


@pytest.mark.heavy
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("variant", ORDERINGS)
def test_in_fp32_the_difference_is_rounding(variant):
    """Not in every gradient: where rounding moves a signal across zero, ReLU passes it or not."""
    plain = network_of(torch.float32, variant=variant, depth=20)
    images, labels = batch(4, torch.float32, size=16)
    logits, *others = distances(ghost_of(plain, 2), plain, images, labels, group=2)
    assert logits < 1e-5
    assert median(others) < 1e-4


BASIC = {
    "original": {("before", False, False): 1 + 3, ("after", True, False): 3},
    "bn-after-add": {("before", False, False): 1 + 3 + 3},
    "relu-before-add": {("before", False, False): 1 + 3, ("before", True, False): 3},
    "relu-only-preact": {
        ("none", False, False): 1,
        ("before", False, False): 3,
        ("none", True, False): 3,
    },
    "full-preact": {("before", False, False): 1 + 3 + 1, ("before", False, True): 2},
}
"""Calls of the operator in a network of three units, by (relu, added, fork): the stem or head, the
first BN of each unit, the second."""


@pytest.mark.heavy
@pytest.mark.parametrize("variant", ORDERINGS)
def test_what_the_operator_takes_of_each_ordering(variant, calls):
    network = ghost_of(network_of(variant=variant, depth=8), 2)
    backward(network, *batch(4))
    assert dict(calls) == BASIC[variant]


@pytest.mark.heavy
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("variant", ORDERINGS)
def test_hooks_see_the_signals_of_the_whole_batch(variant):
    plain = network_of(variant=variant, depth=8)
    ghost = ghost_of(plain, 2)
    images, labels = batch(4)
    seen: dict[str, torch.Tensor] = {}

    def watch(name):
        return lambda _module, _inputs, output: seen.__setitem__(name, output.detach())

    for name, module in ghost.named_modules():
        module.register_forward_hook(watch(name))
    assert max_distance(ghost, plain, images, labels, group=2) < 1e-9
    hooked = {name for name, module in ghost.named_modules() if not isinstance(module, nn.ReLU)}
    assert hooked <= set(seen)
    assert all(len(signal) == 4 for signal in seen.values())


@pytest.mark.heavy
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("variant", ["original", "full-preact"])
def test_a_backward_hook_sees_the_gradient(variant):
    ghost = ghost_of(network_of(variant=variant, depth=8), 2)
    seen = []
    for module in ghost.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_full_backward_hook(lambda _m, _i, given: seen.append(given[0].shape))
    backward(ghost, *batch(4))
    assert len(seen) == 7


@pytest.mark.usefixtures("triton")
def test_in_evaluation_it_is_the_plain_network():
    plain = network_of(variant="full-preact", depth=8)
    ghost = ghost_of(plain, 2)
    images, _ = batch(5)  # not a multiple of the group
    assert torch.equal(ghost.eval()(images), plain.eval()(images))


@pytest.mark.heavy
@pytest.mark.usefixtures("triton")
def test_a_deep_copy_stands_alone():
    ghost = ghost_of(network_of(variant="full-preact", depth=8), 2)
    copied = copy.deepcopy(ghost)
    before = copy.deepcopy(ghost.state_dict())
    backward(copied, *batch(4))
    assert all(weight.grad is None for weight in ghost.parameters())
    assert all(torch.equal(ghost.state_dict()[name], value) for name, value in before.items())
    assert all(weight.grad is not None for weight in copied.parameters())


@pytest.mark.heavy
@pytest.mark.parametrize("operators", ["torch's", "Triton's"])
@pytest.mark.parametrize("attribute", [("track_running_stats", False), ("momentum", None)])
def test_a_bn_with_other_running_statistics_is_that_of_micro_batches(attribute, operators, request):
    if operators == "Triton's":
        request.getfixturevalue("triton")
    plain = network_of(variant="full-preact", depth=8)
    for bn in (plain.stages[0][0].branch[1], plain.stages[1][0].lead[0], plain.head_lead[0]):
        setattr(bn, *attribute)
    assert max_distance(ghost_of(plain, 2), plain, *batch(4), group=2) < 1e-9


def test_the_version_of_triton_does_not_depend_on_the_name_of_its_package(monkeypatch):
    monkeypatch.setattr(ghost_fuse, "TRITON", "yaml")  # the package is PyYAML
    assert ghost_fuse.triton_version()[0].isdecimal()
