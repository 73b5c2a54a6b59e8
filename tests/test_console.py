"""What the commands share when they speak to a person."""

from __future__ import annotations

import pytest

from resvar.console import pluralize


@pytest.mark.parametrize(("count", "words"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs")])
def test_one_run_and_two_runs(count, words):
    assert pluralize(count, "run") == words
