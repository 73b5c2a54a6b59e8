"""The help of every command as Markdown: the reference in docs/commands.md on the site.

The text comes from the code that prints `resvar COMMAND --help`, through a formatter that writes
Markdown instead of 80 columns.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import typer.main
from mkdocs.exceptions import PluginError

from resvar.cli import app
from resvar.cli.help import HYPHEN

SECTION = re.compile(r"^## resvar (\S+)\n", re.MULTILINE)
FLAG = re.compile(r"--[a-z][\w-]*")
CODE = re.compile(rf"(`[^`]+`|{FLAG.pattern}(?: \w+=\S*\w)?)")
CODE_AFTER_CODE = re.compile(r"(?<=\n)(    \S.*\n)\n+(?=    \S)")


def with_reference(markdown: str) -> str:
    """The page with the help of each command: its text first, its options after what is explained.

    Raises PluginError if a section is about a command that does not exist.
    """
    intro, *sections = SECTION.split(markdown)
    explained = dict(zip(sections[::2], sections[1::2], strict=True))
    root: Any = typer.main.get_command(app)
    options, commands = _help(root, "resvar", "options").split("**Commands**\n\n")
    parts = [intro, commands, options, _help(root, "resvar", "epilog")]
    for name, command in root.commands.items():
        parts += [
            f"## resvar {name}\n",
            _help(command, f"resvar {name}", "usage", "help_text"),
            explained.pop(name, ""),
            _help(command, f"resvar {name}", "options", "epilog"),
        ]
    if explained:
        raise PluginError(f"docs/commands.md has unknown commands: {', '.join(explained)}")
    return CODE_AFTER_CODE.sub(r"\1", "\n".join(parts))


class MarkdownHelp:
    """Takes what a command writes as help and keeps it as Markdown, in `text`.

    It has the methods of click's HelpFormatter that commands call.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.heading = ""
        self.text = ""

    def write_usage(self, program: str, arguments: str = "") -> None:
        self.text += f"    {program} {arguments}\n\n"

    def write_paragraph(self) -> None:
        """Paragraphs are separated already."""

    def write_text(self, text: str) -> None:
        for paragraph in text.replace(HYPHEN, "-").split("\n\n"):
            if paragraph.startswith("\b\n"):  # lines to be left as they are
                self.text += "".join(f"    {line}\n" for line in paragraph.splitlines()[1:])
            elif paragraph.startswith("Example:"):
                self.text += f"    {' '.join(paragraph.split()[1:])}\n"
            else:
                self.text += f"{_prose(paragraph)}\n"
            self.text += "\n"

    def write_dl(self, rows: Sequence[tuple[str, str]]) -> None:
        for term, text in rows:
            shown = f"<code>{html.escape(term)}</code>"
            if flag := FLAG.search(term):
                shown = f'<code id="{self.command.split()[-1]}{flag[0]}">{html.escape(term)}</code>'
            elif self.heading == "Commands":
                shown = f"[{shown}](#resvar-{term})"
            self.text += f"{shown}\n:   {_prose(text)}\n\n"

    def indentation(self) -> nullcontext[None]:
        return nullcontext()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.heading = name
        self.text += f"**{name}**\n\n"
        yield


def _help(command: Any, name: str, *parts: str) -> str:
    formatter = MarkdownHelp(name)
    context = command.context_class(command, info_name=name, help_option_names=["-h", "--help"])
    for part in parts:
        getattr(command, f"format_{part}")(context, formatter)
    return formatter.text


def _prose(text: str) -> str:
    """Text in which nothing is markup by accident; options become code, names of pages links."""
    words = CODE.split(text.replace(HYPHEN, "-"))
    words[::2] = [re.sub(r"([\\*_{}\[\]#$])", r"\\\1", html.escape(word)) for word in words[::2]]
    words[1::2] = [f"`{word.strip('`')}`" for word in words[1::2]]
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", "".join(words))
