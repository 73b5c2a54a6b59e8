"""The options that several commands share, and the options that name settings.

The help text, the choices and the default of the latter come from `resvar.settings`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from resvar.cli import completion
from resvar.console import LONGEST_DURATION
from resvar.models.architecture import Family, Shortcut, StrideOn, UnitKind
from resvar.roles import DatasetName
from resvar.settings import ROLES, Settings

DURATION = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit})?" for unit in "dhms"))
"""Days, hours, minutes and seconds, each with its unit: a number alone would mean seconds to some
programs, and minutes to Slurm."""


def setting(name: str, default: str | None = None, least: int | None = None) -> Any:
    """The option of a setting: `NAME|FILE` for a text, its choices, or a whole number.

    Args:
        default: the command's own default in words; None: that of the setting.
        least: the smallest value of a number.
    """
    text, field = ROLES[name].help, Settings.model_fields[name]
    if default is not None:
        text = f"{text.partition(' Default:')[0]} Default: {default}."
    elif "Default:" not in text and not field.is_required():
        text = f"{text} Default: {field.default}."
    choices = [word for word in choices_of(field.annotation) if isinstance(word, str)]
    if choices:
        return value("|".join(choices), text)
    if field.annotation is str:
        return value("NAME|FILE", text, autocompletion=completion.NAMES[name])
    return number(text, least)


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, which may be optional."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(word for part in get_args(annotation) for word in choices_of(part))


def value(metavar: str, help: str, **more: Any) -> Any:
    """An option with a value."""
    return typer.Option(metavar=metavar, help=help, **more)


def choice(annotation: Any, help: str, **more: Any) -> Any:
    """An option with the values of a `Literal`."""
    return value("|".join(choices_of(annotation)), help, **more)


def number(help: str, least: int | None = None) -> Any:
    """An option with a whole number, `least` or more."""

    def parse(text: str | int) -> int:
        if not re.fullmatch(r"-?(0|[1-9][0-9]*)", str(text)):
            raise typer.BadParameter(f"'{text}' is not a whole number, such as 20.")
        if least is not None and int(text) < least:
            raise typer.BadParameter(f"{text} is less than {least}.")
        return int(text)

    return value("N", help, parser=parse)


def parse_seconds(text: str | float) -> float:
    """The `parser` of durations in seconds."""
    try:
        seconds = float(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a number of seconds.") from None
    if not 0 <= seconds < math.inf:
        raise typer.BadParameter(f"{text} is not a possible number of seconds.")
    return seconds


def parse_duration(text: str | float) -> float:
    """The `parser` of times such as `90s`, `9m`, `1.5h`, `2h30m` and `1d`; in seconds."""
    match = DURATION.fullmatch(str(text))
    units = zip(match.groups(default="0"), (86400, 3600, 60, 1), strict=True) if match else ()
    seconds = sum(float(number) * unit for number, unit in units)
    if not 0 < seconds < math.inf:
        raise typer.BadParameter(f"'{text}' is not a time such as 90s, 9m, 1.5h or 2h30m.")
    if seconds > LONGEST_DURATION:
        raise typer.BadParameter(f"'{text}' is longer than three thousand years.")
    return seconds


def parse_path(text: str | Path) -> Path:
    """The `parser` of paths. An empty one is a variable without a value, not this folder."""
    if not str(text):
        raise typer.BadParameter("the path is empty.")
    return Path(text)


def flag(name: str, help: str) -> Any:
    """An option without a value, and without its negation `--no-…`."""
    return typer.Option(name, help=help)


def out_file(metavar: str = "FILE", help: str = "Write to FILE instead of the screen.") -> Any:
    """The option `--out`."""
    return typer.Option("--out", metavar=metavar, help=help, parser=parse_path)


# --- settings -------------------------------------------------------------------------------------

VariantOption = Annotated[str | None, setting("variant")]
DepthOption = Annotated[int | None, setting("depth")]
FamilyOption = Annotated[Family | None, setting("family")]
StemOption = Annotated[Family | None, setting("stem")]
CardinalityOption = Annotated[int | None, setting("cardinality")]
BaseWidthOption = Annotated[int | None, setting("base_width")]
ShortcutOption = Annotated[Shortcut | None, setting("shortcut")]
UnitOption = Annotated[UnitKind | None, setting("unit")]
StrideOnOption = Annotated[StrideOn | None, setting("stride_on")]
DatasetOption = Annotated[DatasetName | None, setting("dataset")]
ProtocolOption = Annotated[str | None, setting("protocol")]
SeedOption = Annotated[int | None, setting("seed")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, e.g. --set lr=0.05. Repeatable.",
        autocompletion=completion.complete_assignment,
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

# --- options of several commands ------------------------------------------------------------------

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Dataset folder. Default: $RESVAR_DATA, or data/.",
        parser=parse_path,
    ),
]
DeviceOption = Annotated[
    str,
    value(
        "NAME",
        "auto (a GPU if there is one), cpu, cuda or cuda:N.",
        autocompletion=completion.complete_device,
    ),
]
SOURCE_METAVAR = "RUN|CHECKPOINT|FILE"
SOURCE_ARGUMENT = typer.Argument(
    metavar=SOURCE_METAVAR,
    help="A run directory, a checkpoint in one, or an exported .safetensors file.",
    parser=parse_path,
)
SourceArgument = Annotated[Path, SOURCE_ARGUMENT]
OptionalSourceArgument = Annotated[Path | None, SOURCE_ARGUMENT]
OutOption = Annotated[Path | None, out_file()]
IntervalOption = Annotated[
    float | None,
    value("SECONDS", "With --watch: seconds between refreshes.", parser=parse_seconds),
]
TextFormat = Literal["table", "json"]
PageFormat = Literal["table", "json", "markdown"]
FiguresOption = Annotated[
    Path | None,
    value("DIR", "Draw figures there: SVG, PNG; a report's as PDF too.", parser=parse_path),
]


def format_option(annotation: Any) -> Any:
    """The option `--format`."""
    return choice(annotation, "Output format. Default: by the suffix of --out, or table.")


# --- Slurm ----------------------------------------------------------------------------------------

Launcher = Literal["local", "slurm"]
LauncherOption = Annotated[
    Launcher, choice(Launcher, "Where the runs start: on this machine or in Slurm.")
]
LauncherConfigOption = Annotated[
    Path | None,
    value("FILE", "Slurm: YAML file with the resources of a task.", parser=parse_path),
]
PartitionOption = Annotated[str | None, value("NAME", "Slurm: partition. Default: the cluster's.")]
AccountOption = Annotated[str | None, value("NAME", "Slurm: account to charge.")]
TimeOption = Annotated[
    str | None,
    value(
        "LIMIT",
        "Slurm: time limit of a task, such as 90 (minutes) or 12:00:00. A run that reaches it "
        "is requeued and resumes.",
    ),
]
SbatchOption = Annotated[
    list[str] | None,
    value(
        "KEY[=VALUE]",
        "Slurm: any other option of sbatch, e.g. --sbatch constraint=a100. Repeatable.",
    ),
]
