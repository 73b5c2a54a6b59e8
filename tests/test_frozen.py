"""Run directories of earlier versions, kept as files: this version reads and resumes them.

`tests/frozen/make.py` made them, once. Files of a newer version are reported as newer, never as
damaged, and nothing is changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resvar import load_model, load_run
from resvar.errors import RunError, UserError
from resvar.probes.measurements import read_probe
from resvar.reports.records import RunState
from resvar.reports.search import read_records
from resvar.rundir import CHECKPOINT, read_divergence, snapshots
from resvar.training.checkpoint import FORMAT, load_newest
from tests.frozen.make import END, unpack, weights
from tests.support.commands import contents, train

FROZEN = sorted((Path(__file__).parent / "frozen").glob("format-*"))
CLOSE = 0.01
"""Relative difference of a weight allowed on other processors and other versions of torch."""


@pytest.fixture(params=FROZEN, ids=lambda folder: folder.name)
def old(request, tmp_path) -> Path:
    """A copy, with checkpoint and snapshot unpacked."""
    folder = tmp_path / "old"
    shutil.copytree(request.param, folder)
    unpack(folder)
    return folder


def test_they_are_read_as_what_they_are(old):
    states = {record.folder.name: record for record in read_records([old])}
    assert {name: record.state for name, record in states.items()} == {
        "finished": RunState.DONE, "begun": RunState.STOPPED, "diverged": RunState.FAILED,
    }  # fmt: skip
    assert states["diverged"].diverged
    assert states["begun"].progress.iteration == 6
    result = json.loads((old / "finished" / "result.json").read_text(encoding="utf-8"))
    assert states["finished"].result == result


def test_load_run_reads_them(old):
    run = load_run(old / "finished")
    assert (run.config.variant, run.config.depth, run.config.iterations) == ("full-preact", 8, 14)
    assert run.metrics["iteration"].tolist() == [4, 8, 12, 14]
    assert run.metrics["test_error"].iloc[-1] == run.result["test_error"]
    assert len(np.load(old / "finished" / "predictions.npy", allow_pickle=False)) == 60
    begun = load_run(old / "begun")
    assert begun.result is None
    assert sum(held.numel() for held in begun.model.parameters()) == 75_290
    assert read_divergence(old / "diverged").iteration >= 1


def test_status_report_and_evaluate_read_them(warm, old):
    status = warm.run("status", old, cwd=old)
    assert status.code == 0, status
    assert "diverged" in status.out
    assert "1 waiting" in status.out, "the list of a sweep is read"
    report = warm.run("report", old, "--format", "json", cwd=old)
    assert report.code == 0, report
    assert "full-preact" in report.out
    evaluated = warm.run("evaluate", old / "begun", "--device", "cpu", cwd=old)
    assert evaluated.code == 0, evaluated


def test_a_snapshot_and_a_probe_are_read(old):
    begun = load_run(old / "begun")
    ((iteration, path),) = snapshots(old / "begun").items()
    network = load_model(path)
    assert (iteration, network.provenance.iteration) == (6, 6)
    assert network.provenance.settings.hash == begun.config.hash
    ours, theirs = network.state_dict(), begun.model.state_dict()
    assert all(torch.equal(ours[name], held) for name, held in theirs.items())
    probe = read_probe(old / "begun")
    assert probe.config_hash == begun.config.hash
    assert [moment.iteration for moment in probe.moments] == [0]


def test_a_begun_one_goes_on_and_ends_with_the_known_weights(warm, old):
    done = warm.run(*train("--out", str(old / "begun")), cwd=old)
    assert done.code == 0, done
    assert "resuming from iteration 6" in done.out
    known = json.loads((old / END).read_text(encoding="utf-8"))
    found = weights(old / "begun")
    assert found.keys() == known.keys()
    assert found == pytest.approx(known, rel=CLOSE, abs=1e-5)


# --- of a later version ---------------------------------------------------------------------------


def bump(name: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        text = (run / name).read_text(encoding="utf-8")
        raised = text.replace("format 1\n", "format 2\n").replace('"format": 1', '"format": 2')
        assert raised != text
        (run / name).write_text(raised, encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("finished", "config.yaml"),
        ("begun", "config.yaml"),
        ("finished", "result.json"),
        ("diverged", "diverged.json"),
    ],
)
def test_a_later_format_is_said_as_that_and_nothing_is_touched(warm, old, kind, name):
    run = old / kind
    bump(name)(run)
    before = contents(run)
    (record,) = (record for record in read_records([old]) if record.folder == run)
    assert record.state is RunState.UNREADABLE, "a later version is no damage"
    assert "its format is 2" in record.message
    assert "update resvar" in record.message
    report = warm.run("report", old, cwd=old)
    assert report.code == 0, "the others are reported"
    more = ["--set", "lr=1e30"] if kind == "diverged" else []
    again = warm.run(*train("--out", str(run), *more), cwd=old)
    assert again.code == 2, again
    assert f"{run / name}: its format is 2" in again.err
    assert len(again.err.splitlines()) == 1
    assert contents(run) == before


def test_where_a_run_was_made_may_be_of_a_later_version_too(warm, old):
    bump("environment.json")(old / "begun")
    again = warm.run(*train("--out", str(old / "begun")), cwd=old)
    assert again.code == 2
    assert "its format is 2" in again.err
    assert not (old / "begun" / "result.json").exists()


def test_the_list_of_a_sweep_may_be_of_a_later_version_too(warm, old):
    bump("sweep-paper.sweep.json")(old)
    status = warm.run("status", old, cwd=old)
    assert status.code == 2
    assert "its format is 2" in status.err


def test_load_run_refuses_a_later_result(old):
    bump("result.json")(old / "finished")
    with pytest.raises(UserError, match="its format is 2"):
        load_run(old / "finished")


def test_a_later_checkpoint_is_kept(old):
    path = old / "begun" / CHECKPOINT
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": FORMAT + 1}, path)
    before = contents(old)
    with pytest.raises(RunError, match="update resvar"):
        load_newest(old / "begun")
    assert contents(old) == before
