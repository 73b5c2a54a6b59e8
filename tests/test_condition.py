"""One judge says which run directories are usable, finished or damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from resvar.condition import read_result, require_usable
from resvar.errors import UserError
from resvar.rundir import read_settings, write_settings
from tests.reports.runs import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def test_a_complete_result_of_these_settings_is_finished(run):
    found = read_result(run)
    assert found == json.loads((run / "result.json").read_text(encoding="utf-8"))
    (run / "result.json").unlink()
    assert read_result(run) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"test_error": 6.0}', "null"])
def test_a_result_that_is_empty_or_cut_is_damaged(run, text):
    (run / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(run)


def test_a_result_of_other_settings_is_damaged(run):
    write_settings(run, read_settings(run).model_copy(update={"lr": 0.123}))
    with pytest.raises(UserError, match="the result is of other settings"):
        read_result(run)


def test_a_result_that_is_a_pipe_or_a_dangling_link_is_damaged(run):
    (run / "result.json").unlink()
    os.mkfifo(run / "result.json")
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(run)
    (run / "result.json").unlink()
    (run / "result.json").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(run)


# --- folders --------------------------------------------------------------------------------------


def test_a_run_and_a_folder_that_is_yet_to_be_made_are_usable(run, tmp_path):
    require_usable(run, writing=True)
    require_usable(tmp_path / "a" / "b" / "c", writing=True)


@pytest.mark.parametrize("name", ["log.txt", "run.lock", "config.yaml", "checkpoint.pt"])
def test_a_folder_or_a_pipe_in_place_of_a_file_makes_it_unusable(run, name):
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: this is not a file"):
        require_usable(run)
    (run / name).rmdir()
    os.mkfifo(run / name)
    with pytest.raises(UserError, match=f"{name}: this is not a file"):
        require_usable(run)


def test_a_file_in_place_of_the_folder_or_of_one_above_it(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "seed-0"):
        with pytest.raises(UserError, match="cannot be used"):
            require_usable(folder)


def as_nobody(check: Callable[[], None]) -> str:
    """The error of `check` in a process that is not root."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            check()
        except UserError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, encoding="utf-8") as answer:
        return answer.read()


@pytest.mark.heavy
def test_folders_of_another_user():
    """Also those yet to be made inside them; what may only be read is an obstacle to training."""
    with TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        closed, read_only = top / "closed", top / "read-only"
        closed.mkdir(mode=0o000)
        read_only.mkdir()
        read_only.chmod(0o555)
        for folder in (closed, closed / "seed-0"):
            said = as_nobody(lambda folder=folder: require_usable(folder))
            assert said == f"{folder}: this folder cannot be used (Permission denied)."
        for folder in (read_only, read_only / "seed-0"):
            said = as_nobody(lambda folder=folder: require_usable(folder, writing=True))
            assert said == f"{read_only}: this user may not write here."
            assert not as_nobody(lambda folder=folder: require_usable(folder))
