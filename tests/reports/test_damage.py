"""A damaged run is listed with its reason in every format, and the others stay as they are."""

from __future__ import annotations

import json
import os
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resvar.cli import run_command
from resvar.errors import UserError
from resvar.reports.findings import build
from resvar.reports.records import RunState, read_record
from resvar.reports.render import RENDERERS, render_report
from resvar.reports.search import read_records
from resvar.rundir import CONFIG, FAILURE, METRICS, PROGRESS, RESULT, locked
from resvar.sweeps.grid import MANIFEST
from tests.reports.pages import write_curved
from tests.reports.runs import how_far
from tests.support.commands import train

NOISE = bytes(random.Random(0).randrange(256) for _ in range(3000))


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def become(content):
    return lambda path: path.write_bytes(content)


def become_folder(path):
    path.unlink()
    path.mkdir()


def become_loop(path):
    path.unlink()
    path.symlink_to(path)


def become_link_to_nowhere(path):
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def become_pipe(path):
    path.unlink()
    os.mkfifo(path)


def grow(path):
    with path.open("ab") as file:
        file.truncate(200_000_000)  # nothing on disk, but 200 MB to read


def change(**values):
    def apply(path):
        held = json.loads(path.read_text(encoding="utf-8")) | values
        path.write_text(json.dumps(held), encoding="utf-8")

    return apply


DAMAGE = {
    **{
        f"{name} {what}": (name, apply)
        for name in (CONFIG, RESULT, METRICS)
        for what, apply in {
            "empty": become(b""), "noise": become(NOISE), "zeros": become(bytes(500)),
            "a folder": become_folder, "a loop": become_loop, "a pipe": become_pipe,
            "a link to nowhere": become_link_to_nowhere, "huge": grow,
        }.items()
    },
    "half a result": (RESULT, half),
    "no config": (CONFIG, lambda path: path.unlink()),
    "half a table of metrics": (METRICS, half),
    "words in the metrics": (METRICS, become(b"iteration,train_loss,test_error\nfoo,bar,baz\n")),
    "a list as result": (RESULT, become(b"[1, 2]")),
    "a result nested too deeply": (RESULT, become(b"[" * 100_000)),
    "a number of 5000 digits": (RESULT, become(b'{"depth": ' + b"9" * 5000 + b"}")),
    "NaN": (RESULT, change(test_error=float("nan"))),
    "infinity": (RESULT, change(seconds=float("inf"))),
    "a huge integer": (RESULT, change(seconds=10**400)),
    "words for a number": (RESULT, change(test_error="6.6")),
    "a list for a name": (RESULT, change(device=["cpu"])),
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_run_is_listed_and_spoils_nothing(tmp_path, what, capsys):
    write_curved(tmp_path, "original", seed=1)
    good = {name: render_report(build(read_records([tmp_path])), name) for name in RENDERERS}
    name, apply = DAMAGE[what]
    folder = write_curved(tmp_path, "full-preact", folder=tmp_path / "the damaged one")
    apply(folder / name)
    first, second = read_records([tmp_path])
    assert (first.state, second.state) == (RunState.DONE, RunState.DAMAGED)
    assert second.message.startswith(str(folder / name))
    report = build([first, second])
    for format in RENDERERS:
        text = render_report(report, format, full=True)
        assert "the damaged one" in text
        assert name.replace("_", r"\_") in text or name in text
        assert len(text) < len(good[format]) + 12_000
    (group,) = report.groups
    assert group.cells["original", 110].summary.values == (51.0,)
    assert run_command(["report", str(tmp_path)]) == 0
    assert run_command(["status", str(tmp_path)]) == 0
    hidden = name == METRICS  # which the status does not read
    assert f"{'2 done' if hidden else '1 done, 1 damaged'}." in capsys.readouterr().out
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "content"),
    [(PROGRESS, NOISE), (PROGRESS, b'{"iteration": 1e400}'), (FAILURE, NOISE), (FAILURE, b"[]"),
     (FAILURE, b'{"message": {"a": [null]}}')],
)  # fmt: skip
def test_damaged_notes_of_an_unfinished_run_do_no_harm(tmp_path, name, content):
    folder = write_curved(tmp_path, test_error=None)
    (folder / name).write_bytes(content)
    (record,) = read_records([tmp_path])
    assert record.state in (RunState.STOPPED, RunState.FAILED)
    for format in RENDERERS:
        assert render_report(build([record]), format, full=True)


