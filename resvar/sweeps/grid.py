"""A sweep is a list of runs: variants × depths × seeds under one protocol."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resvar.config import Settings, resolve
from resvar.errors import UserError, quoted, unknown
from resvar.files import shipped, write_json
from resvar.rundir import NOTE_FORMAT, read_json
from resvar.strict_yaml import parse_yaml, read_yaml, spelling_advice, to_yaml

GRID = ("variants", "depths", "seeds")
SWEEP_KEYS = (*GRID, "protocol", "set")
MOST_RUNS = 100_000

MANIFEST = ".sweep.json"
"""How the name of a file ends that contains the list of a sweep's runs."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    Attributes:
        settings: as they were when the sweep's command was given.
        arguments: the options of the same `resvar train`, for a person.
    """

    settings: Settings
    folder: Path
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.settings.directory)


@dataclass(frozen=True)
class Sweep:
    """Runs in the order in which they are started: each cell once before any has a second seed.

    Attributes:
        file: the user's sweep file, if there is one.
    """

    name: str
    root: Path
    runs: tuple[PlannedRun, ...]
    file: Path | None = None

    def write_manifest(self) -> None:
        """Write the list of runs into `root`, so that `resvar status` knows which are waiting.

        The list follows its sweep file; that of another file of the same name stays beside it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        path, names = self.root / f"{self.name}{MANIFEST}", [run.name for run in self.runs]
        file = str(self.file.absolute()) if self.file is not None else None
        with suppress(UserError):  # none, or a damaged one
            if read_json(path).get("file", file) != file:
                path = self.root / f"{self.name}-{_list_digest([str(file)])}{MANIFEST}"
        write_json(path, {"format": NOTE_FORMAT, "file": file, "runs": names})


def manifests(folder: Path) -> dict[str, list[str]]:
    """Sweep name → the directories of its runs below `folder`, for each sweep started there.

    Raises:
        UserError: a list is damaged, or written by a later version of resvar.
    """
    return {
        path.name.removesuffix(MANIFEST): _read_manifest(path)
        for path in sorted(folder.glob(f"*{MANIFEST}"))
    }


def _read_manifest(path: Path) -> list[str]:
    """The directories of the runs in a sweep's list.

    Raises:
        UserError: there is no list, it is damaged, or written by a later version of resvar.
    """
    runs = read_json(path).get("runs")
    if not isinstance(runs, list) or not all(map(_is_below, runs)):
        raise UserError(
            f"{path}: this is damaged: 'runs' is no list of folders below it; start the sweep "
            "again, which rewrites it."
        )
    return runs


def _list_digest(names: Sequence[str]) -> str:
    """Eight digits that identify a list."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]


def _is_below(name: object) -> bool:
    """Whether `name` is the relative path of a folder below another one."""
    if not isinstance(name, str) or "\0" in name:
        return False
    parts = Path(name)
    return name != "" and not parts.is_absolute() and ".." not in parts.parts


def plan_sweep(
    file: Path | None, given: Mapping[str, Any], overrides: Sequence[str], root: Path
) -> Sweep:
    """The runs of a sweep file and the command line; the command line wins.

    The sweep is named after the file and the protocol. Where the command line decides which runs
    there are, a hash of the list of runs is added: different sweeps have different names, and the
    same command has the same name each time.

    Args:
        file: a YAML file with the keys variants, depths, seeds, protocol and set.
        given: the same keys from the command line; None means not given.
        overrides: `KEY=VALUE` for every run.
        root: the folder of all runs.

    Raises:
        UserError: a key is unknown, missing or wrong, or a run is impossible.
    """
    values = _read_sweep(file) if file is not None else {}
    values |= {key: value for key, value in given.items() if value is not None}
    source = str(file) if file is not None else "the sweep"
    variants = _parse_list(values, "variants", str, source)
    depths = _parse_list(values, "depths", int, source)
    seeds = _parse_seeds(values.get("seeds", 1), source)
    protocol = values.get("protocol", "paper")
    extra = values.get("set", {})
    if not isinstance(extra, dict):
        raise UserError(
            f"{source}: 'set' must be a mapping of settings, such as 'set: {{lr: 0.05}}'."
        )
    sets = [line.replace(": ", "=", 1) for line in to_yaml(extra).splitlines()] + list(overrides)
    if len(variants) * len(depths) * len(seeds) > MOST_RUNS:
        raise UserError(f"{source}: over {MOST_RUNS:,} runs; split the sweep.")
    runs = tuple(
        _plan_run(variant, depth, seed, protocol, sets, root)
        for seed in seeds
        for depth in depths
        for variant in variants
    )
    folders = [run.folder for run in runs]
    if twice := [str(folder) for folder, count in Counter(folders).items() if count > 1]:
        raise UserError(f"{source}: two runs would share {min(twice)}; name each cell once.")
    name = f"{file.stem if file is not None else 'sweep'}-{Path(str(protocol)).stem}"
    if file is None or overrides or any(given.get(key) is not None for key in GRID):
        name += f"-{_list_digest([run.name for run in runs])}"
    return Sweep(name, root, runs, None if str(file) in shipped("sweeps") else file)


def _plan_run(
    variant: str, depth: int, seed: int, protocol: Any, sets: Sequence[str], root: Path
) -> PlannedRun:
    options = {"variant": variant, "depth": depth, "protocol": protocol, "seed": seed}
    settings = resolve(options=options, overrides=sets)
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    arguments += [word for text in sets for word in ("--set", text)]
    return PlannedRun(settings, root / settings.directory, tuple(arguments))


def _read_sweep(file: Path) -> dict[str, Any]:
    """The values of a sweep file, given as a path or by the name of a shipped one."""
    known = shipped("sweeps")
    values = read_yaml(known.get(str(file), file))
    for key in values:
        if key not in SWEEP_KEYS:
            otherwise = f"; known are {', '.join(SWEEP_KEYS)}."
            raise UserError(f"{file}: {unknown('key', key, SWEEP_KEYS, otherwise)}")
    return values


def _parse_list(values: Mapping[str, Any], key: str, kind: type, source: str) -> list[Any]:
    """The list under `key`; text from the command line is split at commas."""
    value = values.get(key)
    if value is None:
        raise UserError(f"{source}: '{key}' is missing; say --{key}, separated by commas.")
    if isinstance(value, str):
        value = [parse_yaml(word, f"--{key}") if kind is int else word for word in value.split(",")]
        value = [word.strip() if isinstance(word, str) else word for word in value]
    what = "whole numbers, such as 110, 164" if kind is int else "names, such as original"
    if not isinstance(value, list) or not value:
        raise UserError(f"{source}: '{key}' must be a list of {what}, not {quoted(value)}.")
    for word in value:
        if type(word) is not kind:
            given = quoted(word) + spelling_advice(word, kind)
            raise UserError(f"{source}: '{key}' must be a list of {what}, not of {given}.")
    return list(value)


def _parse_seeds(value: Any, source: str) -> list[int]:
    """The seeds: 0 to 4 for `5`; `0,3` and lists name them."""
    if isinstance(value, str):
        value = parse_yaml(f"[{value}]" if "," in value else value, "--seeds")
    if type(value) is int and 1 <= value <= MOST_RUNS:
        return list(range(value))
    if isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value):
        return value
    given = quoted(value) + spelling_advice(value, int)
    raise UserError(f"{source}: 'seeds' must be how many (5) or which (0,3,7), not {given}.")
