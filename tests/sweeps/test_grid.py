from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resvar.config import resolve
from resvar.errors import UserError
from resvar.models.ordering import PAPER_ORDER
from resvar.reports.comparable import deviations
from resvar.sweeps.grid import MOST_RUNS, _parse_seeds, manifests, plan_sweep

SMALL = {"variants": "original,full-preact", "depths": "8,14", "seeds": "2"}


def plan(file=None, overrides=(), **given):
    return plan_sweep(file, given or SMALL, overrides, Path("runs"))


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# --- the plan -------------------------------------------------------------------------------------


def test_every_cell_comes_once_before_any_has_a_second_seed():
    found = [(s.seed, s.depth, s.variant) for s in (run.settings for run in plan().runs)]
    assert found == [
        (seed, depth, variant)
        for seed in (0, 1)
        for depth in (8, 14)
        for variant in ("original", "full-preact")
    ]


def test_a_run_says_where_it_goes_and_what_resvar_train_is_told():
    run = plan(overrides=["lr=0.5"]).runs[1]
    assert run.name == "paper/full-preact-8/lr=0.5/seed-0"
    assert run.folder == Path("runs/paper/full-preact-8/lr=0.5/seed-0")
    assert run.arguments == (
        "--variant", "full-preact", "--depth", "8", "--protocol", "paper", "--seed", "0",
        "--set", "lr=0.5",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "overrides"),
    [("", []), ("set: {lr: 0.5, milestones: [10, 20], flip: false}\n", ["momentum=0.5"])],
)
def test_resvar_train_makes_the_same_settings_of_the_arguments(tmp_path, extra, overrides):
    text = "variants: [original]\ndepths: [8]\nseeds: [3]\nprotocol: quick\n" + extra
    (run,) = plan(write(tmp_path, text), overrides, seeds=None).runs
    options, sets = {}, []
    for name, value in zip(run.arguments[::2], run.arguments[1::2], strict=True):
        if name == "--set":
            sets.append(value)
        else:
            options[name.removeprefix("--")] = int(value) if value.isdigit() else value
    assert resolve(None, options, sets) == run.settings


def test_the_shipped_sweep_is_table_2_by_the_papers_protocol():
    sweep = plan(Path("table2"), seeds=None)
    assert len(sweep.runs) == 50
    cells = Counter((run.settings.variant, run.settings.depth) for run in sweep.runs)
    assert cells == {(name, depth): 5 for name in PAPER_ORDER for depth in (110, 164)}
    assert {run.settings.seed for run in sweep.runs} == {0, 1, 2, 3, 4}
    for run in sweep.runs:
        assert run.settings.protocol == "paper"
        assert not deviations(run.settings)
    assert sweep.name == "table2-paper"


def test_the_command_line_beats_the_file(tmp_path):
    text = "variants: [original]\ndepths: [8, 14]\nseeds: 5\nprotocol: paper\nset: {lr: 0.3}\n"
    sweep = plan(
        write(tmp_path, text), ["lr=0.7"], variants="full-preact", depths="20", seeds="4,6",
        protocol="quick",
    )  # fmt: skip
    found = [(s.variant, s.depth, s.seed, s.lr) for s in (run.settings for run in sweep.runs)]
    assert found == [("full-preact", 20, 4, 0.7), ("full-preact", 20, 6, 0.7)]
    assert re.fullmatch("mine-quick-[0-9a-f]{8}", sweep.name)


def test_a_variant_file_of_ones_own(tmp_path):
    file = write(tmp_path, "lead: []\ntrail: [relu, bn]\nafter_add: []\n")
    (run,) = plan(variants=str(file), depths="8").runs
    assert run.name == "paper/mine-8/seed-0"
    assert run.settings.trail == ["relu", "bn"]


def test_spaces_between_commas_do_not_matter():
    found = plan(variants=" original , full-preact", depths=" 8, 14 ", seeds=" 0, 1 ")
    assert found == plan()


def test_a_manifest_lists_the_runs(tmp_path):
    sweep = plan_sweep(None, SMALL, [], tmp_path / "runs")
    assert not (tmp_path / "runs").exists(), "planning writes nothing"
    sweep.write_manifest()
    assert manifests(tmp_path / "runs") == {sweep.name: [run.name for run in sweep.runs]}
    assert re.fullmatch("sweep-paper-[0-9a-f]{8}", sweep.name)


