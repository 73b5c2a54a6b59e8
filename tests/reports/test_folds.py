"""The sections of the page in a real browser: closed at first, opened by all that should."""

from __future__ import annotations

import pytest

from tests.support.commands import wait_for

pytestmark = pytest.mark.browser

FIGURE = "#group-1-resnet-110"


@pytest.mark.parametrize("scripts", [True, False])
def test_the_page_begins_with_one_screen(rich, look, scripts):
    seen = look(
        rich, unfolded=False, viewport={"width": 1300, "height": 900}, java_script_enabled=scripts
    )
    box = seen.page.locator(".first").bounding_box()
    assert box["y"] + box["height"] < 900
    assert seen.page.locator("details[open]").count() == 0
    assert not seen.page.locator("table.runs").first.is_visible()
    assert seen.page.locator("table.errors").first.is_visible()


def test_the_keyboard_opens_a_section_without_a_script(rich, look):
    seen = look(rich, unfolded=False, java_script_enabled=False)
    summary = seen.page.locator("details.fold > summary", has_text="Every run").first
    summary.focus()
    for expected in (True, False):
        seen.page.keyboard.press("Enter")
        assert seen.page.locator("table.runs").first.is_visible() is expected


@pytest.mark.parametrize("scripts", [True, False])
def test_a_link_opens_the_section_that_it_leads_to(rich, look, scripts):
    seen = look(rich, unfolded=False, java_script_enabled=scripts)
    for link, id in (("quick", "group-2"), ("What is missing", "missing")):
        assert not seen.is_open(id)
        seen.page.get_by_role("link", name=link, exact=True).click()
        assert wait_for(lambda id=id: seen.is_open(id))
        target = seen.page.locator(f"#{id}")
        assert wait_for(lambda target=target: 0 <= target.bounding_box()["y"] < 700)


def test_an_address_with_an_anchor_opens_its_section(rich, chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(rich.as_uri() + "#group-1-resnet-164")
    page.locator("#group-1-resnet-164").wait_for(state="visible", timeout=60_000)
    context.close()


def test_one_button_opens_and_closes_everything(rich, look):
    seen = look(rich, unfolded=False)
    button = seen.page.get_by_role("button", name="Open all sections")
    button.click()
    assert seen.page.locator("details:not([open])").count() == 0
    seen.page.get_by_role("button", name="Close all sections").click()
    assert seen.page.locator("details[open]").count() == 0


@pytest.mark.parametrize("scripts", [True, False])
def test_on_paper_everything_is_unfolded(rich, look, scripts):
    seen = look(rich, unfolded=False, java_script_enabled=scripts)
    closed = len(seen.page.pdf())
    seen.page.emulate_media(media="print")
    for selector in ("table.runs", "#environment", "#missing table", f"{FIGURE} svg"):
        shown = seen.page.locator(selector).first
        assert shown.evaluate("e => e.checkVisibility({contentVisibilityAuto: true})")
        assert shown.bounding_box()["height"] > 10
    seen.page.emulate_media(media="screen")
    if scripts:
        seen.unfold()
        assert closed > 0.9 * len(seen.page.pdf())
