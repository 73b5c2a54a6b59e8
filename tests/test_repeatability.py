"""A run that was killed at any moment and started again ends with the same bits.

Black box: real processes, killed from outside or, at a named place, by `tests/support/driver`.
Their files are compared with those of an undisturbed run, bit for bit: predictions, weights,
momentum, metrics and result, without timings. `pytest -s` shows the outcome of each case.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from resvar.training.machine import computes_bf16
from tests.long.torture.checkpoints import torture_checkpoints
from tests.long.torture.runs import AT_A_TIME, PLACES, Victim, torture_runs
from tests.support.commands import Commands, contents, train
from tests.support.outcome import differing


@pytest.fixture(scope="module")
def undisturbed(warm, tmp_path_factory) -> Callable[[str], Path]:
    """Precision → the directory of an undisturbed run; each is made once."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def made(precision: str = "fp32") -> Path:
        if not (folder / precision / "result.json").exists():
            finish(warm, folder / precision, precision)
        return folder / precision

    return made


# --- killed ---------------------------------------------------------------------------------------


def test_a_run_killed_at_any_place_ends_with_the_same_bits(warm, undisturbed, tmp_path):
    reference = undisturbed()

    def survive(place: str) -> list[str]:
        out = tmp_path / place
        killed = run(warm, out, RESVAR_TEST_KILL=place)
        if killed.code != -signal.SIGKILL:
            return [f"was not killed, but left with {killed.code}: {killed.err}"]
        assert (out / "result.json").exists() == (place == "after-result.json:1")
        finish(warm, out)
        return differing(out, reference)

    report(survive, PLACES)


def test_bf16_too_with_a_kill_at_each_place_in_turn(warm, undisturbed, tmp_path):
    if not computes_bf16(torch.device("cpu")):
        pytest.skip("this processor does not compute bf16")
    out, deaths = tmp_path / "run", 0
    places = (
        "iteration:5",
        "checkpoint-write:1",
        "evaluation:1",
        "before-checkpoint.pt:2",
        "after-metrics.csv:1",
        "before-predictions.npy:1",
        "before-result.json:1",
    )
    for place in places:
        deaths += run(warm, out, "bf16", RESVAR_TEST_KILL=place).code == -signal.SIGKILL
    finish(warm, out, "bf16")
    print(f"\nbf16, one run: {deaths} kills survived ({', '.join(places)})")
    assert deaths == len(places)
    assert not differing(out, undisturbed("bf16"))


@pytest.mark.slow
def test_runs_killed_again_and_again_end_with_the_same_bits(warm, tmp_path):
    """At random moments; `python -m tests.long.torture` does it at length."""
    victim = Victim.undisturbed(warm, train(), tmp_path)
    tally = torture_runs(victim, tmp_path, kills=12, seed=1)
    print(f"\n{tally.table()}\n{tally.verdict}")
    assert len(tally.kills) == 12
    assert not tally.problems


# --- asked to stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_sigterm_and_ctrl_c_save_a_checkpoint_and_the_run_goes_on(
    warm, undisturbed, tmp_path, name
):
    reference = undisturbed()

    def survive(place: str) -> list[str]:
        out = tmp_path / place
        stopped = run(warm, out, **{f"RESVAR_TEST_{name}": place})
        if stopped.code != 130 or "a checkpoint is saved" not in stopped.err:
            return [f"left with {stopped.code}: {stopped.err}"]
        assert "Traceback" not in stopped.err
        held = torch.load(out / "checkpoint.pt", weights_only=True)["state"]
        assert f"stopped after iteration {held['iteration']};" in stopped.err
        finish(warm, out)
        return differing(out, reference)

    report(survive, ("iteration:5", "evaluation:2", "before-checkpoint.pt:2"), f"SIG{name} at ")


def test_signals_from_outside_at_any_iteration(warm, undisturbed, tmp_path):
    out, chance = tmp_path / "run", random.Random(7)
    for number in (signal.SIGTERM, signal.SIGINT):
        with started(warm, out, RESVAR_TEST_WAIT=f"iteration:{chance.randint(2, 5)}") as job:
            job.read_until("WAITING")
            job.send(number)
            stopped = job.end()
        assert stopped.code == 130, stopped
        assert "Stopping after this iteration" in stopped.err
        assert "a checkpoint is saved" in stopped.err
        assert (out / "checkpoint.pt").exists()
    finish(warm, out)
    assert not differing(out, undisturbed())


def test_a_second_ctrl_c_leaves_at_once(warm, undisturbed, tmp_path):
    out = tmp_path / "run"
    with started(warm, out, RESVAR_TEST_HANG="iteration:5") as job:
        job.read_until("HANGING")
        job.send(signal.SIGINT)
        time.sleep(0.5)
        assert job.code() is None, "the first one waits for the iteration"
        job.send(signal.SIGINT)
        stopped = job.end()
    assert stopped.code == 130
    assert "once more stops at once" in stopped.err
    finish(warm, out)
    assert not differing(out, undisturbed())


