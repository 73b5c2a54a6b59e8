"""A sweep is a list of runs: variants × depths × seeds × the values of a grid of settings."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from resvar.config import resolve
from resvar.errors import UserError, nearest, quoted, require_given, shortened, unknown
from resvar.files import shipped, write_json
from resvar.ownership import run_folder
from resvar.rundir import NOTE_FORMAT, RESULT, read_json
from resvar.settings import Settings
from resvar.strict_yaml import parse_yaml, read_yaml, spelling_advice, to_yaml

GRID = ("variants", "depths", "seeds")
SWEEP_KEYS = (*GRID, "protocol", "set", "grid", "margin")
MOST_RUNS = 100_000

MANIFEST = ".sweep.json"
"""How the name of a file ends that contains the list of a sweep's runs."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    Attributes:
        settings: as they were when the sweep's command was given.
        root: the folder of all runs; `name` is the run's path below it.
        arguments: the options of the same `resvar train`, for a person.
    """

    settings: Settings
    root: Path
    name: str
    arguments: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.root / self.name


@dataclass(frozen=True)
class Conflict:
    """A run of a sweep that is impossible: the options of its `resvar train`, and the reason."""

    arguments: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Sweep:
    """Runs in the order in which they are started: each cell once before any has a second seed.

    Attributes:
        file: the user's sweep file, if there is one.
        conflicts: the impossible runs; they are not among `runs`.
        margin: percentage points within which a report calls V1 and V2 equivalent, if declared.
    """

    name: str
    root: Path
    runs: tuple[PlannedRun, ...]
    file: Path | None = None
    conflicts: tuple[Conflict, ...] = ()
    margin: float | None = None

    def require_possible(self) -> None:
        """Refuse a sweep with impossible runs.

        Raises:
            UserError: it names each reason, with one of its runs.
        """
        if self.conflicts:
            first = {conflict.reason: conflict for conflict in reversed(self.conflicts)}
            reasons = [f"{' '.join(c.arguments)}: {why.rstrip('.')}" for why, c in first.items()]
            raise UserError(
                f"{len(self.conflicts)} of {len(self.runs) + len(self.conflicts)} runs are "
                f"impossible ({'; '.join(reversed(reasons))}); change the sweep."
            )

    def write_manifest(self) -> None:
        """Write the list of runs into `root`, so that `resvar status` knows which are waiting.

        The list follows its sweep file; another file of the same name has its own list. A list of
        which results are known stays as one of the `earlier` ones when the sweep changes.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        path, names = self.root / f"{self.name}{MANIFEST}", [run.name for run in self.runs]
        file = str(self.file.absolute()) if self.file is not None else None
        with suppress(UserError):  # none, or a damaged one
            if read_json(path).get("file", file) != file:
                path = self.root / f"{self.name}-{_list_digest([str(file)])}{MANIFEST}"
        known = [found.runs for found in _declarations_in(path) if found.runs != names]
        earlier = [runs for runs in known if any((self.root / r / RESULT).exists() for r in runs)]
        content: dict[str, Any] = {"format": NOTE_FORMAT, "file": file, "runs": names}
        content |= {"margin": self.margin} if self.margin is not None else {}
        write_json(path, content | ({"earlier": earlier} if earlier else {}))


@dataclass(frozen=True)
class Declaration:
    """A sweep as it was declared: its runs, as paths below its folder, and its margin."""

    runs: list[str]
    margin: float | None


def declarations(folder: Path) -> list[Declaration]:
    """The sweeps that were started in a folder, each in all its declared forms, oldest first.

    Damaged lists are left out; `manifests` reports them.
    """
    paths = sorted(folder.glob(f"*{MANIFEST}"))
    return [found for path in paths for found in _declarations_in(path)]


def _declarations_in(path: Path) -> list[Declaration]:
    with suppress(UserError):
        content = read_json(path)
        margin = content.get("margin")
        earlier = content.get("earlier", [])
        lists = [*(earlier if isinstance(earlier, list) else []), _read_manifest(path)]
        return [
            Declaration(runs, margin if is_margin(margin) else None)
            for runs in lists
            if isinstance(runs, list) and all(map(_is_below, runs))
        ]
    return []


