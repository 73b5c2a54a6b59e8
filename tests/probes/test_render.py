"""What was measured, laid out: terminal, Markdown, JSON, figures, and the report's section."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resvar.errors import UserError
from resvar.models.ordering import PAPER_ORDER
from resvar.probes.measurements import Probe, read_probe, write_probe
from resvar.probes.pictures import probe_pictures
from resvar.probes.render import SPARKS, ProbeResults, render_probe, sparkline
from resvar.probes.section import SECTION_TITLE, saved_probe_sections
from resvar.reports.plotting import STYLES, inline_svg, page_svg, write_pictures
from resvar.reports.report import write_report
from resvar.reports.search import read_records
from tests.probes.made import make_moment, make_probe, make_results
from tests.reports.drawn import faults, ticks
from tests.reports.runs import write_run

VALUES = st.lists(st.none() | st.floats(-1e9, 1e9), min_size=1, max_size=200)


@given(VALUES, st.integers(1, 80))
def test_a_sparkline_has_a_bar_per_value_and_the_extremes_are_its_ends(values, width):
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    known = [value for value in values if value is not None]
    if len(values) <= width:
        assert [mark == " " for mark in line] == [value is None for value in values]
        if known and max(known) > min(known):
            assert line[values.index(max(known))] == SPARKS[-1]
            assert line[values.index(min(known))] == SPARKS[0]
    elif not known:
        assert line == " " * width


def test_sparklines_worked_out_by_hand():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == SPARKS
    assert sparkline([0, None, 7]) == "▁ █"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([0, 2, 6, 8, 3, 5], 3) == "▁█▅"  # means 1, 7 and 4


def test_the_table_has_a_line_per_quantity_and_a_verdict_per_claim():
    text = render_probe(make_results("original", "full-preact"), "table")
    for quantity in ("shortcut signal, mean", "branch, negative", "ReLU after addition, passed",
                     "gradient relative to the end", "test error without the unit"):  # fmt: skip
        assert quantity in text
    assert text.count("ReLU after addition, passed") == 2  # original's, at two moments
    assert "BN after addition" not in text.split("Claims of the paper")[0]
    assert "at initialisation" in text
    assert "after 400 iterations" in text
    assert "the damage equals that of" in text
    for claim in ("monotone-signal", "scaled-shortcut", "identity-forward", "identity-backward",
                  "slow-start", "regularisation"):  # fmt: skip
        assert claim in text
    assert "0, 400" in text  # moments that agree share a row
    assert "Supported if" in text
    assert "evidence" in text


def test_json_holds_all_and_reads_back():
    results = make_results("original", "full-preact")
    value = json.loads(render_probe(results, "json"))
    assert [Probe.model_validate(probe, strict=False) for probe in value["probes"]] == list(
        results.probes
    )
    verdicts = [v for claim in value["claims"] for v in claim["verdicts"]]
    assert len(verdicts) == len(results.verdicts) == 2 * 2 * 4 + 1 + 2 * 2
    assert {v["word"] for v in verdicts} <= {
        "supported", "not supported", "inconclusive",
    }  # fmt: skip
    assert all(claim["threshold"] and claim["source"] for claim in value["claims"])


def test_markdown_tables_are_whole():
    text = render_probe(make_results("bn-after-add"), "markdown")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert "BN after addition, gain so far" in text


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_the_figures_are_whole_and_the_same_every_time(tmp_path):
    found = list(probe_pictures(make_results(*PAPER_ORDER)))
    assert [picture.name for picture in found] == [
        "signal-20-iteration-0", "signal-20-iteration-400", "gradient-20", "after-addition-20",
        "deletion-20", "training-20",
    ]  # fmt: skip
    written = write_pictures(found, tmp_path / "one")
    assert len(written) == 12
    again = list(probe_pictures(make_results(*PAPER_ORDER)))[::5]
    for path in write_pictures(again, tmp_path / "two"):
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    for path in written:
        data = path.read_bytes()
        if path.suffix == ".svg":
            words = " ".join(ElementTree.fromstring(data).itertext())
            assert "ResNet-20" in words
        else:
            assert data.startswith(b"\x89PNG")
    signal = (tmp_path / "one" / "signal-20-iteration-0.svg").read_text(encoding="utf-8")
    for variant in PAPER_ORDER:
        assert variant in signal
    assert "matplotlib.pyplot" not in sys.modules  # no figures of the process at large


def test_signal_panels_share_their_axes_and_show_what_was_measured():
    figure = next(probe_pictures(make_results("original", "full-preact"))).figure
    assert len(figure.axes) == 6  # deviation, mean and share of negatives, by two orderings
    top = figure.axes[:2]
    assert top[0].get_ylim() == top[1].get_ylim()
    assert list(top[0].lines[0].get_ydata()) == [float(at) for at in range(1, 10)]
    assert list(top[0].lines[1].get_ydata()) == [1.0] * 9


@pytest.mark.heavy
def test_the_deletion_curve_shows_every_unit():
    figure = next(
        p for p in probe_pictures(make_results("original")) if p.name == "deletion-20"
    ).figure
    (curve,) = (line for line in figure.axes[0].lines if line.get_label() == "without this unit")
    assert list(curve.get_ydata()) == [60.0 - at for at in range(9)]


@pytest.mark.heavy
@pytest.mark.parametrize("networks", [1, 2, 5])
@pytest.mark.parametrize(("seeds", "iterations"), [(1, (0,)), (2, (0, 400))])
def test_no_figure_warns_or_has_clipped_or_overlapping_texts(networks, seeds, iterations):
    variants = PAPER_ORDER[:networks]
    probes = [make_probe(v, seed=s, iterations=iterations) for v in variants for s in range(seeds)]
    results = ProbeResults.of(probes, make_results(*variants).groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [fault for picture in probe_pictures(results) for fault in faults(picture)] == []


@pytest.mark.heavy
def test_units_have_whole_numbers_and_a_short_network_too():
    moments = [make_moment(at, count=3, deletion=at == 400) for at in (0, 400)]
    probe = make_probe("original", 8).model_copy(update={"moments": moments})
    found = list(probe_pictures(ProbeResults.of([probe])))
    assert [fault for picture in found for fault in faults(picture)] == []
    for picture in found:
        for panel in picture.figure.axes:
            assert set(ticks(panel.xaxis)) <= {1.0, 2.0, 3.0}


@pytest.mark.heavy
def test_a_figure_names_every_ordering_once_with_its_networks():
    probes = [make_probe(v, seed=s) for v in ("original", "bn-after-add") for s in range(3)]
    found = {picture.name: picture for picture in probe_pictures(ProbeResults.of(probes))}
    for name in ("gradient-20", "after-addition-20"):
        (legend,) = found[name].figure.legends
        labels = sorted(text.get_text() for text in legend.get_texts())
        assert labels == ["bn-after-add, n = 3", "original (V1), n = 3"]


@pytest.mark.heavy
def test_a_panel_that_would_be_empty_is_left_out():
    found = {p.name: p for p in probe_pictures(ProbeResults.of([make_probe("original")]))}
    labels = [panel.get_ylabel() for panel in found["after-addition-20"].figure.axes]
    assert [label for label in labels if label] == ["ReLU passes, %", "… all in stage, %"]


@pytest.mark.heavy
def test_many_networks_are_divided_among_figures():
    probes = [make_probe(v, seed=s) for v in PAPER_ORDER for s in range(2)]
    found = {p.name: p.figure for p in probe_pictures(ProbeResults.of(probes))}
    assert len(found["signal-20-iteration-0-part-1"].axes) == 3 * 6
    assert len(found["deletion-20-part-2"].axes) == 4
    assert max(figure.get_figwidth() for figure in found.values()) < 13


def test_orderings_differ_without_colour_too():
    assert len({(str(line), marker) for _, line, marker in STYLES.values()}) == len(STYLES)
    assert len({marker for _, _, marker in STYLES.values()}) == len(STYLES)
    assert set(STYLES) == set(PAPER_ORDER)


@pytest.mark.heavy
def test_figures_that_cannot_be_written_are_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--figures"):
        write_pictures([*probe_pictures(make_results("original"))], tmp_path / "file")


# --- the report's section -------------------------------------------------------------------------


def runs(root):
    folders = []
    for variant in ("original", "full-preact"):
        folder = write_run(root, variant, 20)
        write_probe(folder, make_probe(variant))
        folders.append(folder)
    return folders


@pytest.mark.heavy
def test_the_section_has_verdicts_and_figures_with_ids_of_their_own(tmp_path):
    runs(tmp_path)
    (section,) = saved_probe_sections(read_records([tmp_path]))
    assert section.title == SECTION_TITLE
    assert len(section.pictures) == 5
    for picture in section.pictures:
        ElementTree.fromstring(picture.svg.replace("xlink:href", "href"))
        ids = re.findall(r' id="([^"]+)"', picture.svg)
        for used in re.findall(r'(?:url\(#|href="#)([^")]+)', picture.svg):
            assert used in ids
    words = [cell.text for row in section.tables[0].rows for cell in row]
    assert "identity-forward" in words
    assert "not supported" in words


@pytest.mark.heavy
def test_the_page_holds_the_section(tmp_path):
    runs(tmp_path)
    write_report([tmp_path], "html", tmp_path / "page.html", sections=saved_probe_sections)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert SECTION_TITLE in page
    (section,) = saved_probe_sections(read_records([tmp_path]))
    assert len(section.pictures) == 5
    assert all(picture.source in page for picture in section.pictures)


def test_without_probes_there_is_no_section(tmp_path):
    write_run(tmp_path, "original", 20)
    assert saved_probe_sections(read_records([tmp_path])) == ()


def test_a_damaged_or_foreign_probe_is_named_and_spoils_nothing(tmp_path):
    first, second = runs(tmp_path)
    (first / "probe.json").write_text("{", encoding="utf-8")
    foreign = make_probe("full-preact", seed=1)
    write_probe(second, foreign)
    (section,) = saved_probe_sections(read_records([tmp_path]))
    assert any("this is damaged" in note for note in section.notes)
    assert any("other settings" in note for note in section.notes)
    assert section.pictures == ()


@pytest.mark.parametrize("embedded", [inline_svg, page_svg])
def test_a_figure_of_a_page_is_one_element(embedded):
    svg = embedded(next(probe_pictures(make_results("original"))))
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")


# --- probe.json -----------------------------------------------------------------------------------


def test_a_probe_reads_back(tmp_path):
    probe = make_probe()
    write_probe(tmp_path, probe)
    assert read_probe(tmp_path) == probe
    assert read_probe(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"loss": 2.3', '"loss": NaN'),
        ('"negative": 0.25', '"negative": 7'),
        ('"moments"', '"monents"'),
        ('"seed": 0', '"seed": "0"'),
    ],
)
def test_a_damaged_probe_is_refused_with_its_name_and_the_mend(tmp_path, old, new):
    write_probe(tmp_path, make_probe())
    path = tmp_path / "probe.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"probe\.json: this is damaged .*resvar probe"):
        read_probe(tmp_path)


def test_a_probe_of_a_later_version_is_not_called_damaged(tmp_path):
    write_probe(tmp_path, make_probe())
    path = tmp_path / "probe.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"format": 1', '"format": 2', 1), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"its format is 2 .*update resvar") as caught:
        read_probe(tmp_path)
    assert "damaged" not in str(caught.value)


def test_a_probe_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "probe.json")
    with pytest.raises(UserError, match="not a regular file"):
        read_probe(tmp_path)
