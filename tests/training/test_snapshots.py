"""Snapshots of a run (`probe_at`): whole, light, and without any effect on what it computes."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from resvar.config import resolve
from resvar.errors import RunError, Stopped, UserError
from resvar.export.safetensors_file import load_model
from resvar.reports.comparable import deviations, label_of
from resvar.rundir import snapshot_path, snapshots
from resvar.settings import TRAINING_HALF
from resvar.training import writer
from resvar.training.job import run_training as train
from resvar.training.step import build_network
from resvar.training.trainer import Trainer
from tests.support.outcome import bits, differing
from tests.support.tiny import install, make_cifar


def settings(*overrides):
    return resolve(
        options={"variant": "full-preact", "depth": 8, "protocol": "quick"},
        overrides=[
            "precision=fp32", "kernels=plain", "iterations=6", "batch_size=8", "bn_batch_size=4",
            "eval_every=3", "checkpoint_every=2", *overrides,
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        install(make_cifar(folder, train=40, test=20), patch)
        yield folder


def run(data, out, *overrides, fresh=False):
    console = Console(file=io.StringIO())
    return train(settings(*overrides), data, console, out, "cpu", fresh)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """A run without snapshots."""
    out = tmp_path_factory.mktemp("plain") / "run"
    run(data, out)
    return out


PROBED = "probe_at=[0,3,4,6]"


def test_a_run_with_snapshots_computes_the_same_bits(data, plain, tmp_path):
    out = tmp_path / "run"
    run(data, out, PROBED)
    assert differing(out, plain) == ["config"]  # which contains the setting itself
    assert list(snapshots(out)) == [0, 3, 4, 6]
    assert not snapshots(plain)


def test_a_snapshot_holds_the_weights_of_its_iteration_and_nothing_else(data, tmp_path):
    out = tmp_path / "run"
    run(data, out, PROBED)
    first, last = (load_model(snapshot_path(out, iteration)) for iteration in (0, 6))
    wanted = build_network(settings()).state_dict()
    assert {k: bits(v) for k, v in first.state_dict().items()} == {
        k: bits(v) for k, v in wanted.items()
    }
    end = torch.load(out / "checkpoint.pt", weights_only=True)["state"]["model"]
    assert {k: bits(v) for k, v in last.state_dict().items()} == {
        k: bits(v) for k, v in end.items()
    }
    assert last.provenance.iteration == 6
    assert last.provenance.settings == settings(PROBED)
    size = sum(held.numel() * held.element_size() for held in wanted.values())
    assert snapshot_path(out, 6).stat().st_size < 1.5 * size


@pytest.mark.heavy
def test_a_run_that_was_stopped_on_the_way_keeps_the_same_snapshots(data, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(data, whole, PROBED)
    step = Trainer.step
    for stop_before in (1, 3, 4):

        def stopping(trainer, watcher, at=stop_before):
            if trainer.iteration == at:
                raise Stopped("the test asked for it")
            step(trainer, watcher)

        monkeypatch.setattr(Trainer, "step", stopping)
        with pytest.raises(Stopped):
            run(data, broken, PROBED)
    monkeypatch.undo()
    assert run(data, broken, PROBED)["config_hash"] == settings().hash
    assert not differing(broken, whole)
    for iteration, path in snapshots(whole).items():
        assert snapshots(broken)[iteration].read_bytes() == path.read_bytes()
    assert {"snapshots"} == {path.name for path in broken.iterdir() if path.is_dir()}
    assert not list((broken / "snapshots").glob("*.tmp"))


def test_a_full_disk_is_the_runs_error_and_leaves_no_half_snapshot(data, tmp_path, monkeypatch):
    def full(network, provenance):
        del network, provenance
        raise OSError(28, "No space left on device", "the disk of the test")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "to_safetensors", full)
        with pytest.raises(RunError, match="No space left"):
            run(data, out, PROBED)
    assert not snapshots(out)
    assert not list((out / "snapshots").iterdir())
    run(data, out, PROBED)
    assert list(snapshots(out)) == [0, 3, 4, 6]


def test_fresh_removes_them(data, tmp_path):
    out = tmp_path / "run"
    run(data, out, PROBED)
    (out / "snapshots" / "mine.safetensors").touch()
    (out / "probe.json").touch()
    run(data, out, "probe_at=[2]", fresh=True)
    assert sorted(path.name for path in (out / "snapshots").iterdir()) == [
        "iteration-000002.safetensors", "mine.safetensors",
    ]  # fmt: skip
    assert not (out / "probe.json").exists()


def test_the_hash_and_the_report_know_a_run_with_snapshots_as_the_same_run():
    plain, probed = settings(), settings(PROBED)
    assert plain.hash == probed.hash
    assert label_of(plain) == label_of(probed)
    assert deviations(plain) == deviations(probed)
    assert "probe_at" not in TRAINING_HALF
    assert resolve(overrides=[], options={"variant": "full-preact", "depth": 8}).probe_at == []


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("[0,400,4000]", "'probe_at' 4000 is after the last iteration, 6"),
        ("[3,0]", "'probe_at' .3, 0. must increase"),
        ("[1,1]", "must increase"),
        ("[-1]", "probe_at"),
        ("3", "probe_at"),
        ("[a]", "probe_at"),
    ],
)
def test_a_wrong_value_is_refused(value, sentence):
    with pytest.raises(UserError, match=sentence):
        settings(f"probe_at={value}")