@pytest.mark.parametrize("place", ["before-config.yaml:1", "before-predictions.npy:1"])
@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_outside_the_loop_leaves_with_130_too(warm, undisturbed, tmp_path, name, place):
    out = tmp_path / "run"
    stopped = run(warm, out, **{f"RESVAR_TEST_{name}": place})
    assert stopped.code == 130
    assert "Traceback" not in stopped.err
    assert stopped.err.startswith("resvar: ")
    saved = place == "before-predictions.npy:1"  # the last checkpoint contains everything
    assert ("a checkpoint is saved" in stopped.err) == saved
    assert ("start from the beginning" in stopped.err) == (not saved)
    finish(warm, out)
    assert not differing(out, undisturbed())


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_while_torch_loads_leaves_with_130_too(resvar, tmp_path, name):
    """After the import: an exception within it would abort the process."""
    variables = {f"RESVAR_TEST_{name}": "import:1"}
    stopped = resvar.run(*train("--out", tmp_path / "run"), cwd=tmp_path, **variables)
    assert stopped.code == 130
    assert stopped.err.startswith("resvar: stopped")
    assert "a checkpoint is saved" not in stopped.err


# --- other accidents ------------------------------------------------------------------------------


def test_damaged_and_missing_checkpoints(warm, undisturbed, tmp_path):
    begun, reference = tmp_path / "begun", undisturbed()
    run(warm, begun, RESVAR_TEST_KILL="iteration:8")
    newest, previous = "checkpoint.pt", "checkpoint.previous.pt"
    assert {newest, previous} <= {path.name for path in begun.iterdir()}

    def cut(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def empty(path: Path) -> None:
        os.truncate(path, 0)

    def zero(path: Path) -> None:
        path.write_bytes(bytes(path.stat().st_size))

    accidents: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
        "newest deleted": (Path.unlink, (newest,), "resuming from iteration 3"),
        "newest cut": (cut, (newest,), "resuming from iteration 3"),
        "newest with a flipped bit": (flip, (newest,), "resuming from iteration 3"),
        "newest empty": (empty, (newest,), "resuming from iteration 3"),
        "newest zero-filled": (zero, (newest,), "resuming from iteration 3"),
        "previous cut": (cut, (previous,), "resuming from iteration 6"),
        "both deleted": (Path.unlink, (newest, previous), "14 iterations of 16 images"),
    }

    def survive(accident: str) -> list[str]:
        out = tmp_path / accident
        shutil.copytree(begun, out)
        spoil, names, said = accidents[accident]
        for name in names:
            spoil(out / name)
        printed = finish(warm, out)
        spoilt = accident.startswith("newest") and "deleted" not in accident
        if said not in printed or ("is damaged" in printed) != spoilt:
            return [f"did not say '{said}', but: {printed}"]
        return differing(out, reference)

    report(survive, accidents)
    for name in (newest, previous):
        cut(begun / name)
    before = contents(begun)
    stuck = run(warm, begun)
    assert stuck.code == 1
    assert "--fresh" in stuck.err
    assert newest in stuck.err
    assert previous in stuck.err
    assert len(stuck.err.splitlines()) == 1
    after = contents(begun)
    assert {name: after[name] for name in (newest, previous)} == {
        name: before[name] for name in (newest, previous)
    }
    assert set(before) <= set(after), "nothing is deleted"
    assert run(warm, begun, "fp32", "--fresh").code == 0
    assert not differing(begun, reference)


def test_damage_of_any_kind_is_noticed(warm, tmp_path):
    """`python -m tests.long.torture --damage` does this at length."""
    run(warm, tmp_path / "begun", RESVAR_TEST_KILL="iteration:8")
    found = torture_checkpoints(tmp_path / "begun", tries=60, seed=1)
    print(f"\n{found.table()}\n{found.verdict}")
    assert not found.problems
    assert found.noticed.total() > 50
    assert found.refused == found.noticed


@pytest.mark.parametrize("place", ["before-checkpoint.pt:2", "before-result.json:1"])
def test_a_full_disk(warm, undisturbed, tmp_path, place):
    out = tmp_path / "run"
    failed = run(warm, out, RESVAR_TEST_FAIL=place)
    assert failed.code == 1
    assert failed.err.startswith("resvar: error: ")
    assert "No space left on device" in failed.err
    assert "Traceback" not in failed.err
    assert (
        "No space left" in json.loads((out / "failure.json").read_text(encoding="utf-8"))["message"]
    )
    assert not list(out.glob("*.tmp"))
    finish(warm, out)
    assert not (out / "failure.json").exists()
    assert not differing(out, undisturbed())


def test_a_diverging_run_says_so_and_keeps_its_last_good_checkpoint(warm, tmp_path):
    out = tmp_path / "run"
    failed = run(warm, out, "fp32", "--set", "lr=1e30")
    assert failed.code == 1
    assert "diverged" in failed.err
    assert len(failed.err.splitlines()) == 1
    assert json.loads((out / "diverged.json").read_text(encoding="utf-8"))["loss"] in ("nan", "inf")
    assert not (out / "result.json").exists()
    if (out / "checkpoint.pt").exists():
        model = torch.load(out / "checkpoint.pt", weights_only=True)["state"]["model"]
        assert all(torch.isfinite(held).all() for held in model.values())


