"""Sweeps on a real Slurm, disturbed in every way: in the end each run is that of a local sweep."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid
from pathlib import Path

import pytest

from resvar.rundir import is_locked
from tests.slurm.cluster import missing, running_cluster
from tests.support.commands import TINY, everyone, sets, wait_for
from tests.support.outcome import differing
from tests.support.pace import children_seconds, pace
from tests.sweeps.test_sweep import FOLDERS

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=missing())]

SWEEP = (
    "sweep", "--variants", "original,full-preact", "--depths", "8", "--device", "cpu",
    *sets(*TINY, "precision=fp32"), "--launcher", "slurm",
)  # fmt: skip
FOUR, TWO = (*SWEEP, "--seeds", "2"), (*SWEEP, "--seeds", "1")
TELLS = "SlurmctldParameters=preempt_send_user_signal"
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def cluster():
    """A Slurm that passes the signal of a job on when it is preempted."""
    with running_cluster(TELLS) as running:
        yield running


@pytest.fixture(scope="module")
def local(warm, tmp_path_factory):
    """The folder with the same runs, made by `resvar train` on this machine."""
    folder = tmp_path_factory.mktemp("local")
    for run in FOLDERS:
        variant, seed = run.parts[2].removesuffix("-8"), run.name.removeprefix("seed-")
        done = warm.run(
            "train", "--variant", variant, "--depth", "8", "--seed", seed, "--device", "cpu",
            *sets(*TINY, "precision=fp32"), cwd=folder,
        )  # fmt: skip
        assert done.code == 0, done
    return folder


class Sweeper:
    """Types the commands in a folder, against a cluster."""

    def __init__(self, resvar, cluster, folder: Path) -> None:
        self.resvar, self.cluster, self.folder = resvar, cluster, folder

    def __call__(self, *arguments: str, code: int = 0, **more: str) -> str:
        """What a command prints; `more` are environment variables."""
        done = self.resvar.run(*arguments, cwd=self.folder, **self.cluster.environment, **more)
        assert done.code == code, done
        return done.out + done.err

    def status(self) -> str:
        return self("status")

    def wait_for_status(self, words: str) -> str:
        """Wait until the status says something."""
        seen = [""]

        def says() -> bool:
            seen.append(self.status())
            return re.search(words, seen[-1]) is not None

        assert wait_for(says, every=0.5), (seen[-1], self.logs())
        return seen[-1]

    def wait_for_checkpoints(self, runs=FOLDERS[:2]) -> None:
        """Wait until each run is well on its way."""
        files = [self.folder / run / "checkpoint.pt" for run in runs]
        assert wait_for(lambda: all(file.exists() for file in files)), self.logs()

    def log(self, run: Path) -> str:
        return (self.folder / run / "log.txt").read_text(encoding="utf-8")

    def logs(self) -> str:
        """What the tasks printed."""
        return "".join(
            path.read_text(encoding="utf-8") for path in self.folder.glob("runs/.slurm/*/*.out")
        )

    def notes(self) -> list[dict[str, object]]:
        found = sorted(self.folder.glob("runs/.slurm/*/task-*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    def check(self, local: Path, runs=FOLDERS[:2]) -> None:
        """Wait for the end: every run is finished exactly once, with the bits of a local one."""
        self.cluster.empty()
        count = len(runs)
        assert f"{count} run{'s' * (count > 1)}: {count} done." in self.status(), self.logs()
        for run in runs:
            assert not differing(self.folder / run, local / run), run
            assert self.log(run).count("Finished") == 1, self.log(run)
            assert not (self.folder / run / "failure.json").exists()


@pytest.fixture
def sweeper(warm, cluster, tmp_path) -> Sweeper:
    return Sweeper(warm, cluster, tmp_path)


def submitted(out: str) -> int:
    """How many runs a sweep has submitted."""
    return sum(int(count) for count in re.findall(r"Submitted (\d+) run", out))


# --- the submitter goes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_submitter_killed_right_after_submitting(sweeper, local):
    """sbatch has answered; the job's id was not written down."""
    sweeper(*FOUR, code=KILLED, RESVAR_TEST_KILL="before-submission.json:2")
    (record,) = sweeper.folder.glob("runs/.slurm/*/submission.json")
    assert json.loads(record.read_text(encoding="utf-8"))["job"] is None
    assert re.search(r"4 runs: .*(queued|running)", sweeper.status())
    again = sweeper(*FOUR)
    assert "4 with Slurm" in again
    assert not submitted(again)
    sweeper.check(local, FOLDERS)
    again = sweeper(*FOUR)
    assert "4 of them finished already" in again
    assert not submitted(again)
    assert [note["state"] for note in sweeper.notes()] == ["ended"] * 4


