"""The heading of a group of runs, and the caveats that precede its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from resvar.config import TRAINING_HALF, Settings
from resvar.files import shipped
from resvar.reports.records import (
    Record,
    RunState,
    follows_paper,
    result_of,
    settings_of,
    shown,
)
from resvar.settings import network_deviations

DATASET_NAMES = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "sample": "sample of CIFAR-10 (2,000 images)",
}  # fmt: skip


def heading(record: Record) -> str:
    settings = settings_of(record)
    if settings.dataset == "sample":
        return f"{DATASET_NAMES['sample']}: says nothing about the paper"
    name = f"{DATASET_NAMES.get(settings.dataset, settings.dataset)}, protocol {record.label}"
    if follows_paper(settings):
        return name
    network_only = not follows_paper(settings) and record.label == _paper_but_network(settings)
    what = "network" if network_only else "protocol"
    return f"{name}: not the paper's {what}; not comparable with the published figures"


def _paper_but_network(settings: Settings) -> str:
    """The label of a run of the paper's protocol with another network."""
    network = ", ".join(f"{k}={shown(v)}" for k, v in network_deviations(settings).items())
    return f"paper ({network})"


def protocol_note(name: str, settings: Settings, names: Iterable[str]) -> str:
    """The values of a user's own protocol."""
    text = ", ".join(f"{name}={shown(getattr(settings, name))}" for name in names)
    return f"Protocol {name}: {text}."


def group_notes(
    records: Sequence[Record], counted: Sequence[Record], copies: Mapping[Path, Path]
) -> Iterator[str]:
    settings = settings_of(records[0])
    if settings.protocol not in shipped("protocols"):
        yield protocol_note(records[0].label, settings, TRAINING_HALF)
    elif settings.dataset == "sample":  # the heading does not name it
        yield f"Protocol {records[0].label}."
    for what, found in (
        ("precisions", Counter(result_of(record)["precision"] for record in counted)),
        ("devices", Counter(result_of(record)["device"] for record in counted)),
        ("kernels, whose rounding differs", Counter(settings_of(r).kernels for r in counted)),
    ):
        if len(found) > 1:
            text = ", ".join(f"{count} × {value}" for value, count in sorted(found.items()))
            yield f"The runs were made with different {what}: {text}."
    errors = {r.folder: result_of(r)["test_error"] for r in records if r.state is RunState.DONE}
    for copy, original in copies.items():
        ours, theirs = errors[original], errors[copy]
        differ = f"; their test errors differ ({ours:.2f} and {theirs:.2f})"
        yield (
            f"{copy.as_posix()} is the same run as {original.as_posix()}, which is counted"
            f"{differ if ours != theirs else ''}."
        )
