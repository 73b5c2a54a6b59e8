"""The page contains everything that the runs record, escaped, and needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from resvar.errors import UserError
from resvar.reports.findings import build
from resvar.reports.first_screen import verdict_sentences
from resvar.reports.html import Image, Page, Section, render_html
from resvar.reports.parts import group_tables
from resvar.reports.report import write_report
from resvar.reports.search import read_records
from resvar.rundir import CONFIG, RESULT
from resvar.table import Column, Table, TableCell
from tests.reports.pages import ENVIRONMENT_A, write_curved, write_rich
from tests.reports.runs import how_far, write_run

VOID = {"meta", "br", "img", "link", "input", "rect", "path", "circle"}
INLINE = {"span", "b", "a", "code"}


class Seen(HTMLParser):
    """Tags with attributes and text, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.texts.append("" if tag in INLINE else " ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.texts.append("" if tag in INLINE else " ")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        pairs = [(key.strip("_").replace("_", "-"), value) for key, value in wanted.items()]
        held = [attributes for name, attributes in self.tags if name == tag]
        return [found for found in held if all(found.get(k) == v for k, v in pairs)]


def page_on(root, **page):
    report = build(read_records([root]))
    return render_html(report, Page(**page))


# --- what it holds --------------------------------------------------------------------------------


@pytest.mark.heavy
def test_every_cell_of_every_table_is_on_the_page(tmp_path):
    write_rich(tmp_path / "paper")
    write_curved(tmp_path / "quick", "bn-lead-relu-trail")
    report = build(read_records([tmp_path]))
    seen = Seen(render_html(report))
    for group in report.groups:
        assert group.heading in seen.text
        for table in group_tables(group):
            for words in (table.title, *(column.name for column in table.columns), *table.notes):
                assert " ".join(words.split()) in seen.text
            for row in table.rows:
                for cell in row:
                    for line in cell.lines:
                        assert line in seen.text


def first_screen(text):
    """What is read before anything is unfolded."""
    innermost = re.compile(r"<details((?!<details).)*?</details>", re.DOTALL)
    while "<details" in text:
        text = innermost.sub("", text)
    return Seen(text).text


@pytest.mark.heavy
def test_the_first_screen_is_the_question_the_verdicts_the_table_and_what_is_missing(tmp_path):
    write_curved(tmp_path / "quick", "original")
    report = build(read_records([write_rich(tmp_path)]))
    text = render_html(report)
    paper = report.groups[0]
    screen = first_screen(text)
    order = [
        "Where should BatchNorm and ReLU go?",
        "Is full pre-activation (V2) better than the original unit (V1)?",
        *verdict_sentences(paper),
        "CIFAR-10, protocol paper",
        "Test error (%), ResNet-110 and ResNet-164",
        "No cell of this table is empty.",
        "2 groups of runs, which are not compared with each other",
    ]
    places = [screen.index(words) for words in order]
    assert places == sorted(places)
    for words in ("Compared with original", "Training curves", "Every run", "environment"):
        assert words not in screen
        assert words in Seen(text).text
    order = ["Test error (%)", "V1 (original) against", "Compared with original",
             "Training curves", "Where BN and ReLU go", "Every run",
             "All runs were made in one environment", "The data, checked"]  # fmt: skip
    places = [Seen(text).text.index(words) for words in order]
    assert places == sorted(places)


def test_the_papers_protocol_leads_and_the_sample_comes_last(tmp_path):
    write_curved(tmp_path / "a", overrides=["dataset=sample"], protocol="paper")
    write_curved(tmp_path / "b", protocol="paper", overrides=["lr=0.05"])
    write_curved(tmp_path / "c", protocol="quick")
    screen = first_screen(page_on(tmp_path))
    assert "CIFAR-10, protocol paper (lr=0.05): not the paper's protocol" in screen
    write_curved(tmp_path / "e", protocol="paper")
    text = page_on(tmp_path)
    assert "CIFAR-10, protocol paper Test error" in first_screen(text)
    names = re.findall(r'<a href="#group-\d">(.*?)</a>', text)
    assert names[0] == "CIFAR-10, paper"
    assert names[-1].startswith("sample of CIFAR-10")


def test_depths_with_the_same_verdict_share_it(tmp_path):
    for depth in (20, 110, 164):
        write_curved(tmp_path, "original", depth)
    screen = first_screen(page_on(tmp_path))
    assert "ResNet-20, ResNet-110 and ResNet-164: " in screen


def test_what_was_mixed_stands_beside_the_verdict(tmp_path):
    write_curved(tmp_path, "original")
    write_curved(tmp_path, "full-preact", environment=ENVIRONMENT_A | {"commit": "5" * 40})
    screen = first_screen(page_on(tmp_path))
    sentence = "ResNet-110: V1 and V2 were made with different commits (1 × 0000000; 1 × 5555555)."
    assert screen.index("ResNet-110: ") < screen.index(sentence) < screen.index("Test error (%)")


def test_many_notes_are_folded(tmp_path):
    for number in range(9):
        write_curved(tmp_path, folder=tmp_path / f"copy-{number}")
    text = page_on(tmp_path)
    screen = first_screen(text)
    assert screen.count("is the same run as") == 3
    assert Seen(text).text.count("is the same run as") == 8
    assert "5 more notes" in Seen(text).text


@pytest.mark.heavy
def test_groups_have_an_index_with_short_names_and_what_they_change(tmp_path):
    for number in range(21):
        write_curved(tmp_path / f"{number}", overrides=[f"lr={1 + number}", "nesterov=true"])
    write_curved(tmp_path / "own")
    text = page_on(tmp_path)
    rows = re.findall(
        r'<a href="#(group-\d+)">(quick(?: [0-9a-f]{4})?)</a>.*?settings">(.*?)</td>', text
    )
    assert len({id for id, _, _ in rows}) == len({name for _, name, _ in rows}) == 22
    assert ("quick", "–") in {(name, settings) for _, name, settings in rows}
    assert {settings for _, _, settings in rows} >= {"lr=7.0, nesterov=true"}
    seen = Seen(text)
    ids = [held["id"] for _, held in seen.tags if "id" in held]
    assert len(ids) == len(set(ids))
    assert {id for id, _, _ in rows} <= set(ids)
    for words in re.findall(r'(?:<a href="#|<h2)[^>]*>(.*?)</', text):
        assert len(words) < 60, "a long name is not a link or a heading"


@pytest.mark.heavy
def test_the_index_gives_the_verdicts_in_a_word_where_v1_and_v2_can_be_compared(tmp_path):
    write_rich(tmp_path / "paper", seeds=5)
    write_curved(tmp_path / "quick")
    paper, quick = re.findall(r'<td class="left drop words">(.*?)</td>', page_on(tmp_path))
    group = build(read_records([tmp_path])).groups[0]
    assert len(group.v1_v2) == 2
    for pair in group.v1_v2:
        assert re.search(rf"{pair.word} \([^)]*\b{pair.depth}\b", paper)
    assert quick == "–"


def test_one_group_needs_no_index(tmp_path):
    write_curved(tmp_path)
    seen = Seen(page_on(tmp_path))
    assert not seen.all("nav")


@pytest.mark.heavy
def test_all_but_the_first_screen_is_folded_and_every_link_leads_into_the_page(tmp_path):
    write_rich(tmp_path)
    write_curved(tmp_path / "quick", overrides=["lr=0.05"])
    (write_run(tmp_path / "x", "bn-after-add") / RESULT).write_text("{", encoding="utf-8")
    seen = Seen(page_on(tmp_path))
    folds = seen.all("details")
    assert len(folds) >= 7
    assert not [held for held in folds if "open" in held]
    ids = {held.get("id") for _, held in seen.tags}
    links = {held["href"][1:] for held in seen.all("a") if held["href"].startswith("#")}
    assert {"group-1", "group-2", "missing"} <= links <= ids


def test_what_is_not_comparable_is_grey_and_said_once(tmp_path):
    write_curved(tmp_path, "original")
    write_curved(tmp_path, "full-preact", errors={400: 49.0})
    seen = Seen(page_on(tmp_path))
    grey = [held for held in seen.all("th") if "grey" in (held.get("class") or "")]
    assert grey
    assert "not the paper's protocol; not comparable with the published figures" in seen.text
    paper = Seen(page_on(write_rich(tmp_path / "other")))
    assert not [held for held in paper.all("th") if "grey" in (held.get("class") or "")]


def test_names_and_numbers_are_not_broken_at_the_end_of_a_line(tmp_path):
    write_curved(tmp_path, "original")
    write_curved(tmp_path, "full-preact", environment=ENVIRONMENT_A | {"commit": "5" * 40})
    text = page_on(tmp_path)
    assert '<span class="whole">ResNet-110</span>' in text
    assert '<span class="whole">1 × 0000000;</span>' in text
    assert "<span" not in "".join(re.findall(r"<pre>.*?</pre>", text, re.DOTALL))


def test_curves_stand_in_the_page_without_a_script(tmp_path):
    text = page_on(write_rich(tmp_path))
    seen = Seen(text)
    charts = seen.all("figure", class_="chart")
    assert [chart["id"] for chart in charts] == ["group-1-resnet-110", "group-1-resnet-164"]
    for number in range(5):
        for kind in ("error", "loss", "band"):
            drawn = seen.all("g", class_=f"{kind} s{number}", data_line=str(number))
            assert len(drawn) == 2  # one on each chart
    marks = {held["id"]: held["d"] for held in seen.all("path", class_="mark")}
    keys = [
        held["href"] for held in seen.all("use") if (held.get("x"), held.get("y")) == ("15", "7")
    ]
    assert len(keys) == len(set(keys)) == 10
    assert len({marks[key[1:]] for key in keys}) == 5  # five shapes: known without colour
    (data, _) = re.findall(r'class="figures">(.*?)</script>', text)
    found = json.loads(data)
    assert found["x"] == [16000, 32000, 48000, 64000]
    assert found["lines"][0] == {
        "runs": 3, "low": [30, 15, 7.6, 6.6], "error": [31, 16, 7.7, 6.7],
        "high": [32, 17, 7.8, 6.8], "loss": [1, 1, 1, 1],
    }  # fmt: skip


def test_unfinished_failed_and_damaged_runs_are_listed_with_reasons(tmp_path):
    write_curved(tmp_path, "original")
    write_curved(tmp_path, "full-preact", seed=1, test_error=None, progress=how_far(12))
    failure = {"message": "the loss is <nan>", "diverged": True}
    write_run(tmp_path, "bn-after-add", test_error=None, failure=failure)
    (write_run(tmp_path, "relu-before-add") / RESULT).write_text("{", encoding="utf-8")
    seen = Seen(page_on(tmp_path, waiting=4))
    missing = seen.text[seen.text.rindex("What is missing") :]
    for words in ("no run of relu-only-preact at ResNet-110", "12 of 400", "the loss is <nan>",
                  "diverged", "this is damaged"):  # fmt: skip
        assert words in missing
    screen = first_screen(page_on(tmp_path, waiting=4))
    for words in ("4 of 5 cells have no finished run", "1 run diverged, 1 stopped", "1 run damaged",
                  "Planned but not started: 4.", "1 done", "1 failed", "4 waiting"):  # fmt: skip
        assert words in screen


def test_only_damaged_runs_still_make_a_page(tmp_path):
    (write_run(tmp_path) / CONFIG).write_text("{", encoding="utf-8")
    seen = Seen(page_on(tmp_path))
    assert "No run can be read." in seen.text
    assert "config.yaml" in seen.text


def test_sections_and_pictures_of_others_are_embedded(tmp_path):
    write_curved(tmp_path)
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    made = Table("A table of probes", (Column("layer", "left"),), ((TableCell("conv <1>"),),))
    section = Section("Probes <b>", ("A note.",), (made,), (Image("Figure 6 & more", svg),))
    seen = Seen(page_on(tmp_path, sections=(section,)))
    for words in ("Probes <b>", "A note.", "A table of probes", "conv <1>", "Figure 6 & more"):
        assert words in seen.text
    (image,) = seen.all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == svg


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["plain", "50% #1?", "a b&c", "ü", "javascript:alert(1)", "x\"'<y>"]
)
def test_links_lead_from_the_page_to_each_config(tmp_path, name):
    folder = write_curved(tmp_path, folder=tmp_path / "runs" / name)
    out = tmp_path / "pages" / "deep" / "report.html"
    seen = Seen(page_on(tmp_path, out=out))
    links = [held["href"] for held in seen.all("a") if not held["href"].startswith("#")]
    assert len(links) == 2  # from the variant and from the folder
    for link in links:
        assert re.fullmatch(r"[A-Za-z0-9._~%/-]+", link)
        assert (out.parent / unquote(link)).resolve() == folder / CONFIG


