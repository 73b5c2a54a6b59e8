"""scripts/check_gpu.py without a GPU: every check works on the processor, with fakes for CUDA."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path

import check_gpu
import gpu_claims
import gpu_figures
import pytest
import torch
from gpu_claims import Case, Finding

from resvar.bench import turns
from resvar.bench.profile import DeviceWork
from resvar.kernels import ghost_bn
from resvar.training import multi_tensor, passes, step
from resvar.training.execution import Execution
from tests.bench.test_bench import FakeCeiling, FakeWorker
from tests.bench.test_profile import RECORDED
from tests.support.commands import ROOT, everyone, wait_for
from tests.support.interpreter import interpreted
from tests.training.test_capture import FakeGraph

SCRIPT = ROOT / "scripts" / "check_gpu.py"
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = ("batch_size=16", "bn_batch_size=8", "precision=fp32", "kernels=plain")
H100 = "NVIDIA H100 80GB HBM3"


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


# --- claims about bits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim",
    ["training works", "equals the processor", "repeats bit for bit", "resumes bit for bit"],
)
def test_claims_that_the_processor_keeps_too(case, claim):
    assert check_gpu.CLAIMS[claim].check(case).verdict == "holds"


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


def test_a_run_that_resumes_wrongly_is_seen(case, monkeypatch):
    def forget(trainer, state):
        trainer.updater.iteration = state["iteration"]  # and nothing else

    monkeypatch.setattr(gpu_claims.Trainer, "restore", forget)
    assert gpu_claims.resumes(case).verdict == "FAILS"


# --- claims about time ----------------------------------------------------------------------------


class FakeTraining:
    """Updates of 10 ms with the events of a GPU."""

    def __init__(self, contender, _device):
        self.batch_size = contender.settings.batch_size

    def warm_up(self):
        return 1.0

    def run(self, updates):
        return 0.01 * updates

    def events(self):
        return 3 * RECORDED


WANTED = {"images_per_second": (19_000, None), "kernels": (None, 1150)}


@pytest.fixture
def at_110(monkeypatch):
    """ResNet-110 on an H100 whose updates are fakes."""
    monkeypatch.setattr(gpu_figures, "Training", FakeTraining)
    monkeypatch.setattr(gpu_figures, "device_name", lambda _device: H100)
    return Case(110, GPU)


def test_speed_and_kernels_of_an_update_beside_those_wanted(at_110):
    finding = gpu_figures.speed(at_110, "kernels=fused", wanted=WANTED, table=True)
    assert finding.evidence == (
        "12,800 images/s (wanted on an H100: ≥ 19,000), "
        "3 kernels an update (wanted on an H100: ≤ 1,150)"
    )
    assert finding.verdict == "FAILS"
    assert finding.figures["kernels"] == 3
    assert finding.figures["copies"] == 4
    first, *_, last = finding.lines
    assert " ".join(first.split()) == "apply 1 × 10.0 µs = 0.01 ms 50 %"
    assert max(map(len, finding.lines)) <= 80
    assert last.strip(), last


@pytest.mark.parametrize(
    ("speed", "kernels", "card", "verdict"),
    [
        (19_000, 1_150, H100, "holds"),
        (18_999, 1_150, H100, "FAILS"),
        (19_000, 1_151, H100, "FAILS"),
        (19_000, None, H100, "not checked"),
        (18_999, None, H100, "FAILS"),
        (18_999, 1_151, "NVIDIA A100", "figure"),
    ],
)
def test_a_verdict_only_where_a_figure_is_wanted(
    at_110, monkeypatch, speed, kernels, card, verdict
):
    monkeypatch.setattr(gpu_figures, "device_name", lambda _device: card)
    figures = {"images_per_second": speed, "kernels": kernels}
    finding = gpu_figures.judged(at_110, figures, WANTED)
    assert finding.verdict == verdict
    assert "(wanted on an H100: ≤ 1,150)" in finding.evidence
    for other in (Case(20, GPU), Case(110, GPU, ("precision=fp32",))):
        finding = gpu_figures.judged(other, figures, WANTED)
        assert (finding.verdict, "wanted" in finding.evidence) == ("figure", False)


def test_a_table_shows_the_longest_kernels_and_sums_up_the_others():
    work = [DeviceWork(f"kernel {n}", 2.0, 100.0) for n in range(gpu_figures.SHOWN + 2)]
    lines = gpu_figures.kernel_table(work)
    assert len(lines) == gpu_figures.SHOWN + 1
    assert " ".join(lines[-1].split()) == "2 others 4 × 50.0 µs = 0.20 ms 7 %"


def test_names_of_kernels_fit_a_line():
    name = (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::"
        "BFloat16>, std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<c10::BFloat16>)"
    )
    assert gpu_figures.short("moments") == "moments"
    assert gpu_figures.short(name, 200) == (
        "vectorized_elementwise_kernel<4, CUDAFunctor_add<BFloat16>, array<char*, 3ul> >"
    )
    assert len(gpu_figures.short(name, 40)) == 40


@pytest.fixture
def crowd(monkeypatch):
    """Runs that are one and a half times as slow together."""
    begun = []

    def together(workers, updates):
        return 0.01 * updates * (1.0 if len(workers) == 1 else 1.5)

    def started(contenders, _device):
        begun.extend(contenders)
        return nullcontext([FakeWorker(one) for one in contenders])

    monkeypatch.setattr(gpu_figures, "started_workers", started)
    monkeypatch.setattr(gpu_figures, "run_together", together)
    return begun


def test_several_runs_under_the_service(at_110, crowd, monkeypatch):
    monkeypatch.setattr(gpu_figures, "mps_advice", lambda _slots: None)
    wanted = {"images_per_second": (30_000, None)}
    four = gpu_figures.several(at_110, "kernels=fused", runs=4, wanted=wanted)
    assert four.evidence == (
        "34,133 images/s (wanted on an H100: ≥ 30,000), 12,800 images/s of one run alone"
    )
    assert four.verdict == "holds"
    assert {one.settings.kernels for one in crowd} == {"fused"}
    two = gpu_figures.packing_pays(at_110)
    assert (two.verdict, len(crowd)) == ("holds", 6)
    assert two.evidence == "12,800 → 17,067 images/s in total, 1.33 ×"


def test_without_the_service_several_runs_are_not_checked(at_110, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for finding in (
        gpu_figures.several(at_110, runs=4, wanted=WANTED), gpu_figures.packing_pays(at_110)
    ):  # fmt: skip
        assert finding.verdict == "not checked"
        assert "nvidia-cuda-mps-control is not on the PATH" in finding.evidence


def test_faster_is_a_ratio_of_turns(at_110, monkeypatch):
    class Capturing(FakeWorker):
        """Without capture, an update takes twice as long."""

        def seconds_of(self, iterations):
            slow = self.contender.settings.capture == "none"
            return super().seconds_of(iterations) * (2 if slow else 1)

    def worker(one, *rest):
        return (Capturing if one else FakeCeiling)(one, *rest)

    monkeypatch.setattr(turns, "Worker", worker)
    assert check_gpu.CLAIMS["capturing is faster"].check(at_110) == Finding(
        "holds", "6,400 → 12,800 images/s (median of 5 turns), 2.00 ×",
        {"before": 6400.0, "after": 12800.0, "ratio": 2.0},
    )  # fmt: skip
    assert check_gpu.CLAIMS["compile=unit is faster"].check(at_110).verdict == "FAILS"


# --- the session ----------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_one_sentence():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("There is no GPU that torch can use, so nothing was checked.\n")


@pytest.mark.process
def test_a_claim_on_the_processor_and_its_record(tmp_path):
    out = tmp_path / "found.json"
    settings = [word for one in SMALL for word in ("--set", one)]
    asked = ["--device", "cpu", "--small", "8", "--claim", "resumes bit for bit", "--out", out]
    done = subprocess.run(
        [sys.executable, SCRIPT, *asked, *settings], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    first, claim, last = done.stdout.splitlines()
    assert first.startswith("ResNet-110 on ")
    assert claim == (
        "holds        resumes bit for bit: weights and momenta after 12 updates, SHA-256"
    )
    assert last.startswith("1 hold; ")
    found = json.loads(out.read_text("utf-8"))
    assert found["torch"] == torch.__version__
    assert found["claims"]["resumes bit for bit"]["verdict"] == "holds"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script as on a machine with an H100; the exit code, and the lines between first and
    last."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check_gpu, "choose_device", torch.device)
    monkeypatch.setattr(check_gpu, "device_name", lambda _device: H100)
    monkeypatch.setattr(check_gpu, "service", lambda _needed: nullcontext({}))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["check_gpu.py", *map(str, words)])
        code = check_gpu.main()
        return code, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def canned(monkeypatch):
    """Findings by claim in place of processes; all others hold."""
    findings = {}

    def in_a_process(_session, name, _seconds, _variables):
        return findings.get(name, Finding("holds", "seen"))

    monkeypatch.setattr(check_gpu.Session, "in_a_process", in_a_process)
    return findings


def test_all_claims_in_order_and_their_record(run, canned, tmp_path):
    kernel = {"name": "moments", "count": 2.0, "microseconds": 3.0}
    canned["speed, fused"] = Finding(
        "figure", "9 images/s", {"images_per_second": 9.0}, [kernel], ["  a table"]
    )
    out = tmp_path / "found.json"
    code, (first, *lines, last) = run("--out", out)
    assert code == 0
    assert first.startswith(f"ResNet-110 on {H100}: torch {torch.__version__}, Triton ")
    names = [line[13:].partition(":")[0] for line in lines if line[0] != " "]
    assert set(names) == {name.partition(":")[0] for name in check_gpu.CLAIMS}
    after = lines[lines.index("figure       speed, fused: 9 images/s") :]
    assert after[1] == "  a table"
    assert last.startswith(f"{len(check_gpu.CLAIMS) - 1} hold, 1 without a verdict; ")
    found = json.loads(out.read_text("utf-8"))
    assert found["device"] == H100
    assert found["claims"].keys() == check_gpu.CLAIMS.keys()
    entry = found["claims"]["speed, fused"]
    assert (entry["figures"], entry["kernels"]) == ({"images_per_second": 9.0}, [kernel])


@pytest.mark.parametrize("verdict", ["FAILS", "not checked"])
def test_one_that_does_not_hold_decides_the_exit_code(run, canned, verdict):
    canned["training works"] = Finding(verdict, "why")
    code, lines = run("--claim", "training works", "--claim", "capturing is faster")
    assert (code, lines[1]) == (1, f"{verdict:11}  training works: why")
    assert len(lines) == 4


@pytest.mark.usefixtures("canned")
def test_what_has_no_time_left_is_not_checked(run):
    code, lines = run("--limit", check_gpu.LEAST)
    assert code == 1
    assert lines[-1].startswith(f"{len(check_gpu.CLAIMS)} not checked; ")
    assert all("no time was left" in line for line in lines[1:-1])


@pytest.mark.usefixtures("canned")
def test_claims_about_bits_leave_half_of_the_time_to_those_about_time(run, monkeypatch):
    monkeypatch.setattr(check_gpu, "BITS", 0.0)
    _, lines = run()
    assert lines[-1].startswith(
        f"{len(check_gpu.OF_TIME)} hold, {len(check_gpu.OF_BITS)} not checked; "
    )


@pytest.mark.usefixtures("canned")
def test_a_record_that_cannot_be_written_is_refused_at_once(run, tmp_path):
    assert run("--out", tmp_path) == (2, [])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--depth", "21"], "fits no residual unit"),
        (["--small", "21"], "fits no residual unit"),
        (["--set", "precison=fp32"], "did you mean 'precision'"),
        (["--device", "gpu"], "choose from auto, cpu, cuda or cuda:N"),
        (["--claim", "all"], "invalid choice"),
    ],
)
def test_wrong_input_is_refused_before_any_work(monkeypatch, capsys, words, part):
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--device", "cpu", *words])
    with contextlib.suppress(SystemExit):
        assert check_gpu.main() == 2
    out, err = capsys.readouterr()
    assert not out
    assert part in err.splitlines()[-1]


class Program:
    """A program in place of Python's."""

    def __init__(self, folder, text):
        self.path = folder / "python"
        self.path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
        self.path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "limit", "line"),
    [
        ("exit 7", 100, "FAILS        training works: its process exited with 7"),
        ("sleep 60", 1.0, "not checked  training works: the 1 s that were left did not suffice"),
    ],
)
def test_a_process_that_ends_without_an_answer(run, monkeypatch, tmp_path, text, limit, line):
    monkeypatch.setattr(sys, "executable", str(Program(tmp_path, text).path))
    monkeypatch.setattr(check_gpu, "LEAST", 0.0)
    monkeypatch.setattr(check_gpu, "BITS", 1.0)
    monkeypatch.setattr(check_gpu, "RESERVE", 0.0)
    code, lines = run("--claim", "training works", "--limit", limit)
    assert (code, lines[1]) == (1, line)


