"""The 3 × 3 map in a report: test errors by the places of BN and ReLU."""

from __future__ import annotations

import io
import json
import re
from itertools import product

import pandas
import pytest
from rich.console import Console

from resvar.models.ordering import PAPER_ORDER
from resvar.reports.findings import build
from resvar.reports.render import print_report, render_report
from resvar.reports.search import read_records
from resvar.rundir import RESULT
from tests.reports.runs import how_far, write_run

PLACES = ("lead", "trail", "after_add")

ERRORS = {
    "full-preact": 49.5,
    "bn-lead-relu-trail": 48.25,
    "bn-lead-relu-after-add": 51.0,
    "relu-only-preact": 50.5,
    "relu-before-add": 53.0,
    "original": 50.1,
    "bn-after-add-relu-lead": 52.0,
    "bn-after-add-relu-trail": 54.0,
    "bn-after-add": 55.1,
}
TITLE = "Where BN and ReLU go: test error (%), ResNet-"


def write_map(root, protocol="quick", depth=110, **changes):
    """A run of each of the nine; `changes` replace test errors, and None leaves a run out."""
    errors = ERRORS | {name.replace("_", "-"): error for name, error in changes.items()}
    for variant, error in errors.items():
        if error is not None:
            write_run(root, variant, depth, 0, error, protocol)
    return root


def own_ordering(root, name="mine", places="lead: [relu, bn]\ntrail: []\nafter_add: []\n"):
    file = root / f"{name}.yaml"
    file.write_text(places, encoding="utf-8")
    return str(file)


def report_on(root):
    return build(read_records([root]))


def maps_of(root):
    (group,) = report_on(root).groups
    return group.maps


def cells_of(text):
    """(BN, ReLU) → lines of the cell, read from the first map in Markdown."""
    table = text.split(TITLE.replace("(", r"\(") if TITLE not in text else TITLE)[1]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:5]
    found = {}
    for bn, row in zip(PLACES, rows, strict=True):
        first, *cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert first.replace("\\", "") == bn
        for relu, cell in zip(PLACES, cells, strict=True):
            found[bn, relu] = cell.split("<br>")
    return found


# --- what stands in a cell ------------------------------------------------------------------------


def test_nine_cells_with_medians_published_figures_and_the_best_marked(tmp_path):
    write_map(tmp_path, "paper")
    write_run(tmp_path, "original", 110, 1, 50.4, "paper")
    assert cells_of(render_report(report_on(tmp_path), "markdown")) == {
        ("lead", "lead"): ["full-preact (V2)", "49.50 (1)", "paper 6.37"],
        ("lead", "trail"): ["**not published", r"48.25 (1) \***"],
        ("lead", "after_add"): ["not published", "51.00 (1)"],
        ("trail", "lead"): ["relu-only-preact", "50.50 (1)", "paper 6.71"],
        ("trail", "trail"): ["relu-before-add", "53.00 (1)", "paper 7.84"],
        ("trail", "after_add"): ["original (V1)", "50.25 (2)", "paper 6.61"],
        ("after_add", "lead"): ["not published", "52.00 (1)"],
        ("after_add", "trail"): ["not published", "54.00 (1)"],
        ("after_add", "after_add"): ["bn-after-add", "55.10 (1)", "paper 8.17"],
    }


def test_published_figures_are_not_comparable_with_another_protocol(tmp_path):
    write_map(tmp_path)
    cells = cells_of(render_report(report_on(tmp_path), "markdown"))
    assert cells["lead", "lead"][2] == "paper 6.37", "the heading says it"


def test_a_depth_without_published_figures_shows_none(tmp_path):
    write_map(tmp_path, "paper", depth=56)
    cells = cells_of(render_report(report_on(tmp_path), "markdown"))
    assert cells["trail", "after_add"] == ["original (V1)", "50.10 (1)", "paper 6.97"]
    assert cells["lead", "lead"] == ["full-preact (V2)", "49.50 (1)"]


def test_missing_diverged_and_unfinished_cells_say_so(tmp_path):
    write_map(tmp_path, bn_lead_relu_trail=None, original=None, bn_after_add=None, full_preact=None)
    note = {"message": "the loss is NaN", "diverged": True}
    write_run(tmp_path, "original", 110, 0, None, failure=note, progress=how_far(37))
    write_run(tmp_path, "bn-after-add", 110, 0, None, progress=how_far(12))
    write_run(tmp_path, "bn-after-add-relu-lead", 110, 1, None, failure=note)
    (write_run(tmp_path, "full-preact") / RESULT).write_text("{", encoding="utf-8")
    cells = cells_of(render_report(report_on(tmp_path), "markdown"))
    assert cells["lead", "trail"] == ["not published", "missing"]
    assert cells["trail", "after_add"][:2] == ["original (V1)", "diverged at iteration 37"]
    assert cells["after_add", "after_add"][1] == "stopped at 12 of 400"
    assert cells["after_add", "lead"][1] == "52.00 (1; diverged)"
    assert cells["lead", "lead"][1] == "damaged"
    assert cells["trail", "lead"][:2] == ["**relu-only-preact", r"50.50 (1) \*"]  # the best left
    assert maps_of(tmp_path)[0].outside == ()


