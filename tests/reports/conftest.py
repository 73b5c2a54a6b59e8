"""Pages of reports, and a look at them in Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

from resvar.reports.html import Image, Section
from resvar.rundir import RESULT
from tests.reports.pages import write_curved, write_page, write_rich
from tests.reports.runs import how_far, write_run


class Look:
    """An open page, with all that it asked for and complained about."""

    def __init__(self, browser, file, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append("a dialog: " + dialog.message))
        self.page.goto(Path(file).as_uri())

    def unfold(self):
        """Opens all that is folded."""
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")

    def is_open(self, id):
        """Whether the section around an element is unfolded."""
        return self.page.eval_on_selector(f"#{id}", "e => e.closest('details').open")

    def column(self, kind, number):
        """The texts of a column of the first table of a kind, from top to bottom."""
        table = self.page.locator(f"table.{kind}").first
        return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()

    def style(self, selector, name):
        return self.page.eval_on_selector(
            selector, f"e => getComputedStyle(e).getPropertyValue('{name}')"
        )


@pytest.fixture
def look(chromium):
    """Opens a page; at the end, whatever was done, nothing was loaded and nothing went wrong.

    Unless told otherwise, it opens all that the page folds.
    """
    opened = []

    def open_page(file, unfolded=True, **options):
        opened.append(Look(chromium, file, **options))
        if unfolded:
            opened[-1].unfold()
        return opened[-1]

    yield open_page
    for seen in opened:
        assert seen.complaints == []
        assert {url.split(":")[0] for url in seen.requests} <= {"file", "data"}
        assert sum(url.startswith("file:") for url in seen.requests) == 1
        seen.context.close()


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Paper and quick, something missing, something damaged, a picture from elsewhere."""
    root = tmp_path_factory.mktemp("rich")
    write_rich(root / "runs")
    write_curved(root / "runs", "original")
    write_curved(root / "runs", "full-preact", seed=1, test_error=None, progress=how_far(12))
    (write_run(root / "runs", "bn-after-add") / RESULT).write_text("{", encoding="utf-8")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="90"><style>*{fill:red}</style>'
    )
    picture = Image("A figure", svg + '<rect style="fill:green" width="900" height="90"/></svg>')
    return write_page(root, sections=(Section("Figures", pictures=(picture,)),))