def test_the_submitter_killed_right_before_submitting(sweeper):
    sweeper(*TWO, code=KILLED, RESVAR_TEST_KILL="after-submission.json:1")
    assert not sweeper.cluster.jobs()
    status = sweeper.status()
    assert "2 runs: 2 waiting." in status
    assert "not submitted" in status
    out = sweeper(*TWO, "--sbatch", "hold")
    assert "Submitted 2 runs as job" in out
    assert "an array of 2 tasks" in out
    status = sweeper.status()
    assert "2 runs: 2 queued." in status
    assert "JobHeldUser" in status
    sweeper.cluster.ask("scancel", *re.findall(r"scancel (\d+)", out))
    sweeper.cluster.empty()
    status = sweeper.status()
    assert "2 runs: 2 waiting." in status
    assert "cancelled in Slurm's queue" in status


def test_submitting_500_runs_takes_less_than_ten_seconds(resvar, cluster, tmp_path):
    """Of the submitter's processor time, which other work on the machine does not stretch much."""
    sweeper = Sweeper(resvar, cluster, tmp_path)
    before = children_seconds()
    out = sweeper(*SWEEP, "--seeds", "250", "--sbatch", "hold")
    seconds = children_seconds() - before
    assert "Submitted 500 runs as job" in out
    assert "500 runs: 500 queued." in sweeper.status()
    cluster.ask("scancel", *re.findall(r"scancel (\d+)", out))
    cluster.empty()
    assert seconds < 10 * pace()


# --- stopped and requeued -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tells", [True, False], ids=["by its signal", "by SIGTERM"])
def test_preempted_runs_are_requeued_once_and_go_on_elsewhere(
    warm, cluster, tmp_path, local, tells
):
    if tells:
        _preempt(Sweeper(warm, cluster, tmp_path), local)
    else:
        with running_cluster() as silent:
            _preempt(Sweeper(warm, silent, tmp_path), local)


def _preempt(sweeper: Sweeper, local: Path) -> None:
    cluster = sweeper.cluster
    sweeper(*TWO, RESVAR_TEST_SLOW="0.6")
    sweeper.wait_for_checkpoints()
    assert {node for _, _, node in cluster.jobs()} == {"node1"}
    first = cluster.ask(
        "sbatch", "--parsable", "--partition=high", "--nodelist=node1", "--exclusive",
        "--output=/dev/null", "--wrap=sleep 300",
    )  # fmt: skip
    sweeper.wait_for_status(r"\brequeued\b")
    assert wait_for(lambda: [job[0] for job in cluster.jobs()] == [first], every=0.3)
    cluster.ask("scancel", first)
    sweeper.check(local)
    notes = sweeper.notes()
    assert [note["restarts"] for note in notes] == [1, 1], "one owner requeues"
    assert {note["node"] for note in notes} == {"node2"}
    for run in FOLDERS[:2]:
        assert "a checkpoint is saved" in sweeper.log(run)
        assert "resuming from iteration" in sweeper.log(run)


