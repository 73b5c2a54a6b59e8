"""The request of a sweep's tasks to Slurm: shipped launcher file, user's file, command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from resvar.errors import UserError, quoted, unknown
from resvar.files import shipped
from resvar.strict_yaml import read_yaml, spelling_advice

RESERVED_OPTIONS = {
    "array": "its tasks are the runs; how many at a time says --jobs",
    "job-name": "resvar knows its jobs by it",
    "output": "resvar reads it",
    "error": "it is in the output",
    "open-mode": "a requeued task appends to its output",
    "signal": "say signal_delay in the launcher's file",
    "requeue": "it always does",
    "no-requeue": "a preempted run resumes",
    "wrap": "resvar writes the script",
    "nodes": "a task has one",
    "ntasks": "a run is one process",
    "ntasks-per-node": "a run is one process",
    "parsable": "resvar reads what sbatch prints",
    "test-only": "use --dry-run",
    "wait": "the terminal may be closed",
}
"""Options of sbatch that resvar sets or rules out, with the reason or the alternative."""

GPU_OPTIONS = ("gpus", "gpus-per-node")
"""Options of sbatch that `gpus_per_task` stands for; the other keys have the names of options."""

TIME = re.compile(
    r"(?:(?P<days>[0-9]+)-(?P<h>[0-9]+)(?::(?P<m>[0-9]+)(?::(?P<s>[0-9]+))?)?"
    r"|(?P<hours>[0-9]+):(?P<minutes>[0-9]+):(?P<seconds>[0-9]+)"
    r"|(?P<only>[0-9]+)(?::(?P<rest>[0-9]+))?)"
)
"""Slurm's forms of a time: minutes, minutes:seconds, hours:minutes:seconds, days-hours, …"""


def one_line(value: object) -> str:
    """The text of a name, or of a whole number that is one.

    Raises:
        ValueError: it is not text, empty, or more than one line; or a number such as 1.10, whose
            spelling is lost.
    """
    text = str(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not text.strip():
        raise ValueError(value)
    if not text.isprintable():
        raise ValueError(value)
    return text


def _time_limit(text: str) -> str:
    if to_seconds(text) < 60:
        raise ValueError(text)
    return text


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Line = Annotated[str, BeforeValidator(one_line)]
Name = Annotated[Line | None, Field(description="a name (one such as 1.10 in quotes)")]
Limit = Annotated[Line, AfterValidator(_time_limit)]
AtLeastOne = Annotated[int, Field(ge=1, strict=True)]
Gpus = Annotated[
    Line,
    Field(pattern=r"^([\w.-]+:[1-9][0-9]*|[0-9]+)$"),
    AfterValidator(lambda text: int(text) if text.isdecimal() else text),
]


class Resources(pydantic.BaseModel):
    """The request of each task; None leaves a value to the cluster.

    The descriptions complete the sentence "'mem' must be …".

    Attributes:
        time: the limit, in a form of sbatch.
        gpus_per_task: a number, or kind and number (`a100:1`).
        cpus_per_task: None: one for each run in the task.
        signal_delay: seconds before the limit at which the task is told to save.
        parallel: maximum number of tasks at a time.
        setup: lines of shell before the work.
        sbatch: further options of sbatch; True is one without a value.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    partition: Name
    account: Name
    qos: Name
    time: Limit | None = Field(
        description="a limit such as 90 (minutes), 12:00:00 or 1-12 (days-hours), a minute or more"
    )
    gpus_per_task: Gpus = Field(description="how many, such as 1 or 'a100:1'")
    cpus_per_task: AtLeastOne | None = Field(description="a whole number from 1")
    mem: Annotated[Line, Field(pattern="^[0-9]+[KMGT]?$")] | None = Field(
        description="such as 8G (or megabytes)"
    )
    signal_delay: AtLeastOne = Field(description="a whole number from 1")
    parallel: AtLeastOne | None = Field(description="a whole number from 1")
    setup: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        description="a list of shell lines, such as [module load x]"
    )
    sbatch: Mapping[str, str | bool]


def read_resources(
    file: Path | None, given: Mapping[str, Any], sbatch: Sequence[str] = ()
) -> Resources:
    """The shipped values, overridden by a file, overridden by the command line.

    Args:
        file: a YAML file with any of the keys of `configs/launchers/slurm.yaml`.
        given: values by key from the command line; None means not given.
        sbatch: `KEY=VALUE` or `KEY`, further options of sbatch.

    Raises:
        UserError: a key is unknown or its value wrong; the source and the remedy are named.
    """
    base = shipped("launchers")["slurm"]
    values = {key: (value, str(base)) for key, value in read_yaml(base).items()}
    if file is not None:
        for key, value in read_yaml(file).items():
            if key not in values:
                otherwise = f"; known are {', '.join(values)}."
                raise UserError(f"{file}: {unknown('key', key, values, otherwise)}")
            values[key] = value, str(file)
    for key, value in given.items():
        if value is not None:
            values[key] = value, f"--{key.replace('_', '-')}"
    options = _sbatch_options(*values.pop("sbatch"))
    for text in sbatch:
        key, separator, value = text.partition("=")
        options |= _sbatch_options({key.strip(): value if separator else True}, f"--sbatch {text}")
    try:
        resources = Resources(**{key: value for key, (value, _) in values.items()}, sbatch=options)
    except pydantic.ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        (value, source), expected = values[key], Resources.model_fields[key].description
        given_as = quoted(value) + spelling_advice(value, int)
        raise UserError(f"{source}: '{key}' must be {expected}, not {given_as}.") from None
    limit = to_seconds(resources.time) if resources.time is not None else None
    if limit is not None and limit <= resources.signal_delay:
        raise UserError(
            f"the time limit {resources.time} is {limit} s, but a task is told to save "
            f"{resources.signal_delay} s before it; allow more time, or set a smaller signal_delay."
        )
    return resources


def to_seconds(time: str) -> int:
    """Seconds of a time in one of sbatch's forms.

    Raises:
        ValueError: it has none of these forms.
    """
    match = TIME.fullmatch(time)
    if match is None:
        raise ValueError(time)
    part = {name: int(digits) for name, digits in match.groupdict(default="0").items()}
    hours = 24 * part["days"] + part["h"] + part["hours"]
    minutes = 60 * hours + part["m"] + part["minutes"] + part["only"]
    return 60 * minutes + part["s"] + part["seconds"] + part["rest"]


def _sbatch_options(options: Any, source: str) -> dict[str, str | bool]:
    """Further options of sbatch; those that are null or false are left out."""
    if not isinstance(options, dict):
        raise UserError(f"{source}: 'sbatch' must be a mapping, such as {{constraint: a100}}.")
    found: dict[str, str | bool] = {}
    for key, value in options.items():
        name = str(key).lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(
                f"{source}: {quoted(key)} is not a long option of sbatch, such as constraint."
            )
        if name in RESERVED_OPTIONS:
            raise UserError(f"{source}: 'sbatch' cannot set {name}: {RESERVED_OPTIONS[name]}.")
        own = "gpus_per_task" if name in GPU_OPTIONS else name.replace("-", "_")
        if own in Resources.model_fields:
            raise UserError(f"{source}: {name} has its own key, {own}; set that.")
        if value is None or value is False:
            continue
        try:
            found[name] = True if value is True else one_line(value)
        except ValueError:
            raise UserError(
                f"{source}: the value of {name} must be one line (such as 1.10 in quotes), "
                f"not {quoted(value)}."
            ) from None
    return found
