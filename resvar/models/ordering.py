"""An ordering: where BatchNorm and ReLU are in a residual unit.

This is the one idea of the project. He et al. 2016 (arXiv:1603.05027, figure 4) compare five
orderings; each differs from the others only in where **one** BN and **one** ReLU are:

    lead        before the first convolution
    between     between two convolutions: always BN and ReLU
    trail       after the last convolution
    after_add   after the addition of branch and shortcut

Everything else in the package reads these four lists. An ordering is a YAML file, not code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from resvar.errors import UserError, nearest, quoted, unknown
from resvar.files import shipped
from resvar.strict_yaml import read_yaml

OPS = ("bn", "relu")
PLACES = ("lead", "between", "trail", "after_add")
ORDERING_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
"""An ordering's name; it is part of a folder's name."""

MOST_OPS = 20
"""At one place; more are a mistake."""

PAPER_ORDER = ("original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact")
"""The five published orderings as figure 4 of the paper lists them, (a) to (e)."""

ALIASES = {"v1": "original", "v2": "full-preact"}
"""Other names of orderings, in any case. Records have the name of the file."""

MAP_PLACES = ("lead", "trail", "after_add")
"""The places of the 3 × 3 map: its rows are those of BN, its columns those of ReLU."""


class Described(Protocol):
    """An object with the name of an ordering, such as a run's settings.

    Its four lists are read by their names, `PLACES`: ops as pydantic or JSON have them.
    """

    @property
    def variant(self) -> str: ...
    @property
    def unusual(self) -> bool: ...


@dataclass(frozen=True)
class Ordering:
    """The ops, `bn` or `relu`, at each of the four places of a residual unit.

    Raises:
        UserError: an op is unknown, or BN or ReLU does not occur exactly once outside `between`
            (`unusual=True` lifts the second rule, for orderings beyond the published idea).
    """

    name: str
    lead: tuple[str, ...] = ()
    between: tuple[str, ...] = OPS
    trail: tuple[str, ...] = ()
    after_add: tuple[str, ...] = ()
    unusual: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(ORDERING_NAME, self.name):
            raise UserError(
                "an ordering's 'name' must consist of at most 200 letters, digits, '-', '_' and "
                f"'.', and begin with a letter or digit; {quoted(self.name)} does not."
            )
        for place in PLACES:
            if len(getattr(self, place)) > MOST_OPS:
                raise UserError(f"ordering '{self.name}': '{place}' has over {MOST_OPS} ops.")
            for op in getattr(self, place):
                if op not in OPS:
                    raise UserError(
                        f"ordering '{self.name}': '{place}' contains the unknown op {quoted(op)}"
                        f"{nearest(str(op), OPS) or '; choose from bn, relu.'}"
                    )
        if self.unusual:
            return
        if sorted(self.between) != sorted(OPS):
            raise UserError(
                f"ordering '{self.name}': 'between' must contain bn and relu once each, "
                f"not {list(self.between)}; 'unusual: true' allows it."
            )
        for op in OPS:
            places = [place for place in PLACES if place != "between"]
            found = [place for place in places for held in getattr(self, place) if held == op]
            if len(found) != 1:
                where = f"occurs {len(found)} times ({', '.join(found)})" if found else "is missing"
                raise UserError(
                    f"ordering '{self.name}': {op} {where}; it must occur once in lead, trail or "
                    "after_add. For another number set 'unusual: true'."
                )

    @classmethod
    def of(cls, settings: Described) -> Ordering:
        """The ordering that settings spell out."""
        places = {place: tuple(getattr(settings, place)) for place in PLACES}
        return cls(name=settings.variant, unusual=settings.unusual, **places)

    @property
    def stem(self) -> tuple[str, ...]:
        """The ops after the network's first convolution: BN and ReLU without those in `lead`."""
        return tuple(op for op in OPS if op not in self.lead)

    @property
    def projection_has_bn(self) -> bool:
        """BN follows a projection shortcut exactly if the branch's `trail` begins with BN.

        So both terms of the addition are normalised, or neither.
        """
        return self.trail[:1] == ("bn",)

    @property
    def position(self) -> tuple[str, str] | None:
        """The places of BN and ReLU on the 3 × 3 map, such as `("trail", "after_add")`.

        None where the map has no such cell: for another `between`, for another number of ops, and
        where ReLU comes before BN at one place.
        """
        at = {op: [place for place in MAP_PLACES if op in getattr(self, place)] for op in OPS}
        held = [op for place in MAP_PLACES for op in getattr(self, place)]
        if self.between != OPS or sorted(held) != sorted(OPS):
            return None
        (bn,), (relu,) = at["bn"], at["relu"]
        return None if bn == relu and getattr(self, bn) != OPS else (bn, relu)


