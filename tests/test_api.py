"""The functions for Python users do what the commands do."""

from __future__ import annotations

import inspect
import json
import os
import signal
import threading

import pytest

import resvar
from tests.support.tiny import install, make_cifar

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "protocol": "quick", "precision": "fp32", "kernels": "plain", "iterations": 3, "batch_size": 8,
    "bn_batch_size": 8, "eval_every": 2, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def data(tmp_path, monkeypatch):
    install(make_cifar(tmp_path / "data", train=20, test=30), monkeypatch)
    return tmp_path / "data"


def test_train_makes_a_run_and_returns_it_again(tmp_path, data, capsys):
    def train(**more):
        return resvar.train("full-preact", 8, data=data, out=tmp_path / "run", **TINY | more)

    run = train(quiet=True)
    assert capsys.readouterr().out == ""
    assert run.result == resvar.load_run(tmp_path / "run").result
    assert (run.config.variant, run.config.depth, run.config.iterations) == ("full-preact", 8, 3)
    assert run.metrics["iteration"].tolist() == [2, 3]
    assert sum(p.numel() for p in run.model.parameters()) == run.result["parameters"]
    finished = (tmp_path / "run" / "result.json").stat()
    assert train().result == run.result
    assert "already finished" in capsys.readouterr().out
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == finished.st_mtime_ns
    again = train(config=tmp_path / "run" / "config.yaml", fresh=True, quiet=True)
    assert again.result["test_error"] == run.result["test_error"]
    assert again.config == run.config


