"""What a probe measured, as plain numbers that go to JSON and come back. No torch.

Units are listed in the order in which the signal meets them, and shares lie between 0 and 1.
Errors are percentages.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from resvar.config import Settings
from resvar.errors import UserError
from resvar.files import write_text
from resvar.models.ordering import Ordering
from resvar.rundir import PROBE, read_json

FORMAT: Literal[1] = 1
"""Of `probe.json`; a file with another is refused."""

Number = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]


class Part(pydantic.BaseModel):
    """Frozen, strict, and without unknown names."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Signal(Part):
    """A signal over all images, channels and pixels.

    Attributes:
        std: with the number of values below the line.
        negative: share of values below zero.
        norm: Euclidean, of all values together.
    """

    mean: Number
    std: NotNegative
    negative: Share
    norm: NotNegative


class Unit(Part):
    """One residual unit, y = after_add(shortcut + branch).

    Attributes:
        name: of the module, such as `stages.0.3`.
        stage: counted from 0.
        keeps_shape: its shortcut is the identity; else it pads or projects.
        shortcut: what enters the addition by the shortcut.
        branch: what enters it by the branch.
        ratio: the branch's norm by that of the shortcut signal; None where the latter is zero.
        gradient: norm of the loss's gradient with respect to the unit's input.
        gradient_ratio: that by the norm at the last unit's output; None where the latter is zero.
        gain: what BN after the addition multiplies the signal by: its scale over the deviation
            that it divides by, as the geometric mean over channels; 1 where there is none.
        passed: share of values that a ReLU after the addition lets pass; 1 where there is none.
        straight: share of values that passed every such ReLU since the stage began.
    """

    name: str
    stage: Index
    keeps_shape: bool
    shortcut: Signal
    branch: Signal
    ratio: NotNegative | None
    gradient: NotNegative
    gradient_ratio: NotNegative | None
    gain: NotNegative
    passed: Share
    straight: Share


class Identity(Part):
    """Equations 4 and 5 of arXiv:1603.05027, checked over chains of units with identity shortcuts.

    Attributes:
        images: that were passed through the network.
        chains: how many; each ends where the shape changes or the network ends.
        longest: units in the longest.
        forward: by precision (`fp32`, `fp64`): the largest |x_L - (x_l + sum of F)|, element by
            element, by what rounding allows; at most 1 where the equation holds.
        forward_relative: the same in norms: by that of x_L.
        backward: by precision: the largest norm of dE/dx_l - dE/dx_L (1 + d/dx_l sum of F), by the
            norms of the two terms; None where there is no gradient at all.
    """

    images: Count
    chains: Index
    longest: Index
    forward: dict[str, NotNegative]
    forward_relative: dict[str, NotNegative]
    backward: dict[str, NotNegative | None]


class Deletion(Part):
    """Test error with one unit's branch taken away (Veit et al. 2016, arXiv:1605.06431).

    Attributes:
        error: of the whole network, on the same images.
        errors: unit by unit.
    """

    images: Count
    precision: Literal["fp32", "bf16"]
    error: Percent
    errors: list[Percent]

    @property
    def rises(self) -> list[float]:
        """Percentage points by which the error rises, unit by unit."""
        return [error - self.error for error in self.errors]

    @property
    def effective_units(self) -> float | None:
        """How many units, all weighing the same, would spread the damage as these do.

        (sum of d)² / sum of d², over the rises d above zero; None where no deletion hurts.
        """
        rises = [max(0.0, rise) for rise in self.rises]
        squares = sum(rise**2 for rise in rises)
        return sum(rises) ** 2 / squares if squares else None


class Moment(Part):
    """A network at one moment of its training.

    Attributes:
        iteration: updates behind it; 0 is the initialisation.
        loss: mean cross-entropy on the images, BN in training mode.
        end_gradient: norm of the loss's gradient with respect to the last unit's output.
    """

    iteration: Index
    loss: Number
    end_gradient: NotNegative
    units: Annotated[list[Unit], Field(min_length=1)]
    identity: Identity
    deletion: Deletion | None = None


class Network(Part):
    """Which network was probed, by the names that settings have."""

    variant: str
    lead: list[str]
    between: list[str]
    trail: list[str]
    after_add: list[str]
    unusual: bool
    depth: Count
    seed: Index
    protocol: str
    dataset: str
    iterations: Count

    @classmethod
    def of(cls, settings: Settings) -> Network:
        return cls(**{name: getattr(settings, name) for name in cls.model_fields})

    @property
    def ordering(self) -> Ordering:
        return Ordering.of(self)

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.depth}"


class Probe(Part):
    """All that one call measured on one network.

    Attributes:
        config_hash: of the run's settings; None for a network that belongs to no run.
        images: test images, the first ones in the official order.
        bn_images: images that one BN sees at a time.
    """

    format: Literal[1] = FORMAT
    network: Network
    config_hash: str | None
    images: Count
    bn_images: Count
    device: str
    seconds: NotNegative
    moments: Annotated[list[Moment], Field(min_length=1)]


def write_probe(folder: Path, probe: Probe) -> None:
    """Save what was measured in the run's directory, in the place of what was there.

    Raises:
        OSError: it cannot be written.
    """
    write_text(folder / PROBE, probe.model_dump_json(indent=1) + "\n")


def read_probe(folder: Path) -> Probe | None:
    """What `resvar probe` saved in a run directory; None where it was not probed.

    Raises:
        UserError: the file is damaged, or of a later version of resvar.
    """
    path = folder / PROBE
    if not os.path.lexists(path):
        return None
    note = read_json(path)
    try:
        return Probe.model_validate_json(json.dumps(note))  # in JSON a list may be a tuple
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        problem = f"'{key}': {first['msg']}" if key else first["msg"]
        raise UserError(
            f"{path}: this is damaged ({problem}); `resvar probe {folder}` writes it anew."
        ) from None
