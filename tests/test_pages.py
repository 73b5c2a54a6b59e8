"""README.md and the pages in docs/: their commands parse, their links lead somewhere."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import sys

import pytest
import typer

from resvar.cli import app
from resvar.config import resolve
from tests.support.commands import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "results" / "README.md",
]
PLACEHOLDER = re.compile(r"…|--help|(?<![\w./])[A-Z]+\b|--config$")
LINK = re.compile(r"\]\(([^)#:]*)(#[\w-]+)?\)")


def commands_of(text: str) -> list[str]:
    """The commands of a page that are complete: no placeholder, and more than a name."""
    text = re.sub(r"\\\n\s+", "", text)
    inline = re.findall(r"`(resvar \w[^`]+ [^`]+)`", text)
    blocks = re.findall(r"^ +(?:\w+=\S+ )?(resvar \w+(?: [^,\n]+)?)$", text, re.MULTILINE)
    found = {" ".join(command.split()) for command in inline + blocks}
    return sorted(command for command in found if not PLACEHOLDER.search(command))


TYPED = [
    pytest.param(command, id=f"{page.stem}: {command[:60]}")
    for page in PAGES
    for command in commands_of(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("command", TYPED)
def test_every_command_parses(command):
    _, name, *arguments = shlex.split(command, comments=True)
    words = [word.replace("*", "x") for word in arguments]
    context = typer.main.get_command(app).commands[name].make_context(name, words)
    if name == "train":
        example = {"variant": "original", "depth": 20, "protocol": "quick"}
        resolve(options=example, overrides=context.params["sets"] or ())


def scripts_of(text: str) -> list[str]:
    """The calls of Python programs of a checkout, without `python`."""
    calls = r"(?:\w+=\w+ )?python ((?:-m tests\.|scripts/)"
    return re.findall(rf"`{calls}[^`]+)`", text) + re.findall(
        rf"^ +{calls}.+)$", text, re.MULTILINE
    )


SCRIPTS = sorted({call for page in PAGES for call in scripts_of(page.read_text(encoding="utf-8"))})


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # by another test
@pytest.mark.parametrize("call", SCRIPTS)
def test_every_call_of_a_script_parses(call, monkeypatch):
    """As far as its options go; the work itself is for the machine of the figures."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_leave(parser, *given):
        parse(parser, *given)
        sys.exit("parsed")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
    monkeypatch.chdir(ROOT)
    words = shlex.split(call, comments=True)
    module = words[0] == "-m"
    monkeypatch.setattr(sys, "argv", words[module:])
    run = runpy.run_module if module else runpy.run_path
    with pytest.raises(SystemExit, match="parsed"):
        run(words[module], run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor[1:] in anchors_of(path.read_text(encoding="utf-8")), target + anchor


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_readme_explains_every_command():
    rows = re.findall(
        r"^\| `resvar (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(rows) == set(typer.main.get_command(app).commands)


def test_the_names_in_the_python_of_the_readme_exist():
    import resvar

    for code in re.findall(
        r"^```python\n(.+?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    ):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "resvar":
                assert node.attr in dir(resvar)
