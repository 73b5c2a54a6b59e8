"""Runs on the sample of CIFAR-10: with no other run, published figure or verdict."""

from __future__ import annotations

import csv
import io
import json

import pytest

from resvar.models.ordering import PAPER_ORDER
from resvar.reports.figures import figures, figures_left_out
from resvar.reports.findings import build
from resvar.reports.render import RENDERERS, render_report
from resvar.reports.search import read_records
from tests.reports.pages import spanless
from tests.reports.runs import write_run

HEADING = "sample of CIFAR-10 (2,000 images): says nothing about the paper"
ON_SAMPLE = ("dataset=sample",)


@pytest.fixture(scope="module", params=["quick", "paper"])
def folder(request, tmp_path_factory):
    """V1 and V2 and the rest at ResNet-110, two seeds each, V2 better by far."""
    root = tmp_path_factory.mktemp("runs")
    for index, variant in enumerate(PAPER_ORDER):
        for seed in range(2):
            error = 60.0 - 5 * index + 0.1 * seed
            write_run(root, variant, 110, seed, error, request.param, ON_SAMPLE)
    return root


@pytest.fixture(scope="module")
def report(folder):
    return build(read_records([folder]))


@pytest.mark.parametrize("format", sorted(RENDERERS))
def test_every_format_says_it_and_shows_no_published_figure_and_no_verdict(report, format):
    text = spanless(render_report(report, format, full=True))
    flat = text.replace("\\", "")
    assert HEADING in flat
    for figure in ("6.61", "8.17", "7.84", "6.71", "6.37"):
        assert figure not in text
    assert "reproduced" not in text
    assert "not comparable)" not in text
    assert "40.05" in text or format == "csv"  # the median of the best


def test_the_data_have_neither_verdict_nor_published_figures(report):
    (group,) = json.loads(render_report(report, "json"))["groups"]
    assert group["heading"] == HEADING
    assert group["verdicts"] == []
    assert group["comparable_with_paper"] is False
    assert {entry["published"] for entry in group["cells"]} == {None}


def test_every_line_of_the_csv_says_it(report):
    rows = list(csv.DictReader(io.StringIO(render_report(report, "csv"))))
    assert {row["heading"] for row in rows} == {HEADING}
    assert {row["comparable_with_paper"] for row in rows} == {"False"}


def test_figures_say_it(report):
    drawn = [picture for _, picture in figures(report)]
    assert len(drawn) >= 2
    for picture in drawn:
        texts = [text.get_text() for text in picture.figure.texts]
        assert HEADING in " ".join(" ".join(texts).split())
    assert any("say nothing about V1 and V2" in sentence for sentence in figures_left_out(report))


def test_the_page_gives_no_answer(report):
    page = render_report(report, "html")
    assert "No verdict." in page
    assert "resvar data --dataset sample" not in page


def test_runs_on_the_sample_and_on_cifar_10_are_apart(tmp_path):
    write_run(tmp_path, "original", 110, 0, 60.0, overrides=ON_SAMPLE, folder=tmp_path / "sample")
    write_run(tmp_path, "full-preact", 110, 0, 10.0, folder=tmp_path / "full-preact")
    groups = build(read_records([tmp_path])).groups
    assert {group.dataset for group in groups} == {"cifar10", "sample"}
    assert all(len(group.records) == 1 and not group.contrasts for group in groups)


def test_a_grid_on_the_sample_says_it_too(tmp_path):
    for dataset in ("sample", "cifar10"):
        for lr in ("0.1", "0.05"):
            sets = (f"dataset={dataset}", f"lr={lr}")
            write_run(tmp_path, overrides=sets, folder=tmp_path / f"{dataset}-{lr}")
    report = build(read_records([tmp_path]))
    lines = [
        line for line in render_report(report, "table", full=True).splitlines() if "varied" in line
    ]
    assert [line.startswith(HEADING) for line in lines] == [False, True]
