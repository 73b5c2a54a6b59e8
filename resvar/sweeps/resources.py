"""What a task of a sweep asks Slurm for: the shipped launcher file, one's own, the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resvar.errors import UserError, nearest
from resvar.files import LARGEST_YAML, parse_yaml, read_text, read_yaml, shipped

OURS = {
    "array": "its tasks are the runs; how many at a time says --jobs",
    "job-name": "resvar knows its jobs by it",
    "output": "resvar reads it",
    "error": "it is in the output",
    "open-mode": "a requeued task appends to its output",
    "signal": "say signal_delay in the launcher's file",
    "requeue": "it always does",
    "no-requeue": "a run that is preempted goes on",
    "wrap": "resvar writes the script",
    "nodes": "a task has one",
    "ntasks": "a run is one process",
    "ntasks-per-node": "a run is one process",
    "parsable": "resvar reads what sbatch prints",
    "test-only": "say --dry-run",
    "wait": "the terminal may be closed",
}
"""Options of sbatch that resvar sets or rules out itself, and why or what to say instead."""

NAMED = {"cpus-per-task": "cpus_per_task", "mem": "mem", "qos": "qos", "time": "time",
         "partition": "partition", "account": "account", "gpus": "gpus_per_task",
         "gpus-per-task": "gpus_per_task", "gpus-per-node": "gpus_per_task"}  # fmt: skip
"""Options of sbatch that have a key of their own."""

TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<h>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?"
    r"|(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"
    r"|(?P<only>\d+)(?::(?P<rest>\d+))?)"
)
"""Slurm's ways to write a time: minutes, minutes:seconds, hours:minutes:seconds, days-hours, …"""


@dataclass(frozen=True)
class Resources:
    """What each task asks for; None leaves it to the cluster.

    Attributes:
        time: the limit, as sbatch takes it.
        gpus_per_task: how many, or kind and number (`a100:1`).
        cpus_per_task: None: one for each run in the task.
        signal_delay: seconds before the limit at which the task is told to save.
        parallel: tasks at work at a time, at most.
        setup: lines of shell before the work.
        sbatch: further options of sbatch; True is one without a value.
    """

    partition: str | None
    account: str | None
    qos: str | None
    time: str | None
    gpus_per_task: int | str
    cpus_per_task: int | None
    mem: str | None
    signal_delay: int
    parallel: int | None
    setup: tuple[str, ...]
    sbatch: Mapping[str, str | bool]


def read_resources(
    file: Path | None, given: Mapping[str, Any], sbatch: Sequence[str] = ()
) -> Resources:
    """The shipped values, changed by a file, changed by the command line.

    Args:
        file: a YAML file with any of the keys of `configs/launchers/slurm.yaml`.
        given: values by key from the command line; None means not given.
        sbatch: `KEY=VALUE` or `KEY`, further options of sbatch.

    Raises:
        UserError: a key is unknown or its value wrong, named with its source and the mend.
    """
    base = shipped("launchers")["slurm"]
    values = {key: (value, str(base)) for key, value in read_yaml(base).items()}
    if file is not None:
        _refuse_times_that_yaml_reads_as_numbers(file)
        for key, value in read_yaml(file).items():
            if key not in values:
                hint = nearest(key, values) or f"; known are {', '.join(values)}."
                raise UserError(f"{file}: unknown key '{key}'{hint}")
            values[key] = value, str(file)
    for key, value in given.items():
        if value is not None:
            values[key] = value, f"--{key.replace('_', '-')}"
    options = _sbatch(*values.pop("sbatch"))
    for text in sbatch:
        key, separator, value = text.partition("=")
        name = key.strip().lstrip("-").replace("_", "-")
        options |= _sbatch({name: value if separator else True}, f"--sbatch {text}")
    resources = Resources(
        **{key: _CHECKS[key](key, value, source) for key, (value, source) in values.items()},
        sbatch=options,
    )
    limit = seconds(resources.time) if resources.time is not None else None
    if limit is not None and limit <= resources.signal_delay:
        raise UserError(
            f"the time limit {resources.time} is {limit} s, but a task is told to save "
            f"{resources.signal_delay} s before it; allow more time, or set a smaller signal_delay."
        )
    return resources


