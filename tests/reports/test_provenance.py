"""Where runs were made, and commands that really make them again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resvar.reports.provenance import cells_text, commands, environments, ranges
from resvar.reports.search import read_records
from resvar.rundir import ENVIRONMENT
from resvar.sweeps.grid import plan_sweep
from tests.reports.pages import ENVIRONMENT_A, write_curved
from tests.reports.runs import write_run


def planned(line):
    """The settings of all runs that a `resvar sweep` line asks for."""
    program, command, *words = shlex.split(line)
    assert (program, command) == ("resvar", "sweep")
    options = {"--variants": None, "--depths": None, "--seeds": None, "--protocol": None}
    sets = []
    for key, value in zip(words[::2], words[1::2], strict=True):
        if key == "--set":
            sets.append(value)
        elif key != "--out":
            options[key] = value
    given = {key.removeprefix("--"): value for key, value in options.items()}
    return [run.settings for run in plan_sweep(None, given, sets, Path("runs")).runs]


def assert_repeated(root):
    """The commands ask for exactly the runs that are there, with their settings."""
    records = read_records([root])
    asked = [settings for line in commands(records) for settings in planned(line)]
    assert sorted(s.hash for s in asked) == sorted(r.settings.hash for r in records)
    return commands(records)


# --- again ----------------------------------------------------------------------------------------


def test_a_full_grid_is_one_command(tmp_path):
    for variant in ("original", "full-preact"):
        for depth in (110, 164):
            for seed in range(3):
                write_run(tmp_path, variant, depth, seed)
    assert assert_repeated(tmp_path) == [
        "resvar sweep --variants original,full-preact --depths 110,164 --seeds 3 "
        "--protocol quick --set precision=fp32"
    ]


def test_what_is_no_grid_takes_more_commands_and_no_run_too_many(tmp_path):
    write_run(tmp_path, "original", 110, 0)
    write_run(tmp_path, "original", 110, 7)
    write_run(tmp_path, "original", 164, 7)
    write_run(tmp_path, "full-preact", 20, 7)
    write_run(tmp_path, "bn-lead-relu-trail", 20, 7, overrides=["lr=0.05", "eval_every=13"])
    write_run(tmp_path, "original", 38, 0, overrides=["unit=bottleneck"])  # both units fit it
    write_run(tmp_path, "original", 50, 0, overrides=["family=imagenet", "num_classes=7"])
    write_run(tmp_path, "full-preact", 20, 1, overrides=["schedule=step", "milestones=[10, 20]"])
    assert len(assert_repeated(tmp_path)) == 7


def test_ones_own_ordering_is_repeated_from_its_config(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "lead: [relu, bn]\ntrail: []\nafter_add: []\n", encoding="utf-8"
    )
    folder = write_run(tmp_path / "my runs", str(tmp_path / "mine.yaml"))
    (line,) = commands(read_records([tmp_path / "my runs"]))
    assert shlex.split(line) == [
        "resvar", "train", "--config", f"{folder}/config.yaml",
        "--out", "runs/quick/mine-110/seed-0",
    ]  # fmt: skip


def test_event_files_are_no_part_of_it(tmp_path):
    write_run(tmp_path, overrides=["tensorboard=true"])
    (line,) = commands(read_records([tmp_path]))
    assert "tensorboard" not in line


# --- where ----------------------------------------------------------------------------------------


def test_runs_are_grouped_by_where_they_were_begun(tmp_path):
    write_curved(tmp_path, "original", seed=0)
    write_curved(tmp_path, "original", seed=1)
    write_curved(tmp_path, "full-preact", seed=0, environment=ENVIRONMENT_A | {"device": "GPU B"})
    write_run(tmp_path, "bn-after-add")
    found = environments(read_records([tmp_path]))
    assert [(cells_text(e.runs), e.facts.get("device")) for e in found.all] == [
        ("original-110: seeds 0–1", "GPU A"),
        ("full-preact-110: seed 0", "GPU B"),
        ("bn-after-add-110: seed 0", None),
    ]
    assert found.differing == ("device",)
    assert found.common["torch"] == "2.8.0"
    assert found.common["dirty"] == "no"


def test_a_run_that_went_on_elsewhere_is_named(tmp_path):
    moved = ENVIRONMENT_A | {"resumed": [{"iteration": 12, "changed": {"torch": "2.9"}}]}
    write_curved(tmp_path, environment=moved)
    (note,) = environments(read_records([tmp_path])).notes
    assert "was resumed at iteration 12 in another environment (torch: 2.9)" in note


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"resumed": 7, "torch": {}}'])
def test_a_damaged_environment_spoils_nothing(tmp_path, content):
    folder = write_curved(tmp_path)
    (folder / ENVIRONMENT).write_bytes(content)
    found = environments(read_records([tmp_path]))
    assert found.all[0].facts == {}
    assert bool(found.notes) == (b"resumed" not in content)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "3"),
        ([0, 1, 2, 5], "0–2, 5"),
        (range(0, 40, 2), "0, 2, 4, 6, 8, 10, … (20)"),
        ([], ""),
    ],
)
def test_ranges(numbers, text):
    assert ranges(numbers) == text


@given(st.sets(st.integers(0, 60)))
def test_ranges_lose_nothing(numbers):
    found = set()
    for piece in filter(None, ranges(numbers, 100).split(", ")):
        first, _, last = piece.partition("–")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers
