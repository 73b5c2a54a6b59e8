"""Sweeps in folders that others have used, and runs that end in unusual ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from resvar.cli import run_command
from resvar.config import resolve
from resvar.errors import RunError, UserError
from resvar.files import write_json
from resvar.rundir import RESULT, read_settings, write_settings
from resvar.settings import differences
from resvar.sweeps import measure as measure_module
from resvar.sweeps import processes as processes_module
from resvar.sweeps.estimate import measured_throughput
from resvar.sweeps.grid import PlannedRun, plan_sweep
from resvar.sweeps.local import LocalSweep
from resvar.sweeps.processes import RunProcess, RunStatus, ending_of, import_path, start
from resvar.sweeps.slots import Slot
from tests.reports.runs import make_result
from tests.support.commands import ROOT, TINY, UNMEASURED, contents, sets, wait_for

NAMES = {"variants": "original", "depths": "8", "seeds": "4"}
SETS = (*TINY, "precision=fp32")
SWEEP = ("sweep", "--variants", "original", "--depths", "8", "--device", "cpu", *sets(*SETS))
ONE = Slot("cpu 0", 1, "cpu")
CELL = (
    "runs" / resolve(options={"variant": "original", "depth": 8}, overrides=SETS).directory.parent
)


def planned(root: Path, number: int = 0) -> PlannedRun:
    return plan_sweep(None, NAMES, SETS, root).runs[number]


def finish(run: PlannedRun) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_settings(run.folder, run.settings)
    write_json(run.folder / RESULT, make_result(run.settings, 50.0))


# --- folders that cannot be used ------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path, monkeypatch) -> Path:
    """The folder of four seeds: a finished run, a folder for a log, a file, an empty result."""
    monkeypatch.chdir(tmp_path)
    finish(planned(Path("runs")))
    (CELL / "seed-1" / "log.txt").mkdir(parents=True)
    (CELL / "seed-2").touch()
    finish(planned(Path("runs"), 3))
    (CELL / "seed-3" / "result.json").write_text("{}", encoding="utf-8")
    return tmp_path


REASONS = {
    1: "log.txt: this is not a file; remove or rename it.",
    2: "this folder cannot be used (Not a directory).",
    3: "result.json: 'variant' is missing.",
}


@pytest.mark.parametrize("more", [["--dry-run"], ["--launcher", "slurm", "--dry-run"]])
def test_a_dry_run_names_unusable_folders_and_shows_the_other_runs(spoilt, capsys, more):
    before = contents(spoilt)
    assert run_command([*SWEEP, "--seeds", "5", *more]) == 0
    out = capsys.readouterr().out
    assert "5 runs in runs, 1 of them finished already, 3 unusable." in out
    for seed, reason in REASONS.items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"# {CELL}/seed-{seed} "))
        assert "cannot be used: " in line
        assert line.endswith(reason)
    assert out.count("resvar train --variant original") == 1
    assert contents(spoilt) == before


def test_unusable_folders_are_failed_runs_and_the_others_are_trained(resvar, spoilt):
    done = resvar.run(*SWEEP, "--seeds", "5", *UNMEASURED, cwd=spoilt)
    assert done.code == 1, done
    assert "3 runs failed, 2 finished; rerun the command to retry what failed." in done.err
    assert "Traceback" not in done.err
    for seed, reason in REASONS.items():
        assert f"{CELL}/seed-{seed} failed: " in done.out
        assert reason in done.out
    assert (spoilt / CELL / "seed-4" / "result.json").exists()
    assert (spoilt / CELL / "seed-3" / "result.json").read_text(encoding="utf-8") == "{}", (
        "it is kept"
    )


# --- runs that end without a result ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit 0, but it left no result"),
        (2, "exit 2"),
        (-signal.SIGKILL, "killed by SIGKILL, often for lack of memory"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-signal.SIGBUS, "killed by SIGBUS"),
        (-signal.SIGABRT, "killed by SIGABRT"),
        (-63, "killed by signal 63"),
    ],
)
def test_how_a_process_ended_is_said(code, words):
    assert ending_of(code) == words


def ended(run: PlannedRun, code: int) -> RunProcess:
    handle = cast(Any, SimpleNamespace(returncode=code))
    return RunProcess(run, ONE, handle, printed_before=0)


def test_exit_0_without_a_result_is_a_failure(tmp_path):
    run = planned(tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "log.txt").write_text("hello from another program\n", encoding="utf-8")
    status, failure = ended(run, 0).ending(stopping=False)
    assert status is RunStatus.FAILED
    assert str(failure) == "failed (exit 0, but it left no result)"
    assert failure.log == ("hello from another program",)


@pytest.mark.parametrize("text", ["", "{}", '{"test_error": 6.1}'])
def test_exit_0_with_a_damaged_result_is_a_failure(tmp_path, text):
    run = planned(tmp_path)
    finish(run)
    (run.folder / RESULT).write_text(text, encoding="utf-8")
    status, failure = ended(run, 0).ending(stopping=False)
    assert status is RunStatus.FAILED
    assert "result.json" in failure.reason
    finish(run)
    assert ended(run, 0).ending(stopping=False) == (RunStatus.FINISHED, None)


def test_a_run_that_stops_before_its_sweep_has_heard_is_stopped(tmp_path):
    """Slurm, and a system that shuts down, signal both in any order."""
    run = planned(tmp_path)
    run.folder.mkdir(parents=True)
    asked: list[int] = []

    class Later:
        def __bool__(self) -> bool:
            asked.append(1)
            return len(asked) > 3

    assert ended(run, 130).ending(stopping=Later()) == (RunStatus.STOPPED, None)


def test_a_run_that_somebody_stops_alone_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(processes_module, "TOGETHER", 0.1)
    run = planned(tmp_path)
    run.folder.mkdir(parents=True)
    assert ended(run, 130).ending(stopping=False)[0] is RunStatus.FAILED


@pytest.mark.parametrize("link", [True, False])
def test_a_link_that_leads_nowhere_and_a_pipe_for_the_log_are_failed_starts(tmp_path, link):
    run = planned(tmp_path)
    run.folder.mkdir(parents=True)
    if link:
        (run.folder / "log.txt").symlink_to(tmp_path / "victim")
    else:
        os.mkfifo(run.folder / "log.txt")
    with pytest.raises(UserError, match=r"log\.txt"):
        start(run, ONE, tmp_path, tmp_path)
    assert not (tmp_path / "victim").exists()


def test_a_killed_run_is_named_with_its_signal_in_list_and_status(resvar, tmp_path):
    fault = {"RESVAR_TEST_KILL": "iteration:5", "RESVAR_TEST_ONLY": "seed-0"}
    sweep = (*SWEEP, "--seeds", "2", "--jobs", "2", *UNMEASURED)
    done = resvar.run(*sweep, cwd=tmp_path, **fault)
    assert done.code == 1, done
    words = "killed by SIGKILL, often for lack of memory"
    assert f"{CELL}/seed-0 failed ({words})" in done.out
    assert (
        words
        in json.loads((tmp_path / CELL / "seed-0" / "failure.json").read_text(encoding="utf-8"))[
            "message"
        ]
    )
    assert (tmp_path / CELL / "seed-1" / "result.json").exists()
    status = resvar.run("status", cwd=tmp_path, COLUMNS="200")
    assert "2 runs: 1 done, 1 failed." in status.out
    assert words in status.out
    again = resvar.run(*sweep, cwd=tmp_path)
    assert again.code == 0, again
    assert not (tmp_path / CELL / "seed-0" / "failure.json").exists()


def test_a_run_killed_before_it_began_is_failed_too(resvar, tmp_path):
    """It has no config.yaml yet, only the list of the sweep and a log."""
    fault = {"RESVAR_TEST_KILL": "before-config.yaml:1", "RESVAR_TEST_ONLY": "train"}
    done = resvar.run(*SWEEP, *UNMEASURED, cwd=tmp_path, **fault)
    assert done.code == 1, done
    status = resvar.run("status", cwd=tmp_path, COLUMNS="200")
    assert "1 run: 1 failed." in status.out, status
    assert "killed by SIGKILL" in status.out


# --- code and settings of the command -------------------------------------------------------------


@pytest.fixture
def as_a_command(resvar, tmp_path, monkeypatch) -> Path:
    """This process starts runs with the tiny dataset, in an empty folder."""
    for name, value in resvar.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.process
def test_nothing_is_imported_from_the_current_folder(as_a_command):
    (as_a_command / "resvar").mkdir()
    for name in ("queue.py", "zipfile.py", "resvar/__init__.py", "resvar/__main__.py"):
        (as_a_command / name).write_text(
            "open('executed', 'w')\nraise SystemExit(0)\n", encoding="utf-8"
        )
    sweep = plan_sweep(None, NAMES | {"seeds": "1"}, SETS, Path("runs"))
    assert measured_throughput(sweep.runs, [ONE]).source.startswith("Measured here on")
    local = LocalSweep(sweep, [ONE], Path(os.environ["RESVAR_DATA"]))
    local.run()
    assert (local.finished, local.failed) == (1, [])
    assert (CELL / "seed-0" / "result.json").exists()
    assert not (as_a_command / "executed").exists()


@pytest.mark.process
def test_files_that_change_after_the_command_change_nothing(as_a_command):
    protocol, variant, file = (as_a_command / name for name in ("p.yaml", "v.yaml", "s.yaml"))
    paper = (ROOT / "configs" / "protocols" / "paper.yaml").read_text(encoding="utf-8")
    protocol.write_text(paper, encoding="utf-8")
    variant.write_text(
        (ROOT / "configs/variants/original.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    file.write_text(
        "variants: [v.yaml]\ndepths: [8]\nprotocol: p.yaml\nseeds: 1\n", encoding="utf-8"
    )
    sweep = plan_sweep(file, {}, SETS, Path("runs"))
    protocol.write_text(paper.replace("momentum: 0.9", "momentum: 0.1"), encoding="utf-8")
    variant.write_text("lead: []\ntrail: [relu, bn]\nafter_add: []\n", encoding="utf-8")
    file.unlink()
    (run,) = sweep.runs
    local = LocalSweep(sweep, [ONE], Path(os.environ["RESVAR_DATA"]))
    local.run()
    assert (local.finished, local.failed) == (1, [])
    found = read_settings(run.folder)
    assert not differences(run.settings, found)
    assert (found.momentum, found.trail) == (0.9, ["bn"])


def test_a_killed_measurement_is_a_sentence(monkeypatch):
    settings = resolve(options={"variant": "original", "depth": 8})
    killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(measure_module, "SAFE_PYTHON", killed)
    with pytest.raises(RunError, match="killed by SIGKILL, often for lack of memory"):
        measure_module.measured_speeds([(settings, False)], ONE)


def test_a_checkout_is_named_to_the_processes_only_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.setenv("PYTHONPATH", "/other")
    assert import_path() == {"PYTHONPATH": os.pathsep.join([str(ROOT), "/other"])}
    monkeypatch.delenv("PYTHONPATH")
    assert import_path() == {"PYTHONPATH": str(ROOT)}
    monkeypatch.setattr(sys, "path", ["/usr/bin", *sys.path])
    assert import_path() == {}


# --- signals --------------------------------------------------------------------------------------


def state(pid: int) -> str:
    """Linux's letter for the state of a process: T is stopped, Z ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_ctrl_z_stops_the_runs_too_and_fg_continues_them(resvar, tmp_path):
    """Killed while it is stopped, the sweep leaves no stopped run behind."""
    environment = resvar.environment(RESVAR_TEST_WAIT="iteration:3", RESVAR_TEST_ONLY="train")
    log, run = tmp_path / CELL / "seed-0" / "log.txt", 0
    # A process group of its own, as a shell gives it: the system lets no other be stopped.
    sweep = subprocess.Popen(
        [sys.executable, "-m", "resvar", *SWEEP, *UNMEASURED], cwd=tmp_path, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip
    try:
        assert wait_for(lambda: log.exists() and "WAITING" in log.read_text(encoding="utf-8"))
        children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
        run = next(
            pid
            for pid in map(int, children.read_text(encoding="utf-8").split())
            if os.getpgid(pid) == pid
        )
        for _ in range(2):
            sweep.send_signal(signal.SIGTSTP)
            assert wait_for(lambda: (state(sweep.pid), state(run)) == ("T", "T"))
            sweep.send_signal(signal.SIGCONT)
            assert wait_for(lambda: "T" not in (state(sweep.pid), state(run)))
        sweep.send_signal(signal.SIGTSTP)
        assert wait_for(lambda: (state(sweep.pid), state(run)) == ("T", "T"))
    finally:
        sweep.kill()
        sweep.wait()
        if not wait_for(lambda: state(run) == "Z", 60):
            os.killpg(run, signal.SIGKILL)
            pytest.fail("the run is stopped for ever")
    assert (tmp_path / CELL / "seed-0" / "checkpoint.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_and_a_batch_system_stop_a_sweep_as_sigterm_does(
    resvar, tmp_path, number
):
    held = {"RESVAR_TEST_WAIT": "iteration:3", "RESVAR_TEST_ONLY": "train"}
    log = tmp_path / CELL / "seed-0" / "log.txt"
    with resvar.started(*SWEEP, *UNMEASURED, cwd=tmp_path, **held) as sweep:
        assert wait_for(lambda: log.exists() and "WAITING" in log.read_text(encoding="utf-8"))
        sweep.send(number)
        stopped = sweep.end()
    assert stopped.code == 130, stopped
    assert "FAILED" not in stopped.out
    assert "1 with a checkpoint; rerun the command to resume it" in stopped.err
    assert (tmp_path / CELL / "seed-0" / "checkpoint.pt").exists()
