"""`resvar sweep --for`: the sweep stops in time, with everything saved."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from rich.console import Console

from resvar.cli import run_command
from resvar.cli.options import parse_duration
from resvar.errors import Stopped, UserError
from resvar.files import write_json
from resvar.rundir import CHECKPOINT, CONFIG, PROGRESS, RESULT, read_progress
from resvar.sweeps import launch
from resvar.sweeps import limit as limit_module
from resvar.sweeps.grid import plan_sweep
from resvar.sweeps.limit import ENDING, SAVING, START_UP, TimeLimit, seconds_to_stop
from resvar.sweeps.local import LocalSweep
from resvar.sweeps.slots import Slot
from tests.support.commands import TINY, sets
from tests.support.outcome import differing

NAMES = {"variants": "original", "depths": "8", "seeds": "2"}
SETS = (*TINY, "precision=fp32")
SWEEP = (
    "sweep", "--variants", "original", "--depths", "8", "--seeds", "2", "--device", "cpu",
    *sets(*SETS),
)  # fmt: skip
ONE = Slot("cpu 0", 1, "cpu")


def planned(root: str | Path = "runs", **names: str):
    return plan_sweep(None, NAMES | names, SETS, Path(root))


def note(run, **values: object) -> None:
    run.folder.mkdir(parents=True)
    held = {"iteration": 5, "iterations": 14, "seconds": 9.0, "images_per_second": 0.0}
    write_json(run.folder / PROGRESS, held | values)


# --- the time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("9m", 540),
        ("1.5h", 5400),
        ("2h30m", 9000),
        ("1d", 86400),
        ("1d2h3m4.5s", 93784.5),
        ("90m", 5400),
    ],
)
def test_a_time_has_units(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["90", "1.5", "", "m", "0m", "-9m", "9 m", "30m2h", "2h2h", "9M", "1e3s", "٣m", "nan",
             "1:30:00", "9" * 400 + "s", ".5h"]
)  # fmt: skip
def test_a_time_in_another_form(text):
    with pytest.raises(typer.BadParameter, match=r"is not a time such as 90s, 9m, 1\.5h or 2h30m"):
        parse_duration(text)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(limit_module.time, "monotonic", lambda: now[0])
    return now


def test_runs_are_stopped_while_there_is_time_to_save(clock, tmp_path):
    first, second = planned(tmp_path).runs
    note(first, images_per_second=34.0, checkpoint_seconds=4.0)  # a batch of an evaluation: 5 s
    assert seconds_to_stop([]) == ENDING
    assert seconds_to_stop([first]) == ENDING + 5 + 4
    assert seconds_to_stop([first, second]) == ENDING + 5 + 4 + SAVING  # nothing known of it
    limit = TimeLimit(100)
    for now, up in ((1000 + 100 - ENDING - 9.5, False), (1000 + 100 - ENDING - 8.5, True)):
        clock[0] = now
        assert limit.is_up([first], []) is up
    clock[0] = 1000 + 100 - ENDING - 9.5
    assert limit.is_up([first, second], []), "two take longer to save"


@pytest.mark.parametrize(("compiled", "seconds"), [("none", START_UP), ("unit", 60)])
def test_no_run_is_started_that_would_not_train(clock, tmp_path, compiled, seconds):
    runs = plan_sweep(None, NAMES, [*SETS, f"compile={compiled}"], tmp_path).runs
    limit = TimeLimit(100)
    for left, worth in ((seconds + SAVING + ENDING, True), (seconds + ENDING, False)):
        clock[0] = 1000 + 100 - left
        assert limit.allows_start([], runs) is worth
        assert limit.is_up([], runs) is not worth, "a sweep does not wait for a useless moment"
    clock[0] = 1e12
    assert TimeLimit().allows_start([], runs)
    assert not TimeLimit().is_up([], runs)


def test_a_limit_in_which_no_run_trains_is_refused(tmp_path):
    runs = planned(tmp_path).runs
    TimeLimit(60).require_useful(runs)
    TimeLimit().require_useful(runs)
    with pytest.raises(UserError, match="5 s is too short for a run to start and to save"):
        TimeLimit(5).require_useful(runs)


# --- the sweep ------------------------------------------------------------------------------------


@pytest.fixture
def here(resvar, tmp_path, monkeypatch) -> Path:
    """This process starts runs with the tiny dataset, in an empty folder."""
    for name, value in resvar.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class UpWhen(TimeLimit):
    """A limit that is reached as soon as a condition holds."""

    def __init__(self, condition) -> None:
        super().__init__(3600)
        self.condition = condition

    def _left(self, running) -> float:
        del running
        return -1.0 if self.condition() else 3600.0


def waits(run) -> bool:
    log = run.folder / "log.txt"
    return log.exists() and "WAITING" in log.read_text(encoding="utf-8")


def local_sweep(sweep, limit=None) -> LocalSweep:
    return LocalSweep(sweep, [ONE], Path(os.environ["RESVAR_DATA"]), limit)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.usefixtures("here")
def test_at_the_limit_the_runs_save_and_a_rerun_ends_with_the_same_bits(monkeypatch, capsys):
    sweep, reference = planned(), planned("reference", seeds="1")
    first, second = sweep.runs
    local_sweep(reference).run()
    monkeypatch.setenv("RESVAR_TEST_WAIT", "iteration:5")
    with pytest.raises(Stopped) as stopped:
        local_sweep(sweep, UpWhen(lambda: waits(first))).run()
    assert str(stopped.value) == (
        "the time of the sweep is up: 0 of 2 runs finished, 1 with a checkpoint; rerun the command "
        "to resume it."
    )
    assert (first.folder / CHECKPOINT).exists()
    assert not (first.folder / RESULT).exists()
    assert "a checkpoint is saved" in (first.folder / "log.txt").read_text(encoding="utf-8")
    progress = read_progress(first.folder)
    assert progress is not None
    assert progress.checkpoint_seconds is not None
    assert progress.checkpoint_seconds > 0
    assert not second.folder.exists(), "it is not started"
    out = capsys.readouterr().out
    assert "the time is nearly up" in out
    assert "FAILED" not in out
    monkeypatch.delenv("RESVAR_TEST_WAIT")
    local = local_sweep(sweep, TimeLimit(3600))
    local.run()
    assert (local.finished, local.failed, local.waiting) == (2, [], [])
    assert not differing(first.folder, reference.runs[0].folder)


@pytest.mark.process
@pytest.mark.usefixtures("here")
def test_what_failed_before_the_limit_is_counted(monkeypatch):
    sweep = planned()
    monkeypatch.setenv("RESVAR_TEST_FAIL", "iteration:3")
    monkeypatch.setenv("RESVAR_TEST_ONLY", sweep.runs[0].name)
    local = local_sweep(sweep, UpWhen(lambda: local.failed))
    with pytest.raises(Stopped, match="0 of 2 runs finished, 1 failed, 0 with a checkpoint"):
        local.run()
    assert not (sweep.runs[1].folder / CONFIG).exists()


@pytest.mark.heavy
def test_without_time_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr("resvar.sweeps.local.start", None)
    sweep = planned(tmp_path / "runs")
    with pytest.raises(Stopped, match=r"0 of 2 runs finished, 0 with a checkpoint.*to start it"):
        LocalSweep(sweep, [ONE], tmp_path, TimeLimit(START_UP)).run()
    assert not list(tmp_path.rglob(CONFIG))


@pytest.mark.parametrize(
    ("limit", "said"),
    [(TimeLimit(), " so far\n"), (TimeLimit(360_000), " so far, stops within 4 d")],
)
def test_a_terminal_shows_when_the_sweep_stops(tmp_path, limit, said):
    local = LocalSweep(planned(tmp_path / "runs"), [ONE], tmp_path, limit)
    console = Console(file=io.StringIO(), width=80)
    console.print(local._picture())
    shown = console.file.getvalue()
    assert shown.startswith("0 of 2 done, 0 running, 2 waiting; ")
    assert said in shown


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """The time limits of sweeps, which start no runs."""
    found = []

    class Recorded:
        diverged = ()

        def __init__(self, _sweep, _slots, _data, limit):
            found.append(limit.seconds)

        run = report = lambda _: None

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "require_inputs", lambda *_: None)
    monkeypatch.setattr(launch, "measured_throughput", None)
    monkeypatch.setattr(launch, "LocalSweep", Recorded)
    return found


def test_a_sweep_with_a_limit_does_not_measure_and_says_when_it_stops(limits, capsys):
    assert run_command([*SWEEP, "--for", "9m"]) == 0
    assert limits == [540]
    out = capsys.readouterr().out
    assert "The sweep stops within 9:00 min; rerun the command to resume." in out
    assert "Measuring" not in out


def test_with_given_speeds_it_says_how_many_runs_finish(limits, capsys):
    work = 14 * 16 + 4 * 10_000 / 3  # images: evaluations at 4, 8, 12 and at the end
    speed = work / 400
    given = [*SWEEP, "--jobs", "1", "--images-per-second", f"8={speed}"]
    assert run_command([*given, "--for", "9m"]) == 0
    assert "About 13:20 min in total, 1 run within 9:00 min. The sweep" in capsys.readouterr().out
    assert run_command([*given, "--for", "20m", "--estimate"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "Finished within 20:00 min, of 2 runs: 2 with 1 run at a time, 2 on 2 such devices. It"
        in out
    )
    assert run_command([*given, "--for", "9m", "--estimate"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 with 1 run at a time, 2 on 2 such devices; a rerun resumes the others. It" in out
    assert limits == [540]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--for", "90"], "--for: '90' is not a time such as 90s"),
        (["--for", "5s"], "--for: 5 s is too short"),
        (["--for", "5s", "--estimate"], "--for: 5 s is too short"),
        (["--for", "99999999h"], "'99999999h' is longer than three thousand years"),
        (["--for", "9m", "--dry-run"], "--for and --dry-run cannot be combined; use --estimate"),
        (["--for", "9m", "--launcher", "slurm"], "in Slurm --time limits each task"),
        (["--for", "9m", "--launcher", "slurm", "--estimate"], "in Slurm --time limits each task"),
        (["--time", "9m"], "use --launcher slurm too; a sweep on this machine has --for"),
    ],
)
def test_what_makes_no_sense_is_refused(limits, tmp_path, capsys, more, said):
    assert run_command([*SWEEP, *more]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not limits
    assert not list(tmp_path.iterdir())


def test_an_older_record_of_progress_has_no_time_of_a_checkpoint(tmp_path):
    first, second = planned(tmp_path).runs
    note(first)
    found = read_progress(first.folder)
    assert found is not None
    assert found.checkpoint_seconds is None
    note(second, checkpoint_seconds=-1)
    assert read_progress(second.folder) is None, "an impossible one is damaged"


@pytest.mark.process
def test_ctrl_c_ends_the_script_of_the_page(tmp_path):
    """A shell goes on with its loop if the command that catches Ctrl-C exits by itself."""
    page = (Path(__file__).parents[2] / "docs/commands.md").read_text(encoding="utf-8")
    script = "\n".join(re.findall(r"^    ((?:trap|until) .*)$", page, re.MULTILINE))
    assert "resvar sweep table2 --for 9m" in script
    fake = tmp_path / "resvar"
    fake.write_text(
        f"#!{sys.executable}\nimport signal, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n"
        "print('started', flush=True)\nsignal.pause()\n",
        encoding="utf-8",
    )
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    shell = subprocess.Popen(
        ["sh", "-c", script], env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert shell.stdout.readline() == b"started\n"
        os.killpg(shell.pid, signal.SIGINT)
        assert shell.wait(60) == 130
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.stdout.close()
