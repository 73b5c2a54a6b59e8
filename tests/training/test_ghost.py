"""Updates with the whole batch in one pass and ghost BN, as on a GPU; Triton is interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resvar.config import resolve
from resvar.training import execution
from resvar.training.checkpoint import digest
from resvar.training.execution import Execution
from resvar.training.trainer import Trainer
from tests.support.interpreter import interpreted
from tests.training.stepping import run, start


@pytest.fixture
def triton():
    pytest.importorskip("triton")
    with interpreted():
        yield


def make(*overrides, depth=8, variant="full-preact"):
    return resolve(
        options={"variant": variant, "depth": depth},
        overrides=[
            "precision=fp32", "kernels=plain", "memory_format=channels_last", "lr=0.01",
            "batch_size=6", "bn_batch_size=2", "warmup_iterations=0", *overrides,
        ],
    )  # fmt: skip


def trainer_of(settings, ghost=True):
    plain = start(settings)
    if not ghost:
        return plain
    return Trainer(replace(plain.plan, ghost=True, multi_tensor=True), plain.splits)


def weights_of(trainer):
    return digest([trainer.network.state_dict(), trainer.updater.optimizer.state_dict()])


@pytest.mark.heavy
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("variant", ["original", "full-preact"])
def test_updates_are_those_of_micro_batches_up_to_rounding(variant):
    settings = make(variant=variant)
    ghost, plain = run(trainer_of(settings), 3), run(trainer_of(settings, ghost=False), 3)
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(ghost.network.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert ghost.mean_loss() == pytest.approx(plain.mean_loss(), rel=1e-5)
    assert int(ghost.updater.meters.wrong) == int(plain.updater.meters.wrong)
    assert ghost.updater.meters.images == plain.updater.meters.images
    counters = {int(counter) for counter in ghost.updater.counters}
    assert counters == {9}  # three updates of three groups


@pytest.mark.heavy
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("recompute", ["none", "unit"])
def test_a_resumed_run_ends_with_the_same_bits(recompute):
    settings = make(f"recompute={recompute}")
    whole = run(trainer_of(settings), 2)
    begun = run(trainer_of(settings), 1)
    resumed = trainer_of(settings)
    resumed.restore(begun.state())
    assert weights_of(run(resumed, 1)) == weights_of(whole)


@pytest.mark.heavy
@pytest.mark.usefixtures("triton")
def test_recomputed_units_keep_every_bit():
    plain, recomputed = (run(trainer_of(make(f"recompute={how}")), 1) for how in ("none", "unit"))
    assert weights_of(plain) == weights_of(recomputed)


def test_the_plan_says_so(monkeypatch):
    monkeypatch.setattr(execution, "triton_obstacle", lambda _device: None)
    settings = make("kernels=fused", "capture=none")
    assert "ghost BN" in str(Execution.resolve(settings, torch.device("cuda")))
