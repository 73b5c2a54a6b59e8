"""What the documentation site adds to the Markdown files of the repository: hooks of MkDocs.

The site has the layout of the repository, so that a relative link leads to the same file on GitHub
and on the site. Beyond that: what pages link to is published too, docs/commands.md gets the help of
every command, formulas become MathML, and an error of the search is corrected.
"""

from __future__ import annotations

import posixpath
import re
from html import unescape
from pathlib import Path
from typing import Any

import latex2mathml.converter
from command_reference import with_reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md", "results/*.md", "docs/site/*")
LISTED = {".py": "python", ".yaml": "yaml", ".cff": "yaml", "": "text"}
"""Suffixes of the files that are shown as a page, with the language of each."""
LINK = re.compile(r"\]\(([^)\s#]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
NODE_NAME = re.compile(r"(?<=TokenSet\.prototype\.toString=function\(\)\{)([^{}]*\{[^{}]*\.id)\b")
"""In lunr, the library of the search: the function that names a node, up to an edge's number."""


class Listing(File):
    """A text file of the repository, shown as a page."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of `docs_dir` by the pages of the repository and what they link to."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path in sorted(published(ROOT)):
        files.append(_site_file(path, config))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the help of every command into docs/commands.md."""
    return with_reference(markdown) if page.file.src_uri == "docs/commands.md" else markdown


def on_page_content(content: str, **_: Any) -> str:
    """Translate formulas to MathML, which browsers display without a script."""
    return FORMULA.sub(_mathml, content)


def on_post_build(config: MkDocsConfig) -> None:
    """Keep words with digits apart in the index of the search.

    lunr merges nodes of equal names, and a name joins the letters and numbers of all edges without
    a separator: `1234` is an edge 1 to node 234, or edges 1 to node 2 and 3 to node 4. Then a
    search for the beginning of a word meets words that no page contains, and fails.
    """
    for script in Path(config.site_dir).glob("assets/javascripts/workers/search.*.js"):
        text = script.read_text(encoding="utf-8")
        script.write_text(NODE_NAME.sub(r'\1+","', text), encoding="utf-8")


def published(root: Path) -> set[str]:
    """The files of the site, relative to `root`: all pages, and the files that they link to."""
    found: set[str] = set()
    waiting = [path.relative_to(root).as_posix() for pages in PAGES for path in root.glob(pages)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.endswith(".md"):
            for link in LINK.findall((root / path).read_text(encoding="utf-8")):
                target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
                if not target.startswith("..") and (root / target).is_file():
                    waiting.append(target)
    return found


def _site_file(path: str, config: MkDocsConfig) -> File:
    place = (path, str(ROOT), config.site_dir, config.use_directory_urls)
    language = LISTED.get(posixpath.splitext(path)[1])
    if language is None:
        return File(*place)
    listing = Listing(*place, inclusion=InclusionLevel.NOT_IN_NAV)
    text = (ROOT / path).read_text(encoding="utf-8")
    below_the_pages = "---\nsearch: {boost: 0.1}\n---\n"
    listing.content_string = f"{below_the_pages}# {path}\n\n``````{language}\n{text}``````\n"
    return listing


def _mathml(match: re.Match[str]) -> str:
    kind, _, formula = match.groups()
    formula = unescape(formula).strip()
    display = "block" if kind == "div" else "inline"
    if display == "block":  # latex2mathml sets limits aside in parentheses
        formula = re.sub(r"\\(sum|prod)(?=_)", r"\\\1\\limits", formula)
    try:
        mathml = latex2mathml.converter.convert(formula, display=display)
    except Exception as error:  # its errors have no common class
        raise PluginError(f"not a formula, {type(error).__name__}: {formula}") from error
    if "\\" in mathml or "<mi>&</mi>" in mathml:
        raise PluginError(f"latex2mathml does not know a command in: {formula}")
    return f'<{kind} class="arithmatex">{mathml}</{kind}>'
