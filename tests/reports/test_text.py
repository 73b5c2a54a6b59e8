"""What names and values say is text in every format: no formula, no control, no markup, no link."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from resvar.reports.findings import build
from resvar.reports.render import RENDERERS, render_report
from resvar.reports.search import read_records
from tests.reports.pages import write_curved
from tests.reports.runs import make_settings, write_run

HOSTILE = [
    "=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(1+1)", "\t=1", "\r=1", "＝1+1", "a|b",
    "<script>alert(1)</script>", r"\input{/etc/passwd}", "[x](http://evil.example)",
    "# head", "- item", "1. item", "http://evil.example", "www.evil.example", "\u202eevil",
    "\x1b[31mred", "\x9b31m", "two\nlines", "$\\frac{$", "\" onmouseover=alert(1) x='", "\u200bx",
]  # fmt: skip


@pytest.fixture(params=HOSTILE, ids=ascii)
def hostile(request, tmp_path, monkeypatch):
    """The text, and a report with it as device, as reason and as the name of a folder."""
    text = request.param
    monkeypatch.chdir(tmp_path)
    name = text.replace("/", "∕")
    write_curved(tmp_path, seed=0, changes={"device": text, "commit": text, "precision": text})
    write_curved(tmp_path, seed=1, environment={"device": text, text: text})
    write_run(tmp_path, seed=2, test_error=None, failure={"message": text})
    write_run(tmp_path, seed=3).rename(name)
    (write_run(tmp_path, seed=4) / "result.json").write_text(
        json.dumps({"variant": text}), encoding="utf-8"
    )
    write_run(tmp_path, seed=5, folder=tmp_path / "x" / name, changes={"device": [text]})
    records = read_records([tmp_path / "quick", Path(name), tmp_path / "x"])
    return text, build(records)


@pytest.mark.parametrize("format", RENDERERS)
def test_nothing_in_a_report_is_obeyed_by_a_terminal(hostile, format):
    _, report = hostile
    text = render_report(report, format, full=True)
    assert {c for c in text if not c.isprintable()} <= {"\n"}
    assert "<script>alert" not in text or format in ("csv", "json", "table")


def test_a_spreadsheet_computes_no_text(hostile):
    """OWASP, CSV injection: no field begins with what begins a formula; numbers stay numbers."""
    _, report = hostile
    for row in csv.DictReader(io.StringIO(render_report(report, "csv"))):
        for name, value in row.items():
            assert value[:1] not in tuple("=+-@\t\r＝＋－＠"), (name, value)
        assert row["test_error"] in ("", "50.0", "51.0")


def test_numbers_below_zero_stay_numbers(tmp_path):
    write_run(tmp_path, changes={"train_loss": -1.5})
    (row,) = csv.DictReader(io.StringIO(render_report(build(read_records([tmp_path])), "csv")))
    assert row["train_loss"] == "-1.5"
    assert row["iterations"] == "400"


def test_json_says_what_the_files_say(hostile):
    """The escapes are JSON's own, so the values are whole."""
    text, report = hostile
    data = json.loads(render_report(report, "json"))
    runs = {run["seed"]: run for run in data["groups"][0]["runs"]}
    assert runs[0]["device"] == text
    assert runs[0]["commit"] == text


def test_latex_runs_no_command_of_a_name(hostile):
    """Only our own commands are left, and braces and dollars in pairs."""
    _, report = hostile
    text = render_report(report, "latex")
    assert r"\input" not in text
    assert r"\frac" not in text
    body = text.replace(r"\{", "").replace(r"\}", "").replace(r"\$", "")
    assert body.count("{") == body.count("}")
    assert body.count("$") % 2 == 0


def test_markdown_shows_names_as_they_are(hostile):
    """As another program reads it: no link, no list, no heading, no HTML comes of them."""
    markdown_it = pytest.importorskip("markdown_it")
    _, report = hostile
    text = render_report(report, "markdown")
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    kinds = set()
    for token in parser.parse(text):
        kinds |= {token.type, *(inner.type for inner in token.children or ())}
        if token.type == "inline":
            plain = "".join(inner.content for inner in token.children if inner.type == "text")
            assert "\\http" not in plain
        assert token.type != "list_item_open" or token.level == 1, "no list in a list"
        assert token.type != "ordered_list_open"
    assert not kinds & {"link_open", "html_block", "image", "fence", "code_block", "hr"}
    assert {token.content for token in parser.parse(text) if token.type == "html_inline"} <= {
        "<br>"
    }
    for scheme in ("http:", "https:", "www."):
        assert scheme not in text.replace("arxiv.org", ""), "GitHub would make a link of it"


@pytest.mark.parametrize("protocol", ["=1+1", "a\x1b[2J", "</script><script>alert(1)</script>"])
@pytest.mark.parametrize("format", RENDERERS)
def test_a_protocols_name_is_text_too(tmp_path, protocol, format):
    """It is free in the record of a run; the group, its headings and figures carry it."""
    run = write_curved(tmp_path)
    settings = make_settings().model_copy(update={"protocol": protocol})
    (run / "config.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    (run / "result.json").unlink()
    text = render_report(build(read_records([tmp_path])), format, full=True)
    assert {c for c in text if not c.isprintable()} <= {"\n"}
    if format == "html":
        assert "<script>alert" not in text
    if format == "csv":
        assert not text.splitlines()[1].startswith("=")
