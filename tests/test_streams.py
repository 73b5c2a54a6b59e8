"""What is printed: never in the way of the work, and never a control character of others."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from resvar.cli import run_command
from resvar.cli.exits import exit_code
from resvar.console import console_for_output, console_for_progress, deliver, log, print_line
from resvar.errors import OutputError, UserError
from resvar.streams import Output
from tests.support.commands import ROOT, UNMEASURED, Commands, train

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full and /proc")

# --- no control character of others ---------------------------------------------------------------

STYLES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[12]?[AK]|\r")
"""What rich writes of its own: colours, the cursor of a live display."""

HOSTILE = st.text(
    st.one_of(
        st.sampled_from(
            "\x00\x07\x08\t\r\n\x0b\x1b[];0m\x7f\x85\x9b\u200b\u202e\u2028\u2066\ufeff\udc9b"
        ),
        st.characters(exclude_categories=()),
    ),
    max_size=12,
)


class Screen(io.TextIOWrapper):
    """A terminal of some encoding that remembers what it was sent."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


def table_of(name: str) -> Table:
    table = Table(name, title=name)
    table.add_column(Text(name))
    table.add_row(name, Text(name))
    return table


def show_live(name: str) -> None:
    with Live(table_of(name), console=console_for_progress(), auto_refresh=False) as live:
        live.refresh()


def show_bar(name: str) -> None:
    column = TextColumn("{task.description}", markup=False)
    with Progress(column, console=console_for_progress(), auto_refresh=False) as bar:
        bar.add_task(name, total=2)
        bar.refresh()


def fail_with(name: str) -> None:
    def command() -> None:
        raise UserError(f"{name}: wrong.")

    assert exit_code(command) == 2


def debug(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESVAR_DEBUG", "1")
        fail_with(name)


def warn(name: str) -> None:
    """What `warnings` prints; pytest has its own way."""
    sys.stderr.write(warnings.formatwarning(name, UserWarning, name, 1))


PRINTERS = {
    "line": print_line,
    "log": log,
    "product": lambda name: deliver(name, None),
    "text": lambda name: console_for_output().print(name),
    "styled": lambda name: console_for_output().print(Text(name, style="bold")),
    "table": lambda name: console_for_output().print(table_of(name)),
    "live": show_live,
    "bar": show_bar,
    "error": fail_with,
    "traceback": debug,
    "warning": warn,
    "usage": lambda name: run_command([name]),
    "option": lambda name: run_command(["train", f"--{name}"]),
    "choice": lambda name: run_command(["show", "--family", name]),
    "file": lambda name: run_command(["train", "--config", f"/none/{name}x"]),
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", PRINTERS)
def test_no_control_character_of_others_reaches_a_terminal(kind):
    @given(HOSTILE, st.sampled_from(["utf-8", "latin-1", "ascii", "gbk"]))
    def check(name: str, encoding: str) -> None:
        screen = Screen(encoding)
        output = Output(screen)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):  # type: ignore[type-var]
            PRINTERS[kind](name)
        seen = STYLES.sub("", screen.shown())
        strange = [c for c in seen if not c.isprintable() and c != "\n"]
        assert not strange, (strange, seen)

    check()


@pytest.mark.parametrize("kind", ["line", "log", "text", "error", "usage", "file"])
def test_what_is_one_line_stays_one_line(monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "500")  # a narrower terminal breaks long lines between words
    screen = Screen("utf-8")
    output = Output(screen)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):  # type: ignore[type-var]
        PRINTERS[kind]("a\nresvar: error: b\r\nc")
    assert screen.shown().count("\n") == 1


@pytest.mark.parametrize("kind", ["line", "log", "text"])
def test_a_narrow_terminal_breaks_lines_between_words(monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "24")
    screen = Screen("utf-8")
    output = Output(screen)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):  # type: ignore[type-var]
        PRINTERS[kind]("the test error is 8.75 % in runs/quick/original-20/seed-0")
    lines = STYLES.sub("", screen.shown()).splitlines()
    assert lines == ["the test error is 8.75 %", "in runs/quick/", "original-20/seed-0"]


def test_text_is_shown_as_it_is_where_nothing_is_wrong_with_it():
    screen = Screen("utf-8")
    with contextlib.redirect_stdout(screen):
        print_line("café [/x] :smile: 3 × 4 …")
        console_for_progress().print("café [/x] :smile: 3 × 4 …", highlight=False)
        console_for_progress().print(Text("one\ntwo"))
    line = "café [/x] :smile: 3 × 4 …\n"
    assert screen.shown() == f"{line}{line}one\ntwo\n"


