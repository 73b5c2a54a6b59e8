"""The report says what the runs say, in every format, and never compares what cannot be."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
import time

import numpy as np
import pandas
import pytest
from rich.console import Console

from resvar.errors import UserError
from resvar.models.ordering import PAPER_ORDER
from resvar.reports.findings import build
from resvar.reports.parts import group_tables
from resvar.reports.published import published
from resvar.reports.records import read_record
from resvar.reports.render import RENDERERS, print_report, render_report
from resvar.reports.search import read_records
from resvar.reports.statistics import compare, holm
from resvar.reports.tables import chance_inside, error_tables
from tests.reports.runs import how_far, write_run
from tests.support.pace import pace

V1 = [6.61, 6.75, 6.43, 6.58, 6.70]
V2 = [6.37, 6.20, 6.46, 6.31, 6.40]


def report_on(root):
    return build(read_records([root]))


def write_cell(root, variant, depth, errors, protocol="paper", overrides=()):
    for seed, error in enumerate(errors):
        write_run(root, variant, depth, seed, error, protocol, overrides)


def write_table(root, protocol="paper"):
    """Five variants at two depths, five seeds."""
    for rank, variant in enumerate(PAPER_ORDER):
        for depth in (110, 164):
            errors = V2 if variant == "full-preact" else [error + rank / 5 for error in V1]
            write_cell(root, variant, depth, [round(e - depth / 100, 2) for e in errors], protocol)


def on_screen(report, width=100):
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    print_report(report, console, full=True)
    return text.getvalue()


def rows_of(markdown):
    """The rows of all Markdown tables, unescaped."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[re.sub(r"\\(.)", r"\1", cell).strip() for cell in row] for row in split]


def row_of(markdown, *start):
    (found,) = [row for row in rows_of(markdown) if row[: len(start)] == list(start)]
    return found


# --- the published figures ------------------------------------------------------------------------


def test_published_figures():
    figure = published("cifar10", "full-preact", 164)
    assert (figure.test_error, figure.runs) == (5.46, 5)
    assert figure.source == "He et al. 2016, arXiv:1603.05027, Table 2"
    assert published("cifar100", "original", 1001).test_error == 27.82
    assert published("cifar10", "original", 20).runs is None
    assert published("cifar10", "full-preact", 20) is None


# --- what it says ---------------------------------------------------------------------------------


def test_a_cell_shows_median_mean_deviation_n_and_the_paper(tmp_path):
    write_cell(tmp_path, "original", 110, V1)
    write_cell(tmp_path, "full-preact", 110, V2)
    text = render_report(report_on(tmp_path), "markdown")
    # sorted 6.43 6.58 6.61 6.70 6.75; mean 33.07 / 5
    row = ["original (V1)", "4(a)", "6.61", "6.61 ± 0.12", "5", "6.61", "+0.00, inside"]
    assert row_of(text, "original (V1)") == row
    assert row_of(text, "bn-after-add") == [
        "bn-after-add",
        "4(b)",
        "–",
        "–",
        "missing",
        "8.17",
        "–",
    ]
    header = row_of(text, "variant", "figure")
    assert header[2:] == [
        "110: median",
        "110: mean ± sd",
        "110: n",
        "110: paper (median)",
        "110: median − paper",
    ]


def test_all_five_variants_in_the_papers_order_then_others(tmp_path):
    own = tmp_path / "my_variant.yaml"
    own.write_text("lead: [relu]\ntrail: []\nafter_add: [bn]\n", encoding="utf-8")
    write_run(tmp_path / "runs", str(own))
    (group,) = report_on(tmp_path / "runs").groups
    assert group.variants == ("my_variant",)
    write_run(tmp_path / "runs", "full-preact")
    (group,) = report_on(tmp_path / "runs").groups
    assert group.variants == (*PAPER_ORDER, "my_variant")
    text = render_report(report_on(tmp_path / "runs"), "markdown")
    assert row_of(text, "my_variant", "–")
    assert "my\\_variant" in text
    assert r"my\_variant" in render_report(report_on(tmp_path / "runs"), "latex")