def test_a_signal_ends_the_processes_and_is_told(run, monkeypatch, tmp_path):
    started, mark = tmp_path / "started", tmp_path.name
    sleeping = f"sleep 300 & touch {started}; wait"
    monkeypatch.setattr(sys, "executable", str(Program(tmp_path, sleeping).path))
    monkeypatch.setenv("RESVAR_TEST_MARK", mark)

    def interrupt():
        if wait_for(started.exists):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    code, lines = run("--claim", "training works", "--claim", "capturing is faster")
    thread.join()
    assert code == 1
    assert lines[1:3] == [
        "not checked  training works: stopped",
        "not checked  capturing is faster: no time was left",
    ]
    assert wait_for(lambda: not everyone(mark))
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("case")  # which resets torch
def test_in_the_process_of_a_claim(monkeypatch, tmp_path):
    def broken(_case):
        raise RuntimeError("no\nsuch kernel")

    options = argparse.Namespace(
        depth=110, small=8, device=CPU, set=SMALL, found=tmp_path / "found.json"
    )
    assert check_gpu.here("repeats bit for bit", options) == 0
    assert json.loads(options.found.read_text())["verdict"] == "holds"
    monkeypatch.setitem(check_gpu.CLAIMS, "training works", check_gpu.Claim(broken))
    assert check_gpu.here("training works", options) == 0
    found = Finding(**json.loads(options.found.read_text()))
    assert (found.verdict, found.evidence) == ("FAILS", "RuntimeError: no")


