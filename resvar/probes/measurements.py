"""The measurements of a probe: plain numbers, to JSON and back. No torch.

Units are listed in the order of the signal. Shares are between 0 and 1, errors are percentages.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from resvar.errors import UserError
from resvar.export.schema import FiniteFloat, OrderingModel, StrictModel
from resvar.files import write_text
from resvar.roles import NonNegative, PositiveInt
from resvar.rundir import PROBE, read_json
from resvar.settings import Settings

PROBE_FORMAT: Literal[1] = 1

Index = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Signal(StrictModel):
    """A signal over all images, channels and pixels.

    Attributes:
        std: divided by the number of values.
        negative: share of values below zero.
        norm: Euclidean, of all values together.
    """

    mean: FiniteFloat
    std: NonNegative
    negative: Fraction
    norm: NonNegative


class UnitSignals(StrictModel):
    """One residual unit, y = after_add(shortcut + branch).

    Attributes:
        name: of the module, such as `stages.0.3`.
        stage: counted from 0.
        keeps_shape: the shortcut is the identity; otherwise it pads or projects.
        shortcut: the signal that enters the addition through the shortcut.
        branch: the signal that enters it through the branch.
        ratio: norm of the branch signal / norm of the shortcut signal; None if that is zero.
        gradient: norm of the loss's gradient with respect to the unit's input.
        gradient_ratio: `gradient` / its norm at the last unit's output; None if that is zero.
        gain: factor of BN after the addition, its scale / the deviation that it divides by;
            geometric mean over channels; 1 without such a BN.
        passed: share of values that a ReLU after the addition passes; 1 without such a ReLU.
        straight: share of values that every such ReLU has passed since the stage began.
    """

    name: str
    stage: Index
    keeps_shape: bool
    shortcut: Signal
    branch: Signal
    ratio: NonNegative | None
    gradient: NonNegative
    gradient_ratio: NonNegative | None
    gain: NonNegative
    passed: Fraction
    straight: Fraction


class Identity(StrictModel):
    """Equations 4 and 5 of arXiv:1603.05027, checked over chains of units with identity shortcuts.

    Attributes:
        images: number of images.
        chains: number of chains; each ends where the shape changes or the network ends.
        longest: units in the longest chain.
        forward: by precision (`fp32`, `fp64`): the largest |x_L - (x_l + sum of F)| of an element /
            the rounding bound; at most 1 if the equation holds.
        forward_relative: by precision: the same as a norm / the norm of x_L.
        backward: by precision: the largest norm of dE/dx_l - dE/dx_L (1 + d/dx_l sum of F) / the
            norms of its two terms; None without a gradient.
    """

    images: PositiveInt
    chains: Index
    longest: Index
    forward: dict[str, NonNegative]
    forward_relative: dict[str, NonNegative]
    backward: dict[str, NonNegative | None]


class Deletion(StrictModel):
    """Test error without the branch of one unit (Veit et al. 2016, arXiv:1605.06431).

    Attributes:
        error: of the whole network, on the same images.
        errors: unit by unit.
    """

    images: PositiveInt
    precision: Literal["fp32", "bf16"]
    error: Percent
    errors: list[Percent]

    @property
    def rises(self) -> list[float]:
        """Rise of the error in percentage points, unit by unit."""
        return [error - self.error for error in self.errors]

    @property
    def effective_units(self) -> float | None:
        """Number of equally important units with the same total damage.

        (sum of d)² / sum of d², over the rises d above zero; None without such a rise.
        """
        rises = [max(0.0, rise) for rise in self.rises]
        squares = sum(rise**2 for rise in rises)
        return sum(rises) ** 2 / squares if squares else None


class Moment(StrictModel):
    """A network at one moment of its training.

    Attributes:
        iteration: number of updates so far; 0 is the initialisation.
        loss: mean cross-entropy on the images, BN in training mode.
        end_gradient: norm of the loss's gradient with respect to the last unit's output.
    """

    iteration: Index
    loss: FiniteFloat
    end_gradient: NonNegative
    units: Annotated[list[UnitSignals], Field(min_length=1)]
    identity: Identity
    deletion: Deletion | None = None


class ProbedNetwork(OrderingModel):
    """The probed network under the names that `Settings` uses."""

    depth: PositiveInt
    seed: Index
    protocol: str
    dataset: str
    iterations: PositiveInt

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(**{name: getattr(settings, name) for name in cls.model_fields})

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.depth}"


class Probe(StrictModel):
    """The measurements on one network.

    Attributes:
        config_hash: of the run's settings; None for a network without a run.
        images: number of test images, the first in the official order.
        bn_images: images per BN micro-batch.
    """

    format: Literal[1] = PROBE_FORMAT
    network: ProbedNetwork
    config_hash: str | None
    images: PositiveInt
    bn_images: PositiveInt
    device: str
    seconds: NonNegative
    moments: Annotated[list[Moment], Field(min_length=1)]


def write_probe(folder: Path, probe: Probe) -> None:
    """Write or replace the probe of a run directory.

    Raises:
        OSError: it cannot be written.
    """
    write_text(folder / PROBE, probe.model_dump_json(indent=1) + "\n")


def read_probe(folder: Path) -> Probe | None:
    """The probe of a run directory, or None.

    Raises:
        UserError: the file is damaged, or from a later version of resvar.
    """
    path = folder / PROBE
    if not os.path.lexists(path):
        return None
    note = read_json(path)
    try:
        return Probe.from_json(json.dumps(note))
    except ValueError as error:
        raise UserError(
            f"{path}: this is damaged ({error}); `resvar probe {folder}` writes a new one."
        ) from None