def is_margin(value: object) -> bool:
    """Whether a value is a margin in percentage points."""
    return isinstance(value, float | int) and not isinstance(value, bool) and 0 < value < 100


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
            f"{path}: this is damaged: 'runs' is not a list of folders below it; rerun the "
            "sweep, which rewrites it."
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
    """The runs of a sweep file and the command line, which takes precedence.

    The sweep is named after the file and the protocol. Where the command line decides which runs
    there are, a hash of the list of runs is added: different sweeps have different names, and the
    same command has the same name each time.

    Args:
        file: a YAML file with the keys variants, depths, seeds, protocol, set, grid and margin.
        given: the first four of these keys from the command line; None means not given.
        overrides: `KEY=VALUE` for every run, or `KEY=VALUE,VALUE` for a grid.
        root: the folder of all runs.

    Raises:
        UserError: a key is unknown, missing or wrong, or every run is impossible for one reason.
    """
    values = _read_sweep(file) if file is not None else {}
    values |= {key: value for key, value in given.items() if value is not None}
    source = str(file) if file is not None else "the sweep"
    if file is None:
        wanted = {f"--{key}": values.get(key) for key in ("variants", "depths")}
        require_given(wanted, "resvar sweep --variants v1,v2 --depths 20, or resvar sweep table2")
    variants = _parse_list(values, "variants", str, source)
    depths = _parse_list(values, "depths", int, source)
    seeds = _parse_seeds(values.get("seeds", 1), source)
    choices = _choices(values, overrides, source)
    if math.prod(map(len, (variants, depths, seeds, *choices.values()))) > MOST_RUNS:
        raise UserError(f"{source}: over {MOST_RUNS:,} runs; split the sweep.")
    runs: list[PlannedRun] = []
    conflicts: list[Conflict] = []
    for seed, sets, depth, variant in product(seeds, product(*choices.values()), depths, variants):
        options = {"variant": variant, "depth": depth, "protocol": values.get("protocol", "paper")}
        options["seed"] = seed
        try:
            runs.append(_plan_run(options, sets, root))
        except UserError as error:
            conflicts.append(Conflict(_arguments(options, sets), str(error)))
    if not runs and len({conflict.reason for conflict in conflicts}) == 1:
        raise UserError(conflicts[0].reason)
    if twice := [name for name, n in Counter(run.name for run in runs).items() if n > 1]:
        raise UserError(f"{source}: two runs would share {root / min(twice)}; name each cell once.")
    name = f"{file.stem if file is not None else 'sweep'}-{Path(str(options['protocol'])).stem}"
    if file is None or overrides or any(given.get(key) is not None for key in GRID):
        name += f"-{_list_digest([str(run.settings.directory) for run in runs])}"
    own = None if str(file) in shipped("sweeps") else file
    margin = _parse_margin(values.get("margin"), source)
    return Sweep(name, root, tuple(runs), own, tuple(conflicts), margin)


def _plan_run(options: Mapping[str, Any], sets: Sequence[str], root: Path) -> PlannedRun:
    settings = resolve(options=options, overrides=sets)
    name = run_folder(root, settings).relative_to(root)
    return PlannedRun(settings, root, str(name), _arguments(options, sets))


def _arguments(options: Mapping[str, Any], sets: Sequence[str]) -> tuple[str, ...]:
    """The options of `resvar train`, for any folder: the paths of files are absolute."""
    words = [
        word
        for key, value in options.items()
        for word in (
            f"--{key}",
            str(Path(value).absolute() if str(value).endswith((".yaml", ".yml")) else value),
        )
    ]
    return (*words, *(word for text in sets for word in ("--set", text)))


def _choices(
    values: Mapping[str, Any], overrides: Sequence[str], source: str
) -> dict[str, list[str]]:
    """Setting → its values in the sweep, each as the `KEY=VALUE` of `--set`.

    Raises:
        UserError: `set` or `grid` is not such a mapping, or a setting that has an option has
            several values.
    """
    fixed, grid = values.get("set", {}), values.get("grid", {})
    for key, found, form in (("set", fixed, "lr: 0.05"), ("grid", grid, "lr: [0.1, 0.05]")):
        if not isinstance(found, dict):
            raise UserError(
                f"{source}: '{key}' must be a mapping of settings, such as '{key}: {{{form}}}'."
            )
    choices = {name: [_assignment(name, value)] for name, value in fixed.items()}
    for name, listed in grid.items():
        if not isinstance(listed, list) or not listed:
            raise UserError(
                f"{source}: 'grid' needs a list of values for '{name}', not {quoted(listed)}."
            )
        if name in fixed:
            raise UserError(f"{source}: '{name}' is in both 'set' and 'grid'; leave one out.")
        choices[name] = [_assignment(name, value) for value in listed]
    for text in overrides:
        name = text.partition("=")[0].strip()
        choices[name] = _alternatives(text)
    for name in (*GRID, "protocols"):
        if len(choices.get(name[:-1], ())) > 1:
            option = f"--{name}" if name in GRID else "a sweep for each"
            raise UserError(f"{source}: for several values of '{name[:-1]}' use {option}.")
    return choices


def _alternatives(text: str) -> list[str]:
    """`lr=0.1,0.05` → `lr=0.1` and `lr=0.05`; a list is one value: `milestones=[10,20],[30]`."""
    name, _, value = text.partition("=")
    if "," not in value:
        return [text]
    listed = parse_yaml(f"[{value}]", f"--set {shortened(name.strip())}")
    return [_assignment(name.strip(), one) for one in listed] if len(listed) > 1 else [text]


def _assignment(name: str, value: Any) -> str:
    """A setting as the `KEY=VALUE` of `--set`."""
    return to_yaml({name: value}).strip().replace(": ", "=", 1)


def _read_sweep(file: Path) -> dict[str, Any]:
    """The values of a sweep file, given as a path or by the name of a shipped one.

    The name of a shipped sweep takes precedence over a file or folder of that name.
    """
    known = shipped("sweeps")
    if str(file) not in known and not file.suffix and not file.exists():
        hint = nearest(str(file), known) or f"; known are {', '.join(known)}, or a YAML file."
        raise UserError(f"there is no sweep {quoted(str(file))}{hint}")
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
        raise UserError(f"{source}: '{key}' is missing; use --{key}, separated by commas.")
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


def _parse_margin(value: Any, source: str) -> float | None:
    if value is None:
        return None
    if not is_margin(value):
        example = "percentage points above 0, such as 0.2"
        raise UserError(f"{source}: 'margin' must be {example}, not {quoted(value)}.")
    return float(value)
