"""Watching ends by itself, leaves cleanly, and never shows half a page."""

from __future__ import annotations

import fcntl
import io
import json
import re
import shutil
import signal
from types import SimpleNamespace

import pytest
from rich.console import Console

from resvar.errors import UserError
from resvar.files import write_json
from resvar.reports import status
from resvar.reports.search import read_records
from resvar.reports.status import unsettled, watch_status
from resvar.rundir import LOCK, METRICS, PROGRESS, RESULT, write_metrics
from tests.reports.pages import rows, write_curved
from tests.reports.runs import how_far, make_result, make_settings, write_run
from tests.support.commands import contents, wait_for


def finish(folder, variant="full-preact"):
    """What training does last."""
    write_json(folder / RESULT, make_result(make_settings(variant), 49.0))


def unfinished(root):
    return write_curved(
        root, "full-preact", errors={100: 80.0}, test_error=None, progress=how_far(100)
    )


# --- when there is something to wait for ----------------------------------------------------------


def test_stopped_running_and_waiting_runs_may_change_and_others_not(tmp_path):
    write_run(tmp_path, "original")
    write_run(tmp_path, "bn-after-add", test_error=None, failure={"message": "x"})
    (write_run(tmp_path, "relu-before-add") / RESULT).write_text("{", encoding="utf-8")
    assert not unsettled(status.standing(tmp_path))
    folder = unfinished(tmp_path)
    assert unsettled(read_records([tmp_path]))
    with (folder / LOCK).open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert unsettled(read_records([tmp_path]))
    finish(folder)
    assert not unsettled(status.standing(tmp_path))
    planned = {"format": 1, "runs": ["quick/original-110/seed-0", "quick/original-20/seed-0"]}
    write_json(tmp_path / "some.sweep.json", planned)
    assert unsettled(status.standing(tmp_path))


# --- resvar status --watch ------------------------------------------------------------------------


def test_status_is_renewed_until_all_is_done(warm, tmp_path):
    write_run(tmp_path / "runs", "original")
    folder = unfinished(tmp_path / "runs")
    with warm.started("status", "--watch", "--interval", "0.05", cwd=tmp_path) as job:
        job.read_until("2 runs: 1 done, 1 stopped")
        (folder / PROGRESS).write_text(
            json.dumps(how_far(300)), encoding="utf-8"
        )  # no new state, no new lines
        finish(folder)
        ended = job.end()
    assert (ended.code, ended.err) == (0, "")
    assert re.findall(r"^\d runs: .*?\.", ended.out, re.MULTILINE) == [
        "2 runs: 1 done, 1 stopped.", "2 runs: 2 done.",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_with_130_and_writes_nothing(warm, tmp_path, number):
    unfinished(tmp_path / "runs")
    before = contents(tmp_path)
    with warm.started("status", "--watch", cwd=tmp_path) as job:
        job.read_until("1 stopped")
        job.send(number)
        ended = job.end()
    assert ended.code == 130
    assert ended.err == "resvar: stopped watching; the runs continue.\n"
    assert contents(tmp_path) == before


def clock(pause):
    """A `time` whose sleep calls `pause`; other threads of the process keep the real one."""
    return SimpleNamespace(sleep=lambda _: pause())


def test_in_a_terminal_one_picture_is_renewed(tmp_path, monkeypatch):
    folder = unfinished(tmp_path)
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(status, "console_for_output", lambda: screen)
    looks = iter([lambda: None, lambda: finish(folder)])
    monkeypatch.setattr(status, "time", clock(lambda: next(looks)()))
    watch_status(tmp_path, 0.1)
    text = screen.file.getvalue()
    assert "100 / 400" in text
    assert text.rstrip().endswith("1 run: 1 done.")
    assert "\x1b[2K" in text  # lines are taken back, not printed again and again


@pytest.mark.parametrize("interval", ["0", "-1", "inf", "nan"])
def test_a_useless_interval_is_refused(resvar_code, tmp_path, interval):
    unfinished(tmp_path)
    code, err = resvar_code("status", tmp_path, "--watch", "--interval", interval)
    assert code == 2
    assert "--interval" in err


def test_watching_nothing_and_intervals_without_it_are_refused(resvar_code, tmp_path):
    assert resvar_code("status", tmp_path / "none", "--watch")[0] == 2
    unfinished(tmp_path)
    for command in ("status", "report"):
        code, err = resvar_code(command, tmp_path, "--interval", "3")
        assert (code, "--watch" in err) == (2, True)
    for more in ([], ["--format", "html"], ["--out", tmp_path / "x.csv"]):
        code, err = resvar_code("report", tmp_path, "--watch", *more)
        assert (code, "it needs --out FILE.html" in err) == (2, True)
    assert not (tmp_path / "x.csv").exists()


@pytest.fixture
def resvar_code(capsys):
    """Exit code and standard error of a command line, in this process."""
    from resvar.cli import run_command

    def run(*arguments):
        return run_command([str(word) for word in arguments]), capsys.readouterr().err

    return run


# --- resvar report --watch ------------------------------------------------------------------------

REFRESH = re.compile('<meta http-equiv="refresh" content="0.05">')


def test_the_page_is_renewed_whole_until_all_is_done(warm, tmp_path):
    write_curved(tmp_path / "runs", "original")
    folder = unfinished(tmp_path / "runs")
    page = tmp_path / "page.html"
    command = ["report", "--out", page, "--watch", "--interval", "0.05"]
    with warm.started(*command, cwd=tmp_path) as job:
        job.read_until("Ctrl-C")
        first = page.read_text(encoding="utf-8")
        for iteration in range(101, 140):
            write_metrics(folder / METRICS, rows({100: 80.0, iteration: 70.0}))
            text = page.read_text(encoding="utf-8")  # at any moment a whole page
            assert text.startswith("<!doctype html>")
            assert text.endswith("</html>\n")
        assert wait_for(
            lambda: (
                "139]" in page.read_text(encoding="utf-8")
                or ",139," in page.read_text(encoding="utf-8")
            )
        )
        assert REFRESH.search(first)
        assert REFRESH.search(page.read_text(encoding="utf-8"))
        finish(folder)
        ended = job.end()
    assert (ended.code, ended.err) == (0, "")
    last = page.read_text(encoding="utf-8")
    assert not re.search('<meta[^>]*"refresh"', last)
    assert "49.00" in last
    assert not list(tmp_path.glob("*.tmp"))


def test_ctrl_c_leaves_a_page_that_stays_still(warm, tmp_path):
    unfinished(tmp_path / "runs")
    page = tmp_path / "page.html"
    with warm.started("report", "--format", "html", "--out", page, "--watch", cwd=tmp_path) as job:
        job.read_until("Ctrl-C")
        assert "refreshed every 5 s" in page.read_text(encoding="utf-8")
        job.send(signal.SIGINT)
        ended = job.end()
    assert ended.code == 130
    assert "refreshed every" not in page.read_text(encoding="utf-8")


def test_runs_that_vanish_while_watching_are_said(tmp_path, monkeypatch):
    unfinished(tmp_path / "runs")
    monkeypatch.setattr(status, "time", clock(lambda: shutil.rmtree(tmp_path / "runs")))
    with pytest.raises(UserError, match="no such folder"):
        watch_status(tmp_path / "runs", 1)
