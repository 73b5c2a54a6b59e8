"""Every picture of a report: whole, legible in light and dark mode, and under a name that fits."""

from __future__ import annotations

import io
import re
import warnings
from xml.etree import ElementTree

import numpy
import pytest
from PIL import Image

from resvar.models.ordering import known_variants
from resvar.reports.figures import figures
from resvar.reports.findings import build
from resvar.reports.plotting import (
    IN_THE_DARK,
    brief,
    page_svg,
    panels,
    plain_log_axis,
    saved,
    whole_number_axis,
)
from resvar.reports.report import write_report
from resvar.reports.search import read_records
from tests.reports.drawn import faults, texts, ticks
from tests.reports.pages import write_curved, write_rich
from tests.reports.runs import how_far, write_run

MANY_SETTINGS = (
    "normalize=channel", "crop_padding=2", "flip=false", "holdout=5000", "iterations=400",
    "batch_size=64", "bn_batch_size=32", "lr=0.234567", "milestones=[100,200,300]",
    "lr_factor=0.123", "warmup_iterations=12", "warmup_lr=0.0123", "momentum=0.87654",
    "nesterov=true", "weight_decay=0.00012345", "weight_decay_on=all", "shortcut=project",
    "stride_on=3x3",
)  # fmt: skip
CURVE = {100: 80.0, 200: 60.0, 400: 50.0}


def one_row(root):
    write_curved(root, "original", 20, 0, {400: 50.0})
    write_curved(root, "full-preact", 20, 0, {400: 50.0})


def equal_rows(root):
    for seed in range(2):
        write_curved(root, "original", 20, seed, {2: 50.0})
        write_curved(root, "full-preact", 20, seed, {2: 50.0})


def far_apart(root):
    """A run with so many evaluations that those of another one are thinned out."""
    write_curved(root, "original", 20, 0, dict.fromkeys(range(1, 401), 50.0))
    write_curved(root, "full-preact", 20, 0, {202: 50.0})


def all_places(root):
    for number, variant in enumerate(sorted(known_variants())):
        for seed in range(2):
            write_curved(root, variant, 110, seed, {200: 20.0, 400: 6 + number / 3 + seed / 10})


def many_depths(root):
    for depth in (20, 32, 44, 56, 110, 164, 1001):
        for seed in range(2):
            for variant in ("original", "full-preact"):
                write_curved(root, variant, depth, seed, {200: 60.0, 400: 50 + seed + depth / 50})


def diverged(root):
    write_rich(root, 2)
    note = {"iteration": 12, "message": "the loss is NaN"}
    for variant in ("original", "bn-after-add"):
        for seed in (7, 8, 9):
            write_run(root, variant, 110, seed, None, "paper", progress=how_far(12), diverged=note)
    write_run(root, "full-preact", 164, 7, None, "paper", progress=how_far(12))


def long_names(root):
    for name in ("a-very-long-name-of-a-variant-that-somebody-made-for-a-paper", "x" * 150):
        path = root.parent / f"{name}.yaml"
        path.write_text("lead: [relu, bn]\ntrail: []\nafter_add: []\n", encoding="utf-8")
        for seed in range(2):
            write_curved(root, str(path), 20, seed, CURVE)
    write_curved(root, "original", 20)


def many_settings(root):
    for variant in ("original", "full-preact"):
        for seed in range(2):
            errors = {200: 60.0, 400: 50.0 + seed}
            write_curved(root, variant, 20, seed, errors, "paper", MANY_SETTINGS)


SCENES = {
    "1 seed": lambda root: write_rich(root, 1, "quick"),
    "5 seeds": lambda root: write_rich(root, 5),
} | {
    scene.__name__: scene
    for scene in (one_row, equal_rows, far_apart, all_places, many_depths, diverged, long_names,
                  many_settings)
}  # fmt: skip


def drawn(root):
    return {picture.name: picture for _, picture in figures(build(read_records([root])))}


