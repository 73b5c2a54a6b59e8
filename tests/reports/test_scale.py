"""A thousand runs are reported in seconds, in little memory, on a page of bounded size; and the
status of ten thousand is a matter of seconds."""

from __future__ import annotations

import runpy
from collections import Counter
from contextlib import ExitStack

import pytest

from resvar.reports.records import RunState
from resvar.reports.search import read_records
from resvar.reports.status import standing
from resvar.rundir import locked
from tests.support.commands import ROOT
from tests.support.pace import pace


@pytest.fixture(scope="module")
def speed():
    return runpy.run_path(str(ROOT / "scripts" / "report_speed.py"))


@pytest.fixture(scope="module")
def thousand(speed, tmp_path_factory):
    root = tmp_path_factory.mktemp("thousand")
    assert speed["make_runs"](root, 1000) == 1000
    return root


@pytest.mark.slow
@pytest.mark.parametrize("format", ["table", "html"])
def test_a_thousand_runs(speed, thousand, tmp_path, format):
    """The aim is 5 s on an idle machine; the page takes 11 s of a Zen 4 EPYC in company."""
    out = tmp_path / "report"
    cost = speed["measure"](thousand, format, out)
    assert cost.processor < 20 * pace()
    assert cost.peak < 2**30
    assert cost.size < 3_000_000
    assert out.read_text(encoding="utf-8").count("seed-99") >= 10


# --- status ---------------------------------------------------------------------------------------


@pytest.fixture
def sweep(speed, tmp_path, request):
    """An active sweep with so many run directories."""
    with ExitStack() as held:
        for folder in speed["make_sweep"](tmp_path / "sweep", request.param):
            held.enter_context(locked(folder))
        yield tmp_path / "sweep"


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [2000], indirect=True)
def test_the_status_of_two_thousand_directories(speed, sweep, tmp_path):
    """The aim is 3 s for 10,000 on an idle machine; these take 1.6 s of a Zen 4 EPYC in company."""
    out = tmp_path / "status"
    costs = [speed["measure_status"](sweep, out) for _ in range(3)]
    assert min(cost.processor for cost in costs) < 1.8 * pace()
    lines = out.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 250, "nobody reads thousands of lines"
    assert any("… and 195 more" in line for line in lines)
    assert lines[-1].startswith(
        "2,200 runs: 1,400 done, 20 running, 200 stopped, 180 failed, 200 waiting, 200 diverged."
    )


@pytest.mark.heavy
@pytest.mark.parametrize("sweep", [200], indirect=True)
def test_a_glance_sees_what_a_report_sees(sweep):
    whole = {record.folder: record for record in read_records([sweep])}
    seen = {record.folder: record for record in standing(sweep)}
    waiting = [folder for folder, record in seen.items() if record.state is RunState.WAITING]
    assert len(waiting) == 20
    assert seen.keys() - waiting == whole.keys()
    for folder, record in whole.items():
        quick = seen[folder]
        for name in ("state", "result", "progress", "message", "diverged"):
            assert getattr(quick, name) == getattr(record, name), (folder, name)
        if record.state is not RunState.DONE:
            assert quick.settings == record.settings
    assert len(Counter(record.settings.seed for record in whole.values())) == 20