@pytest.mark.slow
def test_a_run_that_meets_its_time_limit_is_requeued_alone_and_goes_on(sweeper, local):
    """Its task is the one whose job id is the array's: `scontrol requeue` of that takes all."""
    (job,) = re.findall(r"scancel (\d+)", sweeper(*TWO, "--time", "30", RESVAR_TEST_SLOW="3"))
    sweeper.wait_for_checkpoints()
    queue = sweeper.cluster.ask("squeue", "--noheader", "--array", "--format", "%i|%A")
    (one,) = (task for task, number in (line.split("|") for line in queue.split()) if number == job)
    sweeper.cluster.ask("scontrol", "update", f"JobId={one}", "TimeLimit=2")  # signal_delay: 120
    status = sweeper.wait_for_status(r"\brequeued\b")
    assert "1 running, 1 requeued" in status
    sweeper.cluster.ask("scontrol", "update", f"JobId={one}", "TimeLimit=30")
    sweeper.check(local)
    index = int(one.partition("_")[2])
    restarts = [note["restarts"] for note in sweeper.notes()]
    assert restarts == [int(number == index) for number in range(2)], sweeper.logs()
    run = FOLDERS[index]
    assert "a checkpoint is saved" in sweeper.log(run)
    assert "resuming from iteration" in sweeper.log(run)


@pytest.mark.slow
def test_scancel_saves_checkpoints_and_the_same_command_goes_on(sweeper, local):
    """With both runs packed in one task."""
    out = sweeper(*TWO, "--per-gpu", "2", RESVAR_TEST_SLOW="0.6")
    assert "Submitted 2 runs" in out
    assert "an array of 1 task." in out
    sweeper.wait_for_checkpoints()
    sweeper.cluster.ask("scancel", *re.findall(r"scancel (\d+)", out))
    sweeper.cluster.empty()
    assert "2 runs: 2 stopped." in sweeper.status()
    for run in FOLDERS[:2]:
        assert "a checkpoint is saved" in sweeper.log(run)
    assert submitted(sweeper(*TWO)) == 2
    sweeper.check(local)


# --- accidents ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_dies_hard_is_failed_and_alone_submitted_again(sweeper, local):
    """A run is killed in a task that it shares; then its whole task is."""
    run = FOLDERS[0]
    only = {"RESVAR_TEST_ONLY": str(run)}
    sweeper(*TWO, "--per-gpu", "2", RESVAR_TEST_KILL="iteration:5", **only)
    sweeper.cluster.empty()
    status = sweeper.status()
    assert "2 runs: 1 done, 1 failed." in status, sweeper.logs()
    assert re.search(r"(?s)original-8/\S+/seed-0 +failed .*killed by SIGKILL", status)

    mark = uuid.uuid4().hex
    out = sweeper(*TWO, RESVAR_TEST_MARK=mark, RESVAR_TEST_SLOW="0.6", **only)
    assert submitted(out) == 1
    assert wait_for(lambda: sweeper.log(run).count("goes to") == 2)
    (task,) = (pid for pid, words in everyone(mark).items() if _is_task(words))
    os.kill(task, signal.SIGKILL)
    sweeper.cluster.empty()
    assert wait_for(lambda: not is_locked(sweeper.folder / run))  # it notices, and saves
    status = sweeper.status()
    assert "2 runs: 1 done, 1 failed." in status, sweeper.logs()
    assert re.search(
        r"(?s)original-8/\S+/seed-0 +failed .*its Slurm task \d+_0 died on node1", status
    )
    assert submitted(sweeper(*TWO)) == 1
    sweeper.check(local)


def _is_task(words: list[str]) -> bool:
    return "resvar.sweeps.task" in words and "python" in words[0]


# --- refused --------------------------------------------------------------------------------------


def test_what_sbatch_refuses_leaves_nothing_behind(sweeper):
    said = sweeper(*TWO, "--partition", "nowhere", code=2)
    (sentence,) = (line for line in said.splitlines() if "error" in line)
    assert sentence.startswith("resvar: error: sbatch refuses the job: ")
    assert "invalid partition specified: nowhere" in sentence
    assert not list(sweeper.folder.glob("runs/.slurm/*/"))
    assert "2 runs: 2 waiting." in sweeper.status()
