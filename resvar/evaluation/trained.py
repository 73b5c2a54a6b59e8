"""Read a trained network from a run directory, a checkpoint or a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from resvar import rundir
from resvar.condition import read_undisturbed
from resvar.console import log
from resvar.data.cifar import Images
from resvar.data.folder import MEAN, STD, FolderImages
from resvar.data.memory import Normalization
from resvar.data.splits import open_images
from resvar.errors import UserError
from resvar.export.description import Provenance
from resvar.export.safetensors_file import load_model
from resvar.models.network import ResidualNetwork
from resvar.settings import Settings
from resvar.training.checkpoint import DamagedError, State, load_newest
from resvar.training.checkpoint import load as load_checkpoint


@dataclass(frozen=True)
class TrainedNetwork:
    """A network and its origin.

    Attributes:
        source: the file or folder that it was read from.
        folder: the run directory; None for an exported file.
    """

    source: Path
    network: ResidualNetwork
    provenance: Provenance
    folder: Path | None = None

    @property
    def settings(self) -> Settings:
        """The settings of the run; raises UserError if the file does not contain them."""
        if self.provenance.settings is None:
            raise UserError(
                f"{self.source}: the file does not contain the settings of a run, so its dataset "
                "is unknown."
            )
        return self.provenance.settings

    def open_dataset(self, data: Path) -> Images | FolderImages:
        """The dataset of the run, from the folder `data`.

        Raises:
            UserError: it is missing, or does not fit the network.
        """
        images = open_images(self.settings, data)
        classes = self.network.classifier.out_features
        if classes != len(images.class_names):
            raise UserError(
                f"{self.source}: the network has {classes} classes, but its dataset "
                f"'{self.settings.dataset}' has {len(images.class_names)}."
            )
        return images

    def with_images(self, data: Path) -> TrainedNetwork:
        """The same with normalisation and class names, from the dataset if they are missing.

        Raises:
            UserError: the dataset is unknown, missing, or does not fit the network.
        """
        known = self.provenance
        if known.normalization is not None and known.class_names is not None:
            return self
        images = self.open_dataset(data)
        if isinstance(images, FolderImages):
            normalization = Normalization(torch.tensor(MEAN), 1.0 / torch.tensor(STD))
        else:
            kept = len(images.train_labels) - self.settings.holdout
            normalization = Normalization.measure(
                images.train_images[:kept], self.settings.normalize
            )
        provenance = replace(
            known, normalization=normalization, class_names=tuple(images.class_names)
        )
        return replace(self, provenance=provenance)


def open_trained(source: Path) -> TrainedNetwork:
    """The network in a run directory, a checkpoint inside one, or a safetensors file.

    It is on the CPU and in evaluation mode. If the newest checkpoint is damaged, the previous one
    is read and a warning on stderr says so.

    Raises:
        UserError: `source` is missing, damaged or unreadable, or contains no trained network.
        RunError: all checkpoints of the run are damaged.
    """
    warnings: list[str] = []

    def read() -> TrainedNetwork:
        warnings.clear()
        return _from_folder(source, warnings) if source.is_dir() else _from_file(source)

    trained = read_undisturbed(source, read)
    for text in warnings:
        log(f"Warning: {text}")
    return trained


def _from_folder(source: Path, warnings: list[str]) -> TrainedNetwork:
    """The network in the newest intact checkpoint of a run.

    Args:
        warnings: receives a sentence for a damaged checkpoint.
    """
    if not (source / rundir.CONFIG).exists():
        raise UserError(f"{source}: there is no run here ({rundir.CONFIG} is missing).")
    settings = rundir.read_settings(source)
    state = load_newest(source, warn=warnings.append)
    if state is None:
        raise UserError(f"{source}: there is no checkpoint yet; `resvar train` writes one.")
    return _from_checkpoint(source, source, settings, state)


def _from_file(source: Path) -> TrainedNetwork:
    if not source.exists():
        raise UserError(f"{source}: there is no such run or file.")
    if source.suffix.lower() == ".safetensors":
        model = load_model(source)
        return TrainedNetwork(source, model, model.provenance)
    folder = source.parent
    if not (folder / rundir.CONFIG).exists():
        raise UserError(
            f"{source}: a checkpoint needs the {rundir.CONFIG} of its run in the same folder; name "
            "a run directory, a checkpoint inside one, or a .safetensors file."
        )
    try:
        state = load_checkpoint(source)
    except DamagedError as error:
        raise UserError(
            f"{source}: this is damaged or not a checkpoint of resvar: {error}."
        ) from error
    return _from_checkpoint(source, folder, rundir.read_settings(folder), state)


def _from_checkpoint(
    source: Path, folder: Path, settings: Settings, state: State
) -> TrainedNetwork:
    try:
        if state["config_hash"] != settings.hash:
            raise UserError(
                f"{source}: the checkpoint belongs to a run with other settings than those in "
                f"{folder / rundir.CONFIG}."
            )
        weights = state["model"]
        classes = len(weights["classifier.weight"])
        network = ResidualNetwork(settings.ordering, settings.architecture, classes)
        network.load_state_dict(weights)
        iteration = int(state["iteration"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{source}: this checkpoint does not contain the network that "
            f"{folder / rundir.CONFIG} describes."
        ) from error
    return TrainedNetwork(source, network.eval(), Provenance(settings, iteration), folder)