def seconds(time: str) -> int:
    """What a time stands for that sbatch takes.

    Raises:
        ValueError: it is none.
    """
    match = TIME.fullmatch(time)
    if match is None:
        raise ValueError(time)
    part = {name: int(digits) for name, digits in match.groupdict(default="0").items()}
    hours = 24 * part["days"] + part["h"] + part["hours"]
    minutes = 60 * hours + part["m"] + part["minutes"] + part["only"]
    return 60 * minutes + part["s"] + part["seconds"] + part["rest"]


# --- one key each ---------------------------------------------------------------------------------


def _name(key: str, value: Any, source: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not _is_line(str(value)):
        raise UserError(f"{source}: '{key}' must be a name, not {value!r}.")
    return str(value)


def _time(key: str, value: Any, source: str) -> str | None:
    if value is None:
        return None
    text = str(value)
    if type(value) in (str, int) and TIME.fullmatch(text) and seconds(text) >= 60:
        return text
    raise UserError(
        f"{source}: '{key}' must be a limit such as 90 (minutes), 12:00:00 or 1-12 (days-hours), "
        f"a minute or more, not {value!r}."
    )


def _memory(key: str, value: Any, source: str) -> str | None:
    if value is None or (type(value) in (str, int) and re.fullmatch(r"[0-9]+[KMGT]?", str(value))):
        return None if value is None else str(value)
    raise UserError(f"{source}: '{key}' must be such as 8G (or megabytes), not {value!r}.")


def _gpus(key: str, value: Any, source: str) -> int | str:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"[\w.-]+:[1-9][0-9]*|[0-9]+", value):
        return int(value) if value.isdecimal() else value
    raise UserError(f"{source}: '{key}' must be how many, such as 1 or 'a100:1', not {value!r}.")


def _count(key: str, value: Any, source: str) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{source}: '{key}' must be a whole number from 1, not {value!r}.")
    return value


def _count_or_none(key: str, value: Any, source: str) -> int | None:
    return None if value is None else _count(key, value, source)


def _lines(key: str, value: Any, source: str) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(
            f"{source}: '{key}' must be a list of shell lines, such as [module load x]."
        )
    return tuple(lines)


_CHECKS: dict[str, Callable[[str, Any, str], Any]] = {
    "partition": _name, "account": _name, "qos": _name, "time": _time, "gpus_per_task": _gpus,
    "cpus_per_task": _count_or_none, "mem": _memory, "signal_delay": _count,
    "parallel": _count_or_none, "setup": _lines,
}  # fmt: skip


def _sbatch(options: Any, source: str) -> dict[str, str | bool]:
    """Further options of sbatch; those that are null or false are left out."""
    if not isinstance(options, dict):
        raise UserError(f"{source}: 'sbatch' must be a mapping, such as {{constraint: a100}}.")
    found: dict[str, str | bool] = {}
    for key, value in options.items():
        name = str(key).lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(f"{source}: '{key}' is no long option of sbatch, such as constraint.")
        if name in OURS:
            raise UserError(f"{source}: 'sbatch' cannot set {name}: {OURS[name]}.")
        if name in NAMED:
            raise UserError(f"{source}: {name} has a key of its own, {NAMED[name]}; set that.")
        if value is None or value is False:
            continue
        if not isinstance(value, str | int | float) or not _is_line(str(value)):
            raise UserError(f"{source}: the value of {name} must be one line, not {value!r}.")
        found[name] = True if value is True else str(value)
    return found


def _is_line(text: str) -> bool:
    return bool(text.strip()) and text.isprintable()


def _refuse_times_that_yaml_reads_as_numbers(file: Path) -> None:
    """YAML reads 2:30:00 as the number 9000, in base 60; nobody means that."""
    for line in read_text(file, LARGEST_YAML, "configuration").splitlines():
        key, _, value = line.partition(":")
        value = value.partition(" #")[0].strip()
        if key.strip() == "time" and ":" in value and type(parse_yaml(value, str(file))) is int:
            raise UserError(f"{file}: put the time in quotes: time: \"{value}\" (YAML reads it as "
                            "a number else).")  # fmt: skip
