"""A run that cannot be read is listed with the reason in every format, and counted in its cell."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil

import pytest

import resvar
from resvar.cli import run_command
from resvar.errors import UnreadableError, UserError
from resvar.reports import records
from resvar.reports.findings import build
from resvar.reports.records import RunState
from resvar.reports.render import RENDERERS, render_report
from resvar.reports.search import read_records
from resvar.reports.status import seconds_left, standing
from resvar.rundir import (
    CHECKPOINT,
    CONFIG,
    FAILURE,
    LOCK,
    METRICS,
    PREDICTIONS,
    RESULT,
    locked,
    read_progress,
)
from resvar.sweeps.grid import MANIFEST
from tests.reports.pages import spanless, write_curved
from tests.reports.runs import how_far, make_settings
from tests.support.permissions import obeyed_permissions
from tests.support.tiny import install, make_cifar

RUN = "quick/full-preact-20/seed-1"


@pytest.fixture
def root(tmp_path):
    """Three seeds of each of two variants."""
    for variant in ("original", "full-preact"):
        for seed in range(3):
            write_curved(tmp_path / "runs", variant, 20, seed)
    return tmp_path / "runs"


def hide(run):
    run.chmod(0)


def lock_in(run):
    run.chmod(0o444)


def hide_file(name):
    return lambda run: (run / name).chmod(0)


def setting(name, value):
    def apply(run):
        lines = (run / CONFIG).read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith(f"{name}:")]
        (run / CONFIG).write_text("\n".join([*kept, f"{name}: {value}\n"]), encoding="utf-8")

    return apply


def replaced_by(make):
    def apply(run):
        shutil.rmtree(run)
        make(run)

    return apply


def result_becomes_folder(run):
    (run / RESULT).unlink()
    (run / RESULT).mkdir()


def later(run):
    text = (run / CONFIG).read_text(encoding="utf-8")
    (run / CONFIG).write_text(
        "# The settings of a run of resvar; format 99\n" + text, encoding="utf-8"
    )


KINDS = {
    "a folder of mode 000": (hide, RunState.UNREADABLE, "Permission denied"),
    "a folder that may be listed only": (lock_in, RunState.UNREADABLE, "Permission denied"),
    "a config of mode 000": (hide_file(CONFIG), RunState.UNREADABLE, "Permission denied"),
    "a result of mode 000": (hide_file(RESULT), RunState.UNREADABLE, "Permission denied"),
    "metrics of mode 000": (hide_file(METRICS), RunState.UNREADABLE, "Permission denied"),
    "a later setting": (setting("novelty", 3), RunState.UNREADABLE, "later version"),
    "a later format": (later, RunState.UNREADABLE, "its format is 99"),
    "a sum of sixties": (setting("lr", f"{'1:' * 600}1.0"), RunState.DAMAGED, CONFIG),
    "5000 digits": (setting("seed", "9" * 5000), RunState.DAMAGED, CONFIG),
    "a result that is a folder": (result_becomes_folder, RunState.DAMAGED, "directory"),
    "a link to itself": (
        replaced_by(lambda run: run.symlink_to(run)), RunState.UNREADABLE, "symbolic links",
    ),
    "a link to nowhere": (
        replaced_by(lambda run: run.symlink_to("/nowhere/seed-1")), RunState.UNREADABLE, "No such",
    ),
    "a file": (
        replaced_by(lambda run: run.write_bytes(b"x")), RunState.UNREADABLE, "Not a directory",
    ),
    "a pipe": (replaced_by(os.mkfifo), RunState.UNREADABLE, "Not a directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_cannot_be_read_is_listed_in_every_format(root, kind, capsys):
    apply, state, reason = KINDS[kind]
    apply(root / RUN)
    with obeyed_permissions():
        found = read_records([root])
        report = build(found)
        texts = {name: spanless(render_report(report, name, True)) for name in RENDERERS}
        table = resvar.load_runs(root)
        assert run_command(["status", str(root)]) == 0
        status = capsys.readouterr().out
    assert [record.state for record in found] == [RunState.DONE] * 5 + [state]
    assert reason in found[-1].message
    (group,) = report.groups
    assert group.cells["full-preact", 20].summary.n == 2
    for name, text in texts.items():
        assert "seed-1" in text, name
        if name not in ("csv", "json"):
            assert f"2 of 3; {state}" in text, name
            assert "1 of 3 of full-preact at ResNet-20" in text, name
    (row,) = (row for row in csv.DictReader(io.StringIO(texts["csv"])) if row["state"] == state)
    assert row["folder"].endswith(RUN)
    assert reason in row["message"]
    data = json.loads(texts["json"])
    (entry,) = data["damaged"]
    assert (entry["state"], reason in entry["message"]) == (state, True)
    (cell,) = (c for c in data["groups"][0]["cells"] if c["variant"] == "full-preact")
    assert [(lost["state"], reason in lost["message"]) for lost in cell["unfinished"]] == [
        (state, True)
    ]
    (line,) = table[table["state"] == state].to_dict("records")
    assert line["folder"].endswith(RUN)
    assert reason in line["message"]
    if kind != "metrics of mode 000":  # the status does not read them
        assert f"6 runs: 5 done, 1 {state}.\n" in status
        assert RUN in status


@pytest.mark.parametrize(
    "error",
    [OverflowError("x"), RecursionError("x"), ValueError("x"), MemoryError(), KeyError("x")],
    ids=repr,
)
def test_whatever_reading_one_run_raises_the_others_are_reported(root, error, monkeypatch):
    read = records.read_settings

    def fail(folder):
        if folder == root / RUN:
            raise error
        return read(folder)

    monkeypatch.setattr(records, "read_settings", fail)
    *others, bad = read_records([root])
    assert [record.state for record in others] == [RunState.DONE] * 5
    unreadable = isinstance(error, MemoryError)
    assert bad.state is (RunState.UNREADABLE if unreadable else RunState.DAMAGED)
    assert bad.message.startswith(f"{root / RUN}: ")


def test_predictions_that_may_not_be_read_are_not_called_damaged(root):
    (root / RUN / PREDICTIONS).touch()
    (root / RUN / PREDICTIONS).chmod(0)
    with obeyed_permissions():
        (group,) = build(read_records([root])).groups
    notes = [note for note in group.notes if "predictions.npy" in note]
    assert any(str(root / RUN) in note and note.endswith("is not readable here.") for note in notes)
    assert not any("damaged" in note for note in notes)


def test_a_cell_of_which_nothing_can_be_read_is_found_by_its_path(root):
    for seed in range(3):
        (root / f"quick/full-preact-20/seed-{seed}").chmod(0)
    shutil.copytree(root / "quick/original-20/seed-0", root / "mine")
    (root / "mine").chmod(0)
    with obeyed_permissions():
        report = build(read_records([root]))
    (group,) = report.groups
    assert group.cells["full-preact", 20].unread == 3
    assert len(report.unread) == 4, "one whose path says nothing is listed all the same"


def test_a_folder_that_cannot_be_entered_is_listed(root):
    """All runs of a variant vanish with it, and their number is unknown."""
    (root / "quick/full-preact-20").chmod(0)
    with obeyed_permissions():
        *others, hidden = read_records([root])
    assert len(others) == 3
    assert hidden.state is RunState.UNREADABLE
    assert hidden.message == f"{root}/quick/full-preact-20: this folder cannot be read " + (
        "(Permission denied)."
    )


def test_a_strangers_config_is_no_damage_and_hides_no_runs(root):
    (root / CONFIG).write_text("site_name: my documentation\n", encoding="utf-8")
    found = read_records([root])
    assert [record.state for record in found] == [RunState.DONE] * 6 + [RunState.UNREADABLE]
    assert "unknown setting 'site_name'" in found[-1].message


# --- what is given --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "report"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "there is no such folder"),
        (lambda path: path.write_text("x", encoding="utf-8"), "this is not a folder"),
        (os.mkfifo, "this is not a folder"),
        (lambda path: path.symlink_to(path), "this folder cannot be read"),
        (lambda path: path.mkdir(0), "this folder cannot be read (Permission denied)"),
        (lambda path: path.mkdir(), "there is no run here"),
    ],
)
def test_what_is_no_folder_of_runs_is_one_sentence(tmp_path, command, make, said, capsys):
    make(tmp_path / "x")
    with obeyed_permissions():
        assert run_command([command, str(tmp_path / "x")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"resvar: error: {tmp_path / 'x'}: {said}")
    assert len(err.splitlines()) == 1


def test_of_several_folders_one_that_cannot_be_read_is_listed(root, tmp_path):
    (tmp_path / "other").mkdir(0)
    with obeyed_permissions():
        found = read_records([root, tmp_path / "other", root])
    assert [record.state for record in found] == [RunState.DONE] * 6 + [RunState.UNREADABLE]


def test_loading_one_run_tells_permissions_from_damage(root):
    (root / RUN).chmod(0)
    with obeyed_permissions(), pytest.raises(UnreadableError, match="Permission denied"):
        resvar.load_run(root / RUN)
    (root / RUN).chmod(0o700)
    (root / RUN / RESULT).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json: 'variant' is missing") as caught:
        resvar.load_run(root / RUN)
    assert not isinstance(caught.value, UnreadableError)


@pytest.mark.parametrize("name", [CHECKPOINT, CONFIG, ""])
def test_a_network_that_may_not_be_read_is_one_sentence(root, name):
    from resvar.evaluation.trained import open_trained

    (root / RUN / CHECKPOINT).write_bytes(b"x")
    (root / RUN / name).chmod(0)
    with obeyed_permissions(), pytest.raises((UserError, resvar.RunError), match="denied"):
        open_trained(root / RUN)


# --- runs without settings yet --------------------------------------------------------------------


def test_a_run_that_starts_is_running_and_in_every_report(root, capsys):
    run = root / "quick/original-32/seed-0"
    run.mkdir(parents=True)
    with locked(run):
        for format in RENDERERS:
            text = render_report(build(read_records([root])), format, full=True)
            assert "original-32/seed-0" in text.replace(r"\allowbreak{}", "")
        assert run_command(["status", str(root)]) == 0
        assert "7 runs: 6 done, 1 running." in capsys.readouterr().out
    assert len(read_records([root])) == 6, "nothing but a lock that nobody has"


def hide_list(path):
    path.write_text('{"format": 1, "runs": []}', encoding="utf-8")
    path.chmod(0)


def plan(root, name, *runs):
    (root / f"{name}{MANIFEST}").write_text(
        json.dumps({"format": 1, "runs": list(runs)}), encoding="utf-8"
    )


def test_planned_runs_wait_start_fail_or_cannot_be_read(root, capsys):
    plan(root, "one", RUN, *(f"quick/original-32/seed-{seed}" for seed in range(3)))
    plan(root, "two", "quick/original-44/seed-0", "hidden/original-44/seed-0", "a\ud800")
    starting, failed, _ = (root / f"quick/original-32/seed-{seed}" for seed in range(3))
    for run in (starting, failed):
        run.mkdir(parents=True)
    (failed / FAILURE).write_text(
        '{"format": 1, "message": "its process was killed"}', encoding="utf-8"
    )
    (root / "hidden").mkdir(0)
    with locked(starting), obeyed_permissions():
        found = {str(record.folder.relative_to(root)): record for record in standing(root)}
        assert run_command(["status", str(root)]) == 0
        report = build(read_records([root]))
    assert {RunState.RUNNING, RunState.FAILED} <= {record.state for record in report.unread}
    states = {name: record.state for name, record in found.items() if name not in ("hidden",)}
    assert states.pop("quick/original-32/seed-0") is RunState.RUNNING
    assert states.pop("quick/original-32/seed-1") is RunState.FAILED
    assert states.pop("quick/original-32/seed-2") is RunState.WAITING
    assert states.pop("quick/original-44/seed-0") is RunState.WAITING, "of the other sweep"
    assert states.pop("hidden/original-44/seed-0") is RunState.UNREADABLE
    assert states.pop("a\ud800") is RunState.FAILED, "no folder can have this name"
    assert set(states.values()) == {RunState.DONE}
    assert found["quick/original-32/seed-1"].message == "its process was killed"
    assert "its process was killed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.write_text("[]", encoding="utf-8"), hide_list]
)
def test_a_list_that_cannot_be_read_hides_no_runs(root, make, capsys):
    """Which runs wait is not known, so the command fails; it shows the others first."""
    make(root / f"foreign{MANIFEST}")
    with obeyed_permissions():
        assert run_command(["status", str(root)]) == 2
        assert run_command(["report", str(root), "--format", "csv"]) == 0
    printed = capsys.readouterr()
    assert "\n6 runs: 6 done.\n" in printed.out
    assert printed.err.startswith(f"resvar: error: {root / 'foreign'}{MANIFEST}: ")
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("images", [5_000, 50_000])
def test_the_time_left_counts_the_runs_own_test_images(root, images):
    """An evaluated image counts as a third of a trained one (docs/scaling.md)."""
    progress = how_far(200) | {"images_per_second": 100.0}
    settings = make_settings(depth=32)
    end, every = settings.iterations, settings.eval_every
    evaluations = len({*range(every, end + 1, every), end} - set(range(200)))  # at 200 or later
    for test_images in (images, None):
        note = progress | ({"test_images": images} if test_images else {})
        run = write_curved(root, "original", 32, test_error=None, progress=note)
        with locked(run):
            (record,) = read_records([run])
            left = seconds_left([record])
        work = (end - 200) * settings.batch_size
        work += evaluations * (test_images or 10_000) / 3
        assert left == pytest.approx(work / 100.0)


def test_a_run_records_how_many_test_images_it_has(tmp_path, monkeypatch):
    install(make_cifar(tmp_path / "data", train=20, test=30), monkeypatch)
    out = tmp_path / "run"
    resvar.train(
        "original", 8, data=tmp_path / "data", out=out, quiet=True, iterations=4, batch_size=8,
        bn_batch_size=8, eval_every=2, checkpoint_every=2, device="cpu", milestones=[],
        warmup_iterations=0,
    )  # fmt: skip
    assert read_progress(out).test_images == 30


def test_a_planned_run_that_a_link_reaches_first_does_not_wait(root):
    (root / "a-link").symlink_to(root / "quick")
    plan(root, "one", RUN)
    assert [record.state for record in standing(root)] == [RunState.DONE] * 6


def test_a_lock_that_is_a_pipe_keeps_nobody_waiting(root):
    run = root / "quick/original-32/seed-0"
    run.mkdir(parents=True)
    (run / CONFIG).write_text(make_settings(depth=32).to_yaml(), encoding="utf-8")
    os.mkfifo(run / LOCK)
    assert {record.state for record in read_records([run])} == {RunState.STOPPED}


def test_of_a_running_run_the_time_left_is_the_one_that_it_noted(root):
    progress = how_far(200) | {"images_per_second": 100.0}
    for noted in (42.0, None):
        note = progress | {"seconds_left": noted}
        run = write_curved(root, "original", 32, test_error=None, progress=note)
        with locked(run):
            (record,) = read_records([run])
        found = seconds_left([record])
        assert found == noted or (noted is None and found > 42.0)
    (record,) = read_records([run])  # stopped: the work that is left is known too
    assert seconds_left([record]) == found
