"""The options that several commands share, and the options that name settings.

The help text, the choices and the default of the latter come from `resvar.settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from resvar.models.architecture import Family, Shortcut, StrideOn, UnitKind
from resvar.settings import ROLES, DatasetName, Settings


def setting(name: str, default: str | None = None, **more: Any) -> Any:
    """The option of a setting.

    Args:
        default: the command's own default in words; None: that of the setting.
        more: further arguments of `typer.Option`.
    """
    text, field = ROLES[name].help, Settings.model_fields[name]
    if default is not None:
        text = f"{text.partition(' Default:')[0]} Default: {default}."
    elif "Default:" not in text and not field.is_required():
        text = f"{text} Default: {field.default}."
    return typer.Option(help=text, show_default=False, **more)


def value(metavar: str, help: str, **more: Any) -> Any:
    """An option with a value."""
    return typer.Option(metavar=metavar, help=help, **more)


def parse_path(text: str | Path) -> Path:
    """The `parser` of paths. An empty one is a variable without a value, and not this folder."""
    if not str(text):
        raise typer.BadParameter("a path is needed, and this is empty.")
    return Path(text)


def flag(name: str, help: str) -> Any:
    """An option without a value, and without its negation `--no-…`."""
    return typer.Option(name, help=help)


def out_file(metavar: str = "FILE", help: str = "Write to FILE instead of the screen.") -> Any:
    """The option `--out`."""
    return typer.Option("--out", metavar=metavar, help=help, parser=parse_path)


# --- settings -------------------------------------------------------------------------------------

VariantOption = Annotated[str | None, setting("variant", metavar="NAME|FILE")]
DepthOption = Annotated[int | None, setting("depth")]
FamilyOption = Annotated[Family | None, setting("family")]
StemOption = Annotated[Family | None, setting("stem")]
CardinalityOption = Annotated[int | None, setting("cardinality")]
BaseWidthOption = Annotated[int | None, setting("base_width")]
ShortcutOption = Annotated[Shortcut | None, setting("shortcut")]
UnitOption = Annotated[UnitKind | None, setting("unit")]
StrideOnOption = Annotated[StrideOn | None, setting("stride_on")]
DatasetOption = Annotated[DatasetName | None, setting("dataset")]
ProtocolOption = Annotated[str | None, setting("protocol", metavar="NAME|FILE")]
SeedOption = Annotated[int | None, setting("seed")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, e.g. --set lr=0.05. Repeatable."
    ),
]
GridOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE[,…]",
        help="Change a setting; several values make a grid, e.g. --set lr=0.1,0.05. Repeatable.",
    ),
]

# --- what several commands take -------------------------------------------------------------------

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Dataset folder. Default: $RESVAR_DATA, else data/.",
        parser=parse_path,
    ),
]
DeviceOption = Annotated[str, value("NAME", "auto (a GPU if there is one), cpu, cuda or cuda:N.")]
SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|CHECKPOINT|FILE",
        help="A run directory, a checkpoint in one, or an exported .safetensors file.",
        parser=parse_path,
    ),
]
OutOption = Annotated[Path | None, out_file()]
IntervalOption = Annotated[
    float | None, value("SECONDS", "With --watch: seconds between refreshes.")
]
FiguresOption = Annotated[
    Path | None,
    value("DIR", "Draw figures there: SVG, PNG; a report's as PDF too.", parser=parse_path),
]
FORMAT_OPTION = typer.Option(
    "--format", help="Output format. Default: by the suffix of --out, else table."
)

# --- Slurm ----------------------------------------------------------------------------------------

LauncherOption = Annotated[
    Literal["local", "slurm"],
    typer.Option(help="Where the runs start: on this machine, or in Slurm."),
]
LauncherConfigOption = Annotated[
    Path | None,
    value(
        "FILE", "Slurm: resources of a task; see configs/launchers/slurm.yaml.", parser=parse_path
    ),
]
PartitionOption = Annotated[str | None, value("NAME", "Slurm. Default: the cluster's.")]
AccountOption = Annotated[str | None, value("NAME", "Slurm: account to charge.")]
TimeOption = Annotated[
    str | None,
    value(
        "LIMIT",
        "Slurm: time limit of a task, such as 90 (minutes) or 12:00:00. A run that reaches it "
        "resumes in the queue.",
    ),
]
SbatchOption = Annotated[
    list[str] | None,
    value(
        "KEY[=VALUE]",
        "Slurm: any other option of sbatch, e.g. --sbatch constraint=a100. Repeatable.",
    ),
]