def test_comparisons_are_those_of_the_statistics(tmp_path):
    write_table(tmp_path)
    (group,) = report_on(tmp_path).groups
    assert [(c.depth, c.variant) for c in group.contrasts] == [
        (depth, variant) for depth in (110, 164) for variant in PAPER_ORDER[1:]
    ]
    at_110 = [c for c in group.contrasts if c.depth == 110]
    base = group.cells["original", 110].summary.values
    for contrast in at_110:
        other = group.cells[contrast.variant, 110].summary.values
        level = 0.975 if contrast.variant == "full-preact" else 0.95
        assert contrast.comparison == compare(base, other, level)
    # V2 has a correction of its own, by the two depths; its interval has the level of that.
    *others, last = at_110
    assert [c.p_holm for c in others] == holm([c.comparison.p for c in others])
    assert {c.family for c in others} == {3}
    assert (last.p_holm, last.family) == (2 * last.comparison.p, 2)
    assert last.comparison.level == 0.975


def test_the_verdict_stands_beside_the_paper(tmp_path):
    write_cell(tmp_path, "original", 110, V1)
    write_cell(tmp_path, "full-preact", 110, V2)
    text = render_report(report_on(tmp_path), "markdown")
    row = next(row for row in rows_of(text) if row[-1] == "agrees")
    assert row[:5] == ["110", "5, 5", "6.61", "6.35", "-0.27"]
    assert row[-3:] == ["-0.24", "V2 better", "agrees"]
    assert (
        "ResNet-110: reproduced: V2 is better; V2 − V1 is -0.27 points, 95 % interval -0.44 to "
        "-0.09 (p = 0.016, n = 5). It agrees with the published -0.24." in text
    )


def test_one_seed_says_what_cannot_be_said(tmp_path):
    write_run(tmp_path, "original", test_error=52.0)
    write_run(tmp_path, "full-preact", test_error=50.0)
    for text in render_report(report_on(tmp_path), "markdown"), on_screen(report_on(tmp_path)):
        assert "One seed gives no interval (full-preact at ResNet-110)" in " ".join(text.split())
        assert "interim, no verdict: V1 has 1 and V2 1 of 5 seeds, the paper's number" in text
        assert "-2.00" in text
        assert "nan" not in text.lower()


def test_three_seeds_cannot_reach_a_small_p_and_it_is_said(tmp_path):
    write_cell(tmp_path, "original", 110, V1[:3])
    write_cell(tmp_path, "full-preact", 110, V2[:3])
    (pair,) = report_on(tmp_path).groups[0].v1_v2
    assert pair.smallest_p == pytest.approx(0.1)
    assert (
        "The smallest corrected p that this design can give is 0.100, so it cannot decide, however "
        "large a difference; 4 seeds of each can." in render_report(report_on(tmp_path), "markdown")
    )


def test_nothing_is_compared_without_original(tmp_path):
    write_cell(tmp_path, "full-preact", 110, V2)
    text = render_report(report_on(tmp_path), "markdown")
    assert "No run of original is finished at ResNet-110" in text
    assert "interim, no verdict: V1 has 0 and V2 5 of 5 seeds, the paper's number." in text


def test_unfinished_cells_say_how_they_stand(tmp_path):
    stands = {
        "original": ({"progress": how_far(12)}, "stopped at 12 of 400"),
        "bn-after-add": ({"failure": {"message": "no space"}}, "failed"),
        "relu-before-add": (
            {"failure": {"message": "NaN", "diverged": True}, "progress": how_far(37)},
            "diverged at iteration 37",
        ),
        "full-preact": ({"changes": {"test_error": math.nan}, "test_error": 50.0}, "damaged"),
    }
    write_run(tmp_path, "relu-only-preact", seed=0, test_error=51.0)
    write_run(tmp_path, "relu-only-preact", seed=1, test_error=None)
    write_run(tmp_path, "relu-only-preact", seed=2, test_error=None)
    for variant, (files, _) in stands.items():
        write_run(tmp_path, variant, **{"test_error": None, **files})
    text = render_report(report_on(tmp_path), "markdown")
    cells = {row[1]: row[4] for row in rows_of(text) if row[1].startswith("4(")}
    for letter, variant in zip("abce", stands, strict=True):
        assert cells[f"4({letter})"] == stands[variant][1]
    assert row_of(text, "relu-only-preact", "4(d)")[4] == "1; 2 stopped"
    assert "bn-after-add-110/seed-0 failed: no space" in text
    assert "'test\\_error' is nan" in text