def test_a_run_without_a_config_has_no_link(tmp_path):
    folder = write_curved(tmp_path, folder=tmp_path / "runs")
    (folder / CONFIG).unlink()
    assert all(held["href"].startswith("#") for held in Seen(page_on(tmp_path)).all("a"))


# --- nothing else is needed, nothing gets in ------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><script>x()",
    "javascript:alert(1)", "<!--", "{{ 7*7 }}", "a'b\"c&amp;d", "\u202eevil", "\x1b[31m",
]  # fmt: skip


def test_no_name_and_no_value_becomes_markup(tmp_path):
    for index, words in enumerate(HOSTILE):
        environment = ENVIRONMENT_A | {"device": words, "platform": words, words: words}
        environment["resumed"] = [{"iteration": words, "changed": {words: words}}]
        name = words.replace("/", "∕")
        write_curved(
            tmp_path, seed=index, folder=tmp_path / f"{name}-{index}", environment=environment,
            changes={"device": words, "precision": words, "commit": words},
        )  # fmt: skip
        failure = {"message": words, "diverged": False}
        write_run(tmp_path, seed=100 + index, test_error=None, failure=failure)
        damaged = write_run(tmp_path, seed=200 + index, folder=tmp_path / f"bad {name}")
        (damaged / RESULT).write_text(json.dumps({"format": words}), encoding="utf-8")
    text = page_on(tmp_path)
    seen = Seen(text)
    assert len(seen.all("script")) == 2  # the data of one chart, and the page's own
    assert len(seen.all("img")) == 0
    assert not [key for _, held in seen.tags for key in held if key.startswith("on")]
    assert not [held for _, held in seen.tags if "javascript" in (held.get("href") or "")[:20]]
    for words in HOSTILE[:7]:
        assert words in seen.text
    assert "49" not in re.findall(r"device</dt><dd>(.*?)</dd>", text)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_page_loads_nothing_and_allows_only_itself(tmp_path):
    text = page_on(write_rich(tmp_path))
    seen = Seen(text)
    for tag, held in seen.tags:
        for key in ("src", "href", "srcset", "data", "action", "xlink:href"):
            value = held.get(key) or ""
            assert not re.match(r"[a-z]+:|//", value) or value.startswith("data:"), (tag, value)
        assert "style" not in held
    assert not re.search(r"url\((?!#)|@import", text)
    metas = {
        held.get("http-equiv"): held["content"] for held in seen.all("meta") if "content" in held
    }
    policy = metas["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


# --- the same runs, the same bytes ----------------------------------------------------------------


@pytest.mark.heavy
def test_the_same_runs_give_the_same_bytes_whatever_the_order(tmp_path):
    write_rich(tmp_path / "a", 2)
    write_rich(tmp_path / "b", 1, "quick")
    folders = tuple(tmp_path / name for name in "ab")
    pages = set()
    for ordered in (folders, folders[::-1]):
        report = build(read_records(ordered))
        pages.add(render_html(report, Page(out=tmp_path / "x.html", folders=ordered)))
    assert len(pages) == 1


def test_commands_of_two_groups_never_share_a_folder(tmp_path):
    write_curved(tmp_path / "a")
    write_curved(tmp_path / "b", overrides=["lr=0.05"])
    text = Seen(page_on(tmp_path)).text
    assert "--set precision=fp32 The runs of" in text
    assert "--set lr=0.05 --set precision=fp32" in text
    assert "--out runs-" not in text, "the folder names say how they differ"


# --- the command ----------------------------------------------------------------------------------


def test_the_page_is_written_whole_and_says_how_to_make_it_again(tmp_path, capsys):
    write_curved(tmp_path / "my runs")
    out = tmp_path / "report.html"
    write_report([tmp_path / "my runs"], "html", out)
    assert capsys.readouterr().out == f"Wrote {out}\n"
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert f"resvar report '{tmp_path}/my runs' --format html --out {out}" in Seen(text).text
    assert not re.search('<meta[^>]*"refresh"', text)
    with pytest.raises(UserError, match=r"cannot be written|this is a folder"):
        write_report([tmp_path / "my runs"], "html", tmp_path)


def test_the_page_on_the_screen_links_from_here(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_curved(Path())
    write_report([Path()], "html", None)
    text = capsys.readouterr().out
    assert f'href="{(folder / CONFIG).as_posix()}"' in text
