"""The caveats of a group: copies of a run, and what was mixed within a comparison."""

from __future__ import annotations

import shutil

import pytest

from resvar.files import shipped
from resvar.reports.findings import build
from resvar.reports.render import render_report
from resvar.reports.search import read_records
from tests.reports.pages import ENVIRONMENT_A, write_curved
from tests.reports.runs import write_run


def group_on(root):
    (group,) = build(read_records([root])).groups
    return group


# --- settings without effect ----------------------------------------------------------------------


def test_runs_that_differ_without_effect_are_one_group_and_count_once(tmp_path):
    for folder, more in (("a", ()), ("b", ("muon_lr=0.5",))):
        write_run(tmp_path, overrides=more, folder=tmp_path / folder)
    group = group_on(tmp_path)
    assert group.label == "quick"
    assert [entry.summary.n for entry in group.cells.values() if entry.summary] == [1]
    (note,) = group.notes
    assert note.endswith(
        "b is the same run as " + (tmp_path / "a").as_posix() + ", which is counted."
    )


def test_a_users_protocol_is_told_without_what_has_no_effect(tmp_path):
    mine = tmp_path / "mine.yaml"
    shutil.copy(shipped("protocols")["quick"], mine)
    write_run(tmp_path, protocol=str(mine), folder=tmp_path / "run")
    (note,) = group_on(tmp_path).notes
    assert "schedule=one-cycle, lr=0.1, " in note
    assert "peak_at=0.3" in note
    assert "muon_lr" not in note
    assert "milestones" not in note


# --- what was mixed -------------------------------------------------------------------------------

OTHER = "5d6e7f8" + "0" * 33


def write_made(root, variant, seeds, depth=110, overrides=(), changes=None, **facts):
    for seed in seeds:
        write_curved(
            root, variant, depth, seed, environment=ENVIRONMENT_A | facts, overrides=overrides,
            changes=changes,
        )  # fmt: skip


def test_runs_made_alike_need_no_caveat(tmp_path):
    for variant in ("original", "bn-after-add", "full-preact"):
        write_made(tmp_path, variant, (0, 1))
    group = group_on(tmp_path)
    assert group.mixed == group.notes == ()


def test_v1_and_v2_made_with_different_commits_are_told_first(tmp_path):
    write_made(tmp_path, "original", (0, 1, 2))
    write_made(tmp_path, "full-preact", (0, 1), commit=OTHER)
    write_made(tmp_path, "original", (0, 1, 2), depth=164)
    write_made(tmp_path, "full-preact", (0, 1), depth=164, commit=OTHER)
    group = group_on(tmp_path)
    sentence = (
        "ResNet-110 and ResNet-164: V1 and V2 were made with different commits "
        "(3 × 0000000; 2 × 5d6e7f8)."
    )
    assert group.mixed == group.notes[:1] == (sentence,)
    assert len(group.notes) == 1  # the same is not said of the group once more


@pytest.mark.parametrize("full", [True, False])
def test_the_first_screen_of_a_terminal_tells_it_too(tmp_path, full):
    write_made(tmp_path, "original", (0,))
    write_made(tmp_path, "full-preact", (0,), device="GPU \x1b[31m")
    text = render_report(build(read_records([tmp_path])), "table", full)
    assert text.count("V1 and V2 were made with different devices (1 × GPU A; 1 × GPU") == 1
    assert "\x1b" not in text


def test_only_the_depth_concerned_is_named(tmp_path):
    for depth, commit in ((110, OTHER), (164, ENVIRONMENT_A["commit"])):
        write_made(tmp_path, "original", (0,), depth)
        write_made(tmp_path, "full-preact", (0,), depth, commit=commit)
    (note,) = group_on(tmp_path).mixed
    assert note.startswith("ResNet-110: V1 and V2")


def test_a_dirty_tree_is_not_the_commit(tmp_path):
    write_made(tmp_path, "original", (0,))
    write_made(tmp_path, "full-preact", (0,), dirty=True)
    (note,) = group_on(tmp_path).mixed
    assert note.endswith("(1 × 0000000; 1 × 0000000 with uncommitted changes).")


def test_two_dirty_trees_may_differ(tmp_path):
    for variant in ("original", "full-preact"):
        write_made(tmp_path, variant, (0, 1), dirty=True)
    group = group_on(tmp_path)
    sentence = "ResNet-110: V1 and V2 were made with uncommitted changes, which may differ."
    assert group.notes == group.mixed == (sentence,)


def test_devices_precisions_kernels_and_torch_are_named_in_one_sentence(tmp_path):
    write_made(tmp_path, "original", (0,), overrides=["kernels=plain"])
    write_made(
        tmp_path, "full-preact", (0,), overrides=["kernels=fused"], changes={"precision": "bf16"},
        device="GPU B", torch="2.9.0",
    )  # fmt: skip
    (note,) = group_on(tmp_path).mixed
    assert note == (
        "ResNet-110: V1 and V2 were made with different devices (1 × GPU A; 1 × GPU B), different "
        "precisions (1 × fp32; 1 × bf16), different kernels (1 × plain; 1 × fused) and different "
        "PyTorch versions (1 × 2.8.0; 1 × 2.9.0)."
    )


def test_a_mixture_that_both_sides_share_is_told_too(tmp_path):
    for variant in ("original", "full-preact"):
        write_made(tmp_path, variant, (0, 1))
        write_made(tmp_path, variant, (2,), commit=OTHER)
    (note,) = group_on(tmp_path).mixed
    assert note.endswith("different commits (2 × 0000000 and 1 × 5d6e7f8 each).")


def test_a_run_resumed_elsewhere_is_mixed_by_itself(tmp_path):
    moved = [{"iteration": 3, "changed": {"device": "GPU B", "commit": OTHER}}]
    write_made(tmp_path, "original", (0,))
    write_made(tmp_path, "full-preact", (0,), resumed=moved)
    (note,) = group_on(tmp_path).mixed
    assert "(1 × 0000000; 1 × 0000000, then 5d6e7f8)" in note
    assert "(1 × GPU A; 1 × GPU A, then GPU B)" in note


def test_other_variants_share_a_sentence_after_that_of_v1_and_v2(tmp_path):
    write_made(tmp_path, "original", (0,))
    for variant in ("full-preact", "bn-after-add", "relu-before-add"):
        write_made(tmp_path, variant, (0,), commit=OTHER)
    write_made(tmp_path, "relu-only-preact", (0,))
    group = group_on(tmp_path)
    assert group.notes == (
        *group.mixed,
        "ResNet-110: original, bn-after-add and relu-before-add were made with different commits "
        "(1 × 0000000; 1 × 5d6e7f8).",
    )


def test_a_mixture_within_no_comparison_is_told_of_the_group(tmp_path):
    for variant in ("original", "full-preact"):
        write_made(tmp_path, variant, (0,))
        write_made(tmp_path, variant, (0,), depth=164, commit=OTHER)
    group = group_on(tmp_path)
    assert group.mixed == ()
    assert group.notes == (
        "The runs were made with different commits: 2 × 0000000 and 2 × 5d6e7f8.",
    )


def test_a_damaged_environment_says_nothing_and_stops_nothing(tmp_path):
    write_made(tmp_path, "original", (0,))
    folder = write_curved(tmp_path, "full-preact")
    (folder / "environment.json").write_text("{", encoding="utf-8")
    (note,) = group_on(tmp_path).mixed
    assert "(1 × 2.8.0; 1 × not recorded)" in note