@pytest.mark.usefixtures("case")
def test_a_run_that_diverges_fails_its_claim(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_claims, "losses", lambda _trainer, updates: updates * [math.nan])
    options = argparse.Namespace(depth=8, small=8, device=CPU, set=SMALL, found=tmp_path / "found")
    assert check_gpu.here("training works", options) == 0
    found = Finding(**json.loads(options.found.read_text()))
    assert (found.verdict, found.evidence) == ("FAILS", "loss nan → nan")
    assert found.figures == {"first_loss": None, "last_loss": None}


@pytest.mark.usefixtures("canned")
def test_a_processor_leaves_out_what_only_a_gpu_can_do(run):
    code, lines = run("--device", "cpu", "--claim", "waits for nothing")
    assert (code, lines[1]) == (1, "not checked  waits for nothing: it needs a GPU")


# --- the machine ----------------------------------------------------------------------------------


def test_the_version_of_the_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(check_gpu, "DRIVER", tmp_path / "version")
    assert check_gpu.driver_version() is None
    check_gpu.DRIVER.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
    )
    assert check_gpu.driver_version() == "575.57.08"


@pytest.fixture
def control(monkeypatch, tmp_path):
    """A program that behaves like nvidia-cuda-mps-control: a daemon is a file in its folder."""
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'alive="${CUDA_MPS_PIPE_DIRECTORY:-' + str(tmp_path) + '}/alive"\n'
        'if [ "$1" = -d ]; then touch "$alive"; exit; fi\n'
        '[ -e "$alive" ] || exit 1\n'
        'read command; [ "$command" = quit ] && rm "$alive"\n'
        "exit 0\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return tmp_path / "alive"


