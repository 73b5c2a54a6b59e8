"""The command line: one function per command, which parses options and calls the package.

A command imports what it needs when it is called, so `resvar --help` does not wait for torch.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from resvar.cli import networks, runs
from resvar.cli.exits import exit_code
from resvar.version import __version__

app = typer.Typer(
    name="resvar",
    help="Where should BatchNorm and ReLU stand in a residual unit?\n\n"
    "Trains the five orderings of He et al. 2016 (arXiv:1603.05027) on CIFAR-10, resumes exactly, "
    "and sets the test errors beside the published ones.\n\n"
    "Begin with:  resvar data  ·  resvar train --variant full-preact --depth 20 --protocol quick  "
    "·  resvar report",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped. With RESVAR_DEBUG=1 an error "
    "shows its traceback.",
    pretty_exceptions_enable=False,
    add_completion=False,
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


app.command("data")(runs.data_command)
app.command("train")(runs.train_command)
app.command("sweep")(runs.sweep_command)
app.command("status")(runs.status_command)
app.command("report")(runs.report_command)
app.command("evaluate")(networks.evaluate_command)
app.command("probe", cls=networks.ProbeHelp)(networks.probe_command)
app.command("bench")(networks.bench_command)
app.command("export")(networks.export_command)
app.command("show")(networks.show_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may contain what has no encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    code = run_command(arguments)
    exec("")  # else Python, interrupted in an earlier exec, exits by a signal and not with a code
    sys.exit(code)


def run_command(arguments: list[str] | None = None) -> int:
    """The exit code of a command line (default: this process's own)."""

    def command() -> object:
        return typer.main.get_command(app).main(
            arguments, prog_name="resvar", standalone_mode=False
        )

    return exit_code(command)
