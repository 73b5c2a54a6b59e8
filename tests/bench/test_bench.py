from __future__ import annotations

import json

import pytest
import torch

from resvar.bench import bench, turns, worker
from resvar.bench.bench import core_splits, fit_depths, measurement_record
from resvar.bench.contenders import BenchOptions, Contender
from resvar.bench.turns import Ceilings, Measurement
from resvar.cli import run_command
from resvar.config import resolve
from tests.bench.test_profile import RECORDED


def measured(index, seconds, **more):
    group = BenchOptions("original", "paper").contenders(20)
    return Measurement(group[index], threads=2, precision="fp32", seconds=seconds, **more)


CEILINGS = Ceilings([{"bf16": 4e9, "fp32": 1e9, "copy": 5e9}] * 3)


def test_medians_ratios_and_shares_by_hand():
    """Batch 128: 128, 64 and 256 images/s; the baseline 32, 64 and 64: ratios 4, 1 and 4."""
    ours = measured(0, [1.0, 2.0, 0.5], peak=3000, own=2000, shares={"BN": 1.0})
    plain = measured(1, [4.0, 2.0, 2.0])
    found = measurement_record([ours, plain], CEILINGS)
    one, other = found["contenders"]
    assert (one["images_per_second"], one["slowest"], one["fastest"]) == (128, 64, 256)
    assert (one["ratio"], other["ratio"]) == (4, 1)
    assert one["seconds_per_iteration"] == 1.0
    multiply_adds = 40_551_040  # `resvar show --variant original --depth 20`
    assert found["flop_per_image"] == 6 * multiply_adds
    assert one["share_of_ceiling"] == pytest.approx(128 * 6 * multiply_adds / 4e9)
    assert (one["peak_bytes"], one["own_bytes"], one["time"]) == (3000, 2000, {"BN": 1.0})
    assert json.loads(json.dumps(found)) == found


def test_the_ceiling_is_the_faster_product():
    assert CEILINGS.flops == ("bf16", 4e9)
    assert Ceilings([{"bf16": 1.0, "fp32": 3.0, "copy": 1.0}]).flops == ("fp32", 3.0)


def test_a_line_through_three_depths_and_none_through_two():
    def at(depth, seconds):
        one = {"name": "resvar", "seconds_per_iteration": seconds}
        return {"depth": depth, "unit": "basic", "contenders": [one]}

    (line,) = fit_depths([at(20, 0.045), at(56, 0.117), at(110, 0.225)])  # 5 ms + 2 ms a layer
    assert line["ms_per_layer"] == pytest.approx(2)
    assert line["ms_at_zero"] == pytest.approx(5)
    assert line["r_squared"] == pytest.approx(1)
    assert fit_depths([at(20, 0.045), at(56, 0.117)]) == []


@pytest.mark.parametrize(
    ("cores", "found"),
    [(1, [(1, 1)]), (2, [(1, 2), (2, 1)]), (6, [(1, 6), (2, 3), (4, 1), (6, 1)])],
)
def test_splits_of_the_cores(cores, found):
    assert core_splits(cores) == found


# --- kernels of an update, on a GPU ---------------------------------------------------------------

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def training():
    settings = resolve(
        options={"variant": "full-preact", "depth": 8, "batch_size": 8, "bn_batch_size": 4},
        overrides=["kernels=plain", "precision=fp32"],
    )
    return worker.Training(Contender("", settings), CPU)


@pytest.mark.heavy
def test_a_gpu_has_a_number_of_kernels_and_a_processor_none(training, monkeypatch):
    assert training.profile().keys() == {"shares"}
    monkeypatch.setattr(training, "device", GPU)
    monkeypatch.setattr(training, "events", lambda: 3 * RECORDED)
    assert training.profile() == {"shares": {}, "kernels": 3, "copies": 4}


def test_a_profiler_that_fails_costs_no_figure_but_its_own(training, monkeypatch, capsys):
    def fail():
        raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED.\nmore")

    monkeypatch.setattr(training, "device", GPU)
    monkeypatch.setattr(training, "_traced", fail)
    assert training.profile() == {"shares": {}, "kernels": None, "copies": None}
    assert capsys.readouterr().err == ("torch's profiler failed: CUPTI_ERROR_NOT_INITIALIZED\n")


class FakeWorker:
    """Updates of 10 ms, and the profile of a GPU."""

    def __init__(self, contender, *_device_and_threads):
        self.contender = contender

    def answer(self):
        return {"threads": 1, "precision": "bf16"} if self.contender else {}

    def ask(self, do, **more):
        kernels = None if "plain" in self.contender.name else 1050
        return {
            "warm up": {"seconds": 1.0},
            "run": {"seconds": 0.01 * more.get("iterations", 1)},
            "peak": {"peak": 2**30, "own": 2**29},
            "profile": {"shares": {"fused": 1.0}, "kernels": kernels, "copies": kernels and 4},
        }[do]

    def seconds_of(self, iterations):
        return self.ask("run", iterations=iterations)["seconds"]

    def close(self):
        pass