def map_name(bn: str, relu: str) -> str:
    """The name of a cell of the 3 × 3 map, such as `bn-trail-relu-after-add`."""
    return f"bn-{bn}-relu-{relu}".replace("_", "-")


def find_ordering(variant: str | Ordering) -> Ordering:
    """The ordering that a user means: an `Ordering`, a shipped name, or the path of a YAML file.

    A shipped ordering is known by its place on the 3 × 3 map too: `bn-trail-relu-after-add` is
    the one named `original`. `v1` means `original` and `v2` `full-preact`.

    Raises:
        UserError: the variant is unknown (the nearest name is suggested), or the file is wrong.
    """
    if isinstance(variant, Ordering):
        return variant
    if (file := shipped_as(ALIASES.get(variant.lower(), variant))) is not None:
        return read_ordering(file)
    if variant.endswith((".yaml", ".yml")) or "/" in variant:
        return read_ordering(Path(variant))
    known = [*shipped("variants"), *_by_position()]
    otherwise = f"; choose from {', '.join(known_variants())}, or give a YAML file."
    raise UserError(unknown("variant", variant, known, otherwise))


def shipped_as(name: str) -> Path | None:
    """The shipped file that a name means: by its own name, or by its place on the 3 × 3 map."""
    own = shipped("variants").get(name)
    return own if own is not None or not name.startswith("bn-") else _by_position().get(name)


def _by_position() -> dict[str, Path]:
    """`bn-<place>-relu-<place>` → file, for the shipped orderings on the 3 × 3 map."""
    at = {path: read_ordering(path).position for path in shipped("variants").values()}
    return {map_name(*position): path for path, position in at.items() if position is not None}


def known_variants() -> list[str]:
    """The shipped variants, the published ones first and in the paper's order."""
    return in_paper_order(shipped("variants"))


def in_paper_order(variants: Mapping[str, Any] | set[str] | list[str]) -> list[str]:
    """Variant names in the order of figure 4; the others follow by name."""
    rank = {name: index for index, name in enumerate(PAPER_ORDER)}
    return sorted(variants, key=lambda name: (rank.get(name, len(rank)), name))


def read_ordering(path: Path) -> Ordering:
    """The ordering in a variant file.

    Raises:
        UserError: the file cannot be read, or one of its keys is unknown, missing or wrong.
    """
    values = read_yaml(path)
    known = ("name", "figure", *PLACES, "unusual")
    for key in values:
        if key not in known:
            otherwise = f"; choose from {', '.join(known)}."
            raise UserError(f"{path}: {unknown('key', key, known, otherwise)}")
    for place in PLACES:
        value = values.get(place, list(OPS) if place == "between" else None)
        if not isinstance(value, list) or not all(isinstance(op, str) for op in value):
            raise UserError(f"{path}: '{place}' must be a list of ops, such as [bn, relu] or [].")
        values[place] = tuple(value)
    name, unusual = values.get("name", path.stem), values.get("unusual", False)
    if not isinstance(name, str):
        given = quoted(name)
        raise UserError(f"{path}: 'name' must be text, in quotes if need be, not {given}.")
    if not isinstance(unusual, bool):
        raise UserError(f"{path}: 'unusual' must be true or false.")
    file = shipped_as(name)
    if file is not None and path.resolve() != file.resolve():
        taken = read_ordering(file)
        if any(values[place] != getattr(taken, place) for place in PLACES):
            raise UserError(
                f"{path}: the name '{name}' belongs to a shipped ordering; choose another."
            )
        name = taken.name
    try:
        return Ordering(name=name, unusual=unusual, **{place: values[place] for place in PLACES})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
