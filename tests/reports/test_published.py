"""The published figures: the papers' tables copied by hand, and what a file of figures must be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from resvar.errors import UserError
from resvar.files import configs
from resvar.models.architecture import plan
from resvar.reports.published import published, read_figures, reproductions

TABLE_2 = """
original          6.61  5.93
bn-after-add      8.17  6.50
relu-before-add   7.84  6.14
relu-only-preact  6.71  5.91
full-preact       6.37  5.46
"""
"""arXiv:1603.05027, Table 2: ResNet-110, ResNet-164."""


@pytest.fixture
def figures():
    return read_figures(configs() / "published.yaml")


def test_table_2_is_the_papers_and_says_median():
    for line in TABLE_2.split("\n")[1:-1]:
        variant, *errors = line.split()
        for depth, error in zip((110, 164), errors, strict=True):
            found = published("cifar10", variant, depth)
            assert found is not None
            assert found.test_error == float(error)
            assert found.runs == 5
            assert "Table 2" in found.source
            assert "median of 5 runs" in found.note


@pytest.mark.parametrize(
    ("dataset", "variant", "depth", "error", "mean", "sd"),
    [
        ("cifar10", "original", 110, 6.61, 6.61, 0.16),  # arXiv:1512.03385, Table 6
        ("cifar10", "full-preact", 1001, 4.92, 4.89, 0.14),  # arXiv:1603.05027, Table 4
        ("cifar100", "full-preact", 1001, 22.71, 22.68, 0.22),  # the same
        ("cifar10", "original", 1001, 7.61, None, None),
        ("cifar10", "full-preact", 110, 6.37, None, None),
        ("cifar10", "original", 1202, 7.93, None, None),
    ],
)
def test_mean_and_sd_are_there_exactly_where_a_source_prints_them(
    dataset, variant, depth, error, mean, sd
):
    found = published(dataset, variant, depth)
    assert found is not None
    assert (found.test_error, found.mean, found.sd) == (error, mean, sd)


def test_the_figure_with_two_names_says_which_paper_calls_it_what():
    found = published("cifar10", "original", 110)
    assert found is not None
    assert re.search(
        r"median of 5 .*1512\.03385, Table 6.* mean .*0\.16.* best .*6\.43", found.note
    )


def test_where_the_number_of_runs_is_unknown_the_note_says_so():
    for depth in (20, 32, 44, 56, 1202):
        found = published("cifar10", "original", depth)
        assert found is not None
        assert found.runs is None
        assert "not stated" in found.note


def test_the_batch_of_64_is_a_reproduction_and_never_the_published_figure():
    found = published("cifar10", "full-preact", 1001)
    (other,) = reproductions("cifar10", "full-preact", 1001)
    assert found is not None
    assert found.test_error == 4.92
    assert (other.test_error, other.mean, other.sd, other.runs) == (4.62, 4.69, 0.20, 5)
    assert "batch of 64" in other.differs


@pytest.mark.parametrize(
    ("variant", "depth", "expected"),
    [
        ("original", 110, {"hysts": 6.52, "akamaster": 6.32}),
        ("full-preact", 110, {"hysts": 6.47, "FlorianMuellerklein": 6.38}),
        ("full-preact", 164, {"hysts": 5.90, "FlorianMuellerklein": 5.66}),
        ("original", 1202, {"akamaster": 6.18}),
        ("relu-before-add", 110, {}),
    ],
)
def test_reproductions_are_those_of_their_readmes(variant, depth, expected):
    found = reproductions("cifar10", variant, depth)
    assert {result.by.split("/")[0]: result.test_error for result in found} == expected
    assert not reproductions("cifar100", variant, depth)


def test_a_median_of_three_last_epochs_is_told_from_a_best_epoch():
    hysts, florian = reproductions("cifar10", "full-preact", 164)
    assert (hysts.runs, hysts.epoch) == (3, "last")
    assert (florian.runs, florian.epoch) == (None, "best")


def test_every_shipped_figure_has_a_source_and_belongs_to_a_network(figures):
    assert len(figures.published) == 10 + 2 + 4 + 5
    results = [result for _, result in figures.reproductions]
    for figure in [*figures.published.values(), *results]:
        assert re.search(
            r"arXiv:\d{4}\.\d{5}, Tables? \d|github\.com/[^/ ]+/[^/ ]+, README", figure.source
        )
    for _, _, depth in [*figures.published, *(cell for cell, _ in figures.reproductions)]:
        plan(depth)
    for result in results:
        assert result.by in result.source
        assert result.differs


def test_the_table_in_the_docs_is_that_of_the_file():
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {row[0]: row[1:4] for row in rows if len(row) == 5}
    cells = [("original", 110), ("full-preact", 110), ("full-preact", 164)]
    assert table.pop("test error (%)") == [f"{variant} {depth}" for variant, depth in cells]
    paper = [published("cifar10", *cell) for cell in cells]
    assert table.pop("arXiv:1603.05027") == [f"{cell.test_error:.2f}" for cell in paper if cell]
    others = [{r.by: f"{r.test_error:.2f}" for r in reproductions("cifar10", *c)} for c in cells]
    assert set(table) == {by for cell in others for by in cell}
    for by, shown in table.items():
        assert shown == [cell.get(by, "–") for cell in others]


# --- a file with a mistake ------------------------------------------------------------------------


def mistakes() -> Iterator[tuple[str, str, str]]:
    """Text to replace in the shipped file, its replacement, and what the error must say."""
    yield "runs: 5", "runs: '5'", "runs: Input should be a valid integer"
    yield "runs: 5", "runs: 0", "greater than 0"
    yield "sd: 0.16", "spread: 0.16", "Extra inputs|need each other"
    yield "    sd: 0.16\n", "", "need each other"
    yield "110: 6.52", "110: 652", "less than 100"
    yield "110: 6.52", "110: 0", "greater than 0"
    yield "110: 6.52", "ten: 6.52", "valid integer"
    yield "full-preact: {1001: 4.92}", "full-react: {1001: 4.92}", "not a shipped variant"
    yield "full-preact: {1001: 4.92}", "full-preact: {1001: 4.92, 164: 5.4}", "a single cell"
    yield "{164: 5.93}", "{164: 5.93, 110: 6.6}", "cifar10 original 110 is there twice"
    yield "epoch: last", "epoch: lowest", "'last' or 'best'"
    yield "dataset: cifar100", "dataset: cifar1000", "'cifar10' or 'cifar100'"
    yield "reproductions:\n", "others:\n", "reproductions: Field required"


@pytest.mark.parametrize(("old", "new", "says"), list(mistakes()))
def test_a_mistake_in_the_file_is_named(tmp_path, old, new, says):
    text = (configs() / "published.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "published.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=f"published.yaml: .*({says})"):
        read_figures(path)


def test_one_source_cannot_measure_a_cell_twice(tmp_path):
    content = yaml.safe_load((configs() / "published.yaml").read_text(encoding="utf-8"))
    content["reproductions"].append(deepcopy(content["reproductions"][-1]))
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"akamaster.*cifar10 original 20 is there twice"):
        read_figures(path)
