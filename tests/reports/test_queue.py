"""What Slurm adds to the status; squeue is a program that says what the test wants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resvar.cli import run_command
from resvar.config import resolve
from resvar.reports.queue import with_queue
from resvar.reports.records import RunState
from resvar.reports.status import overview
from resvar.rundir import locked
from resvar.sweeps.grid import plan_sweep
from resvar.sweeps.submission import Plan, Submission, create_submission, write_record
from tests.slurm.fake import calls, fake, line
from tests.support.commands import TINY

RUN = resolve(None, {"variant": "original", "depth": 8}, TINY).directory


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    fake(tmp_path / "bin", "squeue")
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def submission(root) -> Submission:
    """Four runs in Slurm's hands, two to a task."""
    given = {"variants": "original,full-preact", "depths": "8", "seeds": "2"}
    sweep = plan_sweep(None, given, list(TINY), root)
    sweep.write_manifest()
    tasks = [sweep.runs[:2], sweep.runs[2:]]
    made = create_submission(root, "sweep, of mine", tasks, Plan(root, root, "cpu", 1, {}))
    return write_record(made, "7")


def begin(root: Path, run: Path = RUN) -> Path:
    """A run's directory as it is while the run is active, or was."""
    folder = root / run
    folder.mkdir(parents=True)
    variant = run.parts[1].removesuffix("-8")
    settings = resolve(None, {"variant": variant, "depth": 8, "seed": 0}, TINY)
    (folder / "config.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    return folder


def slurm_says(root: Path, text: str) -> None:
    fake(root.parent / "bin", "squeue", text)


def state(root: Path, run: Path = RUN) -> tuple[RunState, str]:
    records, unknown = overview(root)
    assert not unknown
    (found,) = (record for record in records if record.folder == root / run)
    return found.state, found.message


def left_a_note(submission: Submission, word: str, log: bool = True) -> None:
    note = {"format": 1, "state": word, "node": "node1", "restarts": 0}
    submission.note_path(0).write_text(json.dumps(note), encoding="utf-8")
    if log:
        (submission.folder / "7_0_0_log.out").write_text(
            "it ends in the middle of", encoding="utf-8"
        )


def test_the_name_is_one_that_slurm_can_be_asked_for(root, submission):
    assert "," not in submission.name
    assert " " not in submission.name
    overview(root)
    (call,) = calls(root.parent / "bin", "squeue")
    assert f"--name={submission.name} " in call


def test_queued_then_at_work_then_requeued(root, submission):
    name = submission.name
    slurm_says(root, line(name, 0, "PENDING", Reason="Priority") + line(name, 1, "PENDING"))
    assert state(root) == (RunState.QUEUED, "Priority")
    slurm_says(root, line(name, 0, "RUNNING", NodeList="node7") + line(name, 1, "PENDING"))
    assert state(root) == (RunState.RUNNING, "on node7")
    begin(root)
    slurm_says(root, line(name, 0, "PENDING", RestartCnt="2", Reason="BeginTime"))
    assert state(root) == (RunState.REQUEUED, "BeginTime")


def test_the_summary_counts_them(root, submission, capsys):
    name = submission.name
    slurm_says(root, line(name, 0, "RUNNING") + line(name, 1, "PENDING"))
    assert run_command(["status", str(root)]) == 0
    out = capsys.readouterr().out
    assert "4 runs: 2 running, 2 queued. Slurm starts the queued runs." in out


@pytest.mark.usefixtures("submission")
def test_what_a_run_directory_says_comes_first(root):
    """A lock that is held, though Slurm has forgotten the task; nothing to ask when all is done."""
    slurm_says(root, "")
    with locked(begin(root)):
        assert state(root) == (RunState.RUNNING, "")
    assert state(root, RUN.parent / "seed-1")[0] is RunState.WAITING
    records, _ = overview(root)
    before = len(calls(root.parent / "bin", "squeue"))
    done = [r for r in records if r.state is RunState.DONE]
    assert with_queue(root, done) == (done, "")
    assert len(calls(root.parent / "bin", "squeue")) == before


@pytest.mark.parametrize("known", [True, False])
def test_a_task_that_died_hard_is_failed(root, submission, known):
    """Whether Slurm still knows it or not."""
    begin(root)
    left_a_note(submission, "running")
    slurm_says(root, line(submission.name, 0, "OUT_OF_MEMORY") if known else "")
    found, message = state(root)
    assert found is RunState.FAILED
    assert message.startswith("its Slurm task 7_0 died on node1")
    assert ("(OUT_OF_MEMORY)" in message) is known
    assert str(submission.log(0)) in message
    assert state(root, Path("paper/full-preact-8", *RUN.parts[-2:]))[0] is RunState.FAILED, (
        "its neighbour too"
    )
    assert state(root, RUN.parent / "seed-1")[0] is RunState.WAITING, "not the other task's"


def test_a_task_that_died_before_it_could_say_anything_is_failed(root, submission):
    """Such as where Python is missing on the node: there is what it printed, and no note."""
    (submission.folder / "7_0_0_log.out").write_text(
        "bash: python: No such file or directory", encoding="utf-8"
    )
    found, message = state(root)
    assert (found, "died" in message) == (RunState.FAILED, True)


@pytest.mark.parametrize("word", ["stopped", "requeued", "ended"])
def test_a_task_that_was_told_to_stop_left_its_runs_stopped(root, submission, word):
    begin(root)
    left_a_note(submission, word)
    assert state(root) == (RunState.STOPPED, "")


def test_what_was_cancelled_in_the_queue_or_never_got_there_waits(root, submission):
    slurm_says(root, line(submission.name, 0, "CANCELLED"))
    assert state(root) == (RunState.WAITING, "cancelled in Slurm's queue")
    write_record(submission, None)
    assert state(root) == (RunState.WAITING, "not submitted")


def test_a_run_that_failed_in_its_task_stays_failed_when_the_task_is_requeued(root, submission):
    folder = begin(root)
    (folder / "failure.json").write_text('{"format": 1, "message": "no space"}', encoding="utf-8")
    slurm_says(root, line(submission.name, 0, "PENDING", RestartCnt="1"))
    assert state(root)[0] is RunState.REQUEUED, "it failed before this submission: tried again"
    left_a_note(submission, "requeued")
    assert state(root) == (RunState.FAILED, "no space")


def test_the_newest_submission_counts(root, submission):
    sweep = plan_sweep(None, {"variants": "original", "depths": "8"}, list(TINY), root)
    made = create_submission(root, "zz", [sweep.runs], Plan(root, root, "cpu", 1, {}))
    newer = write_record(made, "8")
    slurm_says(root, line(submission.name, 0, "CANCELLED") + line(newer.name, 0, "PENDING"))
    assert state(root)[0] is RunState.QUEUED


@pytest.mark.usefixtures("submission")
@pytest.mark.parametrize("gone", [True, False])
def test_without_slurm_the_run_directories_speak_alone(root, capsys, monkeypatch, gone):
    begin(root)
    if gone:
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        fake(root.parent / "bin", "squeue", code=1, complains="squeue: error: no controller\n")
    assert run_command(["status", str(root)]) == 0
    out = capsys.readouterr().out
    assert "4 runs: 1 stopped, 3 waiting." in out
    why = "there is no squeue on this machine" if gone else "squeue fails: no controller"
    assert f"What Slurm still has queued is not known: {why}." in out


def test_a_damaged_record_is_named(root, submission, capsys):
    (submission.folder / "submission.json").write_text(
        '{"format": 1, "tasks": [1]}', encoding="utf-8"
    )
    assert run_command(["status", str(root)]) == 2
    assert f"{submission.folder / 'submission.json'}: this is damaged" in capsys.readouterr().err
