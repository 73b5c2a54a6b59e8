from __future__ import annotations

import dataclasses

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from resvar.config import resolve
from resvar.errors import UserError
from resvar.training import memory
from resvar.training.execution import Execution
from resvar.training.job import run_training
from resvar.training.memory import least_memory, require_memory
from resvar.training.passes import prepare_network
from resvar.training.step import build_network
from tests.support.tiny import install, make_cifar

CPU = torch.device("cpu")


def plan(*overrides, **options):
    options = {"variant": "original", "depth": 20, "protocol": "paper"} | options
    settings = resolve(options=options, overrides=["kernels=plain", "precision=fp32", *overrides])
    return Execution.resolve(settings, CPU)


def saved_memory(execution: Execution) -> int:
    """Bytes of the tensors that torch keeps for the backward pass of a micro-batch, each once."""
    settings, kept = execution.settings, {}
    network = prepare_network(build_network(settings), execution).train()
    own = {weights.untyped_storage().data_ptr() for weights in network.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # kept alive: no address is used twice
        return tensor

    images = torch.rand(settings.bn_batch_size, 3, settings.input_size, settings.input_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = execution.forward(network, images)
        F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["batch_size=8", "bn_batch_size=8"], {}),
        (["batch_size=8", "bn_batch_size=8"], {"variant": "full-preact"}),
        (["batch_size=4", "bn_batch_size=4"], {"variant": "full-preact", "depth": 29}),
        (["batch_size=2", "bn_batch_size=2"], {"family": "imagenet", "depth": 18}),
        (["batch_size=2", "bn_batch_size=2", "precision=bf16"], {"depth": 8}),
    ],
)
def test_the_least_memory_is_less_than_torch_takes_and_not_half_of_it(overrides, options):
    execution = plan(*overrides, **options)
    parameters = sum(p.numel() for p in build_network(execution.settings).parameters())
    taken = saved_memory(execution) + 12 * parameters
    assert taken / 2 < least_memory(execution) <= taken


def test_recomputing_takes_less():
    whole, recomputed = plan(depth=110), plan("recompute=unit", depth=110)
    assert least_memory(recomputed) < least_memory(whole) / 1.5


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["batch_size=50000", "bn_batch_size=50000"], {"depth": 1202}),
        ([], {"depth": 9998}),
        ([], {"family": "imagenet", "depth": 50, "cardinality": 1024, "base_width": 4096}),
    ],
)
def test_a_network_that_no_memory_takes_is_refused(monkeypatch, overrides, options):
    monkeypatch.setattr(memory, "available_memory", lambda: 16 * 10**9)
    with pytest.raises(UserError, match=r"takes at least .* GB of memory, and cpu has 16\.0 GB"):
        require_memory(plan(*overrides, **options))
    require_memory(plan())


def test_the_advice_for_a_pass_over_the_whole_batch_is_micro_batches(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**6)
    for ghost, advice in ((True, "kernels=plain"), (False, "bn_batch_size=…")):
        with pytest.raises(UserError, match=rf"fewer images at a time \(--set {advice}\)?"):
            require_memory(dataclasses.replace(plan(), ghost=ghost))


def test_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    install(make_cifar(tmp_path / "data", train=20, test=20), monkeypatch)
    monkeypatch.setattr(memory, "available_memory", lambda: 10**6)
    settings = plan("batch_size=4", "bn_batch_size=4", depth=8).settings
    with pytest.raises(UserError, match=r"cpu has 0\.0 GB"):
        run_training(settings, tmp_path / "data", Console(quiet=True), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()