def test_a_sweep_from_the_command_line_overwrites_no_other_list(tmp_path):
    grids = [
        SMALL,
        SMALL | {"depths": "20"},
        SMALL | {"seeds": "3"},
        SMALL | {"variants": "original"},
    ]
    file = write(tmp_path, "variants: [original]\ndepths: [8, 14]\nseeds: 5\n")
    sweeps = [plan_sweep(None, values, [], tmp_path) for values in grids]
    sweeps += [plan_sweep(file, {"depths": depth}, [], tmp_path) for depth in ("8", "14")]
    sweeps.append(plan_sweep(file, {}, [], tmp_path))
    for sweep in [*sweeps, *sweeps]:
        sweep.write_manifest()
    assert manifests(tmp_path) == {sweep.name: [run.name for run in sweep.runs] for sweep in sweeps}
    assert len(manifests(tmp_path)) == len(sweeps), "the same command keeps its list"


def test_the_list_of_a_file_follows_the_file(tmp_path):
    for depths in ("[8, 14]", "[8]"):
        file = write(tmp_path, f"variants: [original]\ndepths: {depths}\n")
        plan_sweep(file, {}, [], tmp_path).write_manifest()
    assert manifests(tmp_path) == {f"{file.stem}-paper": ["paper/original-8/seed-0"]}


def test_two_files_of_one_name_have_two_lists(tmp_path):
    for _ in range(2):
        for folder, depth in (("a", 8), ("b", 14)):
            (tmp_path / folder).mkdir(exist_ok=True)
            file = write(tmp_path / folder, f"variants: [original]\ndepths: [{depth}]\n")
            plan_sweep(file, {}, [], tmp_path / "runs").write_manifest()
    found = manifests(tmp_path / "runs")
    assert sorted(found.values()) == [["paper/original-14/seed-0"], ["paper/original-8/seed-0"]]


def test_a_damaged_or_foreign_list_is_a_sentence(tmp_path):
    path = tmp_path / "x.sweep.json"
    for content in ("", "[]", '{"runs": "a"}', '{"runs": [1]}', '{"runs": ["../a"]}', "\0"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="damaged"):
            manifests(tmp_path)
    path.write_text(" " * 30_000_000, encoding="utf-8")
    with pytest.raises(UserError, match="over 20,000,000 bytes"):
        manifests(tmp_path)
    path.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(path)
        with pytest.raises(UserError, match=r"x\.sweep\.json"):
            manifests(tmp_path)
        path.unlink() if make is os.mkfifo else path.rmdir()


def test_a_pipe_in_place_of_a_list_is_replaced_without_waiting(tmp_path):
    sweep = plan_sweep(None, SMALL, [], tmp_path)
    os.mkfifo(tmp_path / f"{sweep.name}.sweep.json")
    sweep.write_manifest()
    assert manifests(tmp_path) == {sweep.name: [run.name for run in sweep.runs]}


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("variant: [original]\ndepths: [8]\n", ["'variant'", "did you mean 'variants'"]),
        ("variants: [original]\ndepth: [8]\n", ["'depth'", "did you mean 'depths'"]),
        ("lr: 3\n", ["unknown key 'lr'", "variants"]),
        ("variants: [original]\n", ["'depths' is missing", "--depths"]),
        ("depths: [8]\n", ["'variants' is missing", "--variants"]),
        ("variants: []\ndepths: [8]\n", ["'variants' must be a list"]),
        ("variants: [1]\ndepths: [8]\n", ["'variants' must be a list of names"]),
        ("variants: [original]\ndepths: 8\n", ["'depths' must be a list of whole numbers"]),
        ("variants: [original]\ndepths: ['8']\n", ["'depths' must be a list of whole numbers"]),
        ("variants: [original]\ndepths: [true]\n", ["'depths' must be a list of whole numbers"]),
        ("variants: [original]\ndepths: [8.0]\n", ["'depths' must be a list of whole numbers"]),
        ("variants: [original]\ndepths: [8]\nseeds: 0\n", ["'seeds'", "not 0"]),
        ("variants: [original]\ndepths: [8]\nseeds: -1\n", ["'seeds'", "not -1"]),
        ("variants: [original]\ndepths: [8]\nseeds: [0, -1]\n", ["'seeds'", "[0, -1]"]),
        ("variants: [original]\ndepths: [8]\nseeds: []\n", ["'seeds'"]),
        ("variants: [original]\ndepths: [8]\nseeds: 1.5\n", ["'seeds'", "1.5"]),
        ("variants: [original]\ndepths: [8]\nseeds: true\n", ["'seeds'"]),
        ("variants: [original]\ndepths: [8]\nseeds: 010\n", ["'seeds'", "'010'; write 10."]),
        ("variants: [original]\ndepths: [8]\nseeds: 1:30\n", ["'seeds'", "not '1:30'."]),
        ("variants: [original]\ndepths: [020]\n", ["'depths'", "not of '020'; write 20."]),
        ("variants: [original]\ndepths: [8]\nset: {lr: 1_0}\n", ["'lr' is '1_0'", "write 10"]),
        ("variants: [original]\ndepths: [8]\nseeds: many\n", ["'seeds'", "many"]),
        ("variants: [original]\ndepths: [8]\nset: [lr]\n", ["'set' must be a mapping"]),
        ("variants: [original]\ndepths: [8]\nset: {rl: 1}\n", ["'rl'", "did you mean"]),
        ("variants: [original]\ndepths: [8]\nset: {lr: fast}\n", ["'lr' is 'fast'"]),
        ("variants: [original]\ndepths: [21]\n", ["21", "fits no residual unit"]),
        ("variants: [orignal]\ndepths: [8]\n", ["did you mean 'original'"]),
        ("variants: [original]\ndepths: [8]\nprotocol: papper\n", ["did you mean 'paper'"]),
        ("variants: [original]\ndepths: [8]\nprotocol: 3\n", ["protocol"]),
        ("variants: [original, original]\ndepths: [8]\n", ["two runs would share", "original-8"]),
        ("variants: [original]\ndepths: [8, 8]\n", ["two runs would share", "original-8"]),
        ("variants: [original]\ndepths: [8]\nseeds: [1, 1]\n", ["would share", "seed-1"]),
        ("variants: [original]\ndepths: [8]\nset: {seed: 3}\nseeds: 2\n", ["would share"]),
    ],
)  # fmt: skip
def test_wrong_sweeps(tmp_path, text, parts):
    file = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        plan_sweep(file, {}, [], tmp_path)
    said = str(refused.value)
    for part in parts:
        assert part in said
    assert "\n" not in said


