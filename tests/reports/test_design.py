"""The declared seeds: what a sweep has written is what a report takes as its stopping rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resvar.errors import UserError
from resvar.reports.design import EQUIVALENCE_MARGIN, Design
from resvar.reports.findings import build
from resvar.reports.search import read_records
from resvar.sweeps.grid import MANIFEST, declarations, manifests, plan_sweep
from tests.reports.runs import write_run

GIVEN = {"variants": "original,full-preact", "depths": "110", "protocol": "paper"}


def declare(root, seeds="5", file=None, sets=(), **given):
    sweep = plan_sweep(file, ({} if file else GIVEN) | {"seeds": seeds} | given, sets, root)
    sweep.write_manifest()
    return sweep


def write(root, seeds, variants=("original", "full-preact")):
    for variant in variants:
        for seed in seeds:
            write_run(root, variant, 110, seed, 6.5 + seed / 10, "paper")


def plan_of(*folders):
    (pair,) = build(read_records(folders)).groups[0].v1_v2
    return pair.plan


def test_without_a_sweep_the_papers_five_seeds_are_declared(tmp_path):
    write(tmp_path, range(2))
    plan = plan_of(tmp_path)
    assert (plan.seeds, plan.by_sweep, plan.margin) == (
        frozenset(range(5)),
        False,
        EQUIVALENCE_MARGIN,
    )


@pytest.mark.parametrize("below", ["", "paper", "paper/original-110", "paper/original-110/seed-0"])
def test_the_declaration_is_found_from_anywhere(tmp_path, below):
    declare(tmp_path / "runs", seeds="0,3,7")
    write(tmp_path / "runs", (0, 3))
    for folder in (tmp_path / "runs" / below, tmp_path):
        plan = plan_of(folder)
        assert (plan.seeds, plan.by_sweep) == (frozenset({0, 3, 7}), True)


def test_a_relative_folder_or_a_link_finds_it_too(tmp_path, monkeypatch):
    declare(tmp_path / "runs", seeds="7")
    write(tmp_path / "runs", (0,))
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "link", "."):
        assert len(plan_of(Path(folder)).seeds) == 7
    monkeypatch.chdir(tmp_path / "runs")
    assert len(plan_of(Path()).seeds) == 7


def test_more_seeds_by_a_second_sweep_are_a_second_declaration(tmp_path):
    declare(tmp_path, seeds="5")
    write(tmp_path, range(5))
    declare(tmp_path, seeds="10")
    assert len(manifests(tmp_path)) == 2
    plan = plan_of(tmp_path)
    assert (len(plan.seeds), plan.earlier) == (10, (5,))


def test_a_sweep_that_grows_after_results_keeps_what_it_was(tmp_path):
    file = tmp_path / "mine.yaml"
    text = "variants: [original, full-preact]\ndepths: [110]\nprotocol: paper\nseeds: {}\n"
    for seeds in (3, 5):  # nothing is known between these
        file.write_text(text.format(seeds), encoding="utf-8")
        sweep = plan_sweep(file, {}, (), tmp_path)
        sweep.write_manifest()
    write(tmp_path, range(5))
    assert plan_of(tmp_path).earlier == ()
    file.write_text(text.format(8), encoding="utf-8")
    for _ in range(3):  # a rerun adds nothing
        sweep = plan_sweep(file, {}, (), tmp_path)
        sweep.write_manifest()
    plan = plan_of(tmp_path)
    assert (len(plan.seeds), plan.earlier) == (8, (5,))
    assert [len(each.runs) for each in declarations(tmp_path)] == [10, 16]
    (path,) = tmp_path.glob(f"*{MANIFEST}")
    assert len(json.loads(path.read_text(encoding="utf-8"))["earlier"]) == 1


def test_the_margin_of_a_sweep_file_reaches_the_verdict(tmp_path):
    file = tmp_path / "mine.yaml"
    text = "variants: [original, full-preact]\ndepths: [110]\nseeds: 5\nprotocol: paper\n"
    file.write_text(f"{text}margin: 0.1\n", encoding="utf-8")
    plan_sweep(file, {}, (), tmp_path).write_manifest()
    write(tmp_path, range(5))
    assert plan_of(tmp_path).margin == 0.1


@pytest.mark.parametrize("wrong", ["0", "-0.1", "true", "wide", "100", ".inf", ".nan"])
def test_a_wrong_margin_is_one_sentence(tmp_path, wrong):
    file = tmp_path / "mine.yaml"
    file.write_text(f"variants: [original]\ndepths: [20]\nmargin: {wrong}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"'margin' must be percentage points above 0"):
        plan_sweep(file, {}, (), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", '{"runs": 3}', '{"runs": ["../../etc"]}', '{"format": 99, "runs": []}',
        '{"runs": ["paper/original-110/seed-0"], "earlier": 5, "margin": "wide"}',
        '{"runs": ["paper/original-110/seed-0"], "earlier": [5, ["/etc"], [7]], "margin": -1}',
        '{"runs": ["paper/original-110/seed-x", "seed-99999999999999999999"]}',
    ],
)  # fmt: skip
def test_a_damaged_declaration_breaks_no_report(tmp_path, content):
    write(tmp_path, range(2))
    (tmp_path / f"bad{MANIFEST}").write_text(content, encoding="utf-8")
    plan = plan_of(tmp_path)
    assert plan.margin == EQUIVALENCE_MARGIN
    assert len(plan.seeds) in (1, 5)


def test_lists_of_earlier_versions_declare_too(tmp_path):
    names = [f"paper/{v}-110/seed-{s}" for v in ("original", "full-preact") for s in range(6)]
    old = {"format": 1, "file": None, "runs": names}
    (tmp_path / f"old{MANIFEST}").write_text(json.dumps(old), encoding="utf-8")
    write(tmp_path, range(2))
    assert len(plan_of(tmp_path).seeds) == 6


def test_nothing_is_planned_without_sweeps():
    assert Design().plan([]).seeds == frozenset(range(5))
