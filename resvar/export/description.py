"""The description of the weights in an exported file: JSON in the metadata, key `resvar`.

It contains the ordering's four lists, the architecture, the settings of the run, the iteration, the
normalisation of the images and the names of the classes. So the file alone is enough to rebuild the
network and classify images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field

from resvar.data.memory import Normalization
from resvar.export.schema import FiniteFloat, OrderingModel, StrictModel
from resvar.models.architecture import Architecture, plan
from resvar.models.network import ResidualNetwork
from resvar.models.ordering import PLACES
from resvar.settings import ARCHITECTURE, Settings
from resvar.version import __version__

DESCRIPTION_FORMAT: Literal[1] = 1
DESCRIPTION_KEY = "resvar"

Size = Annotated[int, Field(ge=1, le=2**20)]


@dataclass(frozen=True)
class Provenance:
    """Where weights come from; None means unknown.

    Attributes:
        settings: of the training run.
        iteration: number of updates so far.
        normalization: of the network's input images.
        class_names: in the order of the logits.
    """

    settings: Settings | None = None
    iteration: int | None = None
    normalization: Normalization | None = None
    class_names: tuple[str, ...] | None = None


NO_PROVENANCE = Provenance()


class Description(StrictModel):
    """The JSON in a file's metadata."""

    format: Literal[1]
    version: str  # of the package that wrote the file
    network: NetworkDescription
    settings: Settings | None = None
    iteration: Annotated[int, Field(ge=0)] | None = None
    normalization: NormalizationDescription | None = None
    class_names: list[str] | None = None

    @classmethod
    def of(cls, network: ResidualNetwork, provenance: Provenance = NO_PROVENANCE) -> Self:
        normalization, names = provenance.normalization, provenance.class_names
        return cls(
            format=DESCRIPTION_FORMAT,
            version=__version__,
            network=NetworkDescription.of(network),
            settings=provenance.settings,
            iteration=provenance.iteration,
            normalization=None
            if normalization is None
            else NormalizationDescription.of(normalization),
            class_names=None if names is None else list(names),
        )

    @property
    def provenance(self) -> Provenance:
        """Raises ValueError if the normalisation is malformed."""
        return Provenance(
            self.settings,
            self.iteration,
            None if self.normalization is None else self.normalization.build(),
            None if self.class_names is None else tuple(self.class_names),
        )


class NetworkDescription(OrderingModel):
    """A network under the names that `Settings` uses."""

    depth: Size
    family: Literal["cifar", "imagenet"]
    unit: Literal["basic", "bottleneck"]
    stem: Literal["cifar", "imagenet"]
    cardinality: Size
    base_width: Size
    shortcut: Literal["pad", "project"]
    stride_on: Literal["first", "3x3"]
    num_classes: Size

    @classmethod
    def of(cls, network: ResidualNetwork) -> Self:
        ordering, architecture = network.ordering, network.architecture
        values: dict[str, Any] = {name: getattr(architecture, name) for name in ARCHITECTURE}
        values |= {place: list(getattr(ordering, place)) for place in PLACES}
        return cls(
            variant=ordering.name,
            unusual=ordering.unusual,
            num_classes=network.classifier.out_features,
            **values,
        )

    @property
    def architecture(self) -> Architecture:
        return plan(**{name: getattr(self, name) for name in ARCHITECTURE})


class NormalizationDescription(StrictModel):
    """`(pixels - mean) * scale` for pixels in [0, 1].

    Attributes:
        mean: [3], or [H][W][3] if it differs between pixels.
        scale: [3].
    """

    mean: list[FiniteFloat] | list[list[list[FiniteFloat]]]
    scale: list[FiniteFloat]

    @classmethod
    def of(cls, normalization: Normalization) -> Self:
        mean = normalization.mean.cpu()
        if mean.ndim == 3 and bool((mean == mean[0, 0]).all()):
            mean = mean[0, 0]
        return cls(mean=mean.tolist(), scale=normalization.scale.cpu().tolist())

    def build(self) -> Normalization:
        """Raises ValueError if rows differ in length or there are not three channels."""
        mean, scale = torch.tensor(self.mean), torch.tensor(self.scale)
        if mean.shape[-1:] != (3,) or scale.shape != (3,):
            raise ValueError("the normalisation is not for three channels")
        return Normalization(mean, scale)