def test_a_sweep_of_absurd_size_is_refused_before_it_is_planned():
    with pytest.raises(UserError, match="split the sweep"):
        plan(variants="original,full-preact", depths="8", seeds=str(MOST_RUNS))


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("seeds", "010", "not '010'; write 10."),
        ("seeds", "0b11", "not '0b11'; write 3."),
        ("seeds", "1_0", "not '1_0'; write 10."),
        ("seeds", "٣", "not '٣'; write 3."),
        ("seeds", "１", "not '１'; write 1."),
        ("seeds", "1..3", "not '1..3'."),
        ("seeds", "5-1", "not '5-1'."),
        ("seeds", "0..1000000000000", "not '0..1000000000000'."),
        ("seeds", "1000000000000", "not 1000000000000."),
        ("seeds", "", "not None."),
        ("seeds", "9" * 5000, "a number of 5,000 characters is too long"),
        ("seeds", "x" * 5000, f"not '{'x' * 79}…."),
        ("depths", "020", "not of '020'; write 20."),
        ("depths", "8..14", "not of '8..14'."),
        ("depths", "٢٠", "not of '٢٠'; write 20."),
        ("depths", "", "not of None."),
        ("depths", "8,,14", "not of None."),
        ("depths", "9" * 5000, "a number of 5,000 characters is too long"),
    ],
)
def test_numbers_of_other_notations_are_refused_with_the_usual_one(option, text, said):
    with pytest.raises(UserError) as refused:
        plan(**SMALL | {option: text})
    assert said in str(refused.value)
    assert len(str(refused.value)) < 300


# --- seeds ----------------------------------------------------------------------------------------


@given(st.integers(1, 500))
def test_a_number_of_seeds_counts_from_zero(count):
    assert _parse_seeds(str(count), "x") == _parse_seeds(count, "x") == list(range(count))


@given(st.lists(st.integers(0, 2**62), min_size=2, max_size=9))
def test_named_seeds_are_those(seeds):
    assert _parse_seeds(",".join(map(str, seeds)), "x") == seeds
    assert _parse_seeds(seeds, "x") == seeds


@given(st.text(max_size=12) | st.text("0123456789,- []{}:.e'\"#&*!", max_size=12))
def test_any_other_text_is_refused_in_one_sentence(text):
    said, found = "seeds", [0]
    try:
        found = _parse_seeds(text, "the sweep")
    except UserError as error:
        said = str(error)
    assert "seeds" in said
    assert found
    assert all(type(seed) is int and seed >= 0 for seed in found)
