"""The report's figures: what they show, in files and on the page."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scipy import stats

from resvar.errors import UserError
from resvar.models.ordering import PAPER_ORDER
from resvar.reports.figures import figures, figures_left_out, spread
from resvar.reports.findings import build
from resvar.reports.plotting import saved
from resvar.reports.report import write_report
from resvar.reports.search import read_records
from tests.reports.pages import write_curved, write_rich
from tests.reports.runs import how_far, write_run


def drawn(root: Path):
    return {picture.name: picture for _, picture in figures(build(read_records([root])))}


def points(panel, marker):
    """The (x, y) of every mark of this shape."""
    lines = [line for line in panel.lines if line.get_marker() == marker]
    return [(x, y) for line in lines for x, y in zip(*line.get_data(), strict=True)]


@pytest.mark.heavy
def test_files_hold_the_same_bytes_every_time(tmp_path, capsys):
    write_rich(tmp_path / "runs", seeds=2)
    write_report([tmp_path / "runs"], "json", tmp_path / "x.json", tmp_path / "one")
    names = ["errors-110-164", "v1-v2", "map-110", "map-164", "curves-110", "curves-164"]
    written = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert written == sorted(
        f"paper-{n}.{suffix}" for n in names for suffix in ("svg", "pdf", "png")
    )
    again = zip(drawn(tmp_path / "runs").items(), cycle(("svg", "pdf", "png")))
    for (name, picture), suffix in again:
        data = (tmp_path / "one" / f"{name}.{suffix}").read_bytes()
        assert saved(picture, suffix) == data
    for name in names:
        svg = (tmp_path / "one" / f"paper-{name}.svg").read_text(encoding="utf-8")
        assert "protocol paper" in " ".join(ElementTree.fromstring(svg).itertext())
    said = capsys.readouterr().err
    assert said.count("Wrote ") == len(names)
    assert all(str(tmp_path / "one" / name) in said for name in written)


def test_errors_show_every_run_its_median_and_the_published_one(tmp_path):
    ends = {0: 6.9, 1: 6.1, 2: 6.4}
    for seed, end in ends.items():
        write_run(tmp_path, "original", 110, seed, end, "paper")
    write_run(tmp_path, "full-preact", 110, 0, 6.2, "paper")
    panel = drawn(tmp_path)["paper-errors-110"].figure.axes[0]
    assert [x for x, _ in points(panel, "o")] == list(ends.values())
    assert {text.get_text() for text in panel.texts} >= {f"{statistics.median(ends.values()):.2f}"}
    # Table 2 of the paper, ResNet-110: 6.61 for the original unit, 6.37 for full pre-activation.
    published = [
        line.get_xdata()[0] for line in panel.lines if line.get_markerfacecolor() == "none"
    ]
    assert {6.61, 6.37} <= set(published)


@pytest.mark.parametrize(("ends", "least"), [((6.9, 6.91), 0.6), ((6.9,), 0.6), ((6, 9), 3)])
def test_errors_that_hardly_differ_do_not_look_far_apart(tmp_path, ends, least):
    for seed, end in enumerate(ends):
        write_run(tmp_path, "original", 20, seed, end)
    low, high = drawn(tmp_path)["quick-errors-20"].figure.axes[0].get_xlim()
    assert low < min(ends) <= max(ends) < high
    assert least <= round(high - low, 6) < 2 * least


@pytest.mark.heavy
@pytest.mark.parametrize("protocol", ["quick", "short"])
def test_without_the_papers_protocol_no_published_figure_is_drawn(tmp_path, protocol):
    write_rich(tmp_path, seeds=1, protocol=protocol)
    found = drawn(tmp_path)
    for picture in found.values():
        words = " ".join(text.get_text() for axes in picture.figure.axes for text in axes.texts)
        assert "paper" not in words
        if "curves" not in picture.name:
            assert "Published figures are left out" in picture.caption
    panel = found[f"{protocol}-errors-110-164"].figure.axes[0]
    assert not [line for line in panel.lines if line.get_markerfacecolor() == "none"]


def write_pairs(root, depth, *pairs, protocol="quick"):
    """Runs of V1 and V2 by seed."""
    for seed, (v1, v2) in enumerate(pairs):
        write_run(root, "original", depth, seed, v1, protocol)
        write_run(root, "full-preact", depth, seed, v2, protocol)


def test_slopes_join_the_medians_with_n_and_the_interval_of_the_difference(tmp_path):
    write_pairs(tmp_path, 20, (7.0, 6.0), (8.0, 6.5), (9.0, 6.1))
    write_pairs(tmp_path, 32, (7.0, 6.0))
    report = build(read_records([tmp_path]))
    picture = {picture.name: picture for _, picture in figures(report)}["quick-v1-v2"]
    panel = picture.figure.axes[0]
    assert [8.0, 6.1] in [list(line.get_ydata()) for line in panel.lines]
    said = " ".join(text.get_text() for text in panel.texts)
    low, high = report.groups[0].v1_v2[0].comparison.interval  # as in the verdict's sentence
    interval = f"[{low:+.2f}, {high:+.2f}]".replace("-", "−")
    assert f"ResNet-20, interim, n = 3: Δ −1.80 {interval}" in said
    assert "97.5 % interval of the difference" in picture.caption
    assert "ResNet-32" not in said
    assert "fewer than two runs of V1 or V2: ResNet-32" in picture.caption


@pytest.mark.heavy
def test_a_slope_of_the_declared_seeds_is_not_interim_and_a_diverged_run_leaves_no_difference(
    tmp_path,
):
    write_pairs(tmp_path, 20, *[(7 + seed / 10, 6 + seed / 7) for seed in range(5)])
    assert "interim" not in slopes_text(tmp_path)
    note = {"iteration": 12, "message": "the loss is NaN"}
    shutil.rmtree(tmp_path / "quick/original-20/seed-4")
    write_run(tmp_path, "original", 20, 4, None, progress=how_far(12), diverged=note)
    assert "ResNet-20, n = 4 and 5: no Δ" in slopes_text(tmp_path)
    assert "original (V1), ResNet-20 (diverged" in drawn(tmp_path)["quick-v1-v2"].caption


def slopes_text(root):
    panel = drawn(root)["quick-v1-v2"].figure.axes[0]
    return " ".join(text.get_text() for text in panel.texts)


@pytest.mark.heavy
def test_a_median_of_fewer_than_the_declared_seeds_is_called_interim(tmp_path):
    write_rich(tmp_path, seeds=2)
    found = drawn(tmp_path)
    for name, expected in (("errors-110-164", "n = 2, interim"), ("map-110", "interim")):
        texts = [text.get_text() for text in found[f"paper-{name}"].figure.axes[0].texts]
        assert texts.count(expected) == 2  # V1 and V2, whose seeds are declared
        assert "Interim: some of the declared seeds" in found[f"paper-{name}"].caption


def test_single_runs_give_no_slopes_and_it_is_said_why(tmp_path):
    write_pairs(tmp_path, 20, (7.0, 6.0))
    write_run(tmp_path, "original", 20, 1, 7.1)
    report = build(read_records([tmp_path]))
    assert "quick-v1-v2" not in [picture.name for _, picture in figures(report)]
    assert any("no slopes: no depth has at least two" in line for line in figures_left_out(report))


def test_the_papers_slope_is_called_a_median_of_five(tmp_path):
    write_pairs(tmp_path, 110, (6.6, 6.3), (6.7, 6.4), protocol="paper")
    panel = drawn(tmp_path)["paper-v1-v2"].figure.axes[0]
    said = [text.get_text() for text in panel.texts]
    assert any("paper, ResNet-110, median of 5: −0.24" in text for text in said)  # Table 2


def test_test_errors_have_n_and_the_t_interval_of_the_mean(tmp_path):
    ends = (6.9, 6.1, 6.4, 6.6)
    for seed, end in enumerate(ends):
        write_run(tmp_path, "original", 20, seed, end)
    write_run(tmp_path, "full-preact", 20, 0, 6.2)
    picture = drawn(tmp_path)["quick-errors-20"]
    panel = picture.figure.axes[0]
    said = [text.get_text() for text in panel.texts]
    assert {"n = 4, interim", "n = 1, interim", "missing"} <= set(said)
    mean, error = statistics.mean(ends), stats.sem(ends)
    expected = stats.t.interval(0.95, len(ends) - 1, mean, error)
    spans = [tuple(line.get_xdata()) for line in panel.lines if line.get_ydata()[0] == 0.2]
    assert any(span == pytest.approx(expected) for span in spans if len(span) == 2)
    assert not [line for line in panel.lines if line.get_ydata()[0] == 4.2]  # full-preact, n = 1
    assert "95 % t interval" in picture.caption
    assert "(n = 1) has no interval" in picture.caption


def test_an_interval_that_leaves_the_axis_ends_in_an_arrow(tmp_path):
    for seed, end in enumerate((6.0, 9.0)):
        write_run(tmp_path, "original", 20, seed, end)
    panel = drawn(tmp_path)["quick-errors-20"].figure.axes[0]
    low, high = panel.get_xlim()
    assert points(panel, "<") == [(low, 0.2)]
    assert points(panel, ">") == [(high, 0.2)]


@pytest.mark.heavy
@pytest.mark.parametrize(("seeds", "marked"), [(1, 0), (2, 1)])
def test_the_map_marks_the_lowest_of_several_runs_only(tmp_path, seeds, marked):
    write_rich(tmp_path, seeds)
    picture = drawn(tmp_path)["paper-map-110"]
    panel = picture.figure.axes[0]
    assert sum(patch.get_linewidth() > 1 for patch in panel.patches) == marked
    assert ("No cell is marked" in picture.caption) == (not marked)
    said = [text.get_text() for text in panel.texts]
    assert said.count("n = 1" if seeds == 1 else "n = 2: 5.90–6.00") >= 1


def test_a_curve_has_the_number_of_its_runs_in_the_legend(tmp_path):
    for seed in range(3):
        write_curved(tmp_path, "original", 110, seed)
    write_curved(tmp_path, "full-preact", 110, 0)
    axes = drawn(tmp_path)["quick-curves-110"].figure.axes
    legends = [text.get_text() for panel in axes if panel.legend_
               for text in panel.legend_.get_texts()]  # fmt: skip
    assert legends == ["original (V1), n = 3", "full-preact (V2), n = 1"]


def test_curves_are_solid_errors_dashed_losses_and_a_band_from_lowest_to_highest(tmp_path):
    for seed, last in enumerate((50.0, 54.0, 51.0)):
        write_curved(tmp_path, "original", 110, seed, {200: 70.0 + seed, 400: last})
    picture = drawn(tmp_path)["quick-curves-110"]
    losses, errors = picture.figure.axes
    (error,), (loss,) = errors.lines, losses.lines
    assert (error.get_linestyle(), loss.get_linestyle()) == ("-", "--")
    assert (error.get_ydata()[0], error.get_ydata()[-1]) == (71.0, 51.0)
    (area,) = errors.collections
    at_the_end = {y for x, y in area.get_paths()[0].vertices if x == 400}
    assert (min(at_the_end), max(at_the_end)) == (50.0, 54.0)
    assert "range of the runs, lowest to highest" in picture.caption


def test_one_run_has_no_band_and_no_words_about_one(tmp_path):
    write_curved(tmp_path)
    picture = drawn(tmp_path)["quick-curves-110"]
    assert not picture.figure.axes[1].collections
    assert "bands" not in picture.caption


@pytest.mark.heavy
def test_diverged_damaged_and_missing_runs_are_said(tmp_path):
    write_rich(tmp_path, seeds=2)
    note = {"iteration": 12, "message": "the loss is NaN"}
    write_run(tmp_path, "original", 110, 7, None, "paper", progress=how_far(12), diverged=note)
    broken = write_run(tmp_path, "full-preact", 110, 8, 6.0, "paper")
    (broken / "result.json").write_text("{", encoding="utf-8")
    report = build(read_records([tmp_path]))
    found = {picture.name: picture for _, picture in figures(report)}
    panel = found["paper-errors-110-164"].figure.axes[0]
    assert any("n = 2, interim\ndiverged" in text.get_text() for text in panel.texts)
    assert "original (V1), ResNet-110 (diverged" in found["paper-v1-v2"].caption
    assert any("damaged" in sentence for sentence in figures_left_out(report))


def test_a_figure_without_data_is_not_written_and_it_is_said_why(tmp_path, capsys):
    write_run(tmp_path / "runs", "original", 110, 0, None, progress=how_far(12))
    write_report([tmp_path / "runs"], "json", tmp_path / "x.json", tmp_path / "figures")
    assert not list(tmp_path.glob("figures/*"))
    said = capsys.readouterr().err
    for what in ("no test errors", "no slopes", "no curves of ResNet-110"):
        assert what in said


@pytest.mark.parametrize("bad", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_the_users_error(tmp_path, bad):
    write_run(tmp_path / "runs")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--figures"):
        write_report([tmp_path / "runs"], "json", tmp_path / "x.json", tmp_path / bad)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.heavy
def test_the_page_shows_what_it_has_no_form_of_its_own_for(tmp_path):
    write_rich(tmp_path / "runs", seeds=2)
    for name in ("one", "two"):
        write_report([tmp_path / "runs"], "html", tmp_path / f"{name}.html")
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert page.count('<figure class="picture">') == 4  # errors, slopes, two maps; no curves
    assert page.count("<h2>Figures</h2>") == 1
    assert page == (tmp_path / "two.html").read_text(encoding="utf-8").replace(
        "two.html", "one.html"
    )


@pytest.mark.heavy
def test_a_table_loads_no_matplotlib(tmp_path):
    write_rich(tmp_path, seeds=1)
    code = (
        "import sys; from pathlib import Path; from resvar.reports.report import write_report;"
        f"write_report([Path({str(tmp_path)!r})], 'table', None);"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_labels_are_moved_apart_and_no_further():
    assert spread([1.0, 2.0], 0.5) == [1.0, 2.0]
    assert spread([1.0, 1.0, 5.0], 0.5) == pytest.approx([0.75, 1.25, 5.0])


@pytest.mark.heavy
def test_a_figure_of_training_has_a_panel_per_ordering_beside_the_original(tmp_path):
    write_rich(tmp_path, seeds=1)
    axes = drawn(tmp_path)["paper-curves-110"].figure.axes
    assert sum(len(panel.lines) == 2 for panel in axes) == 2 * (len(PAPER_ORDER) - 1)
