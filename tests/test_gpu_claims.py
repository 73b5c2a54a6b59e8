"""The claims of scripts/check_gpu.py about bits, on the processor, with fakes for CUDA."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future
from contextlib import nullcontext

import check_gpu
import gpu_claims
import pytest
import torch
from gpu_claims import Case

from resvar.kernels import ghost_bn
from resvar.training import multi_tensor, passes, step
from resvar.training.execution import Execution
from tests.support.interpreter import interpreted
from tests.training.test_capture import FakeGraph

CPU = torch.device("cpu")
SMALL = ("batch_size=16", "bn_batch_size=8", "precision=fp32", "kernels=plain")


@pytest.fixture
def case():
    yield Case(8, CPU, SMALL)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    """What belongs to a process of its own happens here."""

    class Inline:
        def submit(self, work, *args, **kwargs):
            done = Future()
            done.set_result(work(*args, **kwargs))
            return done

    monkeypatch.setattr(gpu_claims, "processes", lambda: nullcontext(Inline()))


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Plans as on a GPU: captured updates, ghost BN for kernels=fused. The device is the CPU."""
    resolve = Execution.resolve

    def on_a_gpu(settings, device):
        here = settings.model_copy(update={"kernels": "plain", "capture": "none"})
        plan = resolve(here, device)
        fused = settings.kernels == "fused"
        kernels = "fused" if fused else "plain"
        form = torch.channels_last if fused else plan.memory_format
        return dataclasses.replace(
            plan, settings=settings, kernels=kernels, ghost=fused, multi_tensor=True,
            memory_format=form, captures=settings.capture != "none",
        )  # fmt: skip

    monkeypatch.setattr(gpu_claims.Execution, "resolve", on_a_gpu)
    monkeypatch.setattr(step, "CudaGraph", FakeGraph)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "claim",
    ["training works", "equals the processor", "repeats bit for bit", "resumes bit for bit"],
)
def test_claims_that_the_processor_keeps_too(case, claim):
    assert check_gpu.CLAIMS[claim].check(case).verdict == "holds"


@pytest.mark.heavy
@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("how", [(), ("kernels=fused",)])
def test_captured_updates_have_the_bits_of_others(case, how, monkeypatch):
    assert gpu_claims.captures(case, *how).verdict == "holds"
    replay = FakeGraph.replay
    monkeypatch.setattr(FakeGraph, "replay", lambda graph: (replay(graph), replay(graph)))
    assert gpu_claims.captures(case, *how).verdict == "FAILS"


@pytest.mark.usefixtures("like_a_gpu")
def test_updates_that_wait_are_errors_of_torch(case, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    assert gpu_claims.queues_only(case, "kernels=fused").verdict == "holds"
    assert modes == ["error", "default"]


@pytest.mark.heavy
@pytest.mark.usefixtures("like_a_gpu")
def test_ghost_bn_equals_micro_batches(case):
    finding = gpu_claims.equals_micro_batches(case, ["full-preact", "original"])
    assert finding.verdict == "holds"
    assert {"logits", "gradient", "of Conv2d", "BN statistics"} <= finding.figures.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("like_a_gpu")
def test_the_kernels_of_triton_equal_micro_batches(case, monkeypatch):
    pytest.importorskip("triton")
    launched = []
    launch = ghost_bn._launch
    monkeypatch.setattr(
        ghost_bn, "_launch", lambda *of, **more: (launched.append(of[0]), launch(*of, **more))
    )
    few = dataclasses.replace(case, overrides=(*SMALL, "batch_size=4", "bn_batch_size=2"))
    with interpreted():
        finding = gpu_claims.equals_micro_batches(few, ["full-preact"])
    assert finding.verdict == "holds", finding.evidence
    assert launched


@pytest.mark.usefixtures("like_a_gpu")
def test_bn_over_the_whole_batch_is_seen(case, monkeypatch):
    fuse = passes.fuse_ghost
    monkeypatch.setattr(passes, "fuse_ghost", lambda network, group: fuse(network, 2 * group))
    finding = gpu_claims.equals_micro_batches(case, ["full-preact"])
    assert finding.verdict == "FAILS"
    assert finding.figures["gradient"] > 1e-3


@pytest.mark.usefixtures("like_a_gpu")
def test_batches_that_are_not_counted_are_seen(case, monkeypatch):
    counters = multi_tensor.batch_counters
    monkeypatch.setattr(step, "batch_counters", lambda network: counters(network)[1:])
    plain, fused = (
        gpu_claims.first_update(case, "full-preact", kernels) for kernels in ("plain", "fused")
    )
    assert plain.batches == fused.batches  # both have lost one
    monkeypatch.setattr(
        gpu_claims, "first_update",
        lambda *of: dataclasses.replace(fused, batches=[1]) if of[2] == "fused" else plain,
    )  # fmt: skip
    finding = gpu_claims.equals_micro_batches(case, ["full-preact"])
    assert finding.verdict == "FAILS"
    assert "NOT as many batches counted" in finding.evidence


def test_the_comparison_with_the_processor_sees_a_difference(case, monkeypatch):
    whole, calls = gpu_claims.start, []

    def start(settings, device):
        calls.append(device)
        trainer = whole(settings, device)
        if len(calls) == 1:  # the first stands for the GPU
            with torch.no_grad():
                trainer.network.classifier.weight[0, 0] += 1.0
        return trainer

    monkeypatch.setattr(gpu_claims, "start", start)
    assert gpu_claims.equals_cpu(case).verdict == "FAILS"


@pytest.mark.heavy
def test_a_run_that_resumes_wrongly_is_seen(case, monkeypatch):
    def forget(trainer, state):
        trainer.updater.iteration = state["iteration"]  # and nothing else

    monkeypatch.setattr(gpu_claims.Trainer, "restore", forget)
    assert gpu_claims.resumes(case).verdict == "FAILS"
