"""A sweep of many runs holds no more at its end than at its beginning.

In short, since each run loads torch anew; at length: `python -m tests.long.soak`.
"""

from __future__ import annotations

import sys

import pytest

from tests.long.soak import soak


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_sweep_of_many_runs_does_not_grow(resvar, tmp_path):
    found = soak(resvar, tmp_path / "runs", 6, every=0.1)
    assert found.samples
    assert not found.problems