class FakeCeiling(FakeWorker):
    def ask(self, **_command):
        return {"ceiling": {"bf16": 8e14, "fp32": 5e13, "copy": 3e12}}


@pytest.fixture
def fake_gpu(monkeypatch):
    """The bench of a machine with a GPU, whose workers are fakes."""
    monkeypatch.setattr(bench, "_check_device", lambda _device: None)
    monkeypatch.setattr(
        turns, "Worker",
        lambda one, *rest: (FakeWorker if one else FakeCeiling)(one, *rest),
    )  # fmt: skip


@pytest.mark.usefixtures("fake_gpu")
def test_kernels_stand_beside_the_speed_where_they_are_known(capsys):
    asked = ["bench", "--device", "cuda", "--rounds", "1", "--seconds", "0.1"]
    assert run_command(asked) == 0
    out, err = capsys.readouterr()
    head, rows = out.splitlines()[2], out.splitlines()[4:6]
    assert head.split()[:3] == ["contender", "images/s", "kernels"]
    assert ["1,050" in row for row in rows] == [True, False]
    assert "plain PyTorch: the number of kernels is not known, because" in err

    assert run_command([*asked, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["benchmarks"]
    known = [(one["kernels"], one["copies"]) for one in found["contenders"]]
    assert known == [(1050, 4), (None, None)]


# --- as its users type it -------------------------------------------------------------------------

QUICK = ("--depth", "8", "--rounds", "2", "--seconds", "0.01", "--device", "cpu", "--threads", "1",
         "--set", "batch_size=8", "--set", "bn_batch_size=4")  # fmt: skip


def test_bench_measures_contenders_in_turn(resvar, tmp_path):
    done = resvar.run(
        "bench", *QUICK, "--compare", "precision=fp32,batch_size=4", "--json", cwd=tmp_path
    )
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)["benchmarks"]
    ours, fp32, plain = found["contenders"]
    assert [one["threads"] for one in (ours, fp32, plain)] == [1, 1, 1]
    assert (fp32["precision"], plain["precision"]) == ("fp32", "fp32")
    assert (fp32["batch_size"], plain["bn_batch_size"]) == (4, 8)
    for one in (ours, fp32, plain):
        assert "kernels" not in one
        assert len(one["turns"]) == 2
        assert 0 < one["slowest"] <= one["images_per_second"] <= one["fastest"]
        assert one["own_bytes"] is None or 0 < one["own_bytes"] < one["peak_bytes"]
        assert sum(one["time"].values()) == pytest.approx(1)
        assert {"convolution", "data", "optimizer"} <= set(one["time"])
        assert {"BN", "fused"} & set(one["time"])
    assert plain["ratio"] == 1
    assert "about" in done.err
    assert "round 2 of 2" in done.err
    assert not list(tmp_path.iterdir()), "a benchmark leaves no file"


def test_bench_says_it_in_tables(resvar, tmp_path):
    done = resvar.run("bench", *QUICK, "--no-baseline", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "full-preact-8" in done.out
    assert "GFLOP/s in bf16" in done.out
    assert "plain PyTorch" not in done.out
    assert "kernels" not in done.out


def test_floor_and_sweep(resvar, tmp_path):
    done = resvar.run("bench", *QUICK, "--floor", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["floors"]
    assert row["seconds"]["plain"] > row["seconds"]["fused"] > row["seconds"]["least"] > 0
    done = resvar.run("bench", *QUICK, "--sweep", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["sweeps"]
    best = max(row["splits"], key=lambda split: split["images_per_second"])
    assert (row["jobs"], row["threads"]) == (best["jobs"], best["threads"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--depth", "21"], "fits no residual unit"),
        (["--variant", "orignal"], "did you mean 'original'"),
        (["--compare", "fp32"], "KEY=VALUE"),
        (["--device", "gpu"], "choose from auto, cpu, cuda"),
        (["--floor", "--sweep"], "one at a time"),
        (["--sweep", "--device", "cuda"], "leave out --device"),
        (["--rounds", "0"], "rounds"),
    ],
)
def test_wrong_input_is_refused_before_any_work(arguments, part, capsys):
    assert run_command(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert part in err
    assert len(err.splitlines()) == 1


@pytest.mark.build
def test_a_contender_that_cannot_be_had_here_is_refused_in_one_sentence(capfd):
    asked = ["--depth", "8", "--compare", "kernels=fused,memory_format=contiguous"]
    assert run_command(["bench", *asked, "--set", "precision=fp32", "--device", "cpu"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "kernels=fused" in last
    assert "memory_format=channels_last" in last


def test_a_processor_that_is_slow_in_bf16_multiplies_smaller_matrices(monkeypatch):
    def seconds(_self, work, _least):
        matrix = work()
        slow = 1e9 if matrix.dtype is torch.bfloat16 else 1e12
        return 2 * len(matrix) ** 3 / slow

    monkeypatch.setattr(worker.Ceiling, "_each", seconds)
    sides = {name: len(m) for name, m in worker.Ceiling(torch.device("cpu")).matrices.items()}
    assert sides == {"bf16": 512, "fp32": 2048}
