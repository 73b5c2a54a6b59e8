"""`optimizer: muon` against SVD, torch's own Muon for matrices, and SGD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import nn

from resvar.config import resolve
from resvar.training import checkpoint
from resvar.training.muon import Muon, filters, orthogonal
from resvar.training.optim import build_optimizer
from resvar.training.step import build_network
from tests.training.stepping import run, start


def make(*overrides):
    return resolve(
        options={"variant": "full-preact", "depth": 8},
        overrides=["optimizer=muon", "nesterov=true", *overrides],
    )


@settings(max_examples=30)
@given(
    rows=strategies.integers(1, 40),
    columns=strategies.integers(1, 40),
    seed=strategies.integers(0, 1000),
)
def test_the_matrix_is_near_the_orthogonal_one_of_the_svd(rows, columns, seed):
    matrices = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    u, _, vt = torch.linalg.svd(matrices.double(), full_matrices=False)
    rotated = u.mT @ orthogonal(matrices).double() @ vt.mT
    singular = rotated.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(rotated, torch.diag_embed(singular), rtol=0, atol=1e-3)
    large = torch.linalg.svdvals(matrices) > 0.02 * matrices.norm(dim=(1, 2))[:, None]
    assert ((singular > 0.5) & (singular < 1.3))[large].all()


def test_scale_and_company_do_not_matter():
    matrices = torch.randn(3, 8, 20)
    found = orthogonal(matrices)
    torch.testing.assert_close(orthogonal(1000 * matrices), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(orthogonal(matrices[1:2])[0], found[1], rtol=1e-4, atol=1e-5)
    assert orthogonal(torch.zeros(1, 4, 4)).eq(0).all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
def test_filters_step_as_matrices_do_in_torchs_muon():
    start = [torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3), torch.randn(40, 2, 1, 1)]
    ours = [nn.Parameter(w.clone(memory_format=torch.channels_last)) for w in start]
    theirs = [nn.Parameter(w.flatten(1).clone()) for w in start]
    rule = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}
    mine = Muon([{"params": ours, "orthogonal": True}], **rule)
    other = torch.optim.Muon(theirs, **rule)
    for _ in range(4):
        for w, matrix in zip(ours, theirs, strict=True):
            matrix.grad = torch.randn_like(matrix)
            w.grad = matrix.grad.reshape(w.shape).clone()
        mine.step()
        other.step()
    for w, matrix, before in zip(ours, theirs, start, strict=True):
        moved = (w.detach() - before).flatten(1)
        expected = matrix.detach() - before.flatten(1)  # theirs computes in bf16
        assert (moved - expected).norm() < 0.03 * expected.norm()


def test_all_else_steps_as_in_sgd():
    network, other = build_network(make()), build_network(make())
    optimizer = build_optimizer(network, make("weight_decay=0.01", "lr=0.1"))
    ours = {id(w) for w in filters(other)}
    beside = [p for p in other.parameters() if id(p) not in ours]
    matrices = [p for p in beside if p.ndim > 1]
    assert len(matrices) == 2  # the stem's and the classifier's
    sgd = torch.optim.SGD(
        [
            {"params": matrices, "weight_decay": 0.01},
            {"params": [p for p in beside if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.1, momentum=0.9, nesterov=True,
    )  # fmt: skip
    for _ in range(3):
        for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        optimizer.step()
        sgd.step()
    stepped = dict(zip(other.parameters(), network.parameters(), strict=True))
    for theirs in beside:
        torch.testing.assert_close(stepped[theirs], theirs)
    assert all(w.grad is not None for w in network.parameters())


def test_every_convolution_in_a_unit_is_a_filter():
    network = build_network(make())
    inside = {id(m.weight) for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert {id(w) for w in filters(network)} == inside - {id(network.stem[0].weight)}
    assert len(filters(network)) == 6


def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path):
    wanted = make(
        "batch_size=8", "bn_batch_size=4", "muon_decay=0.1", "kernels=plain", "precision=fp32"
    )
    whole = run(start(wanted), 6)
    begun = run(start(wanted), 3)
    checkpoint.save(tmp_path, begun.state())
    gone_on = start(wanted)
    gone_on.restore(checkpoint.load(tmp_path / "checkpoint.pt"))
    run(gone_on, 3)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, gone_on.network.state_dict()[name]), name
    held, other = (t.updater.optimizer.state_dict() for t in (whole, gone_on))
    assert checkpoint.digest(held) == checkpoint.digest(other)
