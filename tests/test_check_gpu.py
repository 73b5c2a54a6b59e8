"""scripts/check_gpu.py without a GPU: its session, its processes and its record."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import check_gpu
import gpu_claims
import gpu_figures
import pytest
import torch
from gpu_claims import Finding

from tests.support.commands import ROOT, everyone, wait_for
from tests.test_gpu_claims import SMALL
from tests.test_gpu_figures import H100

SCRIPT = ROOT / "scripts" / "check_gpu.py"
CPU = torch.device("cpu")


# --- the session ----------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_one_sentence():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("There is no GPU that torch can use, so nothing was checked.\n")


@pytest.mark.slow
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
def reset_torch():
    yield
    torch.use_deterministic_algorithms(False)


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
        self.path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        self.path.chmod(0o755)


@pytest.mark.heavy
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


@pytest.mark.heavy
def test_an_answer_counts_although_its_process_does_not_end(run, monkeypatch, tmp_path):
    text = """for file; do :; done
    printf '{"verdict": "holds", "evidence": "found"}' > "$file.new"
    mv "$file.new" "$file"
    sleep 60"""
    monkeypatch.setattr(sys, "executable", str(Program(tmp_path, text).path))
    monkeypatch.setattr(check_gpu, "LEAST", 0.0)
    monkeypatch.setattr(check_gpu, "BITS", 1.0)
    monkeypatch.setattr(check_gpu, "RESERVE", 0.0)
    code, lines = run("--claim", "training works", "--limit", 5.0)
    assert (code, lines[1]) == (0, "holds        training works: found")


def test_a_process_that_starts_during_a_stop_ends_too(run, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(Program(tmp_path, "sleep 300").path))
    start = subprocess.Popen

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        process = start(*args, **options)
        wait_for(lambda: False, 0.2)  # the handler runs
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    code, lines = run("--claim", "capturing is faster", "--limit", 100.0)
    assert (code, lines[1]) == (1, "not checked  capturing is faster: stopped")


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


@pytest.mark.heavy
@pytest.mark.usefixtures("reset_torch")
def test_in_the_process_of_a_claim(monkeypatch, tmp_path):
    def broken(_case):
        raise RuntimeError("no\nsuch kernel")

    options = argparse.Namespace(
        depth=110, small=8, device=CPU, set=SMALL, found=tmp_path / "found.json"
    )
    assert check_gpu.here("repeats bit for bit", options) == 0
    assert json.loads(options.found.read_text(encoding="utf-8"))["verdict"] == "holds"
    monkeypatch.setitem(check_gpu.CLAIMS, "training works", check_gpu.Claim(broken))
    assert check_gpu.here("training works", options) == 0
    found = Finding(**json.loads(options.found.read_text(encoding="utf-8")))
    assert (found.verdict, found.evidence) == ("FAILS", "RuntimeError: no")


@pytest.mark.usefixtures("reset_torch")
def test_a_run_that_diverges_fails_its_claim(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_claims, "losses", lambda _trainer, updates: updates * [math.nan])
    options = argparse.Namespace(depth=8, small=8, device=CPU, set=SMALL, found=tmp_path / "found")
    assert check_gpu.here("training works", options) == 0
    found = Finding(**json.loads(options.found.read_text(encoding="utf-8")))
    assert (found.verdict, found.evidence) == ("FAILS", "loss nan → nan")
    assert found.figures == {"first_loss": None, "last_loss": None}


@pytest.mark.usefixtures("canned")
def test_a_processor_leaves_out_what_only_a_gpu_can_do(run):
    code, lines = run("--device", "cpu", "--claim", "waits for nothing")
    assert (code, lines[1]) == (1, "not checked  waits for nothing: it needs a GPU")


# --- the machine ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("canned")
@pytest.mark.parametrize("broken", [ImportError, OSError, AttributeError])
def test_without_a_usable_triton_the_other_claims_are_checked(run, monkeypatch, broken):
    def version():
        raise broken

    monkeypatch.setattr(check_gpu, "triton_version", version)
    code, lines = run("--claim", "training works")
    assert code == 0
    assert ", Triton None," in lines[0]


def test_the_version_of_the_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(check_gpu, "DRIVER", tmp_path / "version")
    assert check_gpu.driver_version() is None
    check_gpu.DRIVER.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n",
        encoding="utf-8",
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
        "exit 0\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return tmp_path / "alive"


@pytest.mark.heavy
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
