"""`capture: iteration` on a CPU: the same calls, with a fake graph that records work."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from resvar.config import resolve
from resvar.data.memory import MemoryEvalLoader, Normalization
from resvar.data.splits import Splits
from resvar.errors import UserError
from resvar.training import evaluate as evaluate_module
from resvar.training import step
from resvar.training.capture import WARM_UPS, Captured, CapturedUpdates, CudaGraph
from resvar.training.checkpoint import digest
from resvar.training.distributed import Ranks
from resvar.training.evaluate import evaluate
from resvar.training.execution import Execution
from resvar.training.schedule import learning_rate
from resvar.training.trainer import Trainer
from tests.training.stepping import run, start

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class FakeGraph:
    """Stands for a CUDA graph: `capture` runs nothing, `replay` does the work in place."""

    def __init__(self):
        self.captured, self.replayed = 0, 0

    def capture(self, work):
        self.work, self.captured = work, self.captured + 1

    def replay(self):
        self.replayed += 1
        self.work()

    def beside(self):
        return FakeGraphWithOutputs()


class FakeGraphWithOutputs(FakeGraph):
    """Its outputs stay where they are: garbage until a replay, which overwrites them."""

    def capture(self, work):
        super().capture(work)
        self.outputs = tuple(torch.full_like(output, -7) for output in work())
        return self.outputs

    def replay(self):
        self.replayed += 1
        for output, new in zip(self.outputs, self.work(), strict=True):
            output.copy_(new)


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
    """A run on a CPU as if it captured, with the graph of its updates."""
    trainer, graph = start(settings), FakeGraph()
    trainer.updater.captured = CapturedUpdates(graph)
    trainer.evaluation_graph = trainer.updater.captured.calls.beside()
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
    graph.work = lambda: seen.append([tensor.clone() for tensor in held])
    held, _ = trainer.updater.captured.calls._captured
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
    resumed, graph = captured(settings)
    resumed.restore(state)
    run(resumed, 4)
    assert (graph.captured, graph.replayed) == (1, 4 - WARM_UPS)
    assert bits(resumed) == bits(whole)


def test_a_restore_captures_anew():
    """It replaces the momenta; weights and statistics keep their memory."""
    settings = make()
    whole = run(start(settings), 10)
    trainer, graph = captured(settings)
    state = copy.deepcopy(run(trainer, 4).state())
    run(trainer, 2)
    places = [value.data_ptr() for value in trainer.network.state_dict().values()]
    trainer.restore(state)
    assert [value.data_ptr() for value in trainer.network.state_dict().values()] == places
    run(trainer, 6)
    assert (graph.captured, graph.replayed) == (2, 3 + 6 - WARM_UPS)
    assert bits(trainer) == bits(whole)


def test_after_an_error_the_rates_are_numbers_and_the_next_call_captures(monkeypatch):
    trainer, graph = captured(make())
    run(trainer, WARM_UPS)

    def broken(_closure=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(graph, "capture", lambda work: work())
        patch.setattr(trainer.updater.optimizer, "step", broken)
        with pytest.raises(torch.OutOfMemoryError):
            trainer.step()
    assert {type(group["lr"]) for group in trainer.updater.optimizer.param_groups} == {float}
    run(trainer, 2)
    assert (graph.captured, graph.replayed) == (1, 2)


# --- evaluations ----------------------------------------------------------------------------------


def loader(images, batch_size, seed=0):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
    normalization = Normalization.measure(pixels, "pixel-mean")
    labels = random.integers(0, 10, images)
    return MemoryEvalLoader(pixels, labels, normalization, batch_size=batch_size)


def same(one, other):
    figures = (one.loss, one.error) == (other.loss, other.error)
    return figures and torch.equal(one.predictions, other.predictions)


def test_captured_evaluations_are_the_evaluations_that_they_stand_for():
    """Of the newest weights, for several loaders and a last, smaller batch."""
    trainer, graph = start(make()), FakeGraphWithOutputs()
    evaluations = Captured(graph)
    test, holdout, shares = loader(22, 4), loader(15, 4, seed=1), []
    for round_ in range(3):
        run(trainer, 2)
        for images in (test, holdout):
            shares.clear()
            found = evaluate(trainer.network, images, trainer.plan, shares.append, evaluations)
            assert same(found, evaluate(trainer.network, images, trainer.plan))
            assert same(
                found, evaluate(trainer.network, images, trainer.plan, captured=evaluations)
            )
            assert shares == [4 * i / len(images.labels) for i in range(len(shares))]
        assert graph.captured == 1
        assert graph.replayed == (round_ + 1) * 2 * (5 + 3) - WARM_UPS


def test_an_evaluation_that_is_one_small_batch_is_captured_too():
    trainer, graph = start(make()), FakeGraphWithOutputs()
    evaluations, images = Captured(graph), loader(3, 500)
    expected = evaluate(trainer.network, images, trainer.plan)
    for _ in range(WARM_UPS + 2):
        assert same(expected, evaluate(trainer.network, images, trainer.plan, captured=evaluations))
    assert graph.replayed == 2


def test_an_evaluation_sees_restored_weights():
    trainer, _ = captured(make())
    images = loader(22, 4)
    state = copy.deepcopy(run(trainer, 1).state())
    expected = evaluate(trainer.network, images, trainer.plan)
    run(trainer, 4)
    evaluate(trainer.network, images, trainer.plan, captured=trainer.evaluation_graph)
    trainer.restore(state)
    found = evaluate(trainer.network, images, trainer.plan, captured=trainer.evaluation_graph)
    assert same(found, expected)


def test_a_run_with_graphs_of_both_has_the_rows_of_one_without(monkeypatch):
    """Its evaluations have a graph of their own, in the memory of the updates' graph."""
    monkeypatch.setattr(step, "CudaGraph", FakeGraph)
    settings = make("eval_every=3", "holdout=7")
    test, holdout = loader(22, 4), loader(7, 4, seed=1)
    rows = []
    for captures in (True, False):
        plan = dataclasses.replace(Execution.resolve(settings, CPU), captures=captures)
        training = start(settings).splits.training
        trainer = Trainer(plan, Splits(training, test, holdout))
        trainer.fit([], stop=False)
        rows.append([{**row, "seconds": 0, "images_per_second": 0} for row in trainer.rows])
        if captures:
            assert trainer.updater.captured.calls._graph.replayed == 12 - WARM_UPS
            assert trainer.evaluation_graph._graph.replayed == 4 * (5 + 1) - WARM_UPS
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def test_a_captured_evaluation_is_not_compiled(monkeypatch):
    trainer, graph = start(make()), FakeGraphWithOutputs()
    inside, states = [], []

    @contextlib.contextmanager
    def uncompiled(_plan):
        inside.append(True)
        yield
        inside.pop()

    monkeypatch.setattr(evaluate_module, "uncompiled", uncompiled)
    trainer.network.register_forward_pre_hook(lambda *_: states.append(bool(inside)))
    evaluate(trainer.network, loader(20, 4), trainer.plan, captured=Captured(graph))
    assert states == [True] * 6  # three warm-ups, the capture, two replays
    assert not inside


def test_graphs_beside_each_other_share_a_pool(monkeypatch):
    """And one that captures anew does so with a graph that has captured nothing."""
    pools, used = itertools.count(1), []

    @contextlib.contextmanager
    def graph(made, pool, capture_error_mode):
        used.append((made, pool))
        assert capture_error_mode == "thread_local"
        yield

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(pools)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    first, other = CudaGraph(), CudaGraph()
    assert first.capture(lambda: "outputs") == "outputs"
    for each in (first.beside(), first.beside().beside(), first, other):
        each.capture(lambda: None)
    assert [pool for _, pool in used] == [(0, 1)] * 4 + [(0, 2)]
    assert len({id(made) for made, _ in used}) == 5


# --- where ----------------------------------------------------------------------------------------


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
