"""`resvar train --dry-run`: it says what would happen, and writes nothing."""

from __future__ import annotations

import re

import pytest
import yaml

from resvar.cli import run_command
from resvar.training import preview
from tests.support.commands import contents, train
from tests.support.tiny import install, make_cifar


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    install(make_cifar(data, train=260, test=60), monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESVAR_DATA", str(data))
    monkeypatch.setattr(preview, "SECONDS", 0.05)


def previewed(capsys, *more):
    code = run_command([*train("--set", "kernels=plain", *more), "--dry-run"])
    return code, capsys.readouterr()


def test_a_new_run(tmp_path, capsys):
    code, printed = previewed(capsys)
    assert code == 0, printed.err
    assert contents(tmp_path) == {}
    assert re.search(
        r"^Run directory: runs/paper/full-preact-8/\S+/seed-0 \(new\)$", printed.out, re.M
    )
    assert "Dataset: cifar10 is complete" in printed.out
    assert re.search(r"^Device: .+; fp32", printed.out, re.M)
    assert re.search(r"^Time: about .+ for 14 iterations", printed.out, re.M)
    changed = dict(re.findall(r"^(\w+) +(\S+)$", printed.out.partition("All settings")[0], re.M))
    assert changed["lr"] == "0.05"
    assert "momentum" not in changed


@pytest.mark.heavy
def test_the_settings_are_those_that_the_run_records(tmp_path, capsys):
    _, printed = previewed(capsys)
    listed = printed.out.partition("All settings:\n")[2].partition("\n\n")[0]
    (folder,) = re.findall(r"^Run directory: (\S+)", printed.out, re.M)
    assert run_command(train("--set", "kernels=plain")) == 0
    assert yaml.safe_load(listed) == yaml.safe_load(
        (tmp_path / folder / "config.yaml").read_text(encoding="utf-8")
    )


@pytest.mark.heavy
def test_a_run_that_would_resume_and_one_that_is_finished(tmp_path, capsys):
    assert run_command(train("--set", "kernels=plain", "--out", "run")) == 0
    before = contents(tmp_path)
    _, printed = previewed(capsys, "--out", "run")
    assert "Run directory: run (the run is finished)" in printed.out
    assert "Time:" not in printed.out
    assert contents(tmp_path) == before
    (tmp_path / "run" / "result.json").unlink()
    _, printed = previewed(capsys, "--out", "run")
    assert "to resume at iteration 14" in printed.out
    _, printed = previewed(capsys, "--out", "run", "--fresh")
    assert "(the run here is removed and started over)" in printed.out


def test_missing_data_is_reported_and_the_rest_is_told(tmp_path, capsys):
    code, printed = previewed(capsys, "--data", "nowhere")
    assert code == 0
    assert "not usable yet" in printed.out
    assert "Time: about" in printed.out
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("wrong", [("--set", "lr=-1"), ("--device", "cuda:99"), ("--depth", "21")])
def test_what_train_refuses_is_refused(tmp_path, capsys, wrong):
    code, printed = previewed(capsys, *wrong)
    assert code == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert contents(tmp_path) == {}


@pytest.mark.heavy
def test_the_folder_of_another_run_is_refused(tmp_path, capsys):
    assert run_command(train("--set", "kernels=plain", "--out", "run")) == 0
    before = contents(tmp_path)
    code, printed = previewed(capsys, "--out", "run", "--set", "lr=0.1")
    assert code == 2
    assert "lr: 0.05 → 0.1" in printed.err
    assert contents(tmp_path) == before


def test_a_folder_of_images_that_is_missing(tmp_path, capsys):
    options = ["--variant", "v1", "--depth", "18", "--family", "imagenet", "--protocol", "imagenet"]
    small = ["--set", "image_size=32", "--set", "batch_size=2", "--set", "bn_batch_size=2"]
    asked = ["train", *options, *small, "--dataset", "folder", "--data", "nowhere", "--dry-run"]
    assert run_command([*asked, "--device", "cpu", "--set", "kernels=plain"]) == 0
    printed = capsys.readouterr().out
    assert "Dataset: folder is not usable yet" in printed
    assert "num_classes: null" in printed
    assert "Time: about" in printed
    assert contents(tmp_path) == {}
