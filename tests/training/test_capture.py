"""`capture: iteration` on a processor: the same calls, with a stand-in that records work."""

from __future__ import annotations

import copy
from unittest.mock import ANY

import pytest
import torch

from resvar.config import resolve
from resvar.errors import UserError
from resvar.training.capture import WARM_UPS, CapturedUpdates
from resvar.training.checkpoint import digest
from resvar.training.distributed import Ranks
from resvar.training.execution import Execution
from resvar.training.schedule import learning_rate
from tests.training.stepping import run, start

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Recorded:
    """Stands for a CUDA graph: `capture` runs nothing, `replay` does the work in place."""

    def __init__(self):
        self.captured, self.replayed = 0, 0

    def capture(self, work):
        self.work, self.captured = work, self.captured + 1

    def replay(self):
        self.replayed += 1
        self.work()


def make(*overrides):
    return resolve(
        options={"variant": "full-preact", "depth": 8},
        overrides=[
            "precision=fp32", "batch_size=4", "bn_batch_size=2", "schedule=one-cycle",
            "iterations=12", "lr=0.25", "warmup_lr=0.125", "kernels=plain", *overrides,
        ],
    )  # fmt: skip


def bits(trainer):
    state = trainer.state()
    return digest([state["model"], state["optimizer"], state["sums"][:3]])


def captured(settings):
    trainer, graph = start(settings), Recorded()
    trainer.updater.captured = CapturedUpdates(graph)
    return trainer, graph


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_captured_updates_are_the_updates_that_they_stand_for(optimizer):
    settings = make(f"optimizer={optimizer}", "muon_decay=0.3", "nesterov=true")
    plain = run(start(settings), 10)
    trainer, graph = captured(settings)
    run(trainer, 10)
    assert (graph.captured, graph.replayed) == (1, 10 - WARM_UPS)
    assert bits(trainer) == bits(plain)
    # A tensor in a checkpoint would be another rate each time that the graph runs.
    assert all(type(group["lr"]) is float for group in trainer.updater.optimizer.param_groups)


def test_they_read_images_and_rates_where_these_lay_at_the_capture():
    trainer, graph = captured(make())
    run(trainer, WARM_UPS + 1)
    seen = []
    graph.work = lambda: seen.append([tensor.clone() for tensor in (*held[:2], *held[2])])
    held = trainer.updater.captured._inputs
    for iteration in (WARM_UPS + 1, WARM_UPS + 2):
        run(trainer, 1)
        images, labels = trainer.splits.training.batch(iteration)
        assert torch.equal(seen[-1][0], images)
        assert torch.equal(seen[-1][1], labels)
        rate = learning_rate(iteration, trainer.settings)
        assert [float(r) for r in seen[-1][2:]] == pytest.approx([rate] * 2)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_the_sums_stay_where_they_are():
    trainer, _ = captured(make("eval_every=5"))
    places = [
        t.data_ptr()
        for t in (
            trainer.updater.meters.loss,
            trainer.updater.meters.wrong,
            trainer.updater.meters.finite,
        )
    ]
    trainer.fit([], stop=False)
    assert [row["iteration"] for row in trainer.rows] == [5, 10, 12]
    assert trainer.rows == [
        {**row, "seconds": ANY, "images_per_second": ANY} for row in run_plainly("eval_every=5")
    ]
    now = [
        t.data_ptr()
        for t in (
            trainer.updater.meters.loss,
            trainer.updater.meters.wrong,
            trainer.updater.meters.finite,
        )
    ]
    assert now == places
    assert (
        float(trainer.updater.meters.loss),
        int(trainer.updater.meters.finite),
        trainer.updater.meters.images,
    ) == (0, 0, 0)


def run_plainly(*overrides):
    trainer = start(make(*overrides))
    trainer.fit([], stop=False)
    return trainer.rows


def test_a_run_that_goes_on_warms_up_anew_and_ends_with_the_same_bits():
    settings = make()
    whole, _ = captured(settings)
    run(whole, 10)
    begun, _ = captured(settings)
    state = copy.deepcopy(run(begun, 6).state())
    gone_on, graph = captured(settings)
    gone_on.restore(state)
    run(gone_on, 4)
    assert (graph.captured, graph.replayed) == (1, 4 - WARM_UPS)
    assert bits(gone_on) == bits(whole)


def test_auto_is_a_graph_on_a_gpu_that_a_run_has_to_itself():
    assert Execution.resolve(make(), GPU).captures
    assert not Execution.resolve(make(), GPU, Ranks(0, 2)).captures
    assert not Execution.resolve(make(), CPU).captures
    assert not Execution.resolve(make("capture=none"), GPU).captures
    assert Execution.resolve(make("capture=iteration"), GPU).captures


def test_what_cannot_be_captured_is_refused():
    with pytest.raises(UserError, match="'capture' iteration: only a GPU captures graphs"):
        Execution.resolve(make("capture=iteration"), CPU)
    with pytest.raises(UserError, match="several processes"):
        Execution.resolve(make("capture=iteration"), GPU, Ranks(0, 2))


def test_it_is_the_same_run_with_and_without():
    assert make("capture=none").hash == make("capture=iteration").hash == make().hash
