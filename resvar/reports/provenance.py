"""The environments in which runs were made, and the commands that repeat the runs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from resvar.config import resolve
from resvar.errors import UserError
from resvar.files import shipped
from resvar.models.ordering import in_paper_order, shipped_as
from resvar.reports.comparable import shown
from resvar.reports.records import Record, settings_of
from resvar.rundir import CONFIG, ENVIRONMENT, read_json
from resvar.settings import NOT_HASHED, Settings

FACTS = {
    "device": "device",
    "threads": "threads",
    "cpu_capability": "instruction set",
    "onednn": "instruction set of oneDNN",
    "operators": "fused operators (SHA-256)",
    "cuda": "CUDA",
    "torch": "PyTorch",
    "numpy": "NumPy",
    "python": "Python",
    "platform": "system",
    "resvar": "resvar",
    "commit": "commit",
    "dirty": "uncommitted changes",
    "commit_reason": "no commit because",
    "dataset_checksum": "dataset (SHA-256)",
}
"""Key of `environment.json` → its name on the page; other keys follow under their own names."""

NOT_FACTS = ("format", "resumed", "device_type")
LONGEST_FACT = 100


# --- environments ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """One environment and its runs: facts by key, as text; empty if none was recorded."""

    facts: Mapping[str, str]
    runs: tuple[Record, ...]


@dataclass(frozen=True)
class Environments:
    """All environments of a report, the one with most runs first.

    Attributes:
        common: facts that are the same in all of them.
        differing: keys of the facts in which they differ.
        notes: runs resumed in another environment, and unreadable files.
    """

    all: tuple[Environment, ...]
    common: Mapping[str, str]
    differing: tuple[str, ...]
    notes: tuple[str, ...]


def environments(records: Sequence[Record]) -> Environments:
    """The runs by the environment in which they were started."""
    found: dict[str, tuple[dict[str, str], list[Record]]] = {}
    notes = []
    for record in records:
        content = record.environment or {}
        if record.environment is None and os.path.lexists(path := record.folder / ENVIRONMENT):
            try:
                content = read_json(path)
            except UserError as error:
                notes.append(str(error))
        facts = _facts(content)
        found.setdefault(json.dumps(facts), (facts, []))[1].append(record)
        notes += _resumptions(record, content)
    members = [Environment(facts, tuple(runs)) for facts, runs in found.values()]
    members.sort(key=lambda e: (not e.facts, -len(e.runs), json.dumps(dict(e.facts))))
    known = [member.facts for member in members if member.facts]
    keys = dict.fromkeys(key for facts in known for key in facts)
    shared = [key for key in keys if len({facts.get(key) for facts in known}) == 1]
    return Environments(
        tuple(members),
        {key: known[0][key] for key in shared},
        tuple(key for key in keys if key not in shared),
        tuple(notes),
    )


def _facts(content: Mapping[str, Any]) -> dict[str, str]:
    """The facts of an `environment.json`, in reading order, without lists and None."""
    ordered = [key for key in FACTS if key in content]
    ordered += sorted(key for key in content if key not in FACTS and key not in NOT_FACTS)
    plain = {key: content[key] for key in ordered if isinstance(content[key], str | int | float)}
    words = {True: "yes", False: "no"}
    return {
        key: (words[value] if isinstance(value, bool) else shown(value))[:LONGEST_FACT]
        for key, value in plain.items()
    }


def _resumptions(record: Record, content: Mapping[str, Any]) -> Iterable[str]:
    """A sentence for each time that the run was resumed in another environment."""
    resumed = content.get("resumed")
    for note in resumed if isinstance(resumed, list) else ():
        if isinstance(note, dict) and isinstance(note.get("changed"), dict):
            changes = ", ".join(f"{key}: {value}" for key, value in note["changed"].items())
            yield (
                f"{record.folder.as_posix()} was resumed at iteration {note.get('iteration')} "
                f"in another environment ({changes[:300]})."
            )


def cells_text(records: Iterable[Record]) -> str:
    """Runs in short: `original-110, original-164: seeds 0–4; full-preact-110: seed 0`."""
    cells: dict[tuple[str, str], list[int]] = {}
    for record in records:
        if record.settings is not None:
            name = f"{record.settings.variant}-{record.settings.depth}"
            cells.setdefault((record.label, name), []).append(record.settings.seed)
    several = len({label for label, _ in cells}) > 1
    alike: dict[tuple[str, str], list[str]] = {}
    for (label, name), seeds in cells.items():
        words = f"seed{'s' * (len(seeds) > 1)} {ranges(seeds)}"
        alike.setdefault((label, words), []).append(name)
    return "; ".join(
        f"{', '.join(names)}: {words}" + (f" ({label})" if several else "")
        for (label, words), names in alike.items()
    )


def ranges(numbers: Iterable[int], most: int = 6) -> str:
    """`0–4, 7`; for more than `most` pieces `0, 2, 4, … (50)`."""
    pieces: list[list[int]] = []
    ordered = sorted(set(numbers))
    for number in ordered:
        if pieces and number == pieces[-1][-1] + 1:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    words = [f"{p[0]}" if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in pieces]
    return ", ".join(words if len(words) <= most else [*words[:most], f"… ({len(ordered)})"])


# --- commands -------------------------------------------------------------------------------------


def commands(records: Sequence[Record], root: str = "runs") -> list[str]:
    """Command lines that repeat these runs with exactly their settings, below `root`.

    Runs that fill a grid of variants × depths × seeds share a `resvar sweep`. A run of a custom
    ordering or protocol is repeated from its `config.yaml`.
    """
    sweeps: dict[tuple[str, tuple[str, ...]], dict[tuple[str, int], set[int]]] = {}
    alone = []
    asked: dict[str, tuple[str, ...] | None] = {}
    for record in records:
        settings = settings_of(record)
        key = settings.model_copy(update={"seed": 0}).hash
        if key not in asked:
            asked[key] = _overrides(settings)
        overrides = asked[key]
        if overrides is None:
            config = record.folder / CONFIG
            again = Path(root) / settings.directory
            alone.append(
                _command("train", "--config", config.as_posix(), "--out", again.as_posix())
            )
        else:
            cells = sweeps.setdefault((settings.protocol, overrides), {})
            cells.setdefault((settings.variant, settings.depth), set()).add(settings.seed)
    lines = [
        _sweep(variants, depths, seeds, protocol, overrides, root)
        for (protocol, overrides), cells in sweeps.items()
        for variants, depths, seeds in _grids(cells)
    ]
    return lines + alone


def _grids(
    cells: Mapping[tuple[str, int], set[int]],
) -> Iterable[tuple[list[str], list[int], list[int]]]:
    """The cells as full grids of variants × depths × seeds, few but not minimal."""
    by_seeds: dict[tuple[int, ...], set[tuple[str, int]]] = {}
    for cell, held in cells.items():
        by_seeds.setdefault(tuple(sorted(held)), set()).add(cell)
    for seeds, members in by_seeds.items():
        by_depths: dict[tuple[int, ...], list[str]] = {}
        for variant in in_paper_order({variant for variant, _ in members}):
            depths = tuple(sorted(depth for name, depth in members if name == variant))
            by_depths.setdefault(depths, []).append(variant)
        for depths, variants in by_depths.items():
            assert set(product(variants, depths)) <= members
            yield variants, list(depths), list(seeds)


def _sweep(
    variants: Sequence[str],
    depths: Sequence[int],
    seeds: Sequence[int],
    protocol: str,
    overrides: Sequence[str],
    root: str,
) -> str:
    listed = ",".join(map(str, seeds)) if len(seeds) > 1 else f"[{seeds[0]}]"
    from_zero = list(seeds) == list(range(len(seeds)))
    words = ["--variants", ",".join(variants), "--depths", ",".join(map(str, depths))]
    words += ["--seeds", f"{len(seeds)}" if from_zero else listed]
    words += ["--protocol", protocol]
    words += [word for override in overrides for word in ("--set", override)]
    return _command("sweep", *words, *([] if root == "runs" else ["--out", root]))


def _overrides(settings: Settings) -> tuple[str, ...] | None:
    """The values of `--set` that, with variant, depth and protocol, give these settings.

    None if no command line gives them.
    """
    at_rest = {name: Settings.model_fields[name].default for name in NOT_HASHED}
    settings = settings.model_copy(update=at_rest)
    if shipped_as(settings.variant) is None or settings.protocol not in shipped("protocols"):
        return None
    options = {key: getattr(settings, key) for key in ("variant", "depth", "protocol", "seed")}
    wanted = settings.model_dump()
    unit = [f"unit={settings.unit}"]  # both units fit some depths
    for first in ([], unit):
        try:
            usual = resolve(options=options, overrides=first).model_dump()
            differing = [key for key in wanted if wanted[key] != usual[key]]
            sets = [*first, *(f"{key}={shown(wanted[key])}" for key in differing)]
            if resolve(options=options, overrides=sets) == settings:
                return tuple(sets)
        except UserError:
            continue
    return None


def _command(*words: str) -> str:
    return shlex.join(["resvar", *words])