def test_there_is_one_place_that_prints():
    """`print` is for the pipes of worker processes; rich's `Console` escapes nothing."""
    strange = []
    for path in (ROOT / "resvar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                keywords = {word.arg for word in node.keywords}
                quiet = call == "Console" and keywords == {"quiet"}
                worker = path.parent.name == "bench" or path.name == "wandb_log.py"
                to_a_pipe = call == "print" and "file" in keywords and worker
                if call in ("print", "Console", "click.echo"):
                    strange += [] if quiet or to_a_pipe else [f"{path}: {ast.unparse(node)}"]
    assert not strange


# --- encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "8 × 8 → ▁█ é 漢"), ("latin-1", "8 × 8 -> _# é \\u6f22"),
     ("ascii", "8 x 8 -> _# \\xe9 \\u6f22")],
)  # fmt: skip
def test_what_an_encoding_lacks_is_replaced(encoding, shown):
    screen = Screen(encoding)
    with contextlib.redirect_stdout(screen):
        print_line("8 × 8 → ▁█ é 漢")
    assert screen.shown() == f"{shown}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "euc-jp"])
def test_the_product_of_a_command_is_utf_8_off_the_terminal(encoding, tmp_path):
    """The bytes of --out, whatever the locale."""
    text = "<p>8 × 8 → é 漢\t‮ \udcff</p>\r\n"
    deliver(text, tmp_path / "out.html")
    pipe = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(pipe):
        deliver(text, None)
    assert pipe.buffer.getvalue() == (tmp_path / "out.html").read_bytes()  # type: ignore[attr-defined]


# --- output that fails ----------------------------------------------------------------------------


def broken(kind: str) -> io.TextIOBase:
    """A stream whose writes fail."""
    if kind == "full":
        return Path("/dev/full").open("w", encoding="utf-8")
    if kind == "closed":
        with Path(os.devnull).open("w", encoding="utf-8") as stream:
            return stream
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@LINUX
@pytest.mark.parametrize("kind", ["full", "closed", "pipe"])
def test_showing_the_work_never_fails_and_a_product_does(kind):
    stream = broken(kind)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):  # type: ignore[type-var]
        print_line("x" * 100_000)
        log("x")
        console_for_progress().print("x")
        with pytest.raises(OutputError) as product:
            deliver("x", None)
        with pytest.raises(OutputError) as table:
            console_for_output().print("x")
    assert product.value.reader_gone == table.value.reader_gone == (kind == "pipe")
    with contextlib.suppress(OSError):
        stream.close()


# --- processes ------------------------------------------------------------------------------------


def pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def terminal_that_is_gone() -> int:
    master, terminal = pty.openpty()
    os.close(master)
    return terminal


OUTPUTS = {
    "full": lambda: os.open("/dev/full", os.O_WRONLY),
    "pipe": pipe_without_reader,
    "terminal": terminal_that_is_gone,
}


def run_with(
    commands: Commands, arguments: list[str], cwd: Path, output: str, error: str = "", **more: str
) -> tuple[int, str]:
    """Exit code and stderr of a process with such a stdout (and stderr)."""
    streams = [OUTPUTS[kind]() if kind else subprocess.PIPE for kind in (output, error)]
    done = subprocess.run(
        [sys.executable, "-m", "resvar", *arguments], cwd=cwd, start_new_session=True,
        env=commands.environment(**more), stdin=subprocess.DEVNULL, stdout=streams[0],
        stderr=streams[1], timeout=300,
    )  # fmt: skip
    for stream in streams:
        if stream != subprocess.PIPE:
            os.close(stream)
    return done.returncode, (done.stderr or b"").decode()


@LINUX
@pytest.mark.process
@pytest.mark.parametrize("arguments", [["show"], ["show", "--format", "json"], ["--help"]])
def test_a_listing_ends_with_its_reader_and_fails_with_its_disk(resvar, tmp_path, arguments):
    assert run_with(resvar, arguments, tmp_path, "pipe") == (0, "")
    assert run_with(resvar, arguments, tmp_path, "terminal") == (0, "")
    assert run_with(resvar, arguments, tmp_path, "full") == (
        1, "resvar: error: stdout cannot be written (No space left on device).\n",
    )  # fmt: skip
    assert run_with(resvar, arguments, tmp_path, "full", "full")[0] == 1
    assert run_with(resvar, ["nonsense"], tmp_path, "pipe", "full")[0] == 2


@LINUX
@pytest.mark.process
@pytest.mark.parametrize("output", OUTPUTS)
def test_training_continues_without_its_output(resvar, tmp_path, output):
    assert run_with(resvar, train("--out", "run"), tmp_path, output, output)[0] == 0
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "failure.json").exists()


@LINUX
@pytest.mark.process
@pytest.mark.parametrize("output", ["pipe", "terminal"])
def test_a_sweep_continues_without_its_output(resvar, tmp_path, output):
    options = ["--variants", "full-preact", "--depths", "8", "--seeds", "2", "--device", "cpu"]
    sweep = ["sweep", *options, "--jobs", "2", *train()[train().index("--set") :], *UNMEASURED]
    assert run_with(resvar, sweep, tmp_path, output, output)[0] == 0
    assert len([*tmp_path.glob("runs/**/result.json")]) == 2