# --- the best -------------------------------------------------------------------------------------


def best_of(root):
    (found,) = maps_of(root)
    return [(at.bn, at.relu) for at in found.placements if at.best]


def test_the_best_is_the_lowest_median_and_ties_share_it(tmp_path):
    write_map(tmp_path, original=48.25)
    assert best_of(tmp_path) == [("lead", "trail"), ("trail", "after_add")]
    write_run(tmp_path, "original", 110, 1, 60.0)
    write_run(tmp_path, "original", 110, 2, 48.2)
    write_run(tmp_path, "original", 110, 3, 48.2)  # median 48.225, mean above 50
    assert best_of(tmp_path) == [("trail", "after_add")]


def test_one_cell_alone_is_not_the_best(tmp_path):
    write_run(tmp_path, "bn-lead-relu-trail")
    assert best_of(tmp_path) == []
    write_run(tmp_path, "original", 110, 0, None, progress=how_far(12))
    assert best_of(tmp_path) == []


# --- when there is a map --------------------------------------------------------------------------


def test_there_is_a_map_where_there_is_more_than_some_of_the_papers(tmp_path):
    for variant in PAPER_ORDER[:4]:
        write_run(tmp_path, variant)
    assert maps_of(tmp_path) == ()
    write_run(tmp_path, "original", 20)
    write_run(tmp_path, "full-preact", test_error=None)
    assert [found.depth for found in maps_of(tmp_path)] == [110]
    write_run(tmp_path, "bn-after-add-relu-trail", 20)
    assert [found.depth for found in maps_of(tmp_path)] == [20, 110]


def test_groups_have_maps_of_their_own(tmp_path):
    write_map(tmp_path, "paper")
    write_map(tmp_path, "quick")
    first, second = report_on(tmp_path).groups
    assert [len(group.maps) for group in (first, second)] == [1, 1]
    assert (first.like_paper, second.like_paper) == (True, False)


def test_an_unpublished_cell_alone_still_makes_nine(tmp_path):
    write_run(tmp_path, "bn-lead-relu-trail", protocol="paper")
    (found,) = maps_of(tmp_path)
    assert [(at.bn, at.relu) for at in found.placements] == list(product(PLACES, PLACES))
    assert [at.cell.variant for at in found.placements] == list(ERRORS)
    assert sum(at.cell.published is not None for at in found.placements) == 5


# --- a user's own ordering ------------------------------------------------------------------------


def test_an_ordering_that_has_no_cell_is_left_out_and_said(tmp_path):
    write_map(tmp_path / "runs")
    write_run(tmp_path / "runs", own_ordering(tmp_path), test_error=1.0)
    twice = "lead: [bn, relu]\ntrail: [bn]\nafter_add: []\nunusual: true\n"
    write_run(tmp_path / "runs", own_ordering(tmp_path, "twice", twice))
    write_run(tmp_path / "runs", own_ordering(tmp_path, "elsewhere"), 164)
    (found,) = maps_of(tmp_path / "runs")
    assert found.outside == ("mine", "twice")
    assert best_of(tmp_path / "runs") == [("lead", "trail")]
    text = render_report(report_on(tmp_path / "runs"), "markdown")
    assert "Not on this map, which has one BN and then one ReLU: mine, twice." in text
    assert not any("mine" in line for cell in cells_of(text).values() for line in cell)


def test_an_ordering_of_ones_own_stands_where_its_ops_do(tmp_path):
    places = "lead: [relu]\ntrail: []\nafter_add: [bn]\n"
    mine = own_ordering(tmp_path, "mine", places)
    write_run(tmp_path / "runs", mine, test_error=40.0)
    write_run(tmp_path / "runs", "original", test_error=41.0)
    cells = cells_of(render_report(report_on(tmp_path / "runs"), "markdown"))
    assert cells["after_add", "lead"] == ["**mine", r"40.00 (1) \***"]
    write_run(tmp_path / "runs", "bn-after-add-relu-lead", test_error=42.0)
    cells = cells_of(render_report(report_on(tmp_path / "runs"), "markdown"))
    assert cells["after_add", "lead"] == [
        "**not published", "42.00 (1)", "mine", r"40.00 (1) \***",
    ]  # fmt: skip