def test_a_running_cell_shows_its_share(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    folder = write_run(tmp_path, test_error=None, progress=how_far(172))
    with (folder / "run.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = render_report(report_on(tmp_path), "markdown")
    assert row_of(text, "original (V1)")[4] == "running 43 %"


def test_a_single_published_figure_is_not_called_a_median(tmp_path):
    write_cell(tmp_path, "original", 20, [8.5, 8.9])
    text = render_report(report_on(tmp_path), "markdown")
    assert "20: paper" in row_of(text, "variant", "figure")
    assert "published median" not in text
    assert "number of runs not stated" in text


@pytest.mark.parametrize(("n", "runs"), [(5, 5), (2, 5), (3, 1), (4, 3)])
def test_the_chance_that_a_published_median_is_inside(n, runs):
    """Simulated: the median of some runs, and the range of others of the same distribution."""
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(200_000, n)), random.normal(size=(200_000, runs))
    median = np.median(theirs, axis=1)
    inside = (ours.min(axis=1) < median) & (median < ours.max(axis=1))
    assert chance_inside(n, runs) == pytest.approx(inside.mean(), abs=0.004)


def test_what_inside_would_mean_in_a_perfect_reproduction(tmp_path):
    """0.8333 at n = 5, and its tenth power."""
    write_table(tmp_path)
    text = render_report(report_on(tmp_path), "markdown").replace("\\", "")
    assert text.count("with a probability of 83 % at n = 5, and all 10 of them with 16 %.") == 1
    write_run(tmp_path, "original", 20, 0, 8.5, "paper")
    assert "all 10 of them" in render_report(report_on(tmp_path), "markdown")


def test_a_source_of_few_figures_names_its_variants(tmp_path):
    write_cell(tmp_path, "original", 110, V1)
    text = render_report(report_on(tmp_path), "markdown").replace("\\", "")
    assert "- paper, ResNet-110: He et al. 2016, arXiv:1603.05027, Table 2; median of 5" in text
    assert "- paper, original at ResNet-110: He et al. 2016" in text


def test_others_results_stand_beside_ours_where_the_protocol_is_the_papers(tmp_path):
    write_cell(tmp_path, "original", 110, V1)
    write_cell(tmp_path, "original", 110, V1, "quick")
    text = render_report(report_on(tmp_path), "markdown").replace("\\", "")
    assert text.count("### Others' test errors (%), for orientation only") == 1
    rows = rows_of(text[text.index("### Others'") :])
    assert ["110", "original (V1)", "6.61", "6.52", "3", "last", "hysts"] in rows
    assert ["110", "full-preact (V2)", "–", "6.38", "–", "best", "FlorianMuellerklein"] in rows
    assert "- hysts: github.com/hysts/pytorch_image_classification, README. Not the" in text


def test_figures_that_are_not_comparable_are_grey_with_their_header(tmp_path):
    write_cell(tmp_path, "original", 110, V1, "quick")
    (group,) = report_on(tmp_path).groups
    (table,) = error_tables(group, 1)
    (column,) = (n for n, c in enumerate(table.columns) if c.name.startswith("110: paper"))
    assert table.columns[column].foreign
    assert all(row[column].grey for row in table.rows)
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True, color_system="standard")
    print_report(report_on(tmp_path), console, full=True)
    assert re.search(r"\x1b\[2m *paper", text.getvalue())


# --- what may be compared -------------------------------------------------------------------------


def test_protocols_and_datasets_never_share_a_table(tmp_path):
    write_run(tmp_path, protocol="paper")
    write_run(tmp_path, protocol="quick")
    write_run(tmp_path, overrides=["lr=0.05"], folder=tmp_path / "a")
    write_run(tmp_path, overrides=["dataset=cifar100"], folder=tmp_path / "b")
    groups = report_on(tmp_path).groups
    assert [(group.label, group.dataset) for group in groups] == [
        ("paper", "cifar10"),
        ("quick", "cifar10"),
        ("quick", "cifar100"),
        ("quick (lr=0.05)", "cifar10"),
    ]
    assert [len(group.records) for group in groups] == [1, 1, 1, 1]
    assert [group.like_paper for group in groups] == [True, False, False, False]


@pytest.mark.parametrize("format", ["table", "markdown", "latex"])
def test_what_is_not_the_papers_protocol_says_so(tmp_path, format):
    write_cell(tmp_path, "original", 110, V1, "quick")
    write_cell(tmp_path, "full-preact", 110, V2, "quick")
    text = render_report(report_on(tmp_path), format, full=True)
    assert "not the paper's protocol; not comparable with the published figures" in text
    assert text.count("not comparable") == text.count("not the paper's protocol;")
    assert "6.37" in text
    assert not re.findall(r"(?<!not )comparable", text)
    assert "apply to protocol quick only" in text


def test_the_papers_protocol_is_comparable(tmp_path):
    write_cell(tmp_path, "original", 110, V1)
    assert "not comparable" not in render_report(report_on(tmp_path), "markdown")


