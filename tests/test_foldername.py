"""The folders of runs that leave their protocol."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resvar.config import resolve
from resvar.foldername import LONGEST_NAME, folder_name
from resvar.ownership import run_folder
from resvar.rundir import write_settings

NAMES = st.sampled_from(["lr", "milestones", "momentum", "nesterov", "optimizer", "weight_decay"])
VALUES = (
    st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.none()
    | st.sampled_from(["sgd", "muon", "one-cycle"])
    | st.lists(st.integers(0, 10**6), max_size=40)
)
CHANGES = st.dictionaries(NAMES, VALUES, max_size=6)


def plain(changes):
    """Values that are equal only for the same setting: 1 and 1.0 are, 1 and true are not."""
    return {name: (isinstance(value, bool), value) for name, value in changes.items()}


@given(CHANGES, CHANGES)
def test_different_changes_have_different_names_and_equal_ones_the_same(first, second):
    same = plain(first) == plain(second)
    zeros = any(value == 0 for value in (*first.values(), *second.values()))  # 0.0 and -0.0
    assert (folder_name(first) == folder_name(second)) == same or zeros


@given(CHANGES)
def test_a_name_is_a_folder_on_every_system(changes):
    name = folder_name(changes)
    assert re.fullmatch(r"[a-z0-9_=,+.-]*", name)
    assert len(name) <= LONGEST_NAME
    assert not name.endswith(".")
    assert name.startswith(f"{min(changes)}=" if changes else "")


def settings(*overrides, depth=20, **options):
    return resolve(None, {"variant": "full-preact", "depth": depth, **options}, overrides)


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        ([], "paper/full-preact-20/seed-0"),
        (["lr=0.05"], "paper/full-preact-20/lr=0.05/seed-0"),
        (["lr=5.0e-2", "seed=3"], "paper/full-preact-20/lr=0.05/seed-3"),
        (["lr=0.1"], "paper/full-preact-20/seed-0"),
        (["lr=1"], "paper/full-preact-20/lr=1/seed-0"),
        (["lr=1.0"], "paper/full-preact-20/lr=1/seed-0"),
        (["weight_decay=0.00001", "lr=0.05"],
         "paper/full-preact-20/lr=0.05,weight_decay=1e-05/seed-0"),
        (["milestones=[400, 800]"], "paper/full-preact-20/milestones=400+800/seed-0"),
        (["milestones=[]"], "paper/full-preact-20/milestones=empty/seed-0"),
        (["nesterov=true", "dataset=cifar100"],
         "paper/full-preact-20/dataset=cifar100,nesterov=true/seed-0"),
        (["tensorboard=true", "probe_at=[1]", "recompute=unit"], "paper/full-preact-20/seed-0"),
        (["unit=basic", "shortcut=pad"], "paper/full-preact-20/seed-0"),
        (["shortcut=project"], "paper/full-preact-20/shortcut=project/seed-0"),
    ],
)  # fmt: skip
def test_the_folder_of_a_run_names_what_it_changes(overrides, folder):
    assert settings(*overrides).directory.as_posix() == folder


def test_both_families_have_a_depth_50():
    names = {settings(depth=50, family=family).directory for family in ("cifar", "imagenet")}
    assert {name.parts[2:-1] for name in names} == {(), ("family=imagenet",)}
    assert settings(depth=164).directory == settings("unit=bottleneck", depth=164).directory


def test_a_protocol_of_ones_own_gives_no_changes(tmp_path):
    text = "iterations: 9\nbatch_size: 8\nbn_batch_size: 8\nschedule: step\nlr: 0.3\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    mine = str(tmp_path / "mine.yaml")
    assert settings(protocol=mine).directory.as_posix() == "mine/full-preact-20/seed-0"
    changed = settings("lr=0.2", protocol=mine)
    assert changed.directory.as_posix() == "mine/full-preact-20/lr=0.2/seed-0"


# --- runs that are there --------------------------------------------------------------------------


def write(folder, run):
    folder.mkdir(parents=True)
    write_settings(folder, run)
    return folder


def test_a_run_in_the_older_place_is_found_by_its_settings_alone(tmp_path):
    older = write(tmp_path / "paper/full-preact-20/seed-0", settings("lr=0.05"))
    assert run_folder(tmp_path, settings("lr=0.05")) == older
    assert run_folder(tmp_path, settings("lr=0.05", "tensorboard=true")) == older
    assert run_folder(tmp_path, settings("lr=0.2")) == older.parent / "lr=0.2" / "seed-0"
    named = write(tmp_path / settings("lr=0.05").directory, settings("lr=0.05"))
    assert run_folder(tmp_path, settings("lr=0.05")) == named


@pytest.mark.parametrize("overrides", [[], ["lr=0.05"], ["precision=bf16"]])
@pytest.mark.parametrize("protocol", ["paper", "mine"])
def test_the_record_of_a_run_finds_its_run(tmp_path, overrides, protocol):
    if protocol == "mine":
        protocol = str(tmp_path / "mine.yaml")
        text = "iterations: 9\nbatch_size: 8\nbn_batch_size: 8\nschedule: step\nlr: 0.3\n"
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    asked = settings(*overrides, protocol=protocol)
    resolved = {"precision": "bf16", "kernels": "fused"}
    for seed in (0, 1):
        run = asked.model_copy(update={"seed": seed})
        folder = write(tmp_path / run.directory, run.model_copy(update=resolved))
        assert run_folder(tmp_path, resolve(folder / "config.yaml")) == folder


def test_a_record_from_elsewhere_goes_to_the_usual_folder_unless_another_run_is_there(tmp_path):
    here = settings().model_copy(update={"precision": "fp32", "kernels": "plain"})
    elsewhere = settings().model_copy(update={"precision": "bf16", "kernels": "plain"})
    record = write(tmp_path / "elsewhere", elsewhere) / "config.yaml"
    assert run_folder(tmp_path, resolve(record)) == tmp_path / settings().directory
    usual = write(tmp_path / settings().directory, here)
    named = usual.parent / "kernels=plain,precision=bf16" / "seed-0"
    assert run_folder(tmp_path, resolve(record)) == named
    write(named, elsewhere)
    assert run_folder(tmp_path, resolve(record)) == named
    changed = resolve(record, overrides=["lr=0.05"])
    assert run_folder(tmp_path, changed) == usual.parent / "lr=0.05" / "seed-0"


def test_a_damaged_folder_in_the_older_place_is_not_taken(tmp_path):
    older = write(tmp_path / "paper/full-preact-20/seed-0", settings("lr=0.05"))
    (older / "config.yaml").write_text("{", encoding="utf-8")
    assert run_folder(tmp_path, settings("lr=0.05")) == older.parent / "lr=0.05" / "seed-0"
