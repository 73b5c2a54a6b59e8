"""`resvar sweep` as a process, with the runs that it starts."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import uuid
from pathlib import Path

import pytest

from resvar.cli import run_command
from resvar.config import resolve
from tests.long.torture.sweeps import torture_sweep
from tests.support.commands import TINY, UNMEASURED, contents, everyone, sets, wait_for
from tests.support.outcome import differing

FOLDERS = tuple(
    "runs"
    / resolve(
        options={"variant": variant, "depth": 8, "seed": seed}, overrides=[*TINY, "precision=fp32"]
    ).directory
    for seed in (0, 1)
    for variant in ("original", "full-preact")
)
SWEEP = (
    "sweep", "--variants", "original,full-preact", "--depths", "8", "--jobs", "2",
    "--device", "cpu", *sets(*TINY, "precision=fp32"), "--seeds", "2",
)  # fmt: skip
ONE_SEED = (*SWEEP[:-1], "1")
NEED_PROC = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture(scope="module")
def undisturbed(resvar, tmp_path_factory):
    """The folder of a sweep that nobody disturbed, and what the sweep printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = resvar.run(*SWEEP, cwd=folder)
    assert done.code == 0, done
    return folder, done.out


def processes(mark: str) -> list[int]:
    """The living `resvar train` among them; not a short-lived git."""
    return [pid for pid, command in everyone(mark).items() if "train" in command]


