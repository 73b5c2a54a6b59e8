"""A report as data: CSV, JSON, and one tidy frame with a row per run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from resvar.console import plain
from resvar.reports.cells import Cell
from resvar.reports.findings import Group, Report
from resvar.reports.placement_map import PlacementMap
from resvar.reports.published import Published
from resvar.reports.records import Record, RunState
from resvar.reports.statistics import Summary
from resvar.reports.tables import reason
from resvar.reports.variations import Grid, grids
from resvar.reports.verdicts import V1, V1V2Comparison
from resvar.settings import Settings

if TYPE_CHECKING:
    import pandas

RUN_FIELDS = (
    "label", "comparable_with_paper", "counted", "state", "variant", "depth", "seed", "protocol",
    "dataset", "bn_place", "relu_place", "best_on_map", "iterations", "iteration", "parameters",
    "test_error", "best_test_error", "best_test_error_note", "train_loss", "train_error",
    "holdout_error", "seconds", "images_per_second", "device", "precision", "config_hash", "commit",
    "message", "folder", "heading",
)  # fmt: skip
"""What CSV and JSON say about a run; `iteration` is how far it is, `iterations` how far it goes.

`bn_place` and `relu_place` are its cell on the 3 × 3 map, `best_on_map` whether that is the best of
its group and depth; None if there is no such cell or map. `heading` is its group's, which
says what the run is comparable with.
"""


FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""Beginnings of a formula; tabs and line breaks, which may hide one, are escaped before."""


def runs_frame(report: Report) -> pandas.DataFrame:
    """A row per run, unreadable ones last; `message` is the reason.

    The columns are `RUN_FIELDS`, None where unknown.
    """
    return _frame(_rows(report))


LINES = {"table": "cells", "verdicts": "verdicts", "comparisons": "comparisons"}
"""Part of a report → the list in a group's JSON with a line of CSV for each entry."""

GROUP_FIELDS = ("label", "dataset", "comparable_with_paper", "heading")

ENDS = {
    "interval": ("low", "high"), "sd_range": ("low", "high"), "power": ("low", "high"),
    "seeds_needed": ("low", "high"), "n": ("baseline", "variant"),
    "diverged": ("baseline", "variant"),
}  # fmt: skip
"""Pairs in JSON → the endings of their two columns in CSV."""


