"""Text is UTF-8 by name: without one, Python takes the encoding of the user's locale."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import train

ROOT = Path(__file__).parent.parent
OPENERS = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}
OTHER_OPENERS = {"os", "tarfile", "zipfile", "gzip", "bz2", "lzma", "webbrowser"}
"""Modules whose `open` returns no text."""


def find_nameless(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call that reads or writes text in the encoding of the locale."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        function = call.func
        method = isinstance(function, ast.Attribute)
        name = getattr(function, "attr", getattr(function, "id", ""))
        owner = getattr(getattr(function, "value", None), "id", "")
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in given or None in given:  # None: **options
            continue
        texts = [getattr(given.get(key), "value", False) for key in ("text", "universal_newlines")]
        binary = ast.Constant("w+b" if "Temporary" in name else "r")
        place = 0 if (method and name == "open") or "Temporary" in name else 1
        mode = given.get("mode", call.args[place] if len(call.args) > place else binary)
        if (
            True in texts
            or (method and name == "read_text" and not call.args)
            or (method and name == "write_text" and len(call.args) == 1)
            or (name == "TextIOWrapper" and len(call.args) < 2)
            or (
                name in OPENERS
                and (owner not in OTHER_OPENERS or name == "fdopen")
                and isinstance(mode, ast.Constant)
                and isinstance(mode.value, str)
                and "b" not in mode.value
            )
        ):
            yield call.lineno, name


@pytest.mark.heavy
@pytest.mark.parametrize("folder", ["resvar", "scripts", "examples", "tests"])
def test_text_is_read_and_written_in_an_encoding_by_name(folder):
    nameless = [
        f"{path.relative_to(ROOT)}:{line}: {name}() without encoding="
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in find_nameless(path.read_text(encoding="utf-8"))
    ]
    assert not nameless, "\n".join(nameless)


@pytest.mark.parametrize(
    ("code", "nameless"),
    [
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, mode='a')", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('w')", True),
        ("path.open('wb')", False),
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text('x')", True),
        ("path.write_text('x', encoding='utf-8')", False),
        ("files.read_text(path, 100, 'note')", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("tarfile.open(path)", False),
        ("os.fdopen(1, 'w')", True),
        ("os.fdopen(1, 'wb')", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, encoding='utf-8', errors='replace')", False),
        ("subprocess.run(command, text=True, **options)", False),
        ("tempfile.NamedTemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("io.TextIOWrapper(file)", True),
    ],
)
def test_the_rule_finds_what_it_should(code, nameless):
    assert bool(list(find_nameless(code))) == nameless


@pytest.mark.slow
def test_a_locale_without_utf_8_makes_the_same_run_and_page(resvar, tmp_path):
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for name, environment in (("utf-8", {"LC_ALL": "C.UTF-8"}), ("ascii", ascii_only)):
        (here := tmp_path / name).mkdir()
        for arguments in (
            train("--out", "run", "--set", "iterations=2", "--set", "kernels=plain"),
            ["report", "run", "--format", "html", "--out", "page.html"],
        ):
            done = resvar.run(*arguments, cwd=here, **environment)
            assert done.code == 0, done
    pages = [
        re.sub(r"[\d.,:]+", "0", (tmp_path / name / "page.html").read_text(encoding="utf-8"))
        for name in ("utf-8", "ascii")
    ]
    assert not pages[0].isascii()
    assert pages[0] == pages[1]
    predictions = [(tmp_path / name / "run" / "predictions.npy") for name in ("utf-8", "ascii")]
    assert predictions[0].read_bytes() == predictions[1].read_bytes()
