"""The heading of a group of runs, and the caveats that precede its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resvar.console import listed
from resvar.files import shipped
from resvar.models.ordering import PAPER_ORDER
from resvar.reports.comparable import follows_paper, shown, without_effect
from resvar.reports.records import Record, RunState, result_of, settings_of
from resvar.settings import TRAINING_HALF, Settings, network_deviations

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
    """The values of a user's own protocol that have an effect."""
    idle = without_effect(settings)
    text = ", ".join(f"{n}={shown(getattr(settings, n))}" for n in names if n not in idle)
    return f"Protocol {name}: {text}."


def group_notes(
    records: Sequence[Record],
    counted: Sequence[Record],
    copies: Mapping[Path, Path],
    mixed: Sequence[str],
) -> Iterator[str]:
    """The caveats of a group, without `mixed`, those of its comparison of V1 and V2."""
    settings = settings_of(records[0])
    others = mixed_notes(counted, {settings_of(r).variant for r in counted} - {PAPER_ORDER[-1]})
    yield from others
    if settings.protocol not in shipped("protocols"):
        yield protocol_note(records[0].label, settings, TRAINING_HALF)
    elif settings.dataset == "sample":  # the heading does not name it
        yield f"Protocol {records[0].label}."
    for what, value in MADE_WITH.items():
        found = Counter(map(value, counted))
        if len(found) > 1 and not any(f"different {what}" in note for note in (*mixed, *others)):
            yield f"The runs were made with different {what}: {_counted(found)}."
    errors = {r.folder: result_of(r)["test_error"] for r in records if r.state is RunState.DONE}
    for copy, original in copies.items():
        ours, theirs = errors[original], errors[copy]
        differ = f"; their test errors differ ({ours:.2f} and {theirs:.2f})"
        yield (
            f"{copy.as_posix()} is the same run as {original.as_posix()}, which is counted"
            f"{differ if ours != theirs else ''}."
        )


# --- what was mixed -------------------------------------------------------------------------------


def _over_time(value: Callable[[Record, Mapping[str, Any]], str]) -> Callable[[Record], str]:
    """The value of a run; of one that was resumed elsewhere, its values in their order."""

    def values(record: Record) -> str:
        environment = dict(record.environment or {})
        states = [environment]
        resumed = environment.get("resumed")
        for note in resumed if isinstance(resumed, list) else ():
            if isinstance(note, dict) and isinstance(note.get("changed"), dict):
                states.append(states[-1] | note["changed"])
        return ", then ".join(dict.fromkeys(value(record, state)[:100] for state in states))

    return values


DIRTY = " with uncommitted changes"


def _commit(record: Record, environment: Mapping[str, Any]) -> str:
    commit = environment.get("commit") or result_of(record).get("commit")
    if not commit:
        return "no known commit"
    return f"{str(commit)[:7]}{DIRTY * (environment.get('dirty') is True)}"


MADE_WITH: Mapping[str, Callable[[Record], str]] = {
    "commits": _over_time(_commit),
    "devices": _over_time(lambda r, e: str(e.get("device") or result_of(r)["device"])),
    "precisions": lambda r: str(result_of(r)["precision"]),
    "kernels": _over_time(lambda r, e: str(e.get("kernels") or settings_of(r).kernels)),
    "PyTorch versions": _over_time(lambda _, e: str(e.get("torch") or "not recorded")),
}
"""What the runs of one comparison should have in common → the value of a finished run."""


def mixed_notes(
    counted: Iterable[Record], variants: Collection[str], names: Mapping[str, str] = {}
) -> list[str]:
    """A sentence for each comparison with `original` whose runs were not all made alike.

    Comparisons that differ in the same way share a sentence.

    Args:
        variants: those to compare with `original`.
        names: of variants in these sentences, where they have another one.
    """
    base = PAPER_ORDER[0]
    runs: dict[tuple[int, str], list[Record]] = {}
    for record in counted:
        settings = settings_of(record)
        if settings.variant == base or settings.variant in variants:
            runs.setdefault((settings.depth, settings.variant), []).append(record)
    alike: dict[tuple[int, str], list[str]] = {}
    for (depth, variant), theirs in sorted(runs.items(), key=lambda item: item[0][0]):
        ours = runs.get((depth, base), [])
        if variant != base and ours and (found := _differing(ours, theirs)):
            alike.setdefault((depth, found), []).append(names.get(variant, variant))
    by_text: dict[str, list[str]] = {}
    for (depth, found), those in alike.items():
        text = f"{listed([names.get(base, base), *those])} were made with {found}."
        by_text.setdefault(text, []).append(f"ResNet-{depth}")
    return [f"{listed(depths)}: {text}" for text, depths in by_text.items()]


def _differing(ours: Sequence[Record], theirs: Sequence[Record]) -> str:
    """`different commits (3 × 1a2b3c4; 2 × 5d6e7f8) and …`; empty if both were made alike."""
    parts = []
    for what, value in MADE_WITH.items():
        first, second = (Counter(map(value, side)) for side in (ours, theirs))
        if len(first | second) > 1:
            sides = dict.fromkeys(map(_counted, (first, second)))
            each = " each" if len(sides) == 1 else ""
            parts.append(f"different {what} ({'; '.join(sides)}{each})")
        elif any(DIRTY in made for made in first):
            parts.append("uncommitted changes, which may differ")
    return listed(parts)


def _counted(values: Counter[str]) -> str:
    return listed([f"{count} × {value}" for value, count in sorted(values.items())])
