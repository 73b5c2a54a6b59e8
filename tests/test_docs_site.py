"""The documentation site: complete, without broken links, and readable without network."""

from __future__ import annotations

import functools
import html.parser
import http.server
import posixpath
import re
import shutil
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from resvar.cli import app
from tests.support.commands import ROOT

build = pytest.importorskip("mkdocs.commands.build", reason="MkDocs is missing: make setup")
pytest.importorskip("material", reason="mkdocs-material is missing: make setup")
docs_site = pytest.importorskip("docs_site", reason="latex2mathml is missing: make setup")

import markdown  # noqa: E402
from mkdocs.config import load_config  # noqa: E402
from mkdocs.exceptions import Abort  # noqa: E402
from pymdownx.arithmatex import ArithmatexExtension  # noqa: E402

COMMANDS = typer.main.get_command(app).commands
PRODUCT = "$$\n\\left( \\prod_{i=l}^{L-1} \\lambda_i \\right)\n$$"
MACHINERY = ("mkdocs.yml", "scripts/docs_site.py", "scripts/command_reference.py")
LOADED = {"src", "srcset", "poster", "data"}
"""Attributes with an address that the browser loads; `href` is one in <link> only."""


class Parsed(html.parser.HTMLParser):
    """A page: its anchors, what it links to, what it loads, and its text by anchor of a heading."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.sections, self.section = {}, ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if re.fullmatch("h[1-6]", tag):
            self.section = values.get("id", "")
        for name, value in attrs:
            if name in LOADED or (tag, name) == ("link", "href"):
                self.loads.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)

    def handle_data(self, data):
        self.sections[self.section] = self.sections.get(self.section, "") + data


def build_site(root: Path, site: Path) -> None:
    """Build strictly: a warning raises Abort."""
    config = load_config(str(root / "mkdocs.yml"), site_dir=str(site), strict=True)
    config.plugins.run_event("startup", command="build", dirty=False)
    build.build(config)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    build_site(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Parsed]:
    return {path.relative_to(site).as_posix(): Parsed(path) for path in site.rglob("*.html")}


@pytest.mark.heavy
@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_every_option_of_every_command(pages, name):
    command = COMMANDS[name]
    context = command.context_class(command, info_name=name, help_option_names=["-h", "--help"])
    section = " ".join(pages["docs/commands.html"].sections[f"resvar-{name}"].split())
    for param in command.get_params(context):
        for word in (*param.opts, *param.secondary_opts):
            assert param.param_type_name == "argument" or re.search(
                rf"(?<!\S){word}(?!\w)", section
            )
        assert " ".join((param.help or "").replace("`", "").split()) in section
    for paragraph in command.help.replace("Example: ", "").replace("`", "").split("\n\n"):
        assert " ".join(paragraph.replace("docs/why.md", "why.md").split()) in section


def test_every_page_of_the_repository_is_on_the_site(pages):
    for folder in (".", "results", "docs", "docs/decisions"):
        for page in (ROOT / folder).glob("*.md"):
            assert address(page.relative_to(ROOT).as_posix()) in pages, page


def address(source: str) -> str:
    """The page that a Markdown file becomes."""
    return source.replace("README.md", "index.md").replace(".md", ".html")


def test_the_navigation_has_every_part_and_the_menu_every_page_of_it(site, pages):
    nav = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(site))["nav"]
    parts = dict(entry for part in nav for entry in part.items())
    assert list(parts) == [
        "Start", "The article answered", "Commands", "Results", "Why", "Scaling", "Reliability",
        "Performance", "Contributing",
    ]  # fmt: skip
    menu = set(pages["index.html"].links)
    for source in re.findall(r"[\w/-]+\.md", str(nav)):
        assert source == "README.md" or address(source) in menu, source


def test_every_link_leads_to_a_page_and_an_anchor(site, pages):
    for name, page in pages.items():
        if name == "404.html":  # its links are absolute
            continue
        for link in (*page.links, *page.loads):
            address = urlsplit(link)
            if address.scheme in ("", "file"):
                target = posixpath.normpath(
                    posixpath.join(posixpath.dirname(name), unquote(address.path))
                )
                target = name if not address.path else target
                assert (site / target).is_file(), f"{name}: {link}"
                if address.fragment and target in pages:
                    assert unquote(address.fragment) in pages[target].anchors, f"{name}: {link}"


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for address in page.loads:
            assert not re.match(r"(\w+:)?//", address), f"{name}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(\w+:)?//", style.read_text(encoding="utf-8"))


def test_a_linked_file_of_code_is_a_page(pages):
    assert "class Unit(nn.Module)" in " ".join(pages["examples/plain.html"].sections.values())


@pytest.mark.heavy
@pytest.mark.parametrize(
    "mistake",
    [
        "[a page](nowhere.md)",
        "[an anchor](statistics.md#nowhere)",
        "[outside docs](../README.md#nowhere)",
        "[a file](../configs/nowhere.yaml)",
        "![a figure](why/nowhere.svg)",
        "$\\left( x$",
        "$\\unknown{x}$",
        "## resvar trian",
    ],
)
def test_a_mistake_fails(tmp_path, mistake):
    copy = copied(tmp_path)
    with (copy / "docs/commands.md").open("a", encoding="utf-8") as page:
        page.write(f"\n\n{mistake}\n")
    with pytest.raises(Abort):
        build_site(copy, tmp_path / "site")


def copied(folder: Path) -> Path:
    """The sources of the site, in a folder of their own."""
    for path in (*docs_site.published(ROOT), *MACHINERY):
        (folder / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / "copy" / path)
    return folder / "copy"


def test_formulas_become_mathml_that_needs_no_script():
    inline, block, product, money = (
        docs_site.on_page_content(
            markdown.markdown(text, extensions=[ArithmatexExtension(generic=True)])
        )
        for text in ("$x_{l+1}$", "$$\na < b\n$$", PRODUCT, "$5 and $6, `$HOME`")
    )
    assert 'display="inline"><mrow><msub><mi>x</mi>' in inline
    assert 'display="block"><mrow><mi>a</mi><mo>&#x0003C;</mo>' in block
    assert "<munderover><mo>&#x0220F;</mo>" in product
    assert "$" not in inline + block + product
    assert money == "<p>$5 and $6, <code>$HOME</code></p>"


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1300, "light")])
def test_pages_fit_the_window_and_load_nothing_from_elsewhere(site, chromium, width, scheme):
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, requests, complaints = context.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert complaints == []
    assert {urlsplit(url).scheme for url in requests} <= {"file", "data", "about"}
    context.close()


@pytest.mark.browser
def test_on_a_phone_every_figure_keeps_its_size(site, chromium):
    page = chromium.new_page(viewport={"width": 390, "height": 900})
    for name in ("residual-networks", "why"):
        page.goto((site / "docs" / f"{name}.html").as_uri())
        widths = page.evaluate("Array.from(document.images, image => image.clientWidth)")
        assert min(widths) >= 700
    page.close()


def test_nodes_of_the_search_index_have_unambiguous_names(site):
    (worker,) = (site / "assets" / "javascripts" / "workers").glob("search.*.js")
    text = worker.read_text(encoding="utf-8")
    assert re.search(r"TokenSet\.prototype\.toString=[^}]*\w=\w\+\w\+\w\.id\+\",\"\}return", text)


@pytest.mark.browser
def test_the_search_has_pages_before_listings_of_code(site, chromium):
    page = chromium.new_page()
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").click()
    page.keyboard.type("cardinality")
    found = page.locator(".md-search-result__item > a")
    found.first.wait_for()
    places = [link.get_attribute("href") for link in found.all()]
    listed = ["/examples/" in place or "timeline" in place for place in places]
    assert any(listed)
    assert listed == sorted(listed)
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("words", ["requeued", "--images-per-second"])
@pytest.mark.parametrize("served", [False, True])
def test_the_search_finds_words_and_options_with_and_without_a_server(
    site, chromium, words, served
):
    page, complaints = chromium.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    with serving(site) if served else nullcontext(site.as_uri()) as base:
        page.goto(f"{base}/docs/why.html")
        page.locator(".md-search__input").click()
        page.keyboard.type(words)
        page.locator('.md-search-result a[href*="docs/commands.html"]').first.wait_for()
        page.close()
    assert complaints == []


@contextmanager
def serving(folder):
    """The address under which the folder is served meanwhile."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