@LINUX
@pytest.mark.process
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_never_those_of_files(resvar, tmp_path, closed):
    """What is printed went into the next file opened: `run.lock` was descriptor 2."""

    def run(*arguments: str) -> int:
        words = " ".join([sys.executable, "-m", "resvar", *map(repr, arguments)])
        command = ["sh", "-c", f"exec {words} {closed}"]
        return subprocess.run(
            command, cwd=tmp_path, env=resvar.environment(), timeout=300, capture_output=True
        ).returncode

    assert run(*train("--out", "run")) == 0
    assert (tmp_path / "run" / "result.json").exists()
    assert "full-preact" not in (tmp_path / "run" / "run.lock").read_text(encoding="utf-8")
    assert run(*train("--out", "run")) == 0
    assert run("show") == 0
    assert run("nonsense") == 2


@pytest.mark.process
def test_a_slow_reader_is_waited_for():
    """Also where a parent made the pipe non-blocking: a full one failed."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    program = (
        "from resvar.streams import open_standard_streams\n"
        "from resvar.console import deliver\n"
        "open_standard_streams()\n"
        "deliver('x' * 1_000_000, None)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=writer) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            assert len(file.read()) == 1_000_000
        assert process.wait(60) == 0


@pytest.mark.process
def test_every_locale_can_show_a_network(resvar, tmp_path):
    english = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for arguments in (["show"], ["--help"], ["train", "--help"], ["show", "--format", "markdown"]):
        found = resvar.run(*arguments, cwd=tmp_path, **english)
        assert (found.code, found.err) == (0, "")
        if arguments[-1] != "markdown":
            assert found.out.isascii()


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_stops_a_command_unless_it_was_ignored_at_the_start(resvar, tmp_path, name):
    """In the middle of `status --watch`, which has no loop of its own for signals."""
    begun = tmp_path / "runs" / "begun"
    begun.mkdir(parents=True)
    assert resvar.run(*train("--out", "runs/begun"), cwd=tmp_path).code == 0
    (begun / "result.json").unlink()
    number = getattr(signal, name)
    with resvar.started("status", "--watch", "--interval", "0.1", cwd=tmp_path) as job:
        job.read_until("1 run")
        job.send(number)
        done = job.end()
    assert (done.code, done.err) == (
        130, "resvar: stopped watching; the runs continue.\n",
    )  # fmt: skip
    if name != "SIGTERM":
        command = f"trap '' {name[3:]}; exec {sys.executable} -m resvar status --watch --interval 1"
        ignoring = subprocess.Popen(
            ["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert ignoring.stdout is not None
        while "1 run" not in ignoring.stdout.readline():
            pass
        ignoring.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            ignoring.wait(2)
        ignoring.send_signal(signal.SIGTERM)
        assert ignoring.wait(60) == 130
        ignoring.stdout.close()


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("import atexit, os, signal\nfrom resvar.cli.exits import exit_code, leave\n"
         "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
         "leave(lambda: exit_code(lambda: None))", 0, ""),
        ("import signal\nfrom resvar.cli import exits\n"
         "def raised():\n"
         "    signal.raise_signal(signal.SIGINT)\n"
         "    return []\n"
         "def command():\n"
         "    code = exits.exit_code(lambda: 1)\n"
         "    exits._stopping = raised\n"  # called once the command has returned
         "    return code\n"
         "exits.leave(command)", 1, ""),
        ("import signal\nfrom resvar.cli import exits\n"
         "def command():\n"
         "    exits.exit_code(lambda: 1)\n"
         "    signal.raise_signal(signal.SIGINT)\n"
         "exits.leave(command)", 130, "resvar: stopped.\n"),
        ("import os, signal\nfrom resvar.cli.exits import leave\n"
         "class Late:\n"
         "    def __del__(self, kill=os.kill, process=os.getpid()):\n"
         "        kill(process, signal.SIGTERM)\n"
         "late = Late()\n"  # until Python clears the modules, when its handlers are gone
         "leave(lambda: 130)", 130, ""),
        ("class Interrupted:\n"
         "    def find_spec(self, name, *_):\n"
         "        if name == 'typer': raise KeyboardInterrupt\n"
         "sys.meta_path.insert(0, Interrupted())\n"
         "from resvar.__main__ import enter\nenter()", 130, "resvar: stopped.\n"),
    ],
    ids=["end", "returned", "returning", "teardown", "begin"],
)  # fmt: skip
def test_a_signal_at_the_ends_of_a_process_changes_nothing(program, code, said):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}"], cwd=ROOT, capture_output=True,
        encoding="utf-8",
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, said)