def test_ones_own_beside_a_published_one_without_a_run_keeps_the_published_figure(tmp_path):
    mine = own_ordering(tmp_path, "mine", "lead: [bn, relu]\ntrail: []\nafter_add: []\n")
    write_run(tmp_path / "runs", mine, protocol="paper", test_error=6.4)
    write_run(tmp_path / "runs", "bn-lead-relu-trail", protocol="paper", test_error=7.0)
    cells = cells_of(render_report(report_on(tmp_path / "runs"), "markdown"))
    assert cells["lead", "lead"] == [
        "**full-preact (V2)", "missing", "paper 6.37", "mine", r"6.40 (1) \***",
    ]  # fmt: skip


# --- the formats ----------------------------------------------------------------------------------


def test_json_has_the_cells_and_the_best(tmp_path):
    write_map(tmp_path)
    write_run(tmp_path, own_ordering(tmp_path))
    (group,) = json.loads(render_report(report_on(tmp_path), "json"))["groups"]
    (found,) = group["maps"]
    assert (found["depth"], found["outside"]) == (110, ["mine"])
    cells = {(cell["bn"], cell["relu"]): cell for cell in found["cells"]}
    assert len(found["cells"]) == len(cells) == 9
    assert [at for at, cell in cells.items() if cell["best"]] == [("lead", "trail")]
    assert cells["lead", "trail"]["median"] == 48.25
    assert cells["trail", "after_add"]["published"]["test_error"] == 6.61


def test_csv_pivots_into_the_map(tmp_path):
    write_map(tmp_path)
    write_run(tmp_path, own_ordering(tmp_path))
    frame = pandas.read_csv(io.StringIO(render_report(report_on(tmp_path), "csv")))
    assert frame[frame.variant == "mine"][["bn_place", "relu_place"]].isna().all(axis=None)
    table = frame.pivot_table(
        index="bn_place", columns="relu_place", values="test_error", aggfunc="median"
    )
    assert table.shape == (3, 3)
    assert table.loc["after_add", "lead"] == 52.0
    best = frame[frame.best_on_map.astype("boolean").fillna(False)]
    assert list(best.variant) == ["bn-lead-relu-trail"]


def test_latex_stacks_the_lines_of_a_cell(tmp_path):
    write_map(tmp_path)
    text = render_report(report_on(tmp_path), "latex")
    lines = r"\textbf{not published} \\ \textbf{48.25 (1) {*}}"
    best = rf"\begin{{tabular}}[t]{{@{{}}l@{{}}}}{lines}\end{{tabular}}"
    assert text.count(r"\textbf") == 2
    assert f"& {best} &" in text
    bare = re.sub(r"\\[\\{}%&_#$]", "", text)
    assert bare.count("{") == bare.count("}")
    (table,) = [part for part in text.split(r"\begin{table}") if TITLE[:25] in part]
    body = table.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert [line.count("&") for line in body] == [3, 3, 3]
    assert all(line.endswith(r"\\ \addlinespace") for line in body)


def on_screen(report, width, terminal=True, color=None):
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, color_system=color)
    print_report(report, console, full=True)
    return text.getvalue()


@pytest.mark.parametrize("width", [40, 80, 100, 120])
@pytest.mark.parametrize("protocol", ["paper", "quick"])
def test_the_terminal_shows_the_map_and_is_not_overrun(tmp_path, width, protocol):
    write_map(tmp_path, protocol)
    text = on_screen(report_on(tmp_path), width)
    assert max(map(len, text.splitlines())) <= width
    table = text[text.index("Where BN and ReLU go") :].split("Compared with")[0]
    assert "48.25" in table
    if width >= 80:
        assert "48.25 (1) *" in table
        words = " ".join(table.split())
        for shown in ("full-preact (V2)", "bn-after-add", "54.00 (1)", "55.10 (1)"):
            assert shown in words


def test_the_best_is_bold_on_a_terminal_and_starred_in_plain_text(tmp_path):
    write_map(tmp_path)
    assert "\x1b[1m48.25 (1) *" in on_screen(report_on(tmp_path), 120, color="standard")
    plain = render_report(report_on(tmp_path), "table", full=True)
    assert re.findall(r"\S+ \S+ \*(?!:)", plain) == ["48.25 (1) *"]
    assert "*: the lowest" in plain


def test_the_map_stands_behind_the_test_errors_in_every_format(tmp_path):
    write_map(tmp_path)
    for format in "table", "markdown", "latex":
        text = render_report(report_on(tmp_path), format, full=True).replace("\\", "")
        places = [text.index(t) for t in ("Test error (%)", TITLE, "Compared with original")]
        assert places == sorted(places)
