"""The verdicts on V1 and V2: two answers a depth, which a hostile reviewer may attack."""

from __future__ import annotations

import json
import math

import pytest

from resvar.console import points
from resvar.reports.cells import Cell
from resvar.reports.design import SeedPlan
from resvar.reports.findings import build
from resvar.reports.published import Published, published, usual_sd
from resvar.reports.search import read_records
from resvar.reports.statistics import summarise
from resvar.reports.verdicts import V1V2Comparison
from resvar.sweeps.grid import plan_sweep
from tests.reports.runs import write_run

V1 = (6.61, 6.75, 6.43, 6.58, 6.70)


def entry(variant, depth, errors):
    known = {seed: error for seed, error in enumerate(errors) if not math.isinf(error)}
    summary = summarise(list(known.values())) if known else None
    return Cell(variant, depth, summary, published("cifar10", variant, depth), (), known)


def judge(v1, v2, depth=164, like_paper=True, depths=2, **plan):
    sides = entry("original", depth, v1), entry("full-preact", depth, v2)
    return V1V2Comparison(depth, *sides, SeedPlan(**plan), depths, like_paper, usual_sd("cifar10"))


def around(mean, half):
    """Five test errors with this mean, spread over `half` to both sides."""
    return tuple(mean + half * step for step in (-1, -0.5, 0, 0.5, 1))


# --- direction and agreement ----------------------------------------------------------------------


def test_reproduced_is_the_direction_and_the_size():
    found = judge(around(5.93, 0.1), around(5.46, 0.1))
    assert (found.direction, found.agreement, found.word) == ("V2 better", "agrees", "reproduced")
    assert found.sentence.startswith("reproduced: V2 is better; V2 − V1 is -0.47 points, 97.5 %")
    assert found.sentence.endswith("It agrees with the published -0.47.")


@pytest.mark.parametrize(
    ("depth", "difference", "half", "direction", "agreement", "equivalent"),
    [
        (164, -0.04, 0.01, "V2 better", "smaller", True),  # significant, and far from -0.47
        (110, -1.00, 0.10, "V2 better", "larger", False),
        (164, 0.00, 0.08, "undecided", "smaller", True),  # excludes -0.47
        (110, 0.00, 0.08, "undecided", "inconclusive", True),  # -0.24 is possible, and 0 too
        (164, 0.60, 0.10, "V1 better", "smaller", False),
        (164, -0.40, 0.90, "undecided", "inconclusive", False),
    ],
)
def test_a_sign_is_no_reproduction(depth, difference, half, direction, agreement, equivalent):
    found = judge(around(6.0, half), around(6.0 + difference, half), depth)
    assert (found.direction, found.agreement) == (direction, agreement)
    assert found.equivalent == equivalent
    assert not found.reproduced
    assert found.word == direction
    assert f"{found.published_difference:+.2f}" in found.sentence


def test_the_papers_own_uncertainty_counts():
    # The interval alone excludes -0.24; with the spread of two medians of five it does not.
    ours = judge(around(6.6, 0.03), around(6.25, 0.03), depth=110)
    low, high = ours.comparison.interval
    assert not low <= -0.24 <= high
    assert ours.agreement == "agrees"
    assert ours.reproduced
    # Published with hardly any spread, it would differ.
    exact = [
        Cell(e.variant, 110, e.summary, Published(e.published.test_error, "", 5, sd=0.001), (),
              e.errors) for e in (ours.v1, ours.v2)
    ]  # fmt: skip
    assert V1V2Comparison(110, *exact, ours.plan, 2, like_paper=True).agreement == "larger"


def test_the_margin_is_the_declared_one():
    v1, v2 = around(6.0, 0.05), around(6.02, 0.05)
    assert judge(v1, v2).equivalent
    assert "They are equivalent within ±0.2 points." in judge(v1, v2).sentence
    assert not judge(v1, v2, margin=0.05).equivalent


def test_only_the_papers_protocol_reproduces():
    found = judge(around(5.93, 0.1), around(5.46, 0.1), like_paper=False)
    assert (found.direction, found.agreement, found.word) == ("V2 better", None, "V2 better")
    assert "reproduced" not in found.sentence
    assert "published" not in found.sentence


def test_the_direction_is_that_of_the_means_where_pairs_say_otherwise():
    """Twelve runs of V2 are slightly worse and eight much better: the tests decide on means."""
    v1 = [6.5 + 0.002 * i for i in range(20)]
    v2 = [6.55 + 0.001 * i for i in range(12)] + [6.0 + 0.001 * i for i in range(8)]
    found = judge(v1, v2, depth=110, seeds=frozenset(range(20)), by_sweep=True)
    assert found.comparison.interval[1] < 0
    assert found.direction == "V2 better"


def test_nothing_is_concluded_from_a_design_that_cannot_decide():
    plan = {"seeds": frozenset(range(3)), "by_sweep": True}
    far = judge(around(6.0, 0.01)[:3], around(7.0, 0.01)[:3], depth=110, **plan)
    assert (far.direction, far.agreement, far.equivalent) == ("undecided", "inconclusive", None)
    assert "97.5 % Welch interval" in far.sentence
    assert "power" not in far.sentence
    near = judge(around(6.0, 0.01)[:3], around(6.01, 0.01)[:3], depth=110, **plan)
    assert "equivalent" not in near.sentence


