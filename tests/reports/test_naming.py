from __future__ import annotations

import shutil

import pytest

from resvar.files import shipped
from resvar.reports.findings import build
from resvar.reports.naming import group_names
from resvar.reports.search import read_records
from tests.reports.runs import write_run


def names(root):
    groups = build(read_records([root])).groups
    return {group.label: name for group, name in zip(groups, group_names(groups), strict=True)}


def test_a_group_is_called_after_its_protocol_and_a_hash_of_its_changes(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", overrides=["lr=0.05", "nesterov=true"])
    write_run(tmp_path / "c", protocol="paper", overrides=["shortcut=project"])
    found = names(tmp_path)
    assert (found["quick"].short, found["quick"].settings) == ("quick", "")
    changed = found["quick (lr=0.05, nesterov=true)"]
    assert changed.settings == "lr=0.05, nesterov=true"
    assert found["paper (shortcut=project)"].settings == "shortcut=project"
    shutil.rmtree(tmp_path / "a")
    assert changed in names(tmp_path).values(), "its name does not depend on the other groups"
    assert len(changed.short) == len("quick 3f09")


def test_the_dataset_is_named_where_there_are_several(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", overrides=["dataset=cifar100"], folder=tmp_path / "b" / "x")
    groups = build(read_records([tmp_path])).groups
    assert [name.short for name in group_names(groups)] == ["CIFAR-10, quick", "CIFAR-100, quick"]


def test_users_protocols_of_one_name_are_told_apart_by_their_values(tmp_path):
    for folder, lr in (("a", "0.1"), ("b", "0.2")):
        mine = tmp_path / folder / "mine.yaml"
        mine.parent.mkdir()
        text = shipped("protocols")["quick"].read_text(encoding="utf-8")
        mine.write_text(text.replace("lr: 0.1", f"lr: {lr}"), encoding="utf-8")
        write_run(tmp_path / folder, protocol=str(mine), folder=tmp_path / folder / "run")
    write_run(
        tmp_path, protocol=str(mine), overrides=["shortcut=project"], folder=tmp_path / "c" / "run"
    )
    found = names(tmp_path)
    hashes = {label: label.partition("(")[2][:6] for label in found}
    assert len(found) == 3
    for label, name in found.items():
        assert name.short.startswith(f"mine {hashes[label]}")
        assert name.settings.startswith("lr=")
    assert len({name.short for name in found.values()}) == 3
    assert sum("shortcut=project" in name.settings for name in found.values()) == 1


@pytest.mark.heavy
def test_a_hundred_groups_have_different_names(tmp_path):
    for number in range(100):
        write_run(tmp_path / f"{number}", overrides=[f"lr={1 + number}"])
    assert len({name.short for name in names(tmp_path).values()}) == 100