@pytest.mark.usefixtures("control")
def test_the_service_is_started_and_ended():
    with check_gpu.service(True) as variables:
        folder = Path(variables["CUDA_MPS_PIPE_DIRECTORY"])
        assert (folder / "alive").exists()
        environment = {**os.environ, **variables}
        asked = [sys.executable, "-c", "import gpu_figures; print(gpu_figures.service_advice())"]
        found = subprocess.run(
            asked, env=environment, cwd=SCRIPT.parent, capture_output=True, encoding="utf-8"
        )
        assert found.stdout == "None\n", found.stderr
    assert not folder.exists()


def test_a_service_that_is_alive_is_left_alone(control):
    control.touch()
    with check_gpu.service(True) as variables:
        assert variables == {}
    assert control.exists()


@pytest.mark.usefixtures("control")
def test_the_service_is_not_started_where_it_is_not_needed(monkeypatch):
    with check_gpu.service(False) as variables:
        assert variables == {}
    monkeypatch.setenv("PATH", "")
    with check_gpu.service(True) as variables:
        assert variables == {}


def test_the_page_names_the_figures_that_are_wanted():
    page = (ROOT / "docs" / "performance-history.md").read_text("utf-8")
    wanted = page.partition("**Wanted**")[2].partition("\n## ")[0]
    limits = [
        gpu_figures.sign_and_limit(*one)
        for claim in check_gpu.OF_TIME.values()
        for one in getattr(claim.check, "keywords", {}).get("wanted", {}).values()
    ]
    assert len(limits) == 5
    assert [limit for limit in limits if f" {limit} |" not in wanted] == []