def test_no_number_is_rounded_into_falsehood():
    seeds = {"seeds": frozenset(range(8)), "by_sweep": True}
    tiny = judge((6.0,) * 7 + (6.01,), (6.0,) * 8, **seeds)
    assert "-0.001 points" in tiny.sentence
    assert "-0.00 " not in tiny.sentence
    apart = judge(tuple(6 + i / 1000 for i in range(8)), tuple(5.98 + i / 1000 for i in range(8)))
    assert "+0.00" not in apart.sentence
    assert (points(-0.001), points(0.0), points(-1e-9)) == ("-0.001", "0.00", "0.00")


def test_the_opposite_direction_is_called_that():
    found = judge(around(6.0, 0.1), around(7.0, 0.1), depth=110)
    assert (found.direction, found.agreement) == ("V1 better", "smaller")
    assert found.sentence.endswith("That is the opposite of the published -0.24.")


# --- the family of depths -------------------------------------------------------------------------


def test_the_error_rate_is_that_of_all_depths_together():
    v2 = (6.37, 6.20, 6.46, 6.31, 6.40)
    alone, among = judge(V1, v2, depths=1), judge(V1, v2, depths=4)
    assert alone.direction == "V2 better"
    assert among.direction == "undecided"
    assert among.p_family == pytest.approx(4 * alone.p_family)
    assert among.comparison.level == pytest.approx(1 - 0.05 / 4)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_design_that_cannot_decide_says_so(n):
    plan = {"seeds": frozenset(range(n)), "by_sweep": True}
    found = judge(around(6.6, 0.01)[:n], around(5.0, 0.01)[:n], **plan)
    assert found.direction == "undecided"
    assert f"n = {n} cannot decide, since p cannot fall below" in found.sentence
    assert "5 seeds of each can" in found.sentence


def test_one_seed_cannot_decide():
    found = judge((6.6,), (5.0,), seeds=frozenset({0}), by_sweep=True)
    assert found.direction == "undecided"
    assert "one seed of a variant cannot decide; 5 seeds of each can" in found.sentence


def test_an_underpowered_design_says_so_in_its_verdict():
    found = judge(around(6.61, 0.25), around(6.41, 0.25), depth=110)
    assert found.direction == "undecided"
    low, high = (round(100 * power) for power in found.power.powers)
    assert high < 80
    few = f"is inconclusive; with 5 seeds the power to detect it is {low} % to {high} %."
    assert few in found.sentence
    assert "power" not in judge(around(6.61, 0.02), around(6.6, 0.02), depth=110).sentence


# --- the stopping rule ----------------------------------------------------------------------------


def test_no_verdict_before_the_declared_seeds_are_complete():
    found = judge(around(6.6, 0.01), around(5.0, 0.01)[:4])
    assert found.interim
    assert (found.word, found.direction, found.agreement) == ("interim", "undecided", None)
    assert found.equivalent is None
    assert found.sentence.startswith(
        "interim, no verdict: V1 has 5 and V2 4 of 5 seeds, the paper's number; V2 − V1 is -1.60 "
        "points so far"
    )


def test_further_seeds_change_no_verdict():
    before = judge(V1, around(6.35, 0.4))
    after = judge((*V1, *[6.9] * 20), (*around(6.35, 0.4), *[6.0] * 20))
    assert before.comparison == after.comparison
    assert before.word == after.word
    assert "Not counted: 20 further seeds; 5 were declared." in after.sentence


def test_a_design_that_grew_after_results_says_so():
    ten = {"seeds": frozenset(range(10)), "by_sweep": True}
    v1, v2 = (*V1, *V1), (*around(6.35, 0.2), *around(6.35, 0.2))
    grown = judge(v1, v2, earlier=(5,), **ten)
    assert "First 5 seeds were declared, then 10: if results were known" in grown.sentence
    assert "First" not in judge(v1, v2, earlier=(1, 2), **ten).sentence  # none gave a verdict


# --- from run directories -------------------------------------------------------------------------


def write(root, variant, errors, depth=110, protocol="paper"):
    for seed, error in enumerate(errors):
        lost = error is None
        write_run(
            root, variant, depth, seed, None if lost else error, protocol,
            failure={"message": "the loss is NaN", "diverged": True} if lost else None,
        )  # fmt: skip


def pair_in(root):
    (group,) = build(read_records([root])).groups
    (pair,) = group.v1_v2
    return pair


def test_diverged_runs_are_the_worst_and_named(tmp_path):
    write(tmp_path, "original", V1)
    write(tmp_path, "full-preact", (6.0, 6.1, None, None, None))
    found = pair_in(tmp_path)
    assert not found.interim
    assert found.direction == "undecided"
    assert found.comparison.diverged == (0, 3)
    assert "3 of 5 runs of V2 diverged and rank last." in found.sentence
    write(tmp_path / "other", "original", (None,) * 5)
    write(tmp_path / "other", "full-preact", V1)
    lost = pair_in(tmp_path / "other")
    assert lost.direction == "V2 better"
    assert not lost.reproduced
    assert "5 of 5 runs of V1 diverged" in lost.sentence