@pytest.mark.heavy
@pytest.mark.parametrize("scene", SCENES)
def test_no_picture_warns_or_has_clipped_or_overlapping_texts(tmp_path, scene):
    SCENES[scene](tmp_path / "runs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = drawn(tmp_path / "runs")
        assert len(found) >= 2
        assert [fault for picture in found.values() for fault in faults(picture)] == []


# --- names of files -------------------------------------------------------------------------------


def test_many_changed_settings_give_names_that_a_file_system_takes(tmp_path, warm):
    for lr_factor in (0.123, 0.124):
        overrides = (*MANY_SETTINGS, f"lr_factor={lr_factor}")
        folder = tmp_path / "runs" / str(lr_factor) / "seed-0"
        write_curved(tmp_path, "original", 20, 0, CURVE, "paper", overrides, folder=folder)
    done = warm.run("report", "runs", "--figures", "figures", cwd=tmp_path)
    assert done.code == 0, done.err
    assert {line.split()[0] for line in done.err.splitlines()} == {"Wrote", "Left"}  # no warning
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    names = list(drawn(tmp_path / "runs"))
    assert len(names) == 2 * 2  # groups, errors and curves
    assert written == {f"{name}.{suffix}" for name in names for suffix in ("svg", "pdf", "png")}
    assert max(len(name.encode()) for name in written) <= 255
    assert {name.rsplit("-", 2)[-2] for name in names} == {"errors", "curves"}


def test_a_brief_text_is_as_long_as_asked_and_tells_its_wholes_apart():
    assert brief("x" * 40, 40) == "x" * 40
    one, other = (brief("x" * 50 + end, 40) for end in "ab")
    assert len(one) == len(other) == 40
    assert one != other
    assert brief("ö" * 41, 40, "-").encode().decode() == brief("ö" * 41, 40, "-")


# --- axes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"),
    [(1.0, 1.0), (0.9, 1.1), (0.02, 0.05), (0.3, 4.0), (0.01, 3.0), (1e-5, 5.0), (3.0, 2e6)],
)
def test_a_logarithmic_axis_has_plain_numbers_at_several_ticks(low, high):
    figure, ((panel,),) = panels(1, 1, (3.0, 2.0))
    panel.plot([1, 2], [low, high])
    panel.set_yscale("log")
    plain_log_axis(panel.yaxis)
    figure.draw_without_rendering()
    found = ticks(panel.yaxis)
    assert len(found) >= 2
    labels = [text.get_text() for text in texts(figure) if text in panel.get_yticklabels()]
    assert [float(label.replace(",", "")) for label in labels] == pytest.approx(found)


@pytest.mark.parametrize("last", [1, 2, 3, 9, 54, 64_000])
def test_what_is_counted_has_whole_numbers_at_its_ticks(last):
    figure, ((panel,),) = panels(1, 1, (3.0, 2.0))
    panel.plot([1, last], [0, 0])
    whole_number_axis(panel.xaxis)
    figure.draw_without_rendering()
    assert ticks(panel.xaxis)
    assert all(at == round(at) for at in ticks(panel.xaxis))


# --- light and dark -------------------------------------------------------------------------------


def luminance(colour):
    """WCAG 2's relative luminance of `#rrggbb`."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_colours_of_dark_mode_stand_out_from_its_page():
    page = IN_THE_DARK["#ffffff"]
    faint = {"#ffffff", "#bbbbbb"}  # the page itself, and the hatching of empty cells
    assert {
        c: d for c, d in IN_THE_DARK.items() if c not in faint and contrast(d, page) < 4.5
    } == {}


@pytest.mark.heavy
@pytest.mark.parametrize("scene", ["5 seeds", "diverged", "many_depths"])
def test_every_colour_of_a_picture_on_the_page_has_one_for_dark_mode(tmp_path, scene):
    SCENES[scene](tmp_path / "runs")
    for name, picture in drawn(tmp_path / "runs").items():
        svg = page_svg(picture)
        root = ElementTree.fromstring(svg)
        # Only the map's cells and the texts on them keep their colours.
        kept = re.findall(r"(?:fill|stroke): (#\w{6})", svg.split("</defs>", 1)[1])
        assert not kept or "-map-" in name
        assert "prefers-color-scheme: dark" in svg
        first = root.find(".//{*}g[@id='patch_1']")
        assert first is None or "#ffffff" not in ElementTree.tostring(first, encoding="unicode")


@pytest.mark.heavy
def test_a_picture_on_the_page_has_no_title_and_no_caption_and_the_file_has_both(tmp_path):
    write_rich(tmp_path, 2)
    picture = drawn(tmp_path)["paper-errors-110-164"]
    heights = [
        float(re.search(r'height="([\d.]+)pt"', text)[1])
        for text in (saved(picture, "svg").decode(), page_svg(picture))
    ]
    assert heights[0] - heights[1] > 2 * 9 + 7  # two lines of title, one or more of caption
    assert "#ffffff" in saved(picture, "svg").decode().split("</g>")[0]  # a file is on white


@pytest.mark.browser
def test_a_browser_draws_it_for_the_readers_mode_and_for_paper(tmp_path, look):
    """No white box in dark mode: the background is the page's, and the ink stands out from it."""
    write_rich(tmp_path / "runs", 2)
    write_report([tmp_path / "runs"], "html", tmp_path / "page.html")
    page = look(tmp_path / "page.html", viewport={"width": 800, "height": 900}).page
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "dark")):
        page.emulate_media(media=media, color_scheme=scheme)
        for place in (0, 1):  # test errors, slopes
            shot = page.locator("figure.picture img").nth(place).screenshot()
            grey = numpy.asarray(Image.open(io.BytesIO(shot)).convert("L"), numpy.int64)
            levels = numpy.bincount(grey.ravel(), minlength=256)
            if (media, scheme) == ("screen", "dark"):
                assert levels.argmax() < 60  # the background
                assert levels[200:].sum() > 200  # the ink
                assert levels[250:].sum() < 50  # nothing is white
            else:
                assert levels.argmax() > 200
                assert levels[:60].sum() > 200
