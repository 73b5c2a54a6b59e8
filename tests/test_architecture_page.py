"""Pages for developers name files and functions that exist."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest

from tests.support.commands import ROOT

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
