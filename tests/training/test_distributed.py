"""One run on several devices: processes that torchrun, or the test in its place, has started.

Most pairs are forked from a process that has loaded torch, with the variables that torchrun sets;
the last tests go through torchrun itself.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resvar.config import resolve
from resvar.data.cifar import Images
from resvar.data.memory import MemoryEvalLoader, Normalization, Shard
from resvar.data.splits import Splits
from resvar.errors import RunError, UserError
from resvar.training import distributed, joining
from resvar.training.checkpoint import digest
from resvar.training.distributed import SINGLE_PROCESS, Ranks
from resvar.training.evaluate import evaluate
from resvar.training.execution import Execution
from resvar.training.joining import process_group
from resvar.training.step import build_network
from resvar.training.stop import stop_request
from tests.support.commands import Finished, Job, contents, sets, train, wait_for
from tests.support.outcome import differing
from tests.training.stepping import trainer_of

CPU = torch.device("cpu")


# --- the mathematics ------------------------------------------------------------------------------

CASES = {
    "the paper's batch": (20, 1, ["batch_size=128", "bn_batch_size=64"]),
    "two micro-batches each": (8, 3, ["batch_size=16", "bn_batch_size=4", "nesterov=true"]),
    "one image of BN's each": (8, 2, ["batch_size=4", "bn_batch_size=2", "normalize=channel"]),
}
"""Name → depth, iterations, settings."""


def settings_of(case: str):
    depth, _, overrides = CASES[case]
    options = {"variant": "full-preact", "depth": depth}
    return resolve(None, options, ["precision=fp32", "kernels=plain", *overrides])


def trained(case: str, ranks: Ranks = SINGLE_PROCESS) -> dict[str, Any]:
    """The state after some iterations, the gradients of the first, and an evaluation."""
    settings, first = settings_of(case), {}
    made = np.random.default_rng(5)
    images, labels = made.integers(0, 256, (150, 32, 32, 3), np.uint8), made.integers(0, 10, 150)
    held = Images(images, labels, images[:61], labels[:61], ("",) * 10, "")
    shard = Shard(ranks.rank, ranks.size)
    trainer = trainer_of(settings, Splits.prepare(held, settings, CPU, shard), ranks)

    def keep(*_: object) -> None:
        for name, weights in trainer.network.named_parameters():
            first.setdefault(name, weights.grad.clone())

    trainer.updater.optimizer.register_step_pre_hook(keep)
    for _ in range(CASES[case][1]):
        trainer.step()
    test = MemoryEvalLoader(images[:61], labels[:61], Normalization.measure(images, "channel"))
    test.batch_size = 10  # seven batches, and the last is smaller
    found = evaluate(trainer.network, test, trainer.plan)
    state = copy.deepcopy(trainer.state())
    del state["seconds"], state["train_seconds"], state["sums"][3]
    return {
        "first": first,
        "state": state,
        "test": vars(found),
        "finite": int(trainer.updater.meters.finite),
    }


def member(rank: int, size: int, port: int, folder: Path) -> None:
    """One process of several: goes through all cases, and writes what it found."""
    os.environ |= variables(rank, size, port)
    torch.set_num_threads(1)
    with process_group() as ranks:
        torch.save({case: trained(case, ranks) for case in CASES}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def found_by_two(warm, tmp_path_factory) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes found."""
    folder, port = tmp_path_factory.mktemp("two"), free_port()
    pair = [warm.context.Process(target=member, args=(rank, 2, port, folder)) for rank in (0, 1)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_computes(found_by_two, case):
    one, two = trained(case), found_by_two[0][case]
    for name, gradient in one["first"].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(two["first"][name], gradient, rtol=1e-5, atol=1e-5 * scale)
    ours, theirs = one["state"], two["state"]
    torch.testing.assert_close(theirs["model"], ours["model"], rtol=1e-4, atol=1e-5)
    assert theirs["sums"][0] == pytest.approx(ours["sums"][0], rel=1e-5)
    assert theirs["sums"][1:] == ours["sums"][1:], "errors and images are counted, not rounded"
    assert two["finite"] == CASES[case][1]


@pytest.mark.parametrize("case", CASES)
def test_both_hold_the_same_bits(found_by_two, case):
    first, second = (found[case] for found in found_by_two)
    assert digest(first["state"]) == digest(second["state"])
    assert first["test"]["loss"] == second["test"]["loss"]


def test_an_evaluation_is_the_same_to_the_bit_however_many_processes_there_are(found_by_two):
    case = "two micro-batches each"
    network = build_network(settings_of(case))
    network.load_state_dict(found_by_two[0][case]["state"]["model"])
    made = np.random.default_rng(5)
    images, labels = made.integers(0, 256, (150, 32, 32, 3), np.uint8), made.integers(0, 10, 150)
    test = MemoryEvalLoader(images[:61], labels[:61], Normalization.measure(images, "channel"))
    test.batch_size = 10
    alone = evaluate(network, test, Execution.resolve(settings_of(case), CPU))
    for found in found_by_two:
        assert found[case]["test"]["loss"] == alone.loss
        assert found[case]["test"]["error"] == alone.error
        assert torch.equal(found[case]["test"]["predictions"], alone.predictions)


def test_two_models_averaged_by_hand(found_by_two):
    """The paper's set-up in a few plain lines: a copy for each half, gradients averaged."""
    case = "the paper's batch"
    settings, two = settings_of(case), found_by_two[0][case]
    made = np.random.default_rng(5)
    images, labels = made.integers(0, 256, (150, 32, 32, 3), np.uint8), made.integers(0, 10, 150)
    held = Images(images, labels, images, labels, ("",) * 10, "")
    x, y = Splits.prepare(held, settings, CPU).training.batch(0)
    x = x.contiguous()  # as the run lays them out: other kernels round otherwise, up to 1 % here
    begun = build_network(settings)
    left, right = copy.deepcopy(begun).train(), copy.deepcopy(begun).train()
    F.cross_entropy(left(x[:64]), y[:64]).backward()
    F.cross_entropy(right(x[64:]), y[64:]).backward()
    both = zip(left.named_parameters(), right.parameters(), strict=True)
    averaged = {name: (p.grad + q.grad) / 2 for (name, p), q in both}
    for name, gradient in averaged.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(two["first"][name], gradient, rtol=1e-5, atol=1e-5 * scale)
    weight, decay = begun.classifier.weight, settings.weight_decay
    updated = weight - settings.warmup_lr * (averaged["classifier.weight"] + decay * weight)
    torch.testing.assert_close(two["state"]["model"]["classifier.weight"], updated.detach())
    before, first, second = (net.state_dict() for net in (begun, left, right))
    statistics = [name for name in before if "running" in name]
    assert len(statistics) == 2 * 19
    for name in statistics:  # the left half, and then what the right half alone would have added
        turn = 0.9 * first[name] + (second[name] - 0.9 * before[name])
        torch.testing.assert_close(two["state"]["model"][name], turn)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_batches_are_dealt_out_each_image_once(count):
    pixels = np.arange(61, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    plain = Normalization(torch.zeros(1, 1, 3), torch.full((3,), 255.0))
    batches = MemoryEvalLoader(pixels, np.arange(61), plain, batch_size=10)
    shard = [list(batches.batches_of(Shard(index, count))) for index in range(count)]
    seen = sorted(int(label) for hand in shard for _, labels in hand for label in labels)
    assert seen == list(range(61))
    for hand in shard:
        for x, labels in hand:
            assert torch.equal(x[:, 0, 0, 0].round().long(), labels)
    assert max(map(len, shard)) - min(map(len, shard)) <= 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_shares_of_a_batch_are_the_batch(count):
    settings = settings_of("two micro-batches each")
    made = np.random.default_rng(0)
    images, labels = made.integers(0, 256, (30, 32, 32, 3), np.uint8), made.integers(0, 10, 30)
    held = Images(images, labels, images, labels, ("",) * 10, "")
    whole = Splits.prepare(held, settings, CPU).training
    for iteration in (0, 1, 7):  # the second takes its rest from the next epoch
        shares = [
            Splits.prepare(held, settings, CPU, Shard(index, count)).training.batch(iteration)
            for index in range(count)
        ]
        x, y = whole.batch(iteration)
        assert torch.equal(torch.cat([share[0] for share in shares]), x)
        assert torch.equal(torch.cat([share[1] for share in shares]), y)


# --- who takes part -------------------------------------------------------------------------------


def test_outside_torchrun_there_is_one(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == SINGLE_PROCESS
    monkeypatch.setenv("RANK", "1")  # as other launchers do, for other reasons
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Ranks.from_environment() == SINGLE_PROCESS
    for name, value in variables(5, 8, 1234).items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(rank=5, size=8, local_rank=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", ""), ("RANK", "abc"), ("RANK", "-1"), ("RANK", "2"), ("RANK", "9" * 5000),
        ("WORLD_SIZE", "0"), ("WORLD_SIZE", "two"), ("LOCAL_RANK", "2"), ("LOCAL_RANK", "0.0"),
        ("MASTER_PORT", "http"), ("MASTER_PORT", "0"), ("MASTER_PORT", "70000"),
        ("MASTER_ADDR", " "),
    ],
)  # fmt: skip
def test_an_impossible_variable_is_named(monkeypatch, name, value):
    for key, held in (variables(0, 2, 1234) | {name: value}).items():
        monkeypatch.setenv(key, held)
    with pytest.raises(UserError, match=f"the environment variable {name} is"):
        Ranks.from_environment()


@pytest.mark.parametrize(
    ("size", "batch", "bn", "divides"),
    [(2, 128, 64, True), (1, 128, 128, True), (2, 128, 128, False), (3, 128, 64, False),
     (4, 128, 64, False), (4, 128, 32, True), (3, 96, 32, True)],
)  # fmt: skip
def test_a_batch_must_divide(size, batch, bn, divides):
    settings = resolve(
        None,
        {"variant": "original", "depth": 8},
        [f"batch_size={batch}", f"bn_batch_size={bn}"],
    )
    if divides:
        Ranks(0, size).check_divides(settings)
        return
    with pytest.raises(UserError, match=f"does not divide among {size} processes"):
        Ranks(0, size).check_divides(settings)


def test_each_takes_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert Ranks(5, 8, 1).device("auto") == torch.device("cuda:1")
    assert Ranks(5, 8, 1).device("cuda") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")] * 2
    assert Ranks(5, 8, 1).device("cpu") == CPU
    assert SINGLE_PROCESS.device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="use --device cuda"):
        Ranks(0, 2, 0).device("cuda:1")
    with pytest.raises(UserError, match="has 2: start one process per GPU"):
        Ranks(2, 3, 2).device("auto")


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(warm, tmp_path_factory) -> Path:
    """An undisturbed run of two processes."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(warm, out)
    return out


def test_a_run_of_two_leaves_what_a_run_of_one_leaves(warm, undisturbed, tmp_path):
    alone = tmp_path / "run"
    assert warm.run(*train("--out", alone), cwd=tmp_path).code == 0
    assert {path.name for path in undisturbed.iterdir()} == {path.name for path in alone.iterdir()}
    one, two = (
        json.loads((out / "result.json").read_text(encoding="utf-8"))
        for out in (alone, undisturbed)
    )
    assert two["device"] == f"2 × {one['device']}"
    assert two["config_hash"] == one["config_hash"], "the number of devices is no setting"
    assert (undisturbed / "config.yaml").read_text(encoding="utf-8") == (
        alone / "config.yaml"
    ).read_text(encoding="utf-8")
    environments = [
        json.loads((o / "environment.json").read_text(encoding="utf-8"))
        for o in (alone, undisturbed)
    ]
    assert [found["world_size"] for found in environments] == [1, 2]
    rows = [
        list(csv.DictReader((o / "metrics.csv").open(encoding="utf-8")))
        for o in (alone, undisturbed)
    ]
    for ours, theirs in zip(*rows, strict=True):
        for name in ("iteration", "epoch", "lr", "train_loss", "train_error", "test_loss"):
            assert float(theirs[name]) == pytest.approx(float(ours[name]), rel=1e-4)
    assert differing(undisturbed, alone), "to rounding, and no further: so it is noted"


def test_a_finished_run_says_so_once(warm, undisturbed):
    before = contents(undisturbed)
    ends = run(warm, undisturbed)
    assert [end.code for end in ends] == [0, 0]
    assert "already finished" in ends[0].out
    assert [ends[0].err, ends[1].out, ends[1].err] == ["", "", ""]
    assert contents(undisturbed) == before


def test_another_number_of_processes_goes_on_with_a_warning(warm, tmp_path):
    out = tmp_path / "run"
    run(warm, out, RESVAR_TEST_KILL="iteration:8")
    done = warm.run(*train("--out", out), cwd=tmp_path)
    assert done.code == 0, done
    assert "resuming from iteration 6" in done.out
    assert "Warning: device, world_size changed" in done.out
    changed = json.loads((out / "environment.json").read_text(encoding="utf-8"))["resumed"][0][
        "changed"
    ]
    assert changed["world_size"] == 1


@pytest.mark.parametrize(
    ("place", "at"),
    [
        ("iteration:8", None),
        ("iteration:5", 1),
        ("evaluation:2", 1),
        ("checkpoint-write:2", 0),
        ("before-result.json:1", 0),
    ],
)
def test_killed_and_gone_on_with_it_ends_with_the_same_bits(warm, undisturbed, tmp_path, place, at):
    out = tmp_path / "run"
    ends = run(warm, out, at=at, RESVAR_TEST_KILL=place)
    codes = [end.code for end in ends]
    killed = [rank for rank, code in enumerate(codes) if code == -signal.SIGKILL]
    assert killed == ([0, 1] if at is None else [at]), ends
    if at == 1:  # the first notices, says so once, and leaves
        assert codes[0] == 1
        assert "another process of this run has ended" in ends[0].err
        assert len(ends[0].err.splitlines()) == 1
    assert "resvar: " not in ends[1].err  # but torch's words about the store that is gone
    assert not (out / "result.json").exists()
    finish(warm, out)
    assert not differing(out, undisturbed)


@pytest.mark.slow
def test_killed_at_random_moments(warm, undisturbed, tmp_path):
    out, chance = tmp_path / "run", random.Random(3)
    for turn in range(3):
        with started(warm, out, RESVAR_TEST_SLOW="0.1") as pair:
            pair[0].read_until("goes to")
            time.sleep(chance.uniform(0, 0.9))
            for rank in chance.sample([0, 1], 1 + turn % 2):
                pair[rank].send(signal.SIGKILL)
            assert -signal.SIGKILL in [job.end(30).code for job in pair]
    finish(warm, out)
    assert not differing(out, undisturbed)


@pytest.mark.parametrize(("place", "at"), [("iteration:5", 1), ("evaluation:2", 0)])
def test_a_signal_to_one_stops_both_after_the_same_iteration(
    warm, undisturbed, tmp_path, place, at
):
    out = tmp_path / "run"
    ends = run(warm, out, at=at, RESVAR_TEST_TERM=place)
    assert [end.code for end in ends] == [130, 130]
    assert "a checkpoint is saved" in ends[0].err
    assert [ends[1].out, ends[1].err] == ["", ""]
    held = torch.load(out / "checkpoint.pt", weights_only=True)["state"]
    assert f"stopped after iteration {held['iteration']};" in ends[0].err
    finish(warm, out)
    assert not differing(out, undisturbed)


def test_a_second_signal_ends_one_that_waits_for_a_frozen_one(warm, tmp_path):
    out = tmp_path / "run"
    with started(warm, out, *sets("iterations=100000"), RESVAR_TEST_SLOW="0.05") as pair:
        assert wait_for((out / "progress.json").exists)
        pair[1].send(signal.SIGSTOP)

        def ask() -> bool:
            if not pair[0].ended:
                pair[0].send(signal.SIGTERM)
            return pair[0].ended

        assert wait_for(ask, 60, every=1.0)
        assert pair[0].code() == 130
        assert (out / "checkpoint.pt").exists()


def test_a_full_disk_ends_both(warm, undisturbed, tmp_path):
    out = tmp_path / "run"
    ends = run(warm, out, at=0, RESVAR_TEST_FAIL="before-checkpoint.pt:2")
    assert [end.code for end in ends] == [1, 1]
    assert "No space left on device" in ends[0].err
    assert len(ends[0].err.splitlines()) == 1
    assert ends[1].err == ""
    finish(warm, out)
    assert not differing(out, undisturbed)


def test_divergence_ends_both(warm, tmp_path):
    out = tmp_path / "run"
    ends = run(warm, out, *sets("lr=1e30"))
    assert [end.code for end in ends] == [1, 1]
    assert "diverged" in ends[0].err
    assert len(ends[0].err.splitlines()) == 1
    assert ends[1].err == ""
    assert (out / "diverged.json").exists()


@pytest.mark.parametrize(
    ("size", "more", "by_rank", "said"),
    [
        (3, [], {}, "does not divide among 3 processes"),
        (2, [], {1: ["--seed", "7"]}, "has seed 7 where process 0 has 0"),
        (2, [], {1: ["--data", "nowhere"]}, "process 1: nowhere"),
        (2, sets("holdout=260"), {}, "leaves none of the 260"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(warm, tmp_path, size, more, by_rank, said):
    out = tmp_path / "run"
    ends = run(warm, out, *more, size=size, by_rank=by_rank)
    assert {end.code for end in ends} == {2}, ends
    assert said in ends[0].err
    assert len(ends[0].err.splitlines()) == 1
    assert {end.err + end.out for end in ends[1:]} == {""}
    assert not [path for path in out.glob("*") if path.name != "run.lock"]


def test_a_second_pair_is_kept_out(warm, tmp_path):
    out = tmp_path / "run"
    with started(warm, out, RESVAR_TEST_HANG="iteration:5") as pair:
        pair[0].read_until("HANGING")
        ends = run(warm, out)
        assert [end.code for end in ends] == [1, 1]
        assert f"process {pair[0].pid} on" in ends[0].err
        assert ends[1].err == ""


# --- through torchrun -----------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_disturbed_twice_ends_with_the_same_bits(warm, undisturbed, tmp_path):
    out = tmp_path / "run"

    def begin_and_send(number: int, to_torchrun: bool) -> Finished:
        (out / "checkpoint.pt").unlink(missing_ok=True)  # the previous one is there to resume from
        with torchrun(warm, tmp_path, train("--out", out), RESVAR_TEST_SLOW="0.1") as job:
            assert wait_for((out / "checkpoint.pt").exists)
            workers = children(job.pid)
            assert len(workers) == 2
            os.kill(job.pid if to_torchrun else workers[1], number)
            ended = job.end(60)
            assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)
        assert ended.code != 0
        assert not (out / "result.json").exists()
        return ended

    killed = begin_and_send(signal.SIGKILL, to_torchrun=False)
    # Once, or never where torchrun ends the first before that has noticed.
    assert killed.err.count("another process of this run has ended") <= 1
    stopped = begin_and_send(signal.SIGTERM, to_torchrun=True)
    assert stopped.err.count("a checkpoint is saved") == 1
    with torchrun(warm, tmp_path, train("--out", out)) as job:
        done = job.end()
    assert done.code == 0, done
    assert done.out.count("Finished full-preact-8") == 1
    assert not differing(out, undisturbed)


def test_a_signal_that_comes_twice_at_once_counts_once(monkeypatch):
    """From Slurm, say, and from torchrun. And where torchrun is gone, the run stops too."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with stop_request("", together=True) as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop
        assert left == []
        stop._asked_at -= 5.0
        signal.raise_signal(signal.SIGTERM)
        assert left == [130]
    with stop_request("", together=True) as stop:
        another = os.getppid() + 1
        monkeypatch.setattr(os, "getppid", lambda: another)
        assert stop


@pytest.mark.parametrize(
    ("rank", "awaited", "number"),
    [(0, "process 1 and 1 more", signal.SIGTERM), (2, "process 0", signal.SIGINT)],
)
def test_waiting_for_processes_that_never_come(warm, tmp_path, rank, awaited, number):
    """As where WORLD_SIZE was left in the environment."""
    port = free_port()
    words = train("--out", tmp_path / "run")
    with warm.started(*words, cwd=tmp_path, **variables(rank, 3, port)) as job:
        assert wait_for(lambda: "waits" in job.err or job.ended), job.err
        job.send(number)
        ended = job.end(60)
    assert ended.code == 130, ended
    told, stopped = ended.err.splitlines()
    assert told.startswith(f"Process {rank} of 3 waits at 127.0.0.1:{port} for {awaited}, ")
    assert "s of 600 s so far (the environment says WORLD_SIZE=3; unset that" in told
    assert stopped == f"resvar: stopped while waiting for {awaited}; nothing was changed."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_wait_for_the_others_ends(monkeypatch, rank):
    for name, value in variables(rank, 2, port := free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(joining, "PATIENCE", timedelta(seconds=0.2))
    with pytest.raises(RunError) as caught, process_group():
        pytest.fail("nobody came")
    assert f"process {1 - rank} did not come to 127.0.0.1:{port}" in str(caught.value)
    assert "WORLD_SIZE=2" in str(caught.value)


def test_a_process_that_trains_alone_says_so(monkeypatch, capsys):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with process_group() as ranks:
        assert ranks == SINGLE_PROCESS
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with process_group() as ranks:
        assert ranks == SINGLE_PROCESS
    assert capsys.readouterr().err == (
        "Note: WORLD_SIZE=2 is set, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not: this process "
        "trains alone.\n"
    )


def test_a_sweep_is_not_for_torchrun(warm, tmp_path):
    words = ["sweep", "--variants", "original", "--depths", "8"]
    ended = warm.run(*words, cwd=tmp_path, **variables(0, 2, 1))
    assert ended.code == 2
    assert "leave torchrun out" in ended.err


# --- helpers --------------------------------------------------------------------------------------


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process on this machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(held) for name, held in numbers.items()}}


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextlib.contextmanager
def started(
    warm, out: Path, *more, size: int = 2, at: int | None = None, by_rank=None, **disturbed: str
) -> Iterator[list[Job]]:
    """The processes of a tiny active run; `disturbed` at one of them, or at all."""
    port = free_port()
    with contextlib.ExitStack() as held:
        yield [
            held.enter_context(
                warm.started(
                    *train("--out", out, *more, *(by_rank or {}).get(rank, [])),
                    cwd=out.parent,
                    **variables(rank, size, port),
                    **(disturbed if at in (None, rank) else {}),
                )
            )
            for rank in range(size)
        ]


