"""Run directories are found once each, read whole, and a damaged one spoils nothing."""

from __future__ import annotations

import fcntl
import json
import math
import shutil

import pytest

from resvar.errors import UserError
from resvar.files import shipped
from resvar.reports.comparable import follows_paper, label_of
from resvar.reports.records import RunProgress, RunState, read_record
from resvar.reports.search import read_records
from resvar.reports.status import print_status, seconds_left, standing
from resvar.rundir import CHECKPOINT, CONFIG, LOCK, PROGRESS, RESULT
from tests.reports.runs import how_far, make_settings, write_run

# --- finding them ---------------------------------------------------------------------------------


def test_runs_are_found_and_sorted(tmp_path):
    write_run(tmp_path, "full-preact", 110, 0)
    write_run(tmp_path, "original", 164, 0)
    write_run(tmp_path, "original", 110, 10)
    write_run(tmp_path, "original", 110, 9)
    write_run(tmp_path, "bn-after-add", 20, 0, protocol="paper")
    write_run(tmp_path, "original", 110, 0, overrides=["dataset=cifar100"], folder=tmp_path / "a")
    found = [
        (r.settings.protocol, r.settings.dataset, r.settings.variant, r.settings.depth, s)
        for r in read_records([tmp_path])
        for s in [r.settings.seed]
    ]
    assert found == [
        ("paper", "cifar10", "bn-after-add", 20, 0),
        ("quick", "cifar10", "original", 110, 9),
        ("quick", "cifar10", "original", 110, 10),
        ("quick", "cifar10", "original", 164, 0),
        ("quick", "cifar10", "full-preact", 110, 0),
        ("quick", "cifar100", "original", 110, 0),
    ]


def test_a_run_itself_may_be_given(tmp_path):
    folder = write_run(tmp_path)
    assert [record.folder for record in read_records([folder])] == [folder]


def test_the_same_run_counts_once(tmp_path):
    folder = write_run(tmp_path / "runs")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    (folder.parent / "loop").symlink_to(tmp_path / "runs")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert len(read_records([tmp_path])) == 1
    assert len(read_records([tmp_path, folder, folder / ".." / folder.name])) == 1


def test_no_search_inside_a_run_or_in_hidden_folders(tmp_path):
    folder = write_run(tmp_path)
    write_run(tmp_path, folder=folder / "inside")
    write_run(tmp_path, folder=tmp_path / ".venv" / "x")
    assert len(read_records([tmp_path])) == 1


def test_no_run_and_no_folder_are_said(tmp_path):
    with pytest.raises(UserError, match=r"no run here.*resvar train") as error:
        read_records([tmp_path])
    assert str(tmp_path) in str(error.value)
    with pytest.raises(UserError, match="no such folder"):
        read_records([tmp_path / "missing"])


# --- states ---------------------------------------------------------------------------------------


def test_done(tmp_path):
    record = read_record(write_run(tmp_path, test_error=51.5))
    assert record.state is RunState.DONE
    assert record.result["test_error"] == 51.5
    assert record.settings == make_settings()
    assert (record.label, record.message, record.progress) == ("quick", "", None)


def test_stopped_and_running(tmp_path):
    folder = write_run(tmp_path, test_error=None, progress=how_far(100))
    record = read_record(folder)
    assert record.state is RunState.STOPPED
    assert record.progress == RunProgress(100, 400, 61.0, 70.0)
    assert record.progress.share == 0.25
    with (folder / LOCK).open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert read_record(folder).state is RunState.RUNNING
    assert read_record(folder).state is RunState.STOPPED


def test_failed_and_diverged(tmp_path):
    note = {"message": "the disk is full", "iteration": 3, "diverged": False}
    record = read_record(write_run(tmp_path, test_error=None, failure=note))
    assert (record.state, record.message) == (RunState.FAILED, "the disk is full")
    assert not record.diverged
    note["diverged"] = True
    assert read_record(write_run(tmp_path, test_error=None, failure=note)).diverged


DIVERGED_AT_37 = {"format": 1, "iteration": 37, "loss": "nan", "message": "the loss became nan"}