def test_the_default_directory_is_that_of_the_command(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = resvar.train("original", 8, data=data, seed=2, quiet=True, **TINY)
    assert run.folder.as_posix() == (
        "runs/quick/original-8/batch_size=8,bn_batch_size=8,eval_every=2,iterations=3,kernels=plain,"
        "precision=fp32/seed-2"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": -1.0}, r"train\(lr=…\): 'lr' is -1.0, but should be greater than 0"),
        ({"learning_rate": 1.0}, r"train\(learning_rate=…\): unknown setting 'learning_rate'"),
        (
            {"variant": None, "depth": None},
            r"train\(variant=…\) and train\(depth=…\) are missing; .* train\(\"full-preact\", 20\)",
        ),
        ({"depth": 21}, r"train\(depth=…\): depth 21 fits no residual unit"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(tmp_path, settings, said):
    given = {"variant": "original", "depth": 8, "data": tmp_path, "out": tmp_path / "run"}
    with pytest.raises(resvar.UserError, match=said):
        resvar.train(**TINY | given | settings)
    assert list(tmp_path.iterdir()) == []


def test_load_runs_is_a_tidy_table_of_all_runs(tmp_path, data):
    """Compared with the files: a row per run, a column for each setting that differs."""
    for variant, seed, lr in (("original", 0, 0.1), ("original", 1, 0.1), ("full-preact", 0, 0.05)):
        out = tmp_path / "runs" / f"{variant}-{seed}"
        resvar.train(variant, 8, data=data, out=out, quiet=True, seed=seed, lr=lr, **TINY)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.yaml").write_text("depth: [", encoding="utf-8")
    table = resvar.load_runs(tmp_path / "runs")
    assert table.columns.tolist()[:7] == [
        "variant", "depth", "protocol", "dataset", "seed", "lr", "state",
    ]  # fmt: skip
    assert table.columns.tolist()[-1] == "folder"
    assert sorted(table["state"]) == ["damaged", "done", "done", "done"]
    for _, row in table[table["state"] == "done"].iterrows():
        folder = tmp_path / "runs" / f"{row['variant']}-{int(row['seed'])}"
        assert row["folder"] == str(folder)
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        for name in ("test_error", "parameters", "seconds", "config_hash"):
            assert row[name] == result[name]
        assert row["lr"] == (0.05 if row["variant"] == "full-preact" else 0.1)
    assert table[table["state"] == "damaged"]["test_error"].isna().all()
    with pytest.raises(resvar.UserError, match="no such folder"):
        resvar.load_runs(tmp_path / "none")


def test_report_writes_what_the_command_writes(tmp_path, data):
    from resvar.cli import run_command

    resvar.train("original", 8, data=data, out=tmp_path / "runs/a", quiet=True, **TINY)
    resvar.report(tmp_path / "runs", format="json", out=tmp_path / "one.json")
    options = ["report", str(tmp_path / "runs"), "--format", "json"]
    assert run_command([*options, "--out", str(tmp_path / "other.json")]) == 0
    assert (tmp_path / "one.json").read_text(encoding="utf-8") == (
        tmp_path / "other.json"
    ).read_text(encoding="utf-8")


def test_sweep_plans_what_it_is_given(tmp_path, monkeypatch):
    """What reaches the launcher: the cells, with every setting."""
    planned = []
    monkeypatch.setattr(
        "resvar.sweeps.launch.run_here", lambda sweep, *_, **__: planned.append(sweep)
    )
    monkeypatch.setattr("resvar.api.load_runs", lambda folder: folder)
    out = resvar.sweep(
        variants=["original", "full-preact"], depths=[8], seeds=[0, 3], protocol="quick",
        settings={"lr": 1e-5, "milestones": [1, 2], "schedule": "step"}, out=tmp_path,
    )  # fmt: skip
    assert out == tmp_path
    runs = planned[0].runs
    cells = [(run.settings.variant, run.settings.depth, run.settings.seed) for run in runs]
    assert cells == [
        ("original", 8, 0), ("full-preact", 8, 0), ("original", 8, 3), ("full-preact", 8, 3),
    ]  # fmt: skip
    assert {(run.settings.lr, tuple(run.settings.milestones)) for run in runs} == {(1e-5, (1, 2))}
    with pytest.raises(
        resvar.UserError, match=r"^sweep\(depths=…\) is missing; an example is sweep\("
    ):
        resvar.sweep(variants=["original"])


# --- as in a notebook -----------------------------------------------------------------------------


def test_the_names_are_found_and_described():
    for name in ("train", "sweep", "report", "load_run", "load_runs", "build_model", "UserError"):
        assert name in dir(resvar)
        assert getattr(resvar, name).__doc__
    for name in ("train", "sweep"):
        function = getattr(resvar, name)
        for argument in set(inspect.signature(function).parameters) - {"file"}:
            assert f"        {argument}: " in function.__doc__, argument
    assert "resvar.UserError" in resvar.api.__doc__


def test_a_run_is_shown_in_one_line(tmp_path, data):
    run = resvar.train("full-preact", 8, data=data, out=tmp_path / "run", quiet=True, **TINY)
    error = f"{run.result['test_error']:.2f} %"
    where = f"<Run full-preact-8, protocol quick, seed 0: test error {error}; {tmp_path / 'run'}>"
    assert repr(run) == where
    (tmp_path / "run" / "result.json").unlink()
    assert "seed 0: 3 of 3 iterations measured; " in repr(resvar.load_run(tmp_path / "run"))
    (tmp_path / "run" / "metrics.csv").unlink()
    assert "seed 0: 0 of 3 iterations measured; " in repr(resvar.load_run(tmp_path / "run"))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_stops_with_a_checkpoint_and_the_same_call_resumes(tmp_path, data, monkeypatch):
    from resvar.training.trainer import Trainer

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    step = Trainer.step

    def interrupted(trainer, callbacks):
        step(trainer, callbacks)
        signal.raise_signal(signal.SIGINT)

    def train():
        return resvar.train("original", 8, data=data, out=tmp_path / "run", quiet=True, **TINY)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(resvar.Stopped, match=r"resume at iteration 1\.$"):
            train()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert train().result["iterations"] == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_in_other_threads_and_twice_in_a_process_the_result_is_the_same(tmp_path, data):
    found = {}

    def train(name):
        out = tmp_path / name
        found[name] = resvar.train("original", 8, data=data, out=out, quiet=True, **TINY).result

    train("main")
    for name in ("one", "two"):
        thread = threading.Thread(target=train, args=(name,))
        thread.start()
        thread.join()
    assert len({result["test_error"] for result in found.values()}) == 1
    assert len({result["train_loss"] for result in found.values()}) == 1


def test_one_variant_and_one_depth_need_no_list(tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(
        "resvar.sweeps.launch.run_here", lambda sweep, *_, **__: planned.append(sweep)
    )
    monkeypatch.setattr("resvar.api.load_runs", lambda folder: folder)
    resvar.sweep(variants="original", depths=8, protocol="quick", out=tmp_path)
    (run,) = planned[0].runs
    assert (run.settings.variant, run.settings.depth) == ("original", 8)
