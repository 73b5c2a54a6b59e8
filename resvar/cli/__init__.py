"""The command line: one function per command, which parses options and calls the package.

A command imports what it needs when it is called, so `resvar --help` does not wait for torch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from resvar.cli import networks, runs
from resvar.cli.exits import exit_code, leave
from resvar.cli.help import PlainCommand, PlainGroup
from resvar.streams import check_stdout, open_standard_streams
from resvar.version import __version__

COMPLETION = "_RESVAR_COMPLETE"
"""The variable with which a shell asks for completions."""

app = typer.Typer(
    name="resvar",
    cls=PlainGroup,
    help="Where should BatchNorm and ReLU go in a residual unit?\n\n"
    "Trains the five orderings of He et al. 2016 (arXiv:1603.05027) on CIFAR-10, resumes exactly, "
    "and reports the test errors next to the published ones.\n\n"
    "\b\n"
    "Start with:\n"
    "  resvar data\n"
    "  resvar train --variant v2 --depth 20 --protocol quick\n"
    "  resvar report",
    epilog="Exit codes: 0 done, 1 failed (identify: the network differs), 2 wrong input, 130 "
    "stopped by Ctrl-C, a signal or --for (training that had begun has saved a checkpoint). With "
    "RESVAR_DEBUG=1 an error shows its traceback.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"resvar {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        check_stdout()


app.command("list", cls=PlainCommand)(networks.list_command)
app.command("settings", cls=PlainCommand)(networks.settings_command)
app.command("data", cls=PlainCommand)(runs.data_command)
app.command("train", cls=PlainCommand)(runs.train_command)
app.command("sweep", cls=PlainCommand)(runs.sweep_command)
app.command("status", cls=PlainCommand)(runs.status_command)
app.command("report", cls=PlainCommand)(runs.report_command)
app.command("evaluate", cls=PlainCommand)(networks.evaluate_command)
app.command("probe", cls=networks.ProbeHelp)(networks.probe_command)
app.command("bench", cls=PlainCommand)(networks.bench_command)
app.command("export", cls=PlainCommand)(networks.export_command)
app.command("show", cls=PlainCommand)(networks.show_command)
app.command("identify", cls=PlainCommand)(networks.identify_command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    open_standard_streams()
    leave(lambda: run_command(arguments))


def run_command(arguments: list[str] | None = None) -> int:
    """The exit code of a command line (default: this process's own)."""

    def command() -> int:
        group = typer.main.get_command(app)
        if os.environ.get(COMPLETION):
            group.main(prog_name="resvar", complete_var=COMPLETION)
        words = sys.argv[1:] if arguments is None else list(arguments)
        try:  # not `group.main`, which attributes any BrokenPipeError to stdout
            with group.make_context("resvar", words) as context:
                group.invoke(context)
        except typer.Exit as ended:  # after --help or --version, or with a command's answer
            check_stdout()
            return ended.exit_code
        return 0

    return exit_code(command)
