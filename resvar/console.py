"""Text for people: durations, percents, speeds, rich's console, and output to a file. No torch.

`print_line`, `log` and `console_for_progress` show progress and never fail. A command whose product
is its output uses `deliver` and `console_for_output`, which raise `OutputError`.
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from resvar.errors import UserError
from resvar.files import names_stdout, require_place, write_output
from resvar.streams import Output, folded, log, plain, plain_lines, print_line

__all__ = [
    "PlainConsole",
    "console_for_output",
    "console_for_progress",
    "deliver",
    "deliver_drawn",
    "drawn_text",
    "duration",
    "file_size",
    "listed",
    "log",
    "moment",
    "output_format",
    "per_second",
    "percent",
    "plain",
    "pluralize",
    "print_line",
]

WIDTH = 200
"""Columns where the output is not a terminal: a log keeps its lines whole."""

LONGEST_DURATION = 1e11
"""Seconds, three thousand years. A longer one is an error."""


def duration(seconds: float | None) -> str:
    """`0.3 s`, `48 s`, `6:05 min`, `3:20 h`, `2 d 4 h`; `?` if None, infinite or absurd."""
    if seconds is None or not math.isfinite(seconds) or seconds > LONGEST_DURATION:
        return "?"
    if 0 < seconds < 0.95:
        return f"{max(seconds, 0.1):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d} h"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def percent(value: float, digits: int = 2) -> str:
    """`8.75 %`, from a value in percent."""
    return f"{value:.{digits}f} %"


def points(difference: float) -> str:
    """`-0.27`, signed percentage points; with more decimals where two show nothing but 0."""
    for digits in (2, 3, 4):
        text = f"{difference:+.{digits}f}"
        if float(text):
            return text
    return "0.00"


def per_second(count: float) -> str:
    """A speed without its unit: `1,234`, and `3.4` below ten."""
    return f"{count:,.0f}" if count >= 9.95 else f"{count:.1f}"


def file_size(count: float) -> str:
    """A number of bytes: `740 kB`, `170.5 MB`, `12.0 GB`."""
    if count < 999.5e3:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 999.95e6 else f"{count / 1e9:,.1f} GB"


def pluralize(count: int, noun: str) -> str:
    """`1 run`, `2 runs`, `0 runs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def p_value(p: float) -> str:
    """`= 0.016`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def moment(seconds: float) -> str:
    """Weekday and local time, `seconds` from now: `Tue 16:30`."""
    try:
        return time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
    except (OverflowError, ValueError, OSError):
        return "beyond any calendar"


# --- printing -------------------------------------------------------------------------------------

OUTPUT_SUFFIXES = {
    "table": (".txt",),
    "markdown": (".md", ".markdown"),
    "csv": (".csv",),
    "latex": (".tex",),
    "html": (".html", ".htm"),
    "json": (".json",),
    "svg": (".svg",),
}
"""Format → suffixes of its files."""


def output_format(out: Path | None, format: str | None, known: Sequence[str]) -> str:
    """The format of a command's product: `format`, else by the suffix of `out`, else the first.

    Call it before the work: it refuses an `out` that cannot be written.

    Args:
        format: the value of `--format`, if it was given.
        known: the formats of the command, keys of `OUTPUT_SUFFIXES`.

    Raises:
        UserError: `format` contradicts the suffix; the suffix belongs to none of the formats; `out`
            is a folder, or its folder is missing.
    """
    if out is None:
        return format or known[0]
    require_place(out)
    suffix = out.suffix.lower()
    meant = next((name for name, suffixes in OUTPUT_SUFFIXES.items() if suffix in suffixes), None)
    if meant is None and (format or not suffix):
        return format or known[0]
    if meant is None or meant not in known:
        endings = ", ".join(OUTPUT_SUFFIXES[name][0] for name in known)
        more = " or add --format" if meant is None else ""
        raise UserError(f"--out {out}: this command does not write {suffix}; use {endings}{more}.")
    if format not in (None, meant):
        raise UserError(
            f"--out {out}: {suffix} means {meant}, which contradicts --format {format}; leave "
            "--format out, or change the suffix."
        )
    return meant


def deliver(text: str, out: Path | None, quiet: bool = False) -> None:
    """Write the product of a command to the screen, or atomically to the file `out`.

    A file, a pipe and `out` receive the same bytes, UTF-8 in every locale; a terminal its own
    encoding.

    Args:
        quiet: do not print that `out` was written.

    Raises:
        UserError: `out` cannot be written.
        OutputError: stdout cannot be written.
    """
    content = text.encode(errors="backslashreplace")  # a name may contain lone surrogates
    if out is not None and not names_stdout(out):
        write_output(out, content)
        if not quiet:
            print_line(f"Wrote {out}")
        return
    stdout = Output.of(sys.stdout)
    if stdout.isatty():
        stdout.write(text)
    else:
        stdout.put_bytes(content)
    stdout.check()


def console_for_output(**options: Any) -> Console:
    """A console for the product of a command. It raises `OutputError` if stdout fails."""
    return _console(_ConsoleFile(Output.of(sys.stdout), fails=True), **options)


def console_for_progress(stream: TextIO | None = None) -> Console:
    """A console that shows work on `stream` (default: stdout) and never fails."""
    return _console(_ConsoleFile(Output.of(stream or sys.stdout), fails=False))


def deliver_drawn(draw: Callable[[Console], None], out: Path | None) -> None:
    """`deliver` what `draw` prints; a terminal gets it in colour and fitted to its width."""
    if out is None:
        draw(console_for_output())
    else:
        deliver(drawn_text(draw), out)


def drawn_text(draw: Callable[[Console], None]) -> str:
    """What `draw` prints, as plain text."""
    file = io.StringIO()
    draw(PlainConsole(file=file, width=WIDTH, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip() + "\n"


class PlainConsole(Console):
    """A rich console that shows text as it is: no markup, no emoji codes, no control characters.

    A string is one line: its line breaks are escaped. What is meant to have several is a `Text`. A
    terminal too narrow for a string breaks it between words.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **{"highlight": False, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        if all(isinstance(each, str) for each in objects):
            options = {"soft_wrap": True, **options}
            if self.is_terminal:
                objects = tuple(Text("\n".join(folded(plain(e), self.width))) for e in objects)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(plain_lines(text), style)


def _console(file: _ConsoleFile, **options: Any) -> Console:
    width = None if file.isatty() else WIDTH
    return PlainConsole(file=cast(IO[str], file), width=width, **options)


class _ConsoleFile(io.TextIOBase):
    """The file of a `PlainConsole`, which escapes the text; its own control sequences are kept.

    Args:
        fails: raise `OutputError` if the output fails.
    """

    def __init__(self, output: Output, fails: bool) -> None:
        self._output = output
        self._fails = fails

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._output.encoding

    def fileno(self) -> int:
        return self._output.fileno()

    def isatty(self) -> bool:
        return self._output.isatty()

    def write(self, text: str) -> int:
        self._output.put(text)
        if self._fails:
            self._output.check()
        return len(text)