def run(warm, out: Path, *more, **options) -> list[Finished]:
    with started(warm, out, *more, **options) as jobs:
        return [job.end() for job in jobs]


def finish(warm, out: Path) -> None:
    """Start or resume the run, up to its end."""
    ends = run(warm, out)
    assert [end.code for end in ends] == [0, 0], ends
    assert [ends[0].err, ends[1].out, ends[1].err] == ["", "", ""]


@contextlib.contextmanager
def torchrun(warm, cwd: Path, arguments: list[Any], **more: str) -> Iterator[Job]:
    """`torchrun --nproc-per-node 2 -m resvar …` at work."""
    printed = cwd / "printed"
    printed.mkdir(exist_ok=True)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (printed / "out").open("wb") as out, (printed / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, *words, "-m", "resvar", *map(str, arguments)],
            cwd=cwd, env=warm.environment(**more), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        )  # fmt: skip
    try:
        yield Job(process, printed)
    finally:
        for pid in [*children(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def children(pid: int) -> list[int]:
    """The living child processes of a process, in the order in which they were started (Linux)."""
    try:
        return [
            int(n)
            for n in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        ]
    except OSError:
        return []


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("Timed out waiting 600000ms for recv operation to complete"), True),
        (torch.distributed.DistNetworkError("the client socket has failed to connect"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), False),
    ],
)
def test_only_a_broken_connection_is_a_lost_process(error, lost):
    with (
        pytest.raises(distributed.LostError if lost else type(error)),
        distributed._peer_failures(),
    ):
        raise error