def has_loaded_torch(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    return False


def finish(resvar, folder: Path, sweep=SWEEP) -> str:
    done = resvar.run(*sweep, *UNMEASURED, cwd=folder)
    assert done.code == 0, done
    return done.out


def compare(folder: Path, undisturbed, runs=FOLDERS) -> None:
    for run in runs:
        assert not differing(folder / run, undisturbed[0] / run), run


# --- undisturbed ----------------------------------------------------------------------------------


def test_a_sweep_finishes_all_of_its_runs(undisturbed):
    folder, out = undisturbed
    for run in FOLDERS:
        assert (folder / run / "result.json").exists()
        assert "Finished" in (folder / run / "log.txt").read_text(encoding="utf-8")
    assert "4 to do, 2 at a time (1 thread each)" in out
    assert out.count("finished: test error") == 4
    assert "All 4 runs are finished. Next: resvar report runs" in out


def test_typed_again_it_skips_all_and_starts_nothing(resvar, undisturbed):
    folder, _ = undisturbed
    before = contents(folder)
    out = finish(resvar, folder)
    assert "4 runs in runs, 4 of them finished already" in out
    assert "started" not in out
    assert contents(folder) == before


def test_a_run_of_a_sweep_is_that_of_resvar_train(warm, undisturbed, tmp_path):
    done = warm.run(
        "train", "--variant", "original", "--depth", "8", "--seed", "1", "--device", "cpu",
        *sets(*TINY, "precision=fp32"), cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done
    run = FOLDERS[2]
    assert not differing(tmp_path / run, undisturbed[0] / run)


def test_status_and_report_read_what_it_left(undisturbed, monkeypatch, capsys):
    monkeypatch.chdir(undisturbed[0])
    assert run_command(["status"]) == 0
    assert "4 runs: 4 done" in capsys.readouterr().out
    assert run_command(["report", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert run_command(["report"]) == 0
    assert "full-preact" in capsys.readouterr().out


# --- accidents ------------------------------------------------------------------------------------


def test_one_that_fails_is_reported_and_the_others_go_on(resvar, undisturbed, tmp_path):
    bad = f"--out {FOLDERS[0]}"
    fault = {"RESVAR_TEST_FAIL": "iteration:5", "RESVAR_TEST_ONLY": bad}
    failed = resvar.run(*SWEEP, *UNMEASURED, cwd=tmp_path, **fault)
    assert failed.code == 1
    assert "Traceback" not in failed.err
    assert "1 run failed, 3 finished; rerun the command to retry what failed." in failed.err
    assert failed.err.startswith("resvar: error: ")
    assert f"{FOLDERS[0]} failed (exit 1):" in failed.out
    assert "No space left on device" in failed.out, "the end of its log is shown"
    finished = [(tmp_path / run / "result.json").exists() for run in FOLDERS]
    assert finished == [False, True, True, True]
    out = finish(resvar, tmp_path)
    assert "4 runs in runs, 3 of them finished already" in out
    assert out.count("started") == 1
    compare(tmp_path, undisturbed)


@NEED_PROC
def test_stopped_then_killed_then_finished_with_the_same_bits(resvar, undisturbed, tmp_path):
    mark = uuid.uuid4().hex
    held = {"RESVAR_TEST_WAIT": "iteration:3", "RESVAR_TEST_MARK": mark}
    first = FOLDERS[:2]

    def waiting(times: int) -> bool:
        logs = [tmp_path / run / "log.txt" for run in first]
        return all(
            log.exists() and log.read_text(encoding="utf-8").count("WAITING") == times
            for log in logs
        )

    with resvar.started(*ONE_SEED, *UNMEASURED, cwd=tmp_path, **held) as sweep:
        assert wait_for(lambda: waiting(1))
        assert wait_for(lambda: len(processes(mark)) == 2)  # not a short-lived git
        sweep.send(signal.SIGINT)
        stopped = sweep.end()
    assert stopped.code == 130
    assert "Stopping the runs" in stopped.err
    assert "0 of 2 runs finished, 2 with a checkpoint; rerun the command to resume" in stopped.err
    assert "FAILED" not in stopped.out
    assert not processes(mark)
    for run in first:
        assert (tmp_path / run / "checkpoint.pt").exists()
        assert "a checkpoint is saved" in (tmp_path / run / "log.txt").read_text(encoding="utf-8")

    with resvar.started(*ONE_SEED, *UNMEASURED, cwd=tmp_path, **held) as sweep:
        assert wait_for(lambda: waiting(2))
        assert wait_for(lambda: len(processes(mark)) == 2)
        sweep.send(signal.SIGKILL)
        assert sweep.end().code == -signal.SIGKILL
    assert wait_for(lambda: not processes(mark)), "they notice that the sweep is gone"
    for run in first:
        assert not (tmp_path / run / "result.json").exists()

    finish(resvar, tmp_path, ONE_SEED)
    compare(tmp_path, undisturbed, first)


@NEED_PROC
def test_ctrl_c_while_the_runs_still_load(resvar, tmp_path):
    mark = uuid.uuid4().hex
    with resvar.started(*ONE_SEED, *UNMEASURED, cwd=tmp_path, RESVAR_TEST_MARK=mark) as sweep:
        assert wait_for(lambda: (tmp_path / FOLDERS[1] / "log.txt").exists())
        assert wait_for(lambda: len(processes(mark)) == 2)
        sweep.send(signal.SIGINT)
        stopped = sweep.end()
    assert stopped.code == 130
    assert "FAILED" not in stopped.out
    assert not processes(mark)


@NEED_PROC
def test_a_sweep_killed_while_it_measures_leaves_no_process(resvar, tmp_path):
    mark = uuid.uuid4().hex
    with resvar.started(*SWEEP, cwd=tmp_path, RESVAR_TEST_MARK=mark) as sweep:
        assert wait_for(lambda: "Measuring" in sweep.out)
        assert wait_for(lambda: any(map(has_loaded_torch, set(everyone(mark)) - {sweep.pid})))
        sweep.send(signal.SIGKILL)
        sweep.end()
    assert wait_for(lambda: not everyone(mark))


@NEED_PROC
@pytest.mark.slow
def test_a_sweep_killed_again_and_again_ends_with_every_run_once(resvar, tmp_path):
    """At random moments; `python -m tests.long.torture --sweep` does it at length."""
    runs = [run.relative_to("runs") for run in FOLDERS[:2]]
    tally = torture_sweep(resvar, ONE_SEED, runs, tmp_path, kills=3, seed=1)
    print(f"\n{tally.table()}\n{tally.verdict}")
    assert len(tally.kills) == 3
    assert not tally.problems


def test_one_that_diverges_is_a_result_and_is_not_tried_again(resvar, tmp_path):
    sweep = ("sweep", "--variants", "original", "--depths", "8", "--device", "cpu",
             *sets(*TINY, "precision=fp32", "lr=1e30"))  # fmt: skip
    done = resvar.run(*sweep, *UNMEASURED, cwd=tmp_path)
    assert done.code == 0, done
    assert "seed-0 diverged at iteration" in done.out
    assert "All 1 runs are finished; 1 of them diverged" in done.out
    (run,) = (path.parent for path in tmp_path.rglob("config.yaml"))
    assert not (run / "result.json").exists()
    iteration = json.loads((run / "diverged.json").read_text(encoding="utf-8"))["iteration"]
    before = contents(run)
    again = resvar.run(*sweep, *UNMEASURED, cwd=tmp_path)
    assert again.code == 0
    assert "0 of them finished already, 1 diverged" in again.out
    assert "started" not in again.out
    assert contents(run) == before
    report = resvar.run("report", "--full", cwd=tmp_path)
    assert f"diverged at iteration {iteration}" in report.out


def test_two_sweeps_share_the_work_and_do_no_run_twice(resvar, undisturbed, tmp_path):
    with (
        resvar.started(*ONE_SEED, *UNMEASURED, cwd=tmp_path) as one,
        resvar.started(*ONE_SEED, *UNMEASURED, cwd=tmp_path) as two,
    ):
        ends = [one.end(), two.end()]
    for end in ends:
        assert end.code == 0, end
        assert "All 2 runs are finished" in end.out
        assert "FAILED" not in end.out
    for run in FOLDERS[:2]:
        log = (tmp_path / run / "log.txt").read_text(encoding="utf-8")
        assert log.count("Finished") == 1, log
        assert "going on" not in log
    compare(tmp_path, undisturbed, FOLDERS[:2])


# --- nothing is started ---------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch, tiny_data) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESVAR_DATA", str(tiny_data))
    return tmp_path


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(work, capsys):
    assert run_command([*SWEEP, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 runs in runs, 0 of them finished already" in out
    commands = [line for line in out.splitlines() if line.startswith("resvar train ")]
    assert len(commands) == 4
    assert "--variant original --depth 8" in commands[0]
    assert f"--out {work / FOLDERS[0]}" in commands[0]
    assert not list(work.iterdir())


def test_missing_data_are_noticed_before_anything_is_written(work, capsys):
    assert run_command([*SWEEP, "--data", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("resvar: error: nowhere/cifar-10-batches-py")
    assert len(err.splitlines()) == 1
    assert "resvar data" in err, "the mend is named"
    assert not list(work.iterdir())


def test_a_folder_with_a_run_of_other_settings_is_noticed_first(work, capsys):
    folder = work / FOLDERS[3]
    folder.mkdir(parents=True)
    other = resolve(None, {"variant": "full-preact", "depth": 8, "seed": 1}, [*TINY, "lr=0.9"])
    (folder / "config.yaml").write_text(other.to_yaml(), encoding="utf-8")
    before = contents(work)
    assert run_command([*SWEEP, "--data", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert "lr: 0.9 → 0.05" in err
    assert str(FOLDERS[3]) in err
    assert contents(work) == before


def test_an_impossible_sweep_in_the_environment_is_a_sentence(work, monkeypatch, capsys):
    monkeypatch.setenv("RESVAR_SWEEP_PID", "abc")
    assert run_command([*SWEEP]) == 2
    err = capsys.readouterr().err
    assert "RESVAR_SWEEP_PID is 'abc'" in err
    assert len(err.splitlines()) == 1
    assert not list(work.iterdir())