def test_a_diverged_run_has_the_iteration_of_its_own_note(tmp_path):
    run = write_run(tmp_path, test_error=None, diverged=DIVERGED_AT_37, progress=how_far(36))
    record = read_record(run)
    assert (record.state, record.diverged) == (RunState.FAILED, True)
    assert record.message == "the loss became nan"
    assert record.progress.iteration == 37
    early = write_run(tmp_path, seed=1, test_error=None, diverged=DIVERGED_AT_37)
    assert read_record(early).progress.iteration == 37
    (early / "diverged.json").write_text('{"iteration": "soon"}', encoding="utf-8")
    assert read_record(early).state is RunState.DAMAGED


def test_status_counts_a_diverged_run_as_ended(tmp_path, capsys):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, test_error=None, diverged=DIVERGED_AT_37)
    print_status(tmp_path)
    out = capsys.readouterr().out
    assert "2 runs: 1 done, 1 diverged." in out
    assert "the loss became nan" in out
    assert "command to resume" not in out
    stopped = write_run(tmp_path, seed=2, test_error=None, progress=how_far(200))
    (stopped / CHECKPOINT).touch()
    assert seconds_left(standing(tmp_path)) > 0
    print_status(tmp_path)
    out = capsys.readouterr().out
    assert "3 runs: 1 done, 1 stopped, 1 diverged." in out
    assert "command to resume" in out


def test_a_useless_progress_file_does_no_harm(tmp_path):
    folder = write_run(tmp_path, test_error=None)
    good = json.dumps(how_far(1))
    for text in "", "{", "[]", "{}", good.replace("61.0", "NaN"), good.replace("400", "0"):
        (folder / PROGRESS).write_text(text, encoding="utf-8")
        record = read_record(folder)
        assert (record.state, record.progress) == (RunState.STOPPED, None)


# --- damage ---------------------------------------------------------------------------------------

WRONG = [
    ({"test_error": ...}, "'test_error' is missing"),
    ({"test_error": "6.37"}, "'test_error' is '6.37', which is of the wrong type"),
    ({"test_error": True}, "wrong type"),
    ({"test_error": None}, "wrong type"),
    ({"test_error": math.nan}, "'test_error' is nan, which is not a finite number"),
    ({"train_loss": math.inf}, "not a finite number"),
    ({"test_error": 101.0}, "not a percentage"),
    ({"commit": 7}, "'commit' is 7"),
    ({"seed": 1}, "'seed' is 1, but config.yaml says 0"),
    ({"variant": "full-preact"}, "'variant' is full-preact, but config.yaml says original"),
    ({"depth": 164}, "'depth'"),
    ({"iterations": 64000}, "'iterations'"),
    ({"config_hash": "0" * 16}, "'config_hash' is not that of config.yaml"),
    ({"format": 0}, "'format' is 0"),
]


@pytest.mark.parametrize(("changes", "reason"), WRONG)
def test_a_wrong_result_is_damage(tmp_path, changes, reason):
    write_run(tmp_path, seed=1)
    write_run(tmp_path, changes=changes)
    good, damaged = read_records([tmp_path])
    assert (good.state, damaged.state) == (RunState.DONE, RunState.DAMAGED)
    assert reason in damaged.message
    assert damaged.result is None


def test_a_result_of_a_later_version_is_unreadable_but_no_damage(tmp_path):
    record = read_record(write_run(tmp_path, changes={"format": 2}))
    assert record.state is RunState.UNREADABLE
    assert "its format is 2" in record.message


def test_no_commit_is_no_damage(tmp_path):
    assert read_record(write_run(tmp_path, changes={"commit": None})).state is RunState.DONE


@pytest.mark.parametrize("name", [CONFIG, RESULT])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"{" * 1000])
def test_garbage_is_damage(tmp_path, name, content):
    folder = write_run(tmp_path)
    (folder / name).write_bytes(content)
    record = read_record(folder)
    assert record.state is RunState.DAMAGED
    assert name in record.message