def test_diverged_runs_of_v2_deny_the_published_direction(tmp_path):
    write(tmp_path, "original", V1)
    write(tmp_path, "full-preact", (None,) * 5)
    found = pair_in(tmp_path)
    assert (found.direction, found.agreement) == ("V1 better", "smaller")


def test_a_depth_whose_original_diverged_is_compared_all_the_same(tmp_path):
    write(tmp_path, "original", (None,) * 5)
    write(tmp_path, "full-preact", V1)
    write(tmp_path, "bn-after-add", V1)
    (group,) = build(read_records([tmp_path])).groups
    assert [contrast.variant for contrast in group.contrasts] == ["bn-after-add", "full-preact"]
    assert not any("nothing is compared" in note for note in group.notes)


def test_a_small_p_is_not_rounded_to_nothing():
    seeds = {"seeds": frozenset(range(20)), "by_sweep": True}
    found = judge(around(6.6, 0.01) * 4, around(5.0, 0.01) * 4, **seeds)
    assert "(p < 0.001, corrected for 2 depths, n = 20)" in found.sentence


def test_a_sweep_declares_the_seeds(tmp_path):
    given = {"variants": "original,full-preact", "depths": "110", "seeds": "7"}
    plan_sweep(None, {**given, "protocol": "paper"}, (), tmp_path).write_manifest()
    write(tmp_path, "original", V1)
    write(tmp_path, "full-preact", around(6.0, 0.1))
    found = pair_in(tmp_path)
    assert found.plan.seeds == frozenset(range(7))
    assert "V1 has 5 and V2 5 of 7 declared seeds" in found.sentence
    assert found.interim


def test_a_sweep_makes_the_family_before_its_runs_begin(tmp_path):
    given = {"variants": "original,full-preact", "depths": "110,164", "seeds": "5"}
    plan_sweep(None, {**given, "protocol": "paper"}, (), tmp_path).write_manifest()
    write(tmp_path, "original", V1)
    write(tmp_path, "full-preact", around(6.0, 0.1))
    write_run(tmp_path, "original", 164, 0, 5.9, "paper")
    (group,) = build(read_records([tmp_path])).groups
    assert [(pair.depth, pair.depths) for pair in group.v1_v2] == [(110, 2), (164, 2)]


def test_the_half_epoch_of_quick_reproduces_nothing(tmp_path):
    write(tmp_path, "original", around(60.0, 1.0), protocol="quick")
    write(tmp_path, "full-preact", around(50.0, 1.0), protocol="quick")
    found = pair_in(tmp_path)
    assert (found.word, found.agreement) == ("V2 better", None)


def test_the_verdict_and_the_tests_beside_it_never_contradict_each_other(tmp_path):
    """Two seeds: whatever an interval says, the p beside it is the one that decides."""
    write(tmp_path, "original", (6.6, 6.61))
    write(tmp_path, "full-preact", (5.0, 5.01))
    report = build(read_records([tmp_path]))
    (pair,) = report.groups[0].v1_v2
    (contrast,) = (c for c in report.groups[0].contrasts if c.variant == "full-preact")
    assert contrast.p_holm == pair.p_family
    assert contrast.comparison is pair.comparison
    assert pair.word == "interim"


def test_the_verdict_is_the_same_in_the_data(tmp_path):
    from resvar.reports.data import report_json

    write(tmp_path, "original", V1)
    write(tmp_path, "full-preact", (6.0, 6.1, None, None, None))
    data = json.loads(report_json(build(read_records([tmp_path]))))
    (found,) = data["groups"][0]["verdicts"]
    assert found["n"] == [5, 5]
    assert found["diverged"] == [0, 3]
    assert found["direction"] == "undecided"
    assert found["difference"] is None
    assert found["declared_seeds"] == [0, 1, 2, 3, 4]


def test_interim_numbers_have_no_p_that_could_be_acted_on(tmp_path):
    from resvar.reports.parts import group_tables

    write(tmp_path, "original", V1)
    write(tmp_path, "full-preact", around(5.0, 0.1)[:4])
    (group,) = build(read_records([tmp_path])).groups
    tables = {table.title: table for table in group_tables(group)}
    verdict, contrasts = (
        next(table for title, table in tables.items() if title.startswith(start))
        for start in ("V1 (original) against", "Compared with original")
    )
    names = [column.name for column in verdict.columns]
    assert verdict.rows[0][names.index("p (corrected)")].text == "–"
    assert any(note.startswith("Interim: declared seeds are missing") for note in contrasts.notes)
    write(tmp_path, "full-preact", around(5.0, 0.1))
    (group,) = build(read_records([tmp_path])).groups
    assert not any("Interim" in note for table in group_tables(group) for note in table.notes)