def test_another_network_is_not_comparable(tmp_path):
    write_run(tmp_path, protocol="paper", overrides=["shortcut=project"])
    (group,) = report_on(tmp_path).groups
    assert group.heading.endswith(
        "paper (shortcut=project): not the paper's network; not comparable with the published "
        "figures"
    )


def test_two_settings_for_one_cell_and_seed_are_refused(tmp_path):
    first = write_run(tmp_path)
    second = write_run(tmp_path, overrides=["eval_every=50"], folder=tmp_path / "x")
    with pytest.raises(UserError, match="eval_every: 200 → 50") as error:
        report_on(tmp_path)
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


def test_a_copy_counts_once_and_is_noted(tmp_path):
    write_run(tmp_path, test_error=50.0)
    write_run(tmp_path, test_error=50.5, folder=tmp_path / "x")
    (group,) = report_on(tmp_path).groups
    assert group.cells["original", 110].summary.values == (50.0,)
    (note,) = group.notes
    assert re.search(r"x is the same run as .*seed-0, which is counted; .*50.00 and 50.50", note)
    frame = pandas.read_csv(io.StringIO(render_report(report_on(tmp_path), "csv")))
    assert sorted(frame.counted) == [False, True]


def test_one_name_for_two_orderings_is_refused(tmp_path):
    own = tmp_path / "mine.yaml"
    for seed, place in enumerate(("after_add", "trail")):
        other = {"after_add": "trail", "trail": "after_add"}[place]
        own.write_text(f"lead: [relu]\n{place}: [bn]\n{other}: []\n", encoding="utf-8")
        write_run(tmp_path / "runs", str(own), seed=seed)
    with pytest.raises(UserError, match="different orderings 'mine'"):
        report_on(tmp_path / "runs")


def test_mixed_precisions_are_noted(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, changes={"precision": "bf16", "device": "NVIDIA"})
    (group,) = report_on(tmp_path).groups
    assert "The runs were made with different precisions: 1 × bf16 and 1 × fp32." in group.notes
    assert len(group.notes) == 2


# --- the formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(RENDERERS))
def test_the_same_runs_give_the_same_bytes(tmp_path, format):
    write_table(tmp_path)
    records = read_records([tmp_path])
    assert render_report(build(records), format, True) == render_report(
        build(records[::-1]), format, True
    )


def test_an_unknown_format_is_an_error(tmp_path):
    write_run(tmp_path)
    with pytest.raises(UserError, match="did you mean 'markdown'"):
        render_report(report_on(tmp_path), "markdwn")


def test_markdown_tables_are_whole(tmp_path):
    write_table(tmp_path)
    text = render_report(report_on(tmp_path), "markdown")
    for block in text.split("\n\n"):
        if block.startswith("| "):
            assert len({len(row) for row in rows_of(block)}) == 1
    assert len([row for row in rows_of(text) if row[-2] == "done"]) == 50
    for line in text.splitlines():
        assert line == line.rstrip()


def test_csv_reads_back(tmp_path):
    write_cell(tmp_path, "original", 110, V1)
    write_run(tmp_path, seed=7, test_error=None, progress=how_far(12))
    write_run(tmp_path, seed=8, changes={"seed": ...})
    frame = pandas.read_csv(io.StringIO(render_report(report_on(tmp_path), "csv")))
    assert list(frame.state) == ["done"] * 5 + ["stopped", "damaged"]
    assert list(frame.test_error[:5]) == V1
    assert list(frame.comparable_with_paper) == [True] * 5 + [False] * 2
    assert frame.iteration[5] == 12
    assert frame.iterations[5] == 400
    assert "'seed' is missing" in frame.message[6]
    assert frame.folder[0].endswith("paper/original-110/seed-0")
    result = read_record(tmp_path / "paper/original-110/seed-0").result
    assert set(result) - {"format"} <= set(frame.columns)


def test_json_is_the_whole_report(tmp_path):
    write_cell(tmp_path, "original", 110, V1)
    write_cell(tmp_path, "full-preact", 110, V2)
    write_run(tmp_path, "bn-after-add", protocol="paper", test_error=None)

    def refuse(name):
        raise AssertionError(name)

    data = json.loads(render_report(report_on(tmp_path), "json"), parse_constant=refuse)
    (group,) = data["groups"]
    assert group["comparable_with_paper"] is True
    cell = group["cells"][0]
    assert cell["values"] == V1
    assert cell["published"]["test_error"] == 6.61
    assert group["cells"][1]["unfinished"][0]["state"] == "stopped"
    (contrast,) = group["comparisons"]
    assert contrast["difference"] == pytest.approx(-0.266)
    assert contrast["p_holm"] == contrast["p"] == pytest.approx(compare(V1, V2).p)
    (duel,) = group["verdicts"]
    assert (duel["word"], duel["published_difference"]) == ("reproduced", -0.24)
    assert len(group["runs"]) == 11
    assert data["damaged"] == []


