"""Sweeps over several values of any setting, and the commands that a dry run prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import resvar
from resvar.cli import run_command
from resvar.config import resolve
from resvar.errors import OtherRunError, UserError
from resvar.rundir import write_settings
from resvar.sweeps import launch
from resvar.sweeps.grid import MOST_RUNS, plan_sweep
from resvar.sweeps.processes import standing_of
from tests.support.commands import ROOT, contents, sets

ONE = {"variants": "original", "depths": "8"}
QUICK = ("sweep", "--variants", "original", "--depths", "8", "--protocol", "quick")


def names(sweep):
    return [Path(run.name).parent.name for run in sweep.runs]


def plan(tmp_path, overrides=(), text="", **given):
    file = None
    if text:
        file = tmp_path / "mine.yaml"
        file.write_text(text, encoding="utf-8")
    return plan_sweep(file, given if file else {**ONE, **given}, list(overrides), tmp_path / "runs")


# --- grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["lr=0.1,0.05"], ["original-8", "lr=0.05"]),
        (["lr=0.3, 0.05"], ["lr=0.3", "lr=0.05"]),
        (["milestones=[1,2],[3]"], ["milestones=1+2", "milestones=3"]),
        (["milestones=[1,2]"], ["milestones=1+2"]),
        (["milestones=[1,2],[]"], ["milestones=1+2", "milestones=empty"]),
        (["nesterov=true,false", "lr=0.2,0.3"],
         ["lr=0.2,nesterov=true", "lr=0.3,nesterov=true", "lr=0.2", "lr=0.3"]),
        (["lr=0.2", "lr=0.3,0.4"], ["lr=0.3", "lr=0.4"]),
        (["optimizer=sgd,muon"], ["original-8", "optimizer=muon"]),
    ],
)  # fmt: skip
def test_commas_of_set_are_several_values(tmp_path, overrides, found):
    assert names(plan(tmp_path, overrides)) == found


def test_a_file_has_a_grid_and_the_command_line_takes_precedence(tmp_path):
    text = "variants: [original]\ndepths: [8]\nset: {nesterov: true}\ngrid: {lr: [0.2, 0.3]}\n"
    assert names(plan(tmp_path, text=text)) == ["lr=0.2,nesterov=true", "lr=0.3,nesterov=true"]
    assert names(plan(tmp_path, ["lr=0.4"], text)) == ["lr=0.4,nesterov=true"]
    assert names(plan(tmp_path, ["nesterov=false"], text)) == ["lr=0.2", "lr=0.3"]


def test_the_arguments_of_each_run_give_its_settings(tmp_path):
    for run in plan(tmp_path, ["milestones=[1,2],[3]", "lr=1.0e-2,0.2"]).runs:
        sets_ = [word for word in run.arguments if "=" in word]
        options = {"variant": "original", "depth": 8, "seed": 0}
        assert resolve(options=options, overrides=sets_) == run.settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid: [lr]", "'grid' must be a mapping of settings"),
        ("grid: {lr: 0.1}", "'grid' needs a list of values for 'lr', not 0.1"),
        ("grid: {lr: []}", "'grid' needs a list of values for 'lr'"),
        ("grid: {lr: [0.2, 0.2]}", "two runs would share"),
        ("grid: {lr: [0.2]}\nset: {lr: 0.1}", "'lr' is in both 'set' and 'grid'"),
        ("grid: {depth: [8, 14]}", "for several values of 'depth' use --depths"),
        ("grid: {rl: [1, 2]}", "unknown setting 'rl'"),
    ],
)
def test_wrong_grids(tmp_path, text, said):
    with pytest.raises(UserError) as refused:
        plan(tmp_path, text=f"variants: [original]\ndepths: [8]\n{text}\n")
    assert said in str(refused.value)


def test_one_value_in_two_spellings_is_one_run(tmp_path):
    with pytest.raises(UserError, match="would share"):
        plan(tmp_path, ["lr=1.0e-1,0.1"])


def test_a_grid_of_absurd_size_is_refused_before_it_is_planned(tmp_path):
    with pytest.raises(UserError, match="split the sweep"):
        plan(tmp_path, [f"lr={','.join(['0.1'] * 400)}"], seeds=str(MOST_RUNS // 300))


def test_python_has_a_grid(tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(launch, "run_here", lambda sweep, *_, **__: planned.append(sweep))
    monkeypatch.setattr("resvar.api.load_runs", lambda *_: None)
    grid = {"lr": [0.1, 0.05], "milestones": [[1, 2], []], "optimizer": ["sgd"]}
    resvar.sweep(
        variants=["original"], depths=[8], settings={"nesterov": True}, grid=grid, out=tmp_path
    )
    assert names(planned[0]) == [
        "milestones=1+2,nesterov=true", "milestones=empty,nesterov=true",
        "lr=0.05,milestones=1+2,nesterov=true", "lr=0.05,milestones=empty,nesterov=true",
    ]  # fmt: skip


# --- cells in conflict ----------------------------------------------------------------------------


def test_all_impossible_runs_are_named_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [*QUICK, *sets("batch_size=128,96,100"), "--data", "nowhere"]
    for more in ([], ["--estimate"]):
        assert run_command([*command, *more]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "2 of 3 runs are impossible" in err
        assert "'batch_size' 96" in err
        assert "'batch_size' 100" in err
    assert not contents(tmp_path)


def test_a_dry_run_marks_what_is_impossible_and_prints_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command([*QUICK, "--depths", "8,21", *sets("batch_size=128,96"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("resvar train ") for line in lines) == 1
    marked = [line for line in lines if line.startswith("# impossible: ")]
    assert len(marked) == 3
    assert sum("--depth 8" in line and "'batch_size' 96" in line for line in marked) == 1
    assert lines[-1] == "# The sweep starts only without impossible runs."


def test_a_folder_of_another_run_is_marked_and_all_such_are_named_at_once(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for depth in (8, 14):
        settings = resolve(None, {"variant": "original", "depth": depth}, ["lr=0.7"])
        folder = Path(f"runs/paper/original-{depth}/seed-0")
        folder.mkdir(parents=True)
        write_settings(folder, settings)
    given = {"variants": "original", "depths": "8,14,20"}
    with pytest.raises(OtherRunError) as refused:
        standing_of(plan_sweep(None, given, [], Path("runs")))
    assert "original-8" in str(refused.value)
    assert "original-14" in str(refused.value)
    assert run_command(["sweep", "--variants", "original", "--depths", "8,14,20", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["#", "resvar", "#", "#"]
    assert "lr: 0.7 → 0.1" in lines[2]
    run = plan_sweep(None, ONE, ["lr=0.7"], Path("runs")).runs[0]
    assert run.name == "paper/original-8/seed-0", "the run itself is found"


# --- commands to paste ----------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_dry_run_is_a_script_that_makes_the_runs_of_the_sweep_from_any_folder(
    tmp_path, monkeypatch, capsys
):
    """The shell's `resvar` records its settings and folder, as the program would decide them."""
    work, other, programs = (tmp_path / name for name in ("my work", "other", "bin"))
    for folder in (work, other, programs):
        folder.mkdir()
    (programs / "resvar").write_text(
        f"#!{sys.executable}\n"
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from unittest import mock\n"
        "from resvar.rundir import write_settings\n"
        "def record(settings, data, console, out, *_):\n"
        "    assert data.is_absolute() and out.is_absolute()\n"
        "    out.mkdir(parents=True); write_settings(out, settings)\n"
        "with mock.patch('resvar.training.job.run_training', record):\n"
        "    from resvar.cli import run_command\n"
        "    sys.exit(run_command(sys.argv[1:]))\n",
        encoding="utf-8",
    )
    (programs / "resvar").chmod(0o755)
    (work / "own.yaml").write_text("lead: []\ntrail: [relu, bn]\nafter_add: []\n", "utf-8")
    monkeypatch.chdir(work)
    command = ["sweep", "--variants", "own.yaml,original", "--depths", "8", "--out", "my runs",
               *sets("milestones=[1,2],[3]"), "--device", "cpu", "--data", "my data"]  # fmt: skip
    assert run_command([*command, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert not (work / "my runs").exists()
    done = subprocess.run(
        ["sh", "-e"], input=script, encoding="utf-8", cwd=other, capture_output=True, timeout=300,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(other.iterdir())
    given = {"variants": "own.yaml,original", "depths": "8"}
    sweep = plan_sweep(None, given, ["milestones=[1,2],[3]"], Path("my runs"))
    assert len(sweep.runs) == 4
    made = {path.parent for path in Path("my runs").rglob("config.yaml")}
    assert made == {run.folder for run in sweep.runs}
    assert len(standing_of(sweep).open) == 4, "each has its settings"


def test_the_name_of_a_shipped_sweep_takes_precedence_in_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for make in (
        lambda: None,
        Path("table2").mkdir,
        lambda: Path("table2").write_text("x", encoding="utf-8"),
    ):
        if Path("table2").exists():
            Path("table2").rmdir()
        make()
        assert run_command(["sweep", "table2", "--seeds", "1", "--dry-run"]) == 0
        assert capsys.readouterr().out.count("resvar train") == 10
    assert run_command(["sweep", "tabel2", "--dry-run"]) == 2
    assert "there is no sweep 'tabel2'; did you mean 'table2'?" in capsys.readouterr().err
