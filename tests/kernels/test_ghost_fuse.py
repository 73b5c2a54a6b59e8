"""Whole networks with ghost BN against micro-batches in fp64, with torch's operators per group."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from resvar.kernels.ghost_fuse import fuse_ghost
from resvar.models.network import build_model

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


def compare(ghost, plain, images, labels, group):
    """The largest relative difference of logits, gradients and running statistics."""
    logits = backward(ghost, images, labels)
    micro = [
        backward(plain, *pair)
        for pair in zip(images.split(group), labels.split(group), strict=True)
    ]
    pairs = [(logits, torch.cat(micro))]
    pairs += [(a.grad, b.grad) for a, b in zip(ghost.parameters(), plain.parameters(), strict=True)]
    buffers = zip(ghost.named_buffers(), plain.named_buffers(), strict=True)
    pairs += [(a, b) for (name, a), (_, b) in buffers if "running" in name]
    return max(distance(a, b) for a, b in pairs)


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_a_ghost_network_computes_what_micro_batches_compute(options):
    plain = network_of(**options)
    ghost = copy.deepcopy(plain)
    fuse_ghost(ghost, group=3)
    size = 32 if options.get("family") == "imagenet" else 8
    assert compare(ghost, plain, *batch(6, size=size), group=3) < 1e-9
