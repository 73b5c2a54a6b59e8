"""Micro-batches side by side do what they do one after the other."""

from __future__ import annotations

import copy
import shutil
from functools import partial

import pytest
import torch

from resvar.config import resolve
from resvar.models.ordering import PAPER_ORDER
from resvar.training.abreast import LARGEST, Abreast, held_bytes, workers
from resvar.training.fusing import choose_kernels
from resvar.training.loop import Means, _score, trainable
from tests.training import stepping
from tests.training.stepping import Silent, run

CPU, GPU = torch.device("cpu"), torch.device("cuda")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make(*overrides, variant="full-preact", depth=8):
    return resolve(
        options={"variant": variant, "depth": depth},
        overrides=[
            "precision=fp32", "batch_size=8", "bn_batch_size=2", "iterations=12", "lr=0.05",
            "warmup_iterations=0", "kernels=plain", *overrides,
        ],
    )  # fmt: skip


def start(settings, count=1):
    """With so many micro-batches at a time, on a thread each."""
    trainer = stepping.start(settings)
    twins = [trainable(settings, CPU) for _ in range(count - 1)]
    score = partial(_score, settings)
    trainer.means = Means(abreast=Abreast(trainer.network, twins, score, 1) if twins else None)
    return trainer


def assert_same(a, b):
    """The same bits but for running statistics, which are the same to rounding."""
    for (name, value), other in zip(
        a.network.state_dict().items(), b.network.state_dict().values(), strict=True
    ):
        if "running" in name:
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, other), name
    for state, other in zip(a.optimizer.state.values(), b.optimizer.state.values(), strict=True):
        assert torch.equal(state["momentum_buffer"], other["momentum_buffer"])
    assert float(a.sums.loss) == float(b.sums.loss)
    assert int(a.sums.wrong) == int(b.sums.wrong)


@pytest.mark.parametrize("variant", PAPER_ORDER)
@pytest.mark.parametrize("count", [2, 3, 4])  # of four micro-batches
def test_side_by_side_has_the_bits_of_one_thread_in_turn(variant, count):
    settings = make(variant=variant)
    abreast = run(start(settings, count), 4)
    torch.set_num_threads(1)
    assert_same(abreast, run(start(settings), 4))


@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_the_fused_operators_too(precision):
    settings = make(f"precision={precision}", "kernels=fused", "optimizer=muon", "nesterov=true")
    assert choose_kernels(settings, CPU) == "fused"
    abreast = start(settings)
    abreast.means = Means.of(abreast.network, settings, CPU)
    assert len(abreast.means.abreast.workers) == 2
    run(abreast, 4)
    for worker in abreast.means.abreast.workers:  # the operators' library counts threads itself
        assert worker.submit(torch.get_num_threads).result() == 1
    torch.set_num_threads(1)
    alone = start(settings)
    assert Means.of(alone.network, settings, CPU) == Means()
    assert_same(abreast, run(alone, 4))


def test_it_comes_out_the_same_each_time_and_after_a_resume():
    settings = make()
    whole, again = run(start(settings, 2), 6), run(start(settings, 2), 6)
    begun = run(start(settings, 2), 3)
    state = copy.deepcopy(begun.state())
    gone_on = start(settings, 2)
    gone_on.restore(state)
    run(gone_on, 3)
    for other in (again, gone_on):
        for name, value in whole.network.state_dict().items():
            assert torch.equal(value, other.network.state_dict()[name]), name


def test_the_threads_of_this_one_stay_as_many():
    trainer = start(make(), 2)
    assert torch.get_num_threads() == 2
    assert [w.submit(torch.get_num_threads).result() for w in trainer.means.abreast.workers] == [
        1,
        1,
    ]


def test_a_failure_in_a_worker_is_one_here():
    trainer = start(make(), 2)

    def broken(_network, _images, _labels):
        raise RuntimeError("no memory")

    trainer.means.abreast.score = broken
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.step(Silent())


@pytest.mark.parametrize(
    ("overrides", "threads", "expected"),
    [
        ([], 2, 2),
        ([], 1, 1),
        ([], 3, 1),  # a worker of two threads and one of one would wait for each other
        ([], 16, 2),
        (["bn_batch_size=32"], 16, 4),
        (["bn_batch_size=32"], 6, 2),
        (["bn_batch_size=128"], 2, 1),
        (["micro_batches=in-turn"], 2, 1),
        (["kernels=plain"], 2, 1),
        (["recompute=unit"], 2, 1),
    ],
)
def test_how_many(overrides, threads, expected):
    settings = resolve(
        options={"variant": "full-preact", "depth": 110},
        overrides=["precision=bf16", "kernels=fused", *overrides],
    )
    assert workers(settings, CPU, threads) == expected
    assert workers(settings, GPU, threads) == 1
    assert workers(settings, CPU, threads, processes=2) == 1


def test_what_is_held_by_hand():
    settings = resolve(
        options={"variant": "full-preact", "depth": 20}, overrides=["precision=bf16"]
    )
    # 3 units a stage; of each its input and two outputs, of 64 images, in two bytes.
    numbers = 3 * 3 * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)
    assert held_bytes(settings) == 2 * 64 * numbers
    wide = resolve(options={"variant": "full-preact", "depth": 1001}, overrides=["kernels=fused"])
    assert held_bytes(wide) > LARGEST
    assert workers(wide, CPU, 2) == 1