def test_no_clock_makes_negative_times(warm, undisturbed, tmp_path):
    """A clock that is turned back, other time zones, and a paused process."""
    out = tmp_path / "run"
    for place, zone in (("iteration:5", "Pacific/Kiritimati"), ("iteration:5", "Etc/GMT+12")):
        variables = {"RESVAR_TEST_CLOCK": "4000", "RESVAR_TEST_KILL": place, "TZ": zone}
        assert run(warm, out, **variables).code == -signal.SIGKILL
    variables = {"RESVAR_TEST_CLOCK": "4000", "RESVAR_TEST_WAIT": "iteration:3"}
    with started(warm, out, **variables) as job:
        job.read_until("WAITING")
        job.send(signal.SIGSTOP)
        time.sleep(1)
        job.send(signal.SIGCONT)
        job.send(signal.SIGTERM)
        assert job.end().code == 130
    assert run(warm, out, RESVAR_TEST_CLOCK="4000").code == 0
    assert not differing(out, undisturbed())
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    with (out / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] <= seconds[-1] <= result["seconds"] < 4000
    speeds = [float(row["images_per_second"]) for row in rows] + [result["images_per_second"]]
    assert all(0 < speed < 1e6 for speed in speeds)


def test_a_second_process_is_kept_out(warm, tmp_path):
    out = tmp_path / "run"
    with started(warm, out, RESVAR_TEST_HANG="iteration:5") as job:
        job.read_until("HANGING")
        before = contents(out)
        refused = run(warm, out)
        assert refused.code == 1
        assert str(job.pid) in refused.err
        assert len(refused.err.splitlines()) == 1
        assert run(warm, out, "fp32", "--fresh").code == 1
        assert contents(out) == before


# --- undisturbed ----------------------------------------------------------------------------------


def test_the_same_command_gives_the_same_bits_and_another_seed_others(warm, undisturbed, tmp_path):
    reference = undisturbed()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        again, other = tmp_path / "again", tmp_path / "other"
        waiting = pool.submit(warm.run, *train("--out", str(other), seed=1), cwd=tmp_path)
        finish(warm, again)
        assert waiting.result().code == 0
    assert not differing(again, reference)
    assert set(differing(other, reference)) >= {"weights", "momentum", "metrics", "result"}


def test_a_finished_run_says_so_and_stays_as_it_is(warm, undisturbed):
    out = undisturbed()
    before = contents(out)
    again = run(warm, out)
    assert again.code == 0
    assert again.err == ""
    assert "already finished" in again.out
    assert contents(out) == before


def test_a_run_is_repeated_from_its_config_alone(warm, undisturbed, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--config", undisturbed() / "config.yaml", "--out", out]
    assert warm.run(*arguments, cwd=tmp_path).code == 0
    assert not differing(out, undisturbed())


def test_fresh_starts_over_and_touches_nothing_else(warm, undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed(), out)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(out)
    done = run(warm, out, "fp32", "--fresh")
    assert done.code == 0
    assert "going on" not in done.out
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert contents(out)["result.json"] != before["result.json"]
    assert not differing(out, undisturbed())


def test_what_a_finished_run_leaves(undisturbed):
    out = undisturbed()
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.pt", "config.yaml", "environment.json", "metrics.csv", "predictions.npy",
        "progress.json", "result.json", "run.lock",
    ]  # fmt: skip
    with (out / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["4", "8", "12", "14"]
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["test_error"] == float(rows[-1]["test_error"])
    assert result["best_test_error"] == min(float(row["test_error"]) for row in rows)
    assert result["parameters"] == 75_290


# --- helpers --------------------------------------------------------------------------------------


def run(warm: Commands, out: Path, precision: str = "fp32", *more: str, **variables: str):
    """One process of the tiny run; `variables` are the driver's faults."""
    arguments = train("--out", str(out), *more, precision=precision)
    return warm.run(*arguments, cwd=out.parent, **variables)


def started(warm: Commands, out: Path, **variables: str):
    return warm.started(*train("--out", str(out)), cwd=out.parent, **variables)


def finish(warm: Commands, out: Path, precision: str = "fp32") -> str:
    """Start or resume the run, up to its end; returns its output."""
    done = run(warm, out, precision)
    assert done.code == 0, done
    assert done.err == ""
    return done.out


def report(survive: Callable[[str], list[str]], cases: Iterable[str], what: str = "") -> None:
    """Try each case, two at a time; print the outcomes and fail if any has problems."""
    cases = list(cases)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = dict(zip(cases, pool.map(survive, cases), strict=True))
    lost = {case: problems for case, problems in found.items() if problems}
    print(f"\n{len(found) - len(lost)} of {len(found)} survived with the same bits:")
    for case in cases:
        print(f"  {what}{case} → {'NOT: ' + '; '.join(lost[case]) if case in lost else 'survived'}")
    assert not lost
