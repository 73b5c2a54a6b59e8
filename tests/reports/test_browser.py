"""The page in a real browser: sorting, hiding, reading values, dark, narrow, printed, offline."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy
import PIL.Image
import pytest

from resvar.reports.findings import build
from resvar.reports.report import figure_sections
from resvar.reports.search import read_records
from tests.reports.conftest import Look
from tests.reports.pages import ENVIRONMENT_A, write_curved, write_page, write_rich
from tests.support.commands import wait_for

pytestmark = pytest.mark.browser


# --- sorting --------------------------------------------------------------------------------------


def test_a_click_sorts_up_then_down_then_back(rich, look):
    seen = look(rich)
    medians = ["6.70", "8.20", "7.90", "6.80", "6.00"]
    assert seen.column("errors", 3) == medians
    head = seen.page.locator("table.errors").first.locator("thead th").nth(2)
    for state, expected in (
        ("ascending", sorted(medians)),
        ("descending", sorted(medians, reverse=True)),
        ("none", medians),
    ):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == state
        assert seen.column("errors", 3) == expected


def test_the_keyboard_alone_sorts(rich, look):
    seen = look(rich)
    head = seen.page.locator("table.runs").first.locator("thead th").nth(3)
    head.get_by_role("button").focus()
    for key in ("Enter", "Space"):
        seen.page.keyboard.press(key)
    assert head.get_attribute("aria-sort") == "descending"
    errors = [float(text) for text in seen.column("runs", 4)]
    assert len(errors) == 30
    assert errors == sorted(errors, reverse=True)
    others = seen.page.locator("table.runs").first.locator("thead th[aria-sort=none]")
    assert others.count() == 13


def test_numbers_sort_as_numbers_and_nothing_comes_last(rich, look):
    seen = look(rich)
    runs = seen.page.locator("table.runs").nth(1)
    head = runs.locator("thead th").nth(3)
    for expected in (["50.00", "–"], ["50.00", "–"]):
        head.get_by_role("button").click()
        assert runs.locator("tbody tr > :nth-child(4)").all_inner_texts() == expected
    intervals = seen.page.locator("table.other", has_text="Compared with original").first
    intervals.locator("thead th").nth(3).get_by_role("button").click()
    found = [float(t) for t in intervals.locator("tbody tr > :nth-child(4)").all_inner_texts()]
    assert found == sorted(found)
    assert found[0] < 0 < found[-1]


# --- curves ---------------------------------------------------------------------------------------


def shown(seen, figure, line, what="error"):
    row = seen.page.locator(f"{figure} tr[data-line='{line}']")
    return row.locator(f"[data-figure={what}]").inner_text()


FIGURE = "#group-1-resnet-110"
KINDS = ("error", "loss", "band")


def displayed(element):
    """Unlike `is_visible`, also true of a level line, whose box has no height."""
    return element.evaluate("e => getComputedStyle(e).display !== 'none'")


def test_hovering_shows_the_values_there_and_leaving_those_at_the_end(rich, look):
    seen = look(rich)
    at = seen.page.locator(f"{FIGURE} .at")
    assert at.inner_text() == "at the end"
    assert (shown(seen, FIGURE, 4), shown(seen, FIGURE, 4, "span")) == ("6.00", "5.90–6.10")
    plot = seen.page.locator(f"{FIGURE} .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    x = 58 + 412 / 1.02 / 2  # iteration 32,000 of 64,000 in viewBox units
    seen.page.mouse.move(box["x"] + box["width"] * x / 520, box["y"] + box["height"] / 2)
    assert at.inner_text() == "at iteration 32,000"
    assert (shown(seen, FIGURE, 4), shown(seen, FIGURE, 4, "span")) == ("16.00", "15.00–17.00")
    assert shown(seen, FIGURE, 4, "loss") == "1.000"
    dot = seen.page.locator(f"{FIGURE} circle.dot").nth(4)
    assert float(dot.get_attribute("cx")) == pytest.approx(x, abs=0.06)
    seen.page.mouse.move(0, 0)
    assert at.inner_text() == "at the end"
    assert shown(seen, FIGURE, 4) == "6.00"


def test_the_arrow_keys_read_values_too(rich, look):
    seen = look(rich)
    plot = seen.page.locator(f"{FIGURE} .plot")
    plot.focus()
    assert plot.get_attribute("role") == "slider"
    values = []
    for key in ("Home", "ArrowRight", "ArrowRight", "End", "ArrowRight", "ArrowLeft"):
        seen.page.keyboard.press(key)
        values.append(plot.get_attribute("aria-valuenow"))
    assert values == ["16000", "32000", "48000", "64000", "64000", "48000"]
    assert "at iteration 48,000: original 7.70 %" in plot.get_attribute("aria-valuetext")
    seen.page.keyboard.press("Escape")
    assert plot.get_attribute("aria-valuetext") == "at the end"


@pytest.mark.parametrize("how", ["click", "Enter", "Space"])
def test_the_legend_hides_a_series_and_shows_it_again(rich, look, how):
    seen = look(rich)
    parts = [seen.page.locator(f"{FIGURE} g.{kind}[data-line='1']") for kind in KINDS]
    button = seen.page.locator(f"{FIGURE} tr[data-line='1'] button")
    assert button.inner_text() == "bn-after-add"
    for pressed, visible in (("false", False), ("true", True)):
        if how == "click":
            button.click()
        else:
            button.focus()
            seen.page.keyboard.press(how)
        assert button.get_attribute("aria-pressed") == pressed
        assert [displayed(part) for part in parts] == [visible] * len(KINDS)
        assert seen.page.locator(f"{FIGURE} g.error[data-line='0']").is_visible()
    assert seen.page.locator("#group-1-resnet-164 g.error[data-line='1']").is_visible()


def test_without_scripts_the_curves_and_tables_are_there(rich, look):
    seen = look(rich, java_script_enabled=False)
    figure = seen.page.locator(FIGURE)
    for kind in KINDS:
        assert figure.locator(f"g.{kind}").count() == 5
        assert displayed(figure.locator(f"g.{kind} > path").first)
    assert shown(seen, FIGURE, 4) == "6.00"
    assert seen.page.locator("button").count() == 0  # nothing that would do nothing
    assert not seen.page.locator(".scripted").first.is_visible()


# --- light, dark, narrow, printed -----------------------------------------------------------------


def luminance(color):
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    channels = [int(c) / 255 for c in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    first, second = sorted((luminance(one), luminance(other)))
    return (second + 0.05) / (first + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_schemes(rich, look, scheme):
    seen = look(rich, color_scheme=scheme)
    paper = seen.style("body", "background-color")
    assert (luminance(paper) < 0.1) is (scheme == "dark")
    for selector in (
        "body",
        "a",
        ".notes li",
        "td.grey",
        ".where",
        ".hint",
        ".kicker",
        "pre",
        ".verdicts li",
        "summary",
        ".beside",
        ".settings",
        ".missing",
    ):
        assert contrast(seen.style(selector, "color"), paper) >= 4.5, selector
    for number in range(5):
        line = seen.style(f"{FIGURE} g.error.s{number} > path", "stroke")
        assert contrast(line, paper) >= 3, number
    for selector in (".plot text", ".plot .tick"):
        name = "fill" if "text" in selector else "stroke"
        assert contrast(seen.style(selector, name), paper) >= 3, selector


@pytest.mark.parametrize("unfolded", [True, False])
@pytest.mark.parametrize("width", [320, 360, 390, 800, 1300])
def test_the_page_never_scrolls_sideways(rich, look, width, unfolded):
    seen = look(rich, unfolded, viewport={"width": width, "height": 700})
    inner, whole = seen.page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
    assert whole == inner == width
    if width == 360 and unfolded:  # what is too wide scrolls in its own box
        box = "e => [e.scrollWidth > e.clientWidth, e.tabIndex]"
        assert seen.page.eval_on_selector("table.runs", f"t => ({box})(t.parentElement)") == [
            True,
            0,
        ]


@pytest.mark.parametrize("width", [390, 800, 1300])
def test_no_name_and_no_number_is_broken(rich, look, width):
    seen = look(rich, viewport={"width": width, "height": 700})
    broken = seen.page.evaluate(
        """[...document.querySelectorAll(".whole, td:not(.wrap):not(.settings), .fact")]
           .filter((e) => !e.closest("table.map, .long-name") && e.checkVisibility())
           .filter((e) => {
             const range = document.createRange();
             range.selectNodeContents(e);
             const lines = [...range.getClientRects()].map((r) => Math.round(r.bottom));
             return Math.max(...lines) - Math.min(...lines) > 8;
           }).map((e) => e.textContent.trim())"""
    )
    assert broken == []


def test_a_chart_says_of_how_many_runs_even_on_a_narrow_screen(rich, look):
    seen = look(rich, viewport={"width": 390, "height": 700})
    legend = seen.page.locator(f"{FIGURE} table.legend")
    assert legend.locator("td.runs").all_inner_texts() == ["3"] * 5
    assert legend.evaluate("t => t.parentElement.scrollWidth <= t.parentElement.clientWidth")


def test_both_depths_fit_a_small_screen(rich, look):
    seen = look(rich, viewport={"width": 800, "height": 700})
    table = seen.page.locator("table.errors").first
    assert table.evaluate("t => t.parentElement.scrollWidth <= t.parentElement.clientWidth")
    assert table.locator("thead th:visible").count() == 9


def test_a_narrow_screen_tells_what_it_leaves_out(rich, look):
    wide, narrow = (look(rich, viewport={"width": w, "height": 700}) for w in (1300, 390))
    for seen, dropped in ((wide, False), (narrow, True)):
        head = seen.page.locator("table.errors").first.locator("th.drop").first
        note = seen.page.get_by_text("Left out for width: figure").first
        assert head.is_visible() is not dropped
        assert note.is_visible() is dropped


def test_a_dark_page_has_no_white_box(tmp_path, look):
    write_rich(tmp_path, 2)
    figures = tuple(figure_sections(build(read_records([tmp_path]))))
    seen = look(write_page(tmp_path, sections=figures), color_scheme="dark")
    found = seen.page.evaluate(
        """[...document.querySelectorAll("*")].filter((e) => e.checkVisibility())
           .map((e) => getComputedStyle(e).backgroundColor)"""
    )
    for color in set(found) - {"rgba(0, 0, 0, 0)"}:
        assert luminance(color) < 0.1
    images = seen.page.locator(".picture img")
    assert images.count() == 4
    for number in range(4):
        pixels = PIL.Image.open(io.BytesIO(images.nth(number).screenshot())).convert("L")
        assert numpy.median(numpy.asarray(pixels)) < 100, "mostly dark"


def test_printed_it_is_light_and_nothing_is_cut_off(rich, look):
    seen = look(rich, color_scheme="dark", viewport={"width": 700, "height": 900})
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert luminance(seen.style("body", "background-color")) == 1
    assert luminance(seen.style("body", "color")) == 0
    assert not seen.page.locator(".opener").is_visible()
    cut = seen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert cut <= 0
    assert seen.page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_a_figure_from_elsewhere_is_shown(rich, look):
    seen = look(rich)
    image = seen.page.locator("figure.picture img")
    image.scroll_into_view_if_needed()
    assert image.evaluate("i => [i.complete, i.naturalWidth]") == [True, 900]


# --- hostile names, links, reloading --------------------------------------------------------------


def test_hostile_names_run_nothing(tmp_path, look):
    bad = [
        "<img src=x onerror=alert(1)>",
        "</script><script>alert(2)<!--",
        "' onfocus=alert(3) x='",
    ]
    for index, words in enumerate(bad):
        write_curved(
            tmp_path, seed=index, folder=tmp_path / words.replace("/", ""),
            environment=ENVIRONMENT_A | {"device": words}, changes={"device": words},
        )  # fmt: skip
    seen = look(write_page(tmp_path))
    text = seen.page.locator("body").inner_text()
    assert all(words in text for words in bad)
    assert seen.page.locator("img, [onerror], [onfocus]").count() == 0
    seen.page.locator("table.runs thead button").first.click()
    assert seen.page.locator("script").count() == 2


def test_a_link_opens_the_config(tmp_path, look):
    write_curved(tmp_path, folder=tmp_path / "runs" / "50% #1? ü")
    (tmp_path / "pages").mkdir()
    seen = look(write_page(tmp_path, "pages/report.html"))
    url = seen.page.locator("table.runs tbody a").first.evaluate("a => a.href")
    assert Path(unquote(urlsplit(url).path)) == tmp_path / "runs" / "50% #1? ü" / "config.yaml"


def test_a_watched_page_loads_itself_again_and_stays_where_it_was(chromium, tmp_path):
    write_rich(tmp_path, 1)
    file = write_page(tmp_path, refresh=1)
    seen = Look(chromium, file, viewport={"width": 800, "height": 500})
    seen.page.locator("details", has_text="Training curves").first.locator("summary").click()
    seen.page.locator(f"{FIGURE} tr[data-line='1'] button").click()
    seen.page.locator("table.errors thead button").nth(2).click()
    seen.page.evaluate("scrollTo({top: 900, behavior: 'instant'})")
    write_curved(tmp_path, "original", seed=9, protocol="paper")
    write_page(tmp_path)  # the last one loads itself no more
    seen.page.locator("meta[http-equiv=refresh]").wait_for(state="detached", timeout=60_000)
    assert wait_for(lambda: abs(seen.page.evaluate("scrollY") - 900) < 5)
    assert seen.page.locator(f"{FIGURE} tr[data-line='1'].hidden").count() == 1
    assert seen.is_open("group-1-resnet-110")
    assert seen.page.locator("details[open]").count() == 1
    assert seen.page.locator("table.errors th").nth(2).get_attribute("aria-sort") == "ascending"
    assert seen.complaints == []
    seen.context.close()
