from __future__ import annotations

import os
from pathlib import Path

import pytest

from resvar.config import resolve
from resvar.errors import UserError
from resvar.ownership import refuse_foreign, start_over
from resvar.rundir import (
    read_settings,
    write_failure,
    write_metrics,
    write_note,
    write_settings,
)
from tests.frozen.make import unpack
from tests.support.commands import ROOT, train
from tests.test_rundir import make_row, make_settings

RUN_FILES = [
    "config.yaml", "environment.json", "metrics.csv", "checkpoint.pt", "checkpoint.previous.pt",
    "result.json", "predictions.npy", "progress.json", "failure.json", "diverged.json",
    "probe.json", "wandb.json", "snapshots/iteration-000100.safetensors",
]  # fmt: skip
"""Written out here: a file that is forgotten would outlive its run."""


# --- files of others ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_file_of_somebody_else_is_named(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "run.lock").write_bytes(b"process 1 on host")  # of an attempt that was refused
    with pytest.raises(UserError, match=f"there is a file {Path(name).name} that no run"):
        refuse_foreign(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "variant: full-preact\ndepth: 20\nseed: 0\niterations: 100\nlr: 0.1\n",  # for --config
        "variant: mine\nlead: []\nbetween: [bn, relu]\ntrail: [bn]\nafter_add: [relu]\n",
        "a: 1\n",
        "",
    ],
)
def test_a_config_that_a_person_wrote_is_not_a_run(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.yaml"):
        refuse_foreign(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.csv", "epoch,loss\n1,0.5\n"),
        ("result.json", '{"accuracy": 0.9}'),
        ("environment.json", '{"python": "3.12"}'),
        ("checkpoint.pt", "PK\x03\x04 archive/data.pkl state_dict"),
        ("config.yaml", "# The settings of my run\nlr: 1\n"),
    ],
)
def test_similar_files_of_other_programs_are_not_a_run(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=name):
        refuse_foreign(tmp_path)


def test_other_files_are_nobodys_business(tmp_path):
    refuse_foreign(tmp_path / "none")
    for name in ("notes.md", "log.txt", "run.lock", "events.out.tfevents.1.host.2.0.resvar"):
        (tmp_path / name).write_bytes(b"mine")
    refuse_foreign(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_is_not_waited_for(tmp_path, make):
    make(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml"):
        refuse_foreign(tmp_path)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted((ROOT / "tests" / "frozen").glob("format-*/*/")))
def test_each_file_of_an_old_run_that_tells_it_suffices(folder, tmp_path):
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (unpacked / path.name).write_bytes(path.read_bytes())
    unpack(unpacked)
    for path in unpacked.iterdir():
        if path.name == "predictions.npy":
            continue
        alone = tmp_path / path.name
        alone.mkdir()
        (alone / path.name).write_bytes(path.read_bytes())
        (alone / "predictions.npy").touch()
        refuse_foreign(alone)


def test_every_kept_run_is_one():
    runs = [path.parent for path in (ROOT / "results").rglob("result.json")]
    assert len(runs) > 5
    for folder in runs:
        refuse_foreign(folder)


@pytest.mark.parametrize(
    "options", [{}, {"variant": "original", "depth": 110, "protocol": "paper", "seed": 7}]
)
def test_a_config_without_its_first_line_is_of_an_older_run(tmp_path, options):
    settings = resolve(None, {"variant": "full-preact", "depth": 20, **options})
    (tmp_path / "config.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    refuse_foreign(tmp_path)


def test_what_this_version_writes_is_recognised(tmp_path):
    for number, write in enumerate(
        (
            lambda at: write_settings(at, make_settings()),
            lambda at: write_failure(at, "killed"),
            lambda at: write_metrics(at / "metrics.csv", []),
            lambda at: write_metrics(at / "metrics.csv", [make_row()]),
            lambda at: write_note(at / "progress.json", {"iteration": 1}),
        )
    ):
        (at := tmp_path / str(number)).mkdir()
        write(at)
        (at / "result.json").touch()  # damaged
        refuse_foreign(at)


# --- what --fresh removes -------------------------------------------------------------------------


def test_a_run_is_removed_with_every_file_of_its_own_and_nothing_else(tmp_path):
    own = [*RUN_FILES, "events.out.tfevents.1.host.2.0.resvar"]
    others = ["run.lock", "log.txt", "notes.md", "snapshots/mine.txt", "events.out.tfevents.1.host"]
    (tmp_path / "snapshots").mkdir()
    for name in [*own, *others]:
        (tmp_path / name).write_bytes(b"x")
    start_over(tmp_path, make_settings())
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {*others, "config.yaml"}
    assert read_settings(tmp_path) == make_settings()
    start_over(tmp_path, make_settings())  # nothing is left to remove


# --- as a user ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "result.json", "checkpoint.pt"])
def test_train_refuses_a_folder_with_a_file_of_somebody_else(warm, tmp_path, name):
    (tmp_path / name).write_bytes(b"lr: 0.1\n")
    for more in ((), ("--fresh",)):
        refused = warm.run(*train("--out", str(tmp_path), *more), cwd=tmp_path)
        assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused
        assert name in refused.err
        assert [path.name for path in tmp_path.iterdir()] == [name], "nothing is written"
    assert (tmp_path / name).read_bytes() == b"lr: 0.1\n"
