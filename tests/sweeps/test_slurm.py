"""`resvar sweep --launcher slurm` with programs that stand in for Slurm's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resvar.cli import run_command
from resvar.config import resolve
from resvar.sweeps import task
from resvar.sweeps.grid import plan_sweep
from resvar.sweeps.submission import (
    Plan,
    create_submission,
    latest_tasks,
    read_plan,
    read_submission,
)
from tests.slurm.fake import calls, fake, line
from tests.support.commands import TINY, sets, train
from tests.support.tiny import install, make_cifar

SWEEP = (
    "sweep", "--variants", "original,full-preact", "--depths", "8", "--seeds", "2", *sets(*TINY),
    "--launcher", "slurm",
)  # fmt: skip


CHANGES = resolve(None, {"variant": "original", "depth": 8}, TINY).directory.parent.name


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return folder, make_cifar(folder)


@pytest.fixture
def work(tmp_path, monkeypatch, dataset) -> Path:
    """An empty folder; first on the PATH is one beside it, with programs that stand in."""
    folder, tiny = dataset
    install(tiny, monkeypatch)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("RESVAR_DATA", str(folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    fake(tmp_path / "bin", "sbatch", "Submitted batch job 7\n")
    fake(tmp_path / "bin", "squeue")
    fake(tmp_path / "bin", "scontrol", "MaxArraySize            = 1001\n")
    return tmp_path / "work"


@pytest.fixture
def programs(tmp_path) -> Path:
    return tmp_path / "bin"


def record(work: Path) -> Path:
    (folder,) = work.glob("runs/.slurm/*/")
    return folder


# --- the batch script -----------------------------------------------------------------------------


def script(capsys, *more: str) -> dict[str, str]:
    """The options in the script of a dry run; the command under `srun`."""
    assert run_command([*SWEEP, "--dry-run", *more]) == 0
    out = capsys.readouterr().out
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", out, re.MULTILINE))
    (options["srun"],) = re.findall(r"^srun .*$", out, re.MULTILINE)
    return options | {"all": out}


def test_a_dry_run_shows_the_script_and_the_runs_and_writes_nothing(work, programs, capsys):
    options = script(capsys)
    assert options["array"] == "0-3%4"
    assert options["gpus-per-node"] == "1"
    assert options["cpus-per-task"] == "1"
    assert options["signal"] == "USR2@120"
    assert "requeue" in options
    assert "time" not in options, "the partition decides"
    assert "partition" not in options
    assert "wckey" not in options
    assert options["srun"].split()[-4:-1] == ["-u", "-m", "resvar.sweeps.task"]
    assert sys.executable in options["srun"]
    assert options["open-mode"] == "append"
    assert options["nodes"] == "1"
    assert options["output"] in options["srun"], "one file for the output of both"
    assert "error" not in options
    assert options["all"].count("resvar train --variant") == 4
    assert "  task 3: resvar train --variant full-preact --depth 8" in options["all"]
    assert not calls(programs, "sbatch")
    assert not list(work.iterdir())


def test_a_dry_run_needs_no_slurm(work, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert script(capsys)["array"] == "0-3%4"
    assert not list(work.iterdir())


def test_runs_are_packed_and_options_find_their_way(work, capsys):
    (work / "mine.yaml").write_text("setup: [module load cuda]\nqos: low\n", encoding="utf-8")
    options = script(
        capsys, "--per-gpu", "3", "--jobs", "4", "--partition", "gpu", "--account", "lab",
        "--time", "12:00:00", "--sbatch", "constraint=a100", "--sbatch", "exclusive",
        "--launcher-config", "mine.yaml",
    )  # fmt: skip
    assert options["array"] == "0-1%2", "4 runs at a time are in 2 tasks of up to 3"
    assert options["cpus-per-task"] == "3"
    assert "--cpus-per-task 3" in options["srun"]
    wanted = {"partition": "gpu", "account": "lab", "time": "12:00:00", "constraint": "a100",
              "exclusive": "", "qos": "low"}  # fmt: skip
    assert wanted.items() <= options.items()
    assert "\nmodule load cuda\n" in options["all"]
    assert options["all"].count("task 0: ") == 3
    assert options["all"].count("task 1: ") == 1


def test_on_the_processor_no_gpu_is_asked_for(work, capsys):
    assert "gpus-per-node" not in script(capsys, "--device", "cpu")
    assert not list(work.iterdir())


# --- submitting -----------------------------------------------------------------------------------


def test_the_record_says_which_runs_each_task_has(work, programs, capsys):
    assert run_command([*SWEEP, "--per-gpu", "2"]) == 0
    assert "Submitted 4 runs as job 7: an array of 2 tasks." in capsys.readouterr().out
    assert len(calls(programs, "sbatch")) == 1
    submission = read_submission(record(work))
    assert submission.job == "7"
    assert [len(runs) for runs in submission.tasks] == [2, 2]
    assert submission.tasks[0][0] == f"paper/original-8/{CHANGES}/seed-0"
    plan = read_plan(record(work))
    assert (plan.threads, plan.device) == (1, "cuda"), "a task that has a GPU does not do without"
    assert plan.root == work / "runs"
    config = work / "config.yaml"
    config.write_text(plan.settings[f"paper/original-8/{CHANGES}/seed-0"], encoding="utf-8")
    wanted = resolve(None, {"variant": "original", "depth": 8, "seed": 0}, TINY)
    assert resolve(config) == wanted
    assert json.loads((record(work) / "submission.json").read_text(encoding="utf-8"))["format"] == 1
    assert len(list(work.glob("runs/sweep-paper-*.sweep.json"))) == 1


def test_typed_again_it_submits_only_what_slurm_has_not(work, programs, capsys):
    assert run_command([*SWEEP]) == 0
    name = record(work).name
    lines = line(name, 0, "PENDING") + line(name, 1, "RUNNING") + line(name, 2, "FAILED")
    fake(programs, "squeue", lines)
    capsys.readouterr()
    assert run_command([*SWEEP]) == 0
    out = capsys.readouterr().out
    assert "4 runs in runs, 0 of them finished already, 2 with Slurm." in out
    assert "Submitted 2 runs" in out
    newest = max(work.glob("runs/.slurm/*/"), key=lambda folder: folder.stat().st_mtime_ns)
    assert read_submission(newest).tasks == (
        (f"paper/original-8/{CHANGES}/seed-1",), (f"paper/full-preact-8/{CHANGES}/seed-1",),
    )  # fmt: skip


def test_more_runs_than_an_array_takes_become_several(work, programs, capsys):
    fake(programs, "scontrol", "MaxArraySize            = 3\n")
    assert run_command([*SWEEP, "--jobs", "4"]) == 0
    assert capsys.readouterr().out.count("Submitted") == 2
    scripts = [
        path.read_text(encoding="utf-8") for path in work.glob("runs/.slurm/*/7_submission.sh")
    ]
    arrays = sorted(re.findall(r"--array=(\S+)", "".join(scripts)))
    assert arrays == ["0-0%1", "0-2%2"], "they share the number of tasks at work"


def test_when_slurm_does_not_answer_nothing_is_submitted_twice(work, programs, capsys):
    assert run_command([*SWEEP]) == 0
    fake(programs, "squeue", code=1, complains="squeue: error: Unable to contact controller\n")
    assert run_command([*SWEEP]) == 1
    err = capsys.readouterr().err
    assert "squeue fails: Unable to contact controller, so which runs are queued" in err
    assert len(calls(programs, "sbatch")) == 1
    assert read_submission(record(work)).job == "7"


@pytest.mark.parametrize(
    ("complains", "code", "said"),
    [
        ("sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission "
         "failed: Invalid partition name specified\n", 2,
         "sbatch refuses the job: invalid partition specified: x; Batch job submission failed: "
         "Invalid partition name specified.\n"),
        ("sbatch: error: Invalid generic resource (gres) specification\n", 2, "--device cpu"),
        ("sbatch: error: Unable to contact slurm controller (connect failure)\n", 1,
         "sbatch could not reach Slurm"),
    ],
)  # fmt: skip
def test_what_sbatch_says_against_it(work, programs, capsys, complains, code, said):
    fake(programs, "sbatch", code=1, complains=complains)
    assert run_command([*SWEEP]) == code
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    left = list(work.glob("runs/.slurm/*/"))
    assert len(left) == (code == 1), "where the job may be there, its record stays"


def test_without_sbatch_one_sentence(work, programs, capsys, monkeypatch):
    (programs / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(programs))
    assert run_command([*SWEEP]) == 2
    assert "needs sbatch, which is not on this machine's PATH" in capsys.readouterr().err
    assert not list(work.iterdir())


def test_an_answer_of_sbatch_that_names_no_job_leaves_the_record(work, programs, capsys):
    fake(programs, "sbatch", "Welcome to the cluster!\n")
    assert run_command([*SWEEP]) == 1
    assert "answer is not understood ('Welcome to the cluster!')" in capsys.readouterr().err
    assert read_submission(record(work)).job is None


def test_missing_data_are_noticed_before_anything_is_written(work, programs, capsys):
    assert run_command([*SWEEP, "--data", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not list(work.iterdir())
    assert not calls(programs, "sbatch")


def test_options_of_slurm_are_refused_on_this_machine(capsys):
    assert run_command([*SWEEP[:-1], "local", "--partition", "gpu"]) == 2
    assert "--partition is for Slurm" in capsys.readouterr().err


# --- in a task ------------------------------------------------------------------------------------


def test_a_run_of_a_sweep_that_is_asked_twice_still_saves(resvar, tmp_path):
    """Slurm tells the run and the task, and the task tells the run; a person means it by then."""
    sweep = {"RESVAR_SWEEP_PID": str(os.getpid()), "RESVAR_TEST_SLOW": "1"}
    with resvar.started(*train("--out", "run"), cwd=tmp_path, **sweep) as job:
        job.read_until("goes to")
        for _ in range(3):
            job.send(signal.SIGTERM)
            time.sleep(0.1)
        stopped = job.end()
    assert stopped.code == 130
    assert "a checkpoint is saved" in stopped.err
    assert "once more" not in stopped.err


@pytest.mark.heavy
def test_what_a_task_starts_does_not_hear_what_slurm_sends_to_all():
    with task.block_usr2():
        child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGUSR2)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.kill()
    child.wait()
    with task.received_signals() as asked:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert asked == [signal.SIGUSR2], "its own ears are open again"


SHOWN = "   JobState={} Reason={} Dependency=(null)\n   PreemptEligibleTime=x PreemptTime={}\n"
USR2, TERM = signal.SIGUSR2, signal.SIGTERM


@pytest.mark.parametrize(
    ("asked", "shown", "wanted"),
    [
        ([USR2], None, True),  # no question is needed
        ([TERM], None, True),  # Slurm does not answer
        ([TERM], ("COMPLETING", "None", "None"), False),  # scancel
        ([TERM], ("RUNNING", "None", "2026-01-01T00:00:00"), True),  # preempted, in its grace
        ([USR2, TERM], ("COMPLETING", "TimeLimit", "None"), True),  # the limit was quicker
        ([USR2, TERM], ("COMPLETING", "None", "None"), False),  # scancel while it saved
        ([USR2, TERM], ("RUNNING", "None", "None"), True),
    ],
)
def test_signals_that_mean_a_requeue(programs, monkeypatch, asked, shown, wanted):
    monkeypatch.setenv("PATH", f"{programs}:/bin")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    fake(programs, "scontrol", SHOWN.format(*shown) if shown else "", code=int(shown is None))
    assert task.wants_requeue(asked) is wanted


def test_a_task_that_never_comes_to_train_gives_up(work, programs, monkeypatch, capsys):
    """Told to stop each time before it has begun: signal_delay may be all of the limit."""
    assert run_command([*SWEEP, "--per-gpu", "4"]) == 0
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    made = task.Task(read_submission(record(work)), 0, work)
    fake(programs, "scontrol")
    codes = [made.work([USR2]) for _ in range(task.FUTILE_REQUEUES)]
    assert codes == [0] * (task.FUTILE_REQUEUES - 1) + [1]
    assert calls(programs, "scontrol").count("requeue 12_3") == task.FUTILE_REQUEUES - 1
    capsys.readouterr()
    assert run_command(["status"]) == 0
    out = capsys.readouterr().out
    assert "4 runs: 4 failed." in out
    assert out.count("told to stop 10 times before it had trained") == 1, (
        "equal reasons are shown once"
    )


def test_a_requeue_that_slurm_refuses(programs, monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{programs}:/bin")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setattr("time.sleep", lambda _: None)
    fake(programs, "scontrol", code=1, complains="Requested operation is presently disabled\n")
    assert not task.requeue()
    assert calls(programs, "scontrol") == ["requeue 12_3"] * 3
    assert "presently disabled" in capsys.readouterr().out


def test_of_submissions_within_a_second_the_last_one_counts(tmp_path):
    names = {"variants": "original", "depths": "8", "seeds": "1"}
    (run,) = plan_sweep(None, names, (), tmp_path).runs
    for _ in range(20):
        made = create_submission(tmp_path, "sweep", [[run]], Plan(tmp_path, tmp_path, "cpu", 1, {}))
        assert latest_tasks(tmp_path)[run.name][0].folder == made.folder