@pytest.mark.parametrize(
    "values",
    [
        {"images_per_second": 5e-324}, {"images_per_second": 1e-300}, {"images_per_second": -5.0},
        {"seconds": -1.0}, {"iteration": -1}, {"iterations": 10**30},
    ],
    ids=str,
)  # fmt: skip
def test_status_tells_no_strange_times_of_a_run_at_work(tmp_path, values, capsys):
    """No clock makes a run end in the past, and nothing that a file says ends `status`."""
    folder = write_curved(tmp_path, test_error=None, progress=how_far(3) | values)
    with locked(folder):
        assert run_command(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 running" in out
    assert "Nothing is running" not in out
    assert not re.search(r"-\d", out.replace(str(folder.relative_to(tmp_path)), ""))
    assert max(map(len, out.splitlines())) < 250


@pytest.mark.parametrize("text", ["[/x]", "[bold]x", ":x:", "\x1b[31mred", "two\nlines", "\ud800"])
def test_status_prints_what_a_file_says_as_text(tmp_path, text, capsys):
    """Nothing in it is markup, moves the cursor, or cannot be printed."""
    folder = write_curved(tmp_path, test_error=None, failure={"message": text})
    (folder.parent / f"x{MANIFEST}").write_text(
        json.dumps({"format": 1, "runs": [f"a{text}"]}), encoding="utf-8"
    )
    assert run_command(["status", str(folder.parent)]) == 0
    out = capsys.readouterr().out
    shown = text if text.isprintable() else text.encode("unicode_escape").decode()
    assert shown in out
    assert f"a{shown}" in out


def test_an_output_that_knows_ascii_alone_is_no_reason_to_stop(resvar, tmp_path):
    write_curved(tmp_path)
    for command in ("status", "report"):
        done = resvar.run(command, tmp_path, cwd=tmp_path, PYTHONIOENCODING="ascii:strict")
        assert done.code == 0, done
        assert done.out.isascii()


@pytest.mark.parametrize("name", ["[/x]", ":x:", "[bold]"])
def test_a_run_may_be_called_anything(tmp_path, name, warm):
    done = warm.run(*train("--out", tmp_path / name), cwd=tmp_path)
    assert done.code == 0, done
    again = warm.run(*train("--out", tmp_path / name), cwd=tmp_path)
    assert f"{name}: already finished" in again.out


@pytest.mark.parametrize(
    "runs",
    [5, ["a", 5], ["/etc/passwd"], ["a", "../../b"], ["a\0b"], [""], {"a": "b"}, None],
    ids=repr,
)
def test_a_damaged_list_of_a_sweep_is_one_sentence(tmp_path, runs, capsys):
    write_curved(tmp_path)
    path = tmp_path / f"x{MANIFEST}"
    path.write_text(json.dumps({"format": 1, "runs": runs}), encoding="utf-8")
    assert run_command(["status", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"resvar: error: {path}: this is damaged: 'runs' is not a list")
    assert len(err.splitlines()) == 1
    assert run_command(["report", str(tmp_path)]) == 0, "a report does not need it"


def test_a_link_that_leads_to_itself_hides_none_of_its_neighbours(tmp_path):
    write_curved(tmp_path / "a")
    (tmp_path / "a-loop").symlink_to(tmp_path / "a-loop")
    (tmp_path / "z-up").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    assert len(read_records([tmp_path])) == 1


@pytest.mark.heavy
@given(
    name=st.sampled_from([CONFIG, RESULT, METRICS]),
    content=st.one_of(
        st.binary(max_size=300),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=9), inner, max_size=3)
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_there_is_a_record_and_a_page(tmp_path, name, content):
    folder = write_curved(tmp_path, folder=tmp_path / "run")
    (folder / name).write_bytes(content)
    record = read_record(folder)
    assert record.state is RunState.DAMAGED
    assert render_report(build([record]), "html")


@pytest.mark.heavy
@given(
    key=st.sampled_from(["test_error", "train_loss", "seconds", "images_per_second", "parameters",
                         "device", "commit", "best_test_error", "precision"]),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
)  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_field_holds_every_format_can_say_it(tmp_path, key, value):
    folder = write_curved(tmp_path, folder=tmp_path / "run")
    change(**{key: value})(folder / RESULT)
    report = build([read_record(folder)])
    for format in RENDERERS:
        render_report(report, format, full=True).encode()


def test_two_runs_of_one_seed_with_different_settings_are_refused_by_name(tmp_path):
    one = write_curved(tmp_path, folder=tmp_path / "one")
    two = write_curved(tmp_path, folder=tmp_path / "two", overrides=["deterministic=true"])
    with pytest.raises(UserError) as caught:
        build(read_records([tmp_path]))
    for words in (str(one), str(two), "deterministic: True → False", "seed 0"):
        assert words in str(caught.value) or words.replace("True → False", "False → True") in str(
            caught.value
        )
