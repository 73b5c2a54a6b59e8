"""Tables and prose in terminals of any width: nothing is cut, and no word is split."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resvar import table as module
from resvar.bench import bench
from resvar.bench.floor import PASSES
from resvar.bench.profile import HEADINGS
from resvar.console import PlainConsole, drawn_text
from resvar.evaluation.examine import class_findings
from resvar.evaluation.render import print_findings
from resvar.explain.show import show_networks
from resvar.models.ordering import PAPER_ORDER
from resvar.probes.render import print_probe
from resvar.reports.findings import build
from resvar.reports.render import print_report
from resvar.reports.search import read_records
from resvar.reports.status import print_status
from resvar.rundir import RunProgress
from resvar.streams import columns_of, folded
from resvar.sweeps.estimate import estimate, given_throughput, print_estimate
from resvar.sweeps.grid import plan_sweep
from resvar.sweeps.local import ACTIVE_COLUMNS
from resvar.table import Column, Parts, Prose, Table, TableCell, TerminalTable, filled, left, right
from tests.probes.made import make_results
from tests.reports.runs import how_far, write_run

RESULTS = Path(__file__).parent.parent / "results"
WIDTHS = (60, 80, 120)


def terminal(width):
    return PlainConsole(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        color_system=None,
        legacy_windows=False,
    )


def on_screen(part, width):
    console = terminal(width)
    console.print(part, crop=False)
    return console.file.getvalue()


# --- every table of every command -----------------------------------------------------------------


def report_of(folder, full=True):
    return lambda console: print_report(build(read_records([folder])), console, full=full)


def status_of(folder, monkeypatch):
    def draw(console):
        monkeypatch.setattr("resvar.reports.status.console_for_output", lambda: console)
        print_status(folder)

    return draw


def paper_runs(root):
    """Seven seeds of everything, and runs in every other state."""
    for rank, variant in enumerate(PAPER_ORDER):
        for depth in (110, 164):
            for seed in range(7):
                error = round(6.61 + rank / 5 - depth / 100 + seed / 7, 2)
                write_run(root, variant, depth, seed, error, "paper")
    write_run(root, seed=7, test_error=None, protocol="paper", progress=how_far(12_345, 64_000))
    write_run(root, seed=8, test_error=None, protocol="paper",
              failure={"message": "cuda: out of memory " * 9})  # fmt: skip
    write_run(root, seed=9, protocol="paper", changes={"test_error": "x"})
    return root


def findings(names, dataset="cifar10"):
    random = np.random.default_rng(0)
    confusion = random.integers(0, 18, (len(names), len(names))) + 890 * np.eye(
        len(names), dtype=int
    )
    bins = [
        {"above": 100 * n / 15, "up_to": 100 * (n + 1) / 15, "images": 1_000 + n,
         "confidence": 6.5 * n, "accuracy": 6.4 * n} for n in range(15)
    ]  # fmt: skip
    return {
        "source": "runs/short/original-20/seed-0", "variant": "original", "depth": 20,
        "protocol": "short", "seed": 0, "iteration": 3_910, "iterations": 3_910, "images": 10_000,
        "dataset": dataset, "device": "cpu", "precision": "bf16", "test_error": 10.293,
        "test_loss": 0.34567, "confusion": confusion.tolist(),
        "run": {"same_predictions": False, "differing_predictions": 12, "test_error": 10.29},
        "classes": class_findings(confusion, tuple(names)),
        "calibration": {"expected_calibration_error": 1.2345, "mean_confidence": 91.2,
                        "bins": bins},
    }  # fmt: skip


def contender(name, speed):
    return {
        "name": name, "precision": "bf16", "threads": 2, "batch_size": 128, "bn_batch_size": 64,
        "images_per_second": speed, "slowest": speed - 3, "fastest": speed + 4, "ratio": 2.32,
        "seconds_per_iteration": 128 / speed, "share_of_ceiling": 0.45, "own_bytes": 279_200_000,
        "time": {heading: 1 / len(HEADINGS) for heading in HEADINGS},
    }  # fmt: skip


def bench_parts():
    """What the three kinds of `resvar bench` draw, without measuring."""
    record = {
        "variant": "relu-before-add", "depth": 110, "flop_per_image": 1.5e9,
        "ceiling": {"bf16_flops": 4.67e11, "fp32_flops": 1.07e11, "copy_bytes_per_second": 3.2e10,
                    "fastest": "bf16"},
        "contenders": [contender("resvar", 12_345.6), contender("plain PyTorch", 1_241.5),
                       contender("precision=fp32,batch_size=64,threads=1", 167.3)],
    }  # fmt: skip
    floors = [
        {"variant": variant, "depth": 164, "batch_size": 128, "flop": 1.2e12,
         "moved_bytes": dict.fromkeys(PASSES, 9800000000.0), "seconds": dict.fromkeys(PASSES, 0.5)}
        for variant in PAPER_ORDER
    ]  # fmt: skip
    split = {
        "variant": "original", "depth": 110, "jobs": 2,
        "splits": [
            {"jobs": 1, "threads": 2, "images_per_second": 4_936.0, "turns": [4_900, 5_000]},
        ],
    }  # fmt: skip
    yield from bench._measurement_parts(record)
    yield filled("The least time of an iteration", bench._floor_columns(4.5e11), floors)
    yield from bench._split_lines(split)


def draw_parts(parts):
    def draw(console):
        module.draw_parts(parts, console)

    return draw


def drawings(tmp_path, monkeypatch):
    """Command → a function that draws its result on a console."""
    paper = paper_runs(tmp_path / "paper")
    few = tmp_path / "few"
    write_run(
        few, "full-preact", overrides=("lr=0.05",), folder=few / ("long-name-" * 6) / "seed-0"
    )
    write_run(few, seed=1, test_error=None, progress=how_far(123))
    yield "report results", report_of(RESULTS)
    yield "report paper", report_of(paper)
    yield "report results, first screen", report_of(RESULTS, full=False)
    yield "report paper, first screen", report_of(paper, full=False)
    yield "status many", status_of(paper, monkeypatch)
    yield "status few", status_of(few, monkeypatch)
    yield "status results", status_of(RESULTS, monkeypatch)
    yield "evaluate", lambda console: print_findings(findings(NAMES), console)
    many = [f"superclass_{n}" for n in range(100)]
    yield "evaluate cifar100", lambda console: print_findings(findings(many, "cifar100"), console)
    yield "bench", draw_parts(list(bench_parts()))
    yield "probe", lambda console: print_probe(make_results("original", "full-preact"), console)
    for arguments in (
        {}, {"variants": ",".join(PAPER_ORDER)},
        {"names": ["resnet50", "resnext101_32x8d"], "compare": True},
        {"names": ["resnet34", "v2-164"]}, {"table": "imagenet"}, {"table": "cifar"},
        {"table": "imagenet", "options": {"cardinality": 32, "base_width": 4}},
        {"options": {"family": "imagenet", "depth": 152}},
    ):  # fmt: skip
        yield f"show {arguments}", shown(arguments, monkeypatch)
    sets = ("iterations=100", "batch_size=64", "milestones=[]", "warmup_iterations=0")
    given = {"variants": ",".join(PAPER_ORDER), "depths": "110,164", "seeds": "2"}
    runs = plan_sweep(None, given, sets, tmp_path / "sweep").runs
    yield (
        "estimate",
        estimated(estimate(runs, given_throughput("110=50,164=2.5", runs)), monkeypatch),
    )
    progress = RunProgress(12_345, 64_000, 61.0, 1_234.0)
    yield (
        "sweep",
        lambda console: console.print(
            TerminalTable(filled("", ACTIVE_COLUMNS, [(Process(run), progress) for run in runs]))
        ),
    )


NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Process:
    def __init__(self, run):
        self.run = run
        self.slot = type("Slot", (), {"name": "cuda:0"})


def shown(arguments, monkeypatch):
    def draw(console):
        monkeypatch.setattr("resvar.console.console_for_output", lambda: console)
        show_networks(**arguments)

    return draw


def estimated(found, monkeypatch):
    def draw(console):
        monkeypatch.setattr("resvar.sweeps.estimate.console_for_output", lambda: console)
        print_estimate(found, {2: "in 2 slots here"})

    return draw


def words(text):
    """The words and numbers of a text, with the two halves of what may be broken in between."""
    return Counter(re.split(r"[\s/:,]+|(?<=\w)-(?=\D)", re.sub(r"[─]+", " ", text)))


def left_out(text):
    found = re.search(r"Left out for width: ([^.]*)\.", re.sub(r"\s+", " ", text))
    return found[1] if found else ""


@pytest.mark.heavy
@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_of_every_command_fits_and_loses_no_digit(tmp_path, monkeypatch, width):
    tables = []
    draw_table = TerminalTable.__rich_console__

    def noted(self, console, options):
        tables.append(self.table)
        return draw_table(self, console, options)

    for command, draw in drawings(tmp_path, monkeypatch):
        wide = drawn_text(draw)
        with monkeypatch.context() as patch:
            patch.setattr(TerminalTable, "__rich_console__", noted)
            console = terminal(width)
            draw(console)
        text = console.file.getvalue()
        too_long = [
            line for line in text.splitlines()
            if columns_of(line) > width and re.search(r"\s", line.strip())
        ]  # fmt: skip
        assert not too_long, (command, too_long)
        assert text.count("…") <= wide.count("…"), command
        told = re.sub(r"Left out for width: [^.]*\.", "", re.sub(r"\s+", " ", text))
        assert not words(told).keys() - words(wide).keys(), command
        assert tables, command
        while tables:
            found = tables.pop()
            alone = on_screen(TerminalTable(found), width)
            dropped = left_out(alone)
            kept = [n for n, column in enumerate(found.columns) if column.name not in dropped]
            cells = " ".join(row[n].text for row in found.rows for n in kept)
            assert words(cells) - words(alone) == Counter(), (command, found.title)


@pytest.mark.heavy
@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_word_and_no_number_of_a_report_is_broken(tmp_path, monkeypatch, width):
    """Neither in a cell nor in a title, unless it is longer than a line."""
    tables = []
    draw_table = TerminalTable.__rich_console__

    def noted(self, console, options):
        tables.append(self.table)
        return draw_table(self, console, options)

    grid = tmp_path / "grid"
    for number, sets in enumerate(itertools.product(("lr=0.05", "lr=0.2"), ("0.001", "0.0005"))):
        for variant in ("relu-only-preact", "bn-after-add"):
            write_run(grid, variant, 20, 0, 41.25, overrides=(sets[0], f"weight_decay={sets[1]}"),
                      folder=grid / f"{variant}-{number}" / "seed-0")  # fmt: skip
    monkeypatch.setattr(TerminalTable, "__rich_console__", noted)
    for folder in (RESULTS, paper_runs(tmp_path / "paper"), grid):
        for full in (False, True):
            report_of(folder, full)(terminal(width))
    assert len(tables) > 30
    for found in list(tables):
        alone = on_screen(TerminalTable(found), width)
        dropped = f", {left_out(alone)}, "
        kept = [n for n, c in enumerate(found.columns) if f", {c.name}, " not in dropped]
        tokens = Counter(" ".join(row[n].text for row in found.rows for n in kept).split())
        tokens += Counter(" ".join(found.columns[n].title for n in kept).split())
        shown = set(alone.split())
        lost = tokens.keys() - shown - {token.removesuffix(":") for token in shown}
        assert {token for token in lost if columns_of(token) <= width - 4} == set(), found.title


# --- the mechanism --------------------------------------------------------------------------------


def test_a_line_across_the_columns_is_above_what_the_other_cells_contain():
    columns = tuple(Column(title, "left") for title in ("layer", "network A", "network B"))
    rows = (
        (TableCell("conv2_x\n56×56"), TableCell("one pool for all\na", across=1), TableCell("b")),
        (TableCell("head"), TableCell("too long for both of them", across=1), TableCell("")),
        (TableCell("layers"), TableCell("18"), TableCell("34")),
    )
    text = on_screen(TerminalTable(Table("", columns, rows)), 60)
    assert [line.rstrip() for line in text.splitlines()] == [
        "layer    network A  network B",
        "─────────────────────────────",
        "conv2_x  one pool for all",
        "56×56    a          b",
        "",
        "head     too long for both of",
        "         them",
        "",
        "layers   18         34",
    ]


TEXT = st.text(st.sampled_from("ab1.%/- 日\u0301"), max_size=120)


WORDS = st.text("ab1.%()±日", min_size=1, max_size=14)


@pytest.mark.heavy
@given(st.data(), st.integers(14, 120))
def test_every_word_of_every_cell_is_whole_or_its_column_is_named_as_left_out(data, width):
    drops = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    columns = [
        left(f"title{n}", lambda item, n=n: item[n], drop, data.draw(st.sampled_from([0, 5, 12])))
        for n, drop in enumerate([0, *drops])
    ]
    texts = st.lists(WORDS, max_size=5).map(" ".join)
    items = data.draw(st.lists(st.lists(texts, min_size=7, max_size=7), min_size=1, max_size=4))
    found = filled("", columns, items)
    text = on_screen(TerminalTable(found), width)
    dropped = re.findall(r"title\d", " ".join(text.split()).partition("Left out for width:")[2])
    for n, column in enumerate(found.columns):
        if column.title in dropped:
            assert column.drop
            continue
        words_of_column = {word for row in found.rows for word in row[n].text.split()}
        assert words_of_column <= set(text.split()), (text, column)


def test_a_column_is_left_out_before_a_path_is_broken():
    path = "runs/quick/full-preact-110"
    columns = (
        left("run", lambda i: i["a"], wrap=10),
        right("error", lambda i: i["b"]),
        right("seconds", lambda i: i["c"], drop=1),
    )
    wide = on_screen(TerminalTable(make(columns, (path, "6.37", "3,723"))), 36)
    assert path in wide
    assert "Left out for width: seconds." in wide
    narrow = on_screen(TerminalTable(make(columns, (path, "6.37", "3,723"))), 32)
    assert "quick/" in narrow
    assert "3,723" in narrow
    title = right("relu-only-preact", lambda i: i["b"])
    assert "relu-only-preact" in on_screen(TerminalTable(make((title,), ("", "6.37"))), 9)


@given(TEXT, st.integers(1, 60))
def test_folding_breaks_between_words_and_loses_nothing(text, width):
    lines = folded(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    for line in lines:
        if columns_of(line) > width:
            assert len(re.split(r"(?<=/)(?=[^\W\d]\w|[.~])", line.strip())) == 1 or " " in line


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("test error 8.75 % after 48 s", 16, ["test error", "8.75 % after", "48 s"]),
        ("mean 10.54 ± 0.35", 12, ["mean", "10.54 ± 0.35"]),
        ("V2 − V1 is here", 9, ["V2 − V1", "is here"]),
        ("in runs/quick/original-20/seed-0", 16, ["in runs/quick/", "original-20/", "seed-0"]),
        ("12,345 images/s", 6, ["12,345 images/s"]),
        ("  a note of words", 9, ["  a note", "  of", "  words"]),
        ("lr 0.1  loss 2.3  3 s left", 16, ["lr 0.1  loss 2.3", "  3 s left"]),
        ("in a=1,lr=0.05,milestones=[1,2]", 10, ["in a=1,", "lr=0.05,", "milestones=[1,2]"]),
        ("a_very_long_word is whole", 6, ["a_very_long_word", "is", "whole"]),
    ],
)
def test_lines_by_hand(text, width, lines):
    assert folded(text, width) == lines


def make(columns, *rows):
    items = [dict(zip("abcdef", row, strict=False)) for row in rows]
    return filled("Title", columns, items, ["A note of several words."])


def test_titles_are_broken_first_then_texts_then_columns_go():
    table = make(
        (
            left("name of it", lambda i: i["a"]),
            right("test error", lambda i: i["b"], ".2f"),
            left("why it is", lambda i: i["c"], wrap=8),
            right("extra", lambda i: i["d"], drop=1),
        ),
        ("one", 12.3, "some words of it", "123456"),
    )  # fmt: skip
    assert on_screen(TerminalTable(table), 60).splitlines()[1:4] == [
        "name of it  test error  why it is          extra",
        "─" * 48,
        "one              12.30  some words of it  123456",
    ]
    narrow = on_screen(TerminalTable(table), 24)
    assert "Left out for width:" in narrow
    assert "12.30" in narrow
    assert "123456" not in narrow


def test_rows_become_paragraphs_where_even_the_least_is_too_wide():
    table = make(
        (left("name", lambda i: i["a"]), right("error", lambda i: i["b"], ".2f"),
         left("drawn", lambda _: TableCell("⎡1×1, 16⎤\n⎣3×3, 16⎦")),
         right("extra", lambda _: "9", drop=module.EXTRA)),
        ("a-name-without-end", 1.5), ("another", 2.5),
    )  # fmt: skip
    assert on_screen(TerminalTable(table), 20).splitlines() == [
        "Title", "",
        ["name", "a-name-without-end"][0], "a-name-without-end", "  error: 1.50", "  drawn:",
        "    ⎡1×1, 16⎤", "    ⎣3×3, 16⎦", "",
        "name another", "  error: 2.50", "  drawn:", "    ⎡1×1, 16⎤", "    ⎣3×3, 16⎦",
        "  A note of several", "  words.", "  Left out for", "  width: extra.",
    ]  # fmt: skip


def test_whole_texts_are_worth_more_than_whole_titles():
    table = make(
        (left("run", lambda i: i["a"], wrap=20), right("test error %", lambda i: i["b"], ".2f")),
        ("short/full-preact-8/seed-0", 65.85),
    )
    assert on_screen(TerminalTable(table), 36).splitlines()[1:3] == [
        "                                test",
        "run                          error %",
    ]


def test_short_titles_serve_a_table_that_does_not_fit():
    columns = [right("airplane", lambda i: i["a"], short="0"), left("what", lambda i: i["b"])]
    table = make(columns, ("911", "x" * 20))
    assert "airplane" in on_screen(TerminalTable(table), 40)
    assert on_screen(TerminalTable(table), 26).splitlines()[1] == "  0  what"


def test_without_a_terminal_nothing_is_broken_or_left_out():
    long = "word " * 100
    table = make((left("a", lambda i: i["a"], drop=1, wrap=9),), (long,))
    text = drawn_text(lambda console: console.print(TerminalTable(table), Prose(long), crop=False))
    assert text.count(long.strip()) == 2
    assert "Left out" not in text


def test_as_many_parts_as_fit_the_line():
    parts = Parts(("3 s left", "", "loss 2.3276", "lr 0.1"))
    for width, line in (
        (40, "3 s left  loss 2.3276  lr 0.1"), (28, "3 s left  loss 2.3276"), (9, "3 s left"),
        (5, ""),
    ):  # fmt: skip
        assert on_screen(parts, width).rstrip("\n") == line


def test_a_string_is_broken_between_words_on_a_terminal_alone():
    console = terminal(20)
    console.print("some words, and then 8.75 % of runs/quick/original-20/seed-0")
    assert max(map(len, console.file.getvalue().splitlines())) <= 20
    assert "8.75 %" in console.file.getvalue()
