"""Curves are read strictly, and several become one band without losing an extreme."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resvar.errors import UserError
from resvar.reports.charts import COLOURS, charts, marker
from resvar.reports.curves import ALL_POINTS, band_of, common_grid, points_per_curve
from resvar.reports.findings import build
from resvar.reports.search import read_records
from resvar.rundir import METRIC_COLUMNS, METRICS, read_metrics, write_metrics
from tests.reports.pages import rows, write_curved


def curve(points, losses=None):
    iterations, errors = zip(*points, strict=True) if points else ((), ())
    columns = {"iteration": iterations, "test_error": errors}
    return pandas.DataFrame({**columns, "train_loss": losses or [1.0] * len(points)})


# --- reading --------------------------------------------------------------------------------------


def test_what_training_writes_is_read(tmp_path):
    path = tmp_path / METRICS
    assert list(read_metrics(tmp_path)) == list(METRIC_COLUMNS)
    for written in ([], rows({5: 40.0, 9: 30.25}, {9: 0.1 + 0.2})):
        write_metrics(path, written)
        table = read_metrics(tmp_path)
        assert list(table) == list(METRIC_COLUMNS)
        assert table.to_dict("records") == [{k: row[k] for k in METRIC_COLUMNS} for row in written]


GOOD = "iteration,train_loss,test_error\n1,0.5,50.0\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the column 'iteration' is missing"),
        ("iteration,test_error\n", "the column 'train_loss' is missing"),
        (GOOD + "2,0.5\n", "line 3: this is damaged (2 fields, where the header has 3)"),
        (GOOD + "x,0.5,50\n", "line 3"),
        (GOOD + "1,0.5,50\n", "iteration 1 follows 1"),
        (GOOD + "-3,0.5,50\n", "iteration -3 follows 1"),
        (GOOD + "2,nan,50\n", "the training loss is nan"),
        (GOOD + "2,inf,50\n", "the training loss is inf"),
        (GOOD + "2,0.5,101\n", "which is not a percentage"),
        (GOOD + "2,0.5,nan\n", "which is not a percentage"),
        (GOOD + "2" * 5000 + ",0.5,1\n", "line 3"),
        (GOOD + '2,0.5,"50\n', "line 3"),
        (GOOD + "\x00\x01\x02\n", "line 3"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_line(tmp_path, text, reason):
    path = tmp_path / METRICS
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_metrics(tmp_path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


# --- bands ----------------------------------------------------------------------------------------


def test_a_band_is_median_lowest_and_highest():
    curves = [curve([(10, 50.0), (20, 30.0)], [2.0, 1.0]), curve([(10, 40.0), (20, 36.0)]),
              curve([(10, 60.0), (20, 33.0)])]  # fmt: skip
    grid = common_grid(curves, 100)
    found = band_of(curves, grid)
    assert grid.tolist() == [10, 20]
    assert found.error.tolist() == [50, 33]
    assert found.low.tolist() == [40, 30]
    assert found.high.tolist() == [60, 36]
    assert found.loss.tolist() == [1, 1]


def test_a_curve_counts_only_where_it_is_and_is_straight_between():
    grid = np.array([5.0, 10, 15, 20, 25])
    found = band_of([curve([(10, 50.0), (20, 30.0)])], grid)
    np.testing.assert_array_equal(found.error, [math.nan, 50, 40, 30, math.nan])
    np.testing.assert_array_equal(found.high, [math.nan, 50, 40, 30, math.nan])
    nothing = band_of([curve([])], grid)
    assert np.isnan(nothing.error).all()


@pytest.mark.heavy
@given(
    st.lists(
        st.dictionaries(st.integers(1, 300), st.floats(0, 100), min_size=1, max_size=60),
        min_size=1, max_size=5,
    ),
    st.integers(2, 40),
)  # fmt: skip
def test_thinned_out_a_band_still_holds_every_extreme(held, most):
    curves = [curve(sorted(points.items())) for points in held]
    grid = common_grid(curves, most)
    iterations = sorted({i for points in held for i in points})
    assert len(grid) <= most
    assert (grid[0], grid[-1]) == (iterations[0], iterations[-1])
    found = band_of(curves, grid)
    errors = [error for points in held for error in points.values()]
    there = ~np.isnan(found.error)
    if len(iterations) <= most:  # nothing left out: compare with the plain definition
        assert there.all() or len(curves) > 1
        for index, iteration in enumerate(iterations):
            if all(iteration in points for points in held):
                here = [points[iteration] for points in held]
                assert found.error[index] == pytest.approx(np.median(here))
                assert (found.low[index], found.high[index]) == (min(here), max(here))
    if len(curves) == 1 and there.all():
        assert np.nanmin(found.low) == min(errors)
        assert np.nanmax(found.high) == max(errors)
    assert (found.low[there] <= found.error[there] + 1e-9).all()
    assert (found.error[there] <= found.high[there] + 1e-9).all()


# --- axes and size --------------------------------------------------------------------------------


def test_the_start_of_training_is_cut_off_and_the_end_is_not(tmp_path):
    write_curved(tmp_path, errors={100: 90.0, 200: 20.0, 300: 8.0, 400: 6.5})
    (group,) = build(read_records([tmp_path])).groups
    (chart,) = charts(group, "group-1", 100)
    (low, bottom), (high, top) = chart.data["y"]
    assert -2 < low <= 0 < 19.5 <= high < 22
    assert chart.cut == 19.5  # three times the error at the end
    assert bottom > top
    (line,) = chart.lines
    assert line.values["error"] == [90, 20, 8, 6.5]  # the values themselves stay
    assert line.last["error"] == 6.5


@pytest.mark.heavy
def test_a_page_has_so_many_points_however_many_cells(tmp_path):
    assert points_per_curve([]) == 200
    for depth in range(8, 8 + 6 * 200, 6):
        write_curved(tmp_path, depth=depth, overrides=["unit=basic"])
    report = build(read_records([tmp_path]))
    most = points_per_curve(report.groups)
    assert most == ALL_POINTS // 200


def test_many_variants_differ_in_colour_or_shape(tmp_path):
    for name in (f"mine-{number:02d}" for number in range(20)):
        (tmp_path / f"{name}.yaml").write_text(
            "lead: [relu, bn]\ntrail: []\nafter_add: []\n", encoding="utf-8"
        )
        write_curved(tmp_path / "runs", str(tmp_path / f"{name}.yaml"))
    (group,) = build(read_records([tmp_path / "runs"])).groups
    (chart,) = charts(group, "group-1", 100)
    looks = {(line.style % COLOURS, marker(line.style)) for line in chart.lines}
    assert len(looks) == len(chart.lines) == 20


def test_the_places_that_the_script_reads_are_those_of_the_drawing(tmp_path):
    write_curved(tmp_path, errors={100: 28.0, 200: 20.0, 400: 10.0})
    (chart,) = charts(build(read_records([tmp_path])).groups[0], "group-1", 100)
    root = ElementTree.fromstring(chart.svg)
    path = root.find("./g//g[@class='error s0']/path").get("d")
    places = [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", path)]
    (low, bottom), (high, top) = chart.data["y"]
    for x, error, place in zip(chart.data["px"], (28.0, 20.0, 10.0), places, strict=True):
        expected = x, bottom + (error - low) / (high - low) * (top - bottom)
        assert place == pytest.approx(expected, abs=0.11)
