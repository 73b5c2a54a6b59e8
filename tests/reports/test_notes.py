"""The caveats of a group: copies of a run, and what was mixed within a comparison."""

from __future__ import annotations

from resvar.reports.findings import build
from resvar.reports.records import read_records
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
    assert [entry.summary.n for entry in group.entries.values() if entry.summary] == [1]
    (note,) = group.notes
    assert note.endswith(
        "b is the same run as " + (tmp_path / "a").as_posix() + ", which is counted."
    )
