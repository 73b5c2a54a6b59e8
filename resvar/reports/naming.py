"""Short names of groups of runs, and the settings that tell them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resvar.files import shipped
from resvar.reports.comparable import effective, shown
from resvar.reports.findings import Group
from resvar.reports.notes import DATASET_NAMES
from resvar.reports.records import settings_of
from resvar.settings import TRAINING_HALF

DIGITS = 4
"""Of the hash in a short name; more where two names would be equal."""


@dataclass(frozen=True)
class GroupName:
    """How an index names a group.

    Attributes:
        short: `paper`, or `short 3f09` where runs change their protocol; unique in a report, and
            the same in every report on the same datasets.
        settings: `lr=0.05, nesterov=true`: what they change. For a user's own protocol also the
            values in which it differs from others of its name. Empty for a shipped protocol itself.
    """

    short: str
    settings: str


def group_names(groups: Sequence[Group]) -> list[GroupName]:
    """The names of groups, in their order."""
    several = len({group.dataset for group in groups}) > 1
    values = [_own_values(group) for group in groups]
    names = []
    for group, own in zip(groups, values, strict=True):
        protocol, changes = _name_parts(group)
        others = [v for g, v in zip(groups, values, strict=True) if _name_parts(g)[0] == protocol]
        differing = [n for n in own if len({v.get(n) for v in others}) > 1]
        words = [*(f"{name}={own[name]}" for name in differing), *([changes] if changes else [])]
        dataset = f"{DATASET_NAMES.get(group.dataset, group.dataset)}, " if several else ""
        names.append(GroupName(dataset + _short(group, groups), ", ".join(words)))
    return names


def _short(group: Group, groups: Sequence[Group]) -> str:
    """The protocol, a user's own one with its hash; and a hash of the label if it says more."""
    protocol, changes = _name_parts(group)
    digest = _label_digest(group)
    if _is_own(group):
        protocol = group.label.split(", ")[0].replace("(", "").removesuffix(")")
    if not changes:
        return protocol
    others = {_label_digest(g) for g in groups if g.label != group.label}
    digits = next(n for n in range(DIGITS, 65) if digest[:n] not in {o[:n] for o in others})
    return f"{protocol} {digest[:digits]}"


def _label_digest(group: Group) -> str:
    return hashlib.sha256(group.label.encode()).hexdigest()


def _is_own(group: Group) -> bool:
    """Whether the protocol is a user's, whose label contains a hash of its values."""
    return settings_of(group.records[0]).protocol not in shipped("protocols")


def _name_parts(group: Group) -> tuple[str, str]:
    """The protocol, and the changes that the label lists."""
    protocol, _, inside = group.label.partition(" (")
    changes = inside.removesuffix(")")
    return protocol, changes.partition(", ")[2] if _is_own(group) else changes


def _own_values(group: Group) -> Mapping[str, str]:
    """The values of a user's own protocol, as text; none of a shipped one."""
    settings = effective(settings_of(group.records[0]))
    return {n: shown(getattr(settings, n)) for n in TRAINING_HALF} if _is_own(group) else {}
