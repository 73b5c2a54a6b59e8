"""scripts/check_gpu.py without a GPU: it says so, and its checks work on the processor too."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from tests.support.commands import ROOT

SCRIPT = ROOT / "scripts" / "check_gpu.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small(script, monkeypatch):
    """Batches of 16 in place of 128."""
    whole = script.settings_of
    monkeypatch.setattr(
        script,
        "settings_of",
        lambda depth, *more: whole(depth, "batch_size=16", "bn_batch_size=8", *more),
    )
    return script


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_one_sentence():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("There is no GPU that torch can use, so nothing was checked.\n")


@pytest.mark.parametrize("claim", ["training works", "repeats bit for bit", "resumes bit for bit"])
def test_claims_that_the_processor_keeps_too(small, claim, capsys):
    assert small._here(claim, 8, CPU) == 0
    assert capsys.readouterr().out.startswith(f"holds  {claim}: ")


def test_the_comparison_with_the_processor_sees_a_difference(small, monkeypatch, capsys):
    assert small._here("equals the processor", 8, CPU) == 0
    whole, calls = small.start, []

    def start(settings, device):
        calls.append(device)
        trainer = whole(settings, device)
        if len(calls) == 1:  # the first stands for the GPU
            with torch.no_grad():
                trainer.network.classifier.weight[0, 0] += 1.0
        return trainer

    monkeypatch.setattr(small, "start", start)
    assert small._here("equals the processor", 8, CPU) == 1
    assert "FAILS" in capsys.readouterr().out


def test_a_run_that_resumes_wrongly_is_seen(small, monkeypatch, capsys):
    def forget(trainer, state):
        trainer.iteration = state["iteration"]  # and nothing else

    monkeypatch.setattr(small.Trainer, "restore", forget)
    assert small._here("resumes bit for bit", 8, CPU) == 1
    assert capsys.readouterr().out.startswith("FAILS ")


def test_a_check_that_breaks_is_a_claim_that_does_not_hold(small, monkeypatch, capsys):
    def broken(_depth, _device):
        raise RuntimeError("no\nsuch kernel")

    monkeypatch.setitem(small.CLAIMS, "training works", broken)
    assert small._here("training works", 8, CPU) == 1
    assert capsys.readouterr().out == "FAILS  training works: RuntimeError: no\n"