def test_a_result_without_settings_is_damage(tmp_path):
    folder = write_run(tmp_path)
    (folder / CONFIG).unlink()
    (record,) = read_records([tmp_path])
    assert (record.state, record.settings) == (RunState.DAMAGED, None)


def test_a_run_of_an_older_version_stays_whole(tmp_path):
    """Its config lacks a setting added since; at its default that does not change the hash."""
    folder = write_run(tmp_path)
    text = (folder / CONFIG).read_text(encoding="utf-8")
    assert "optimizer: sgd\n" in text
    (folder / CONFIG).write_text(text.replace("optimizer: sgd\n", ""), encoding="utf-8")
    assert read_record(folder).state is RunState.DONE


# --- labels ---------------------------------------------------------------------------------------


def test_labels_say_what_differs():
    assert label_of(make_settings(protocol="paper")) == "paper"
    assert label_of(make_settings(seed=3, depth=164)) == "quick"
    differing = make_settings(overrides=["lr=0.05", "iterations=5"])
    assert label_of(differing) == "quick (iterations=5, lr=0.05)"


def test_another_network_is_another_label():
    settings = make_settings(protocol="paper", overrides=["shortcut=project"])
    assert label_of(settings) == "paper (shortcut=project)"
    assert not follows_paper(settings)
    assert label_of(make_settings(depth=38, overrides=["unit=basic"])) == "quick (unit=basic)"
    bottleneck = make_settings(overrides=["unit=bottleneck"])  # depth 110 fits both
    assert label_of(bottleneck) == "quick (unit=bottleneck)"
    imagenet = make_settings(depth=50, overrides=["family=imagenet"])
    assert label_of(imagenet) == "quick (family=imagenet)"


def test_settings_without_effect_are_left_out():
    sgd = make_settings(protocol="short", overrides=["optimizer=sgd", "muon_lr=0.02", "lr=0.2"])
    assert label_of(sgd) == "short (lr=0.2, optimizer=sgd)"
    muon = make_settings(protocol="short", overrides=["muon_lr=0.02"])
    assert label_of(muon) == "short (muon_lr=0.02)"
    paper = make_settings(protocol="paper", overrides=["muon_decay=0.1", "peak_at=0.5"])
    assert label_of(paper) == "paper"
    assert follows_paper(paper)
    assert "muon_decay=0.1" in paper.directory.as_posix()  # where it is does not change
    cycle = make_settings(protocol="paper", overrides=["schedule=one-cycle", "milestones=[]"])
    assert label_of(cycle) == "paper (schedule=one-cycle)"


def test_settings_without_effect_do_not_separate_a_users_protocol(tmp_path):
    mine = tmp_path / "mine.yaml"
    shutil.copy(shipped("protocols")["quick"], mine)
    one, same, other = (
        label_of(make_settings(protocol=str(mine), overrides=[text]))
        for text in ("muon_lr=0.3", "muon_lr=0.4", "optimizer=muon")
    )
    assert one == same == label_of(make_settings(protocol=str(mine)))
    assert one != other


def test_how_a_run_is_carried_out_does_not_separate():
    settings = make_settings(protocol="paper", overrides=["eval_every=7", "deterministic=true"])
    assert label_of(settings) == "paper"
    assert follows_paper(settings)


def test_a_protocol_that_is_not_shipped_has_a_hash(tmp_path):
    mine = tmp_path / "mine.yaml"
    shutil.copy(shipped("protocols")["quick"], mine)
    one = label_of(make_settings(protocol=str(mine)))
    other = label_of(make_settings(protocol=str(mine), overrides=["lr=0.2"]))
    assert one.startswith("mine (")
    assert one != other
    assert one == label_of(make_settings("full-preact", 164, 3, protocol=str(mine)))


def test_a_users_own_paper_is_not_the_paper(tmp_path):
    mine = tmp_path / "paper.yaml"
    text = (
        shipped("protocols")["paper"]
        .read_text(encoding="utf-8")
        .replace("batch_size: 128", "batch_size: 64")
    )
    mine.write_text(text, encoding="utf-8")
    settings = make_settings(protocol=str(mine))
    assert label_of(settings) == "paper (batch_size=64)"
    assert not follows_paper(settings)
