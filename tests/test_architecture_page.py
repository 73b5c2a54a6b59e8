"""Pages for developers name files and functions that exist."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest

from resvar.cli import run_command
from tests.reports.runs import write_run
from tests.support.commands import ROOT, sets

PAGES = ["docs/architecture.md", "CONTRIBUTING.md", "docs/decisions/README.md"]
PAGES += ["docs/performance.md", "docs/performance-history.md"]
PAGES += [f"docs/decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("0*.md")]

NAMED = re.compile(r"`([\w/.-]+\.(?:py|h|cpp|yaml|md|svg))(?::([\w.]+))?`")
FOLDER = re.compile(r"`([\w/.-]+/)`")
LINK = re.compile(r"\]\(([^)#:]+)(#[\w-]+)?\)")

NOT_IN_THE_REPOSITORY = {"config.yaml", "mine.yaml", "my.yaml"}


def found(path):
    """The file of a name, which may be relative to the package."""
    return next((at / path for at in (ROOT, ROOT / "resvar") if (at / path).exists()), None)


@pytest.mark.heavy
@pytest.mark.parametrize("page", PAGES)
def test_the_files_and_functions_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for path, name in NAMED.findall(text):
        if path in NOT_IN_THE_REPOSITORY:
            continue
        if not name:
            assert found(path) is not None, path
            continue
        tree = ast.parse(found(path).read_text(encoding="utf-8"))
        for part in name.split("."):
            defined = {getattr(node, "name", None): node for node in ast.walk(tree)}
            assert part in defined, f"{path}:{name}"
            tree = defined[part]
    for folder in FOLDER.findall(text):
        assert folder.startswith("runs/") or found(folder) is not None, folder
    for link, _ in LINK.findall(text):
        assert ((ROOT / page).parent / link).exists(), link


def test_the_table_and_the_order_name_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    shown = {
        name.strip("/").removesuffix(".py") for row in rows for name in re.findall("`(.+?)`", row)
    }
    rooms = {
        path.stem for path in (ROOT / "resvar").iterdir() if not path.name.startswith(("_", "."))
    }
    assert shown == rooms - {"py"} | {"configs"}

    (contract, *_) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
    order = re.search(r"\n    (cli → .*?)\n\n", text, re.S)[1]
    assert [re.sub(r"\s+", " ", layer).strip() for layer in order.split("→")] == contract["layers"][
        1:
    ]


def files_called(arguments):
    """The files of the package whose functions a command calls in this thread."""
    called = set()

    def note(frame, event, _):
        function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # a class's body is none
        if event == "call" and function and not frame.f_code.co_name.startswith("<"):
            called.add(Path(frame.f_code.co_filename))

    sys.setprofile(note)
    try:
        assert run_command(arguments) == 0
    finally:
        sys.setprofile(None)
    package = ROOT / "resvar"
    return {path.relative_to(package).as_posix() for path in called if package in path.parents}


@pytest.mark.heavy
def test_twelve_files_lead_from_yaml_to_table_and_the_page_names_the_others(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## From YAML to table")[2].partition("\n## ")[0]
    path = re.findall(r"^\| \d+ \| `(.+?)` .*\| `(.+?)` \|$", section, re.M)
    lines = 0
    for file, name in path:
        content = (ROOT / "resvar" / file).read_text(encoding="utf-8")
        lines += len(content.splitlines())
        assert re.search(rf"^ *(class|def) {name.rpartition('.')[2]}\b", content, re.M), name
    promised = int(re.search(r"about\s([\d,]+) lines", section)[1].replace(",", ""))
    assert len(path) == 12
    assert abs(lines - promised) <= 100
    assert promised < 3000

    monkeypatch.chdir(tmp_path)
    tiny = sets("iterations=2", "batch_size=16", "bn_batch_size=8", "eval_every=2", "kernels=plain")
    network = ["--variant", "full-preact", "--depth", "8", "--dataset", "sample"]
    called = files_called(["train", *network, "--protocol", "quick", "--device", "cpu", *tiny])
    for variant, seed in product(("original", "full-preact"), range(5)):
        write_run(tmp_path / "runs", variant, 110, seed, 10.0 + 0.1 * seed, "short")
    called |= files_called(["report"])
    assert {file for file, _ in path} <= called
    trusted = re.findall("`([a-z/_]+?/|[a-z/_]+[.]py)`", section.partition("on trust")[2])
    beside = called - {file for file, _ in path} - {"__init__.py", "__main__.py"}
    assert {file for file in beside if not file.startswith(tuple(trusted))} == set()


def top_level_names(path):
    """Functions, classes and constants of a file, but not type variables."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = node.value.func if isinstance(node.value, ast.Call) else None
            if getattr(value, "id", None) != "TypeVar":
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_no_two_files_give_the_same_name_to_something():
    """So that a name leads to one place, in a search and in a traceback."""
    homes = {}
    for path in sorted((ROOT / "resvar").rglob("*.py")):
        for name in {*top_level_names(path)} - {"__all__"}:
            homes.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