def test_latex_is_balanced(tmp_path):
    write_table(tmp_path)
    write_run(tmp_path, protocol="quick", folder=tmp_path / "100%_{x}")
    text = render_report(report_on(tmp_path), "latex")
    bare = re.sub(r"\\[\\{}%&_#$]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") > 4
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
    for table in re.findall(r"\\toprule.*?\\bottomrule", text, re.DOTALL):
        cells = {re.sub(r"\\&", "", line).count("&") for line in table.splitlines() if "&" in line}
        assert len(cells) == 1
    assert r"\usepackage{booktabs}" in text.splitlines()[0]
    assert "full-preact (V2) & 4(e)" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_latex_fits_the_column_of_an_article(tmp_path):
    write_table(tmp_path / "runs")
    (tmp_path / "report.tex").write_text(
        render_report(report_on(tmp_path / "runs"), "latex"), encoding="utf-8"
    )
    (tmp_path / "page.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{report}\end{document}",
        encoding="utf-8",
    )
    command = ["pdflatex", "-interaction=nonstopmode", "page"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_strange_names_are_escaped(tmp_path):
    nasty = tmp_path / "a|b_c%d&e<i>[red]$x^#~\n\x1b[31m"
    write_run(tmp_path, changes={"test_error": ...}, folder=nasty)
    write_run(tmp_path, "full-preact", folder=tmp_path / "p|q_r" / "s%t&u")
    report = report_on(tmp_path)
    markdown = render_report(report, "markdown")
    assert "p\\|q\\_r/s%t\\&u" in markdown
    assert "\\<i\\>" in markdown
    (row,) = [row for row in rows_of(markdown) if "test_error" in row[-1]]
    assert row[0].endswith(r"a|b_c%d&e<i>[red]$x^#~\n\x1b[31m")
    latex = render_report(report, "latex")
    assert r"a\textbar{}b\_c\%d\&e\textless{}i\textgreater{}{[}red]\$x" in latex
    for text in (
        markdown,
        latex,
        render_report(report, "csv"),
        render_report(report, "table", full=True),
        on_screen(report),
    ):
        assert "\x1b" not in text
    assert "[red]$x" in render_report(report, "table", full=True)
    (line,) = [r for r in csv.DictReader(io.StringIO(render_report(report, "csv"))) if r["label"]][
        :1
    ]
    assert line["folder"].endswith("p|q_r/s%t&u")


# --- the terminal ---------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_the_terminal_is_never_overrun_and_loses_no_error(tmp_path, width):
    write_table(tmp_path)
    report = report_on(tmp_path)
    text = on_screen(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    if width >= 80:
        for variant in PAPER_ORDER:
            assert variant in text
        assert "6.64 ± 0.13" in text or "± " in text
    if width == 100:
        assert re.search(r"Left out for width: [^.]*folder\.", text.replace("\n  ", " "))


def test_nothing_is_cut_where_there_is_no_terminal(tmp_path):
    folder = write_run(tmp_path, folder=tmp_path / ("x" * 200) / ("y" * 200))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_report(report_on(tmp_path), console, full=True)
    assert folder.as_posix() in console.file.getvalue()
    assert "Left out" not in console.file.getvalue()
    assert console.width == 80


def test_depths_stand_two_abreast_and_then_below(tmp_path):
    for depth in (20, 32, 110):
        write_run(tmp_path, depth=depth)
    (group,) = report_on(tmp_path).groups
    titles = [table.title for table in group_tables(group)]
    assert titles[:2] == ["Test error (%), ResNet-20 and ResNet-32", "Test error (%), ResNet-110"]


# --- speed ----------------------------------------------------------------------------------------


def test_a_hundred_runs_take_no_time(tmp_path):
    for variant in PAPER_ORDER:
        for depth in (110, 164):
            write_cell(tmp_path, variant, depth, [50 + s / 7 for s in range(10)], "quick")
    start = time.process_time()
    records = read_records([tmp_path])
    reading = time.process_time() - start
    assert len(records) == 100
    assert len(rows_of(render_report(build(records), "markdown"))) > 100
    whole = time.process_time() - start
    slower = pace()
    assert reading < 1 * slower
    assert whole < 2 * slower
