"""docs/scaling.md: its YAML is YAML, its figures and names are those that are printed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from textwrap import indent

import pytest
import yaml

from resvar.sweeps.grid import plan_sweep
from tests.support.commands import ROOT

PAGE = ROOT / "docs" / "scaling.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.process
def test_the_estimate_is_the_one_that_is_printed(tmp_path):
    (command,) = re.findall(r"`(resvar [^`]+ --estimate [^`]*110=239[^`]*)`", TEXT)
    _, *arguments = shlex.split(command)
    printed = called(["-m", "resvar", *arguments], tmp_path)
    assert in_block(printed) in TEXT


@pytest.mark.process
def test_the_simulation_is_the_one_that_is_printed(tmp_path):
    (command,) = re.findall(r"^    python (scripts/simulate_sweep\.py .+)$", TEXT, re.MULTILINE)
    script, *arguments = shlex.split(command)
    kept = arguments[: arguments.index("--figures")]
    assert in_block(called([str(ROOT / script), *kept], tmp_path)) in TEXT


def test_the_list_of_a_sweep_is_called_as_the_page_says():
    """For the first command of the section on laptops."""
    table2 = ROOT / "configs" / "sweeps" / "table2.yaml"
    assert re.search(r"^    resvar sweep table2 --protocol quick --seeds 1$", TEXT, re.MULTILINE)
    for seeds in ("1", None):
        given = {"protocol": "quick", "seeds": seeds}
        assert re.search(rf"\b{plan_sweep(table2, given, [], ROOT).name}\b(?!-)", TEXT)


def called(arguments, folder):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=True
    ).stdout


def in_block(printed: str) -> str:
    lines = [line.rstrip() for line in printed.strip().splitlines()]
    return indent("\n".join(lines), "    ")


def test_the_skypilot_file_is_yaml_with_the_fields_of_a_task():
    (block,) = re.findall(r"^```yaml\n(.+?)^```", TEXT, re.MULTILINE | re.DOTALL)
    task = yaml.safe_load(block)
    assert task.keys() == {"name", "workdir", "num_nodes", "resources", "envs", "setup", "run"}
    assert "resvar sweep" in task["run"]