def report_csv(report: Report, part: str = "runs") -> str:
    """A line per run, for spreadsheets too: a text that they would compute has an apostrophe.

    Args:
        part: `runs`; or `table`, `verdicts` or `comparisons`: a line per cell, per depth, or per
            variant and depth, with the fields of the JSON and those of the group.
    """
    import pandas

    rows, columns = _rows(report), list(RUN_FIELDS)
    if part != "runs":
        rows = [
            {**{name: group[name] for name in GROUP_FIELDS}, **dict(_flat(entry))}
            for group in map(_group_data, report.groups)
            for entry in group[LINES[part]]
        ]
        columns = list(dict.fromkeys([*GROUP_FIELDS, *(name for row in rows for name in row)]))
    safe = [{key: _csv_value(value) for key, value in row.items()} for row in rows]
    frame = pandas.DataFrame(safe, columns=columns, dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")


def _flat(entry: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of an entry in a line; a pair has two, and other lists are texts."""
    for key, value in entry.items():
        name = f"{before}{key}"
        if key == "published" and value is None:
            value = {field.name: None for field in fields(Published)}
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}_")
        elif key in ENDS and not isinstance(value, int):
            names = (f"{name}_{end}" for end in ENDS[key])
            yield from zip(names, value or (None, None), strict=True)
        elif isinstance(value, list | tuple):
            several = any(isinstance(item, Mapping) for item in value)
            yield name, json.dumps(value) if several else " ".join(map(str, value))
        else:
            yield name, value


def _rows(report: Report) -> list[dict[str, Any]]:
    rows = [_run_data(record, group) for group in report.groups for record in group.records]
    return rows + [_run_data(record, None) for record in report.unread]


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(rows, columns=list(RUN_FIELDS), dtype=object)


def _csv_value(value: Any) -> Any:
    """Text in one line, and none that a spreadsheet takes for a formula (OWASP, CSV injection)."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def report_json(report: Report) -> str:
    """The whole report; a number that JSON cannot express is a bug.

    `damaged` lists the runs that could not be read, with their `state` and the reason as `message`.
    """
    data = {
        "format": 1,
        "groups": [_group_data(group) for group in report.groups],
        "grids": [_grid_data(grid) for grid in grids(report.groups)],
        "damaged": [_run_data(record, None) for record in report.unread],
    }
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    unprintable = {c for c in set(text) if not c.isprintable()} - {"\n"}
    return text.translate({ord(c): json.dumps(c)[1:-1] for c in unprintable})


def _run_data(record: Record, group: Group | None) -> dict[str, Any]:
    """The fields of a run; unknown ones are None."""
    settings, result, progress = record.settings, record.result or {}, record.progress
    data: dict[str, Any] = dict.fromkeys(RUN_FIELDS)
    if settings is not None:
        names = ("variant", "depth", "seed", "protocol", "dataset", "iterations")
        data |= {name: getattr(settings, name) for name in names} | {"config_hash": settings.hash}
        data["bn_place"], data["relu_place"] = settings.ordering.position or (None, None)
        data["best_on_map"] = _is_best(settings, group)
    if progress is not None:
        data["iteration"] = progress.iteration
        data |= {key: getattr(progress, key) for key in ("seconds", "images_per_second")}
    data |= {key: value for key, value in result.items() if key in data}
    if record.state is RunState.DONE:
        data["iteration"] = data["iterations"]
    return data | {
        "label": record.label,
        "comparable_with_paper": group is not None and group.like_paper,
        "counted": group is not None
        and record.state is RunState.DONE
        and record.folder not in group.copies,
        "state": str(record.state),
        "message": plain(reason(record)),
        "folder": plain(record.folder.as_posix()),
        "heading": plain(group.heading) if group is not None else None,
    }


def _is_best(settings: Settings, group: Group | None) -> bool | None:
    """Whether the run's cell is marked on the map of its depth."""
    for found in group.maps if group is not None else ():
        for placement in found.placements if found.depth == settings.depth else ():
            if placement.cell.variant == settings.variant:
                return placement.best
    return None


def _group_data(group: Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "dataset": group.dataset,
        "comparable_with_paper": group.like_paper,
        "heading": group.heading,
        "notes": [plain(note) for note in group.notes],
        "variants": list(group.variants),
        "depths": list(group.depths),
        "cells": [_cell_data(cell) for cell in group.cells.values()],
        "comparisons": [
            {
                "baseline": V1,
                "variant": contrast.variant,
                "depth": contrast.depth,
                **asdict(contrast.comparison),
                "p_holm": contrast.p_holm,
                "holm_comparisons": contrast.family,
            }
            for contrast in group.contrasts
        ],
        "verdicts": [_verdict_data(pair) for pair in group.v1_v2],
        "pooled": asdict(group.pooled) if group.pooled else None,
        "maps": [_map_data(found) for found in group.maps],
        "agreements": [asdict(found) for found in group.agreements],
        "runs": [_run_data(record, group) for record in group.records],
    }


def _verdict_data(pair: V1V2Comparison) -> dict[str, Any]:
    """A verdict; `p_family` and `smallest_p` are corrected for the depths."""
    found, (v1, v2) = pair.comparison, pair.sides
    power = pair.power if pair.like_paper else None
    return {
        "depth": pair.depth,
        "v1": _cell_data(pair.v1),
        "v2": _cell_data(pair.v2),
        "declared_seeds": sorted(pair.plan.seeds),
        "declared_by_sweep": pair.plan.by_sweep,
        "earlier_declarations": list(pair.plan.earlier),
        "n": [len(v1.errors), len(v2.errors)],
        "diverged": [v1.diverged, v2.diverged],
        "interim": pair.interim,
        "difference": found.difference if found else None,
        "interval": found.interval if found else None,
        "level": found.level if found else None,
        "p": found.p if found else None,
        "p_family": pair.p_family,
        "smallest_p": pair.smallest_p,
        "depths_compared": pair.depths,
        "direction": pair.direction,
        "published_difference": pair.published_difference,
        "agreement": pair.agreement,
        "margin": pair.plan.margin,
        "equivalent": pair.equivalent,
        "reproduced": pair.reproduced,
        "sd": pair.sd,
        "sd_range": power.sds if power else None,
        "power": power.powers if power else None,
        "seeds_needed": power.seeds if power else None,
        "word": pair.word,
        "sentence": pair.sentence,
    }


def _grid_data(grid: Grid) -> dict[str, Any]:
    """`settings` of a cell are texts as `--set` takes them; `default`: as the depth decides."""
    return {
        "heading": grid.heading,
        "settings": list(grid.names),
        "cells": [
            {"settings": dict(zip(grid.names, point, strict=True)), **_cell_data(cell)}
            for point, cell in grid.cells
        ],
    }


def _map_data(found: PlacementMap) -> dict[str, Any]:
    return {
        "depth": found.depth,
        "cells": [
            {"bn": at.bn, "relu": at.relu, "best": at.best, **_cell_data(at.cell)}
            for at in found.placements
        ],
        "outside": list(found.outside),
    }


def _cell_data(cell: Cell) -> dict[str, Any]:
    empty = {field.name: None for field in fields(Summary)} | {"n": 0, "values": []}
    return {
        "variant": cell.variant,
        "depth": cell.depth,
        **(asdict(cell.summary) if cell.summary else empty),
        "published": asdict(cell.published) if cell.published else None,
        "unfinished": [_unfinished_data(record) for record in cell.unfinished],
    }


def _unfinished_data(record: Record) -> dict[str, Any]:
    return {
        "state": str(record.state),
        "message": plain(reason(record)),
        "seed": record.settings.seed if record.settings else None,
        "folder": plain(record.folder.as_posix()),
    }
