"""Which networks a user means: names as people type them, with the options of `resvar show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resvar.errors import UserError, quoted
from resvar.explain.complexity import Complexity
from resvar.models.architecture import IMAGENET, PUBLISHED_CIFAR, Family, plan
from resvar.models.names import stated, usual_family
from resvar.models.ordering import Ordering, find_ordering

DEFAULT_VARIANT = "full-preact"
DEFAULT_DEPTH = {"cifar": 164, "imagenet": 50}

GROUPED_CIFAR = (29, 164)
"""CIFAR depths with groups: ResNeXt-29 (arXiv:1611.05431, section 5.3), and another."""


@dataclass(frozen=True)
class Request:
    """What a user asked for.

    Attributes:
        names: networks, orderings, or both, see `resvar.models.names`.
        orderings: those of `--variant`.
        given: arguments of `plan` by name.
        num_classes: None: that of the stem's dataset.
    """

    names: tuple[str, ...]
    orderings: tuple[Ordering, ...]
    given: Mapping[str, Any]
    num_classes: int | None

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        variants: str | None,
        options: Mapping[str, Any],
        num_classes: int | None,
    ) -> Request:
        """A request from the words of a command line; an option that is None was not given."""
        words = [] if variants is None else [word.strip() for word in variants.split(",")]
        if "" in words:
            raise UserError("--variant: a name is empty; write names like original,full-preact.")
        return cls(
            tuple(word.strip() for name in names for word in name.split(",")),
            tuple(map(find_ordering, words)),
            {name: value for name, value in options.items() if value is not None},
            num_classes,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for in particular."""
        return not (self.names or self.orderings or self.given)

    def networks(self) -> list[Complexity]:
        """The networks that the names and options mean together, in the order of the names.

        One name takes all orderings of `--variant`, several take one or one each. An ordering
        without a depth takes the network that the other names state, else that of the options.

        Raises:
            UserError: a name is unknown, or contradicts an option or another name.
        """
        texts = list(self.names) or [""]
        said = [stated(name) for name in self.names] or [{}]
        for name, parts in zip(texts, said, strict=True):
            self._require_agreement(name, parts)
        if len(said) == 1:
            copies = max(1, len(self.orderings))
            texts, said = texts * copies, said * copies
        orderings = self.orderings
        if len(orderings) == 1:
            orderings *= len(said)
        elif len(orderings) not in (0, len(said)):
            raise UserError(
                f"--variant takes one ordering, or one for each of the {len(said)} names, not "
                f"{len(orderings)}."
            )
        common = _common_network(texts, said)
        networks = []
        for index, (name, parts) in enumerate(zip(texts, said, strict=True)):
            usual = "original" if "depth" in parts else DEFAULT_VARIANT
            own = find_ordering(parts.get("variant", usual))
            ordering = orderings[index] if orderings else own
            if "variant" in parts and ordering != own:
                raise UserError(
                    f"--variant {ordering.name} contradicts the name {quoted(name)}; leave out "
                    "--variant, or choose another name."
                )
            architecture = {**common, **parts}
            architecture.pop("variant", None)
            networks.append(self._network(ordering, architecture))
        return networks

    def family(self, family: Family) -> list[Complexity]:
        """The published depths of a family; with groups, those that have bottlenecks.

        Raises:
            UserError: an option or a name makes no sense for a whole family.
        """
        for option in ("depth", "family", "unit", "stride_on"):
            if option in self.given:
                why = "prints both strides" if option == "stride_on" else "shows a whole family"
                raise UserError(f"--table {why}; leave out {_flag(option)}.")
        for name in self.names:
            if "depth" in stated(name):
                raise UserError(f"--table shows a whole family; leave out {quoted(name)}.")
        named = {find_ordering(stated(name)["variant"]) for name in self.names}
        orderings = named.union(self.orderings) or {find_ordering("original")}
        if len(orderings) > 1:
            raise UserError(f"--table shows one ordering at a time, not {len(orderings)}.")
        (ordering,) = orderings
        groups = self.given.get("cardinality", 1), self.given.get("base_width", 64)
        if family == "imagenet":
            units = {depth: unit for depth, (unit, _) in IMAGENET.items()}
            depths = [d for d, unit in units.items() if unit == "bottleneck" or groups == (1, 64)]
        else:
            depths = sorted(PUBLISHED_CIFAR if groups == (1, 64) else GROUPED_CIFAR)
        return [self._network(ordering, {"depth": depth, "family": family}) for depth in depths]

    def _require_agreement(self, name: str, parts: Mapping[str, Any]) -> None:
        for option, value in self.given.items():
            if option in parts and parts[option] != value:
                grouped = option in ("cardinality", "base_width")
                way = "name a network such as resnext50_32x4d" if grouped else "choose another name"
                raise UserError(
                    f"{_flag(option)} {value} contradicts the name {quoted(name)}; leave out "
                    f"{_flag(option)}, or {way}."
                )

    def _network(self, ordering: Ordering, parts: Mapping[str, Any]) -> Complexity:
        arguments = {**self.given, **parts}
        if "depth" in parts:
            arguments.setdefault("family", usual_family(parts["depth"]))
        arguments.setdefault("depth", DEFAULT_DEPTH[arguments.get("family", "cifar")])
        try:
            architecture = plan(**arguments)
        except UserError as error:
            # A run takes its settings from --set; this command has an option for each.
            raise UserError(str(error).replace("(--set unit=…)", "(--unit …)")) from error
        return Complexity.of(ordering, architecture, self.num_classes)


def _common_network(names: Sequence[str], said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The network that an ordering without a depth takes from the other names, less its variant."""
    found = []
    for parts in said:
        network = {key: value for key, value in parts.items() if key != "variant"}
        if network and network not in found:
            found.append(network)
    bare = [name for name, parts in zip(names, said, strict=True) if "depth" not in parts]
    if bare and len(found) > 1:
        raise UserError(
            f"{quoted(bare[0])} states no depth, and the other names state different ones; write "
            f"it like {bare[0]}-{found[0]['depth']}."
        )
    return found[0] if bare and found else {}


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
