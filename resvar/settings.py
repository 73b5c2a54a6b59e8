"""The settings of a run: name, type, default and role, each in one place.

A setting has the same flat name in YAML, in `--set` and in a run's `config.yaml`. To add one, add a
field with its `Role`; help texts, protocols, records and the hash follow. `resvar.config` reads
settings from files and the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from resvar.errors import UserError, quoted
from resvar.foldername import folder_name
from resvar.models.architecture import (
    IMAGE_SIZE,
    Architecture,
    Family,
    Shortcut,
    StrideOn,
    UnitKind,
    plan,
)
from resvar.models.ordering import PAPER_ORDER, Ordering
from resvar.roles import (
    APPENDIX,
    RECORDED,
    SECTION_4_2,
    BatchSize,
    DatasetName,
    NonNegative,
    Ops,
    Positive,
    PositiveInt,
    Role,
    RolePart,
)
from resvar.strict_yaml import to_yaml

CIFAR_TEST_IMAGES = 10_000
SAMPLE_TRAINING_IMAGES, SAMPLE_TEST_IMAGES = 2_000, 1_000

IMAGES_OF = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "sample": "the sample of CIFAR-10",
    "folder": "a folder",
}  # fmt: skip
"""What a sentence calls a dataset: `1,000 test images of …`."""


class Settings(pydantic.BaseModel):
    """Every setting of a run, validated. The order is that of `config.yaml`."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    _prescribed: dict[str, Any] = pydantic.PrivateAttr(default_factory=dict)
    """What the protocol's file gives: only the other values appear in the folder's name."""

    # The ordering that `variant` names is written out, so that a record needs no other file.
    variant: Annotated[
        str,
        Role("ordering", f"Ordering: v1 or v2, {', '.join(PAPER_ORDER)}, or a YAML file."),
    ]
    lead: Annotated[Ops, Role("ordering", "Operations before a unit's first convolution.")]
    between: Annotated[Ops, Role("ordering", "Operations between two convolutions.")]
    trail: Annotated[Ops, Role("ordering", "Operations after a unit's last convolution.")]
    after_add: Annotated[Ops, Role("ordering", "Operations after the addition.")]
    unusual: Annotated[bool, Role("ordering", "Allow any number of BN and ReLU.")] = False

    depth: Annotated[
        int,
        Field(ge=1, le=10_000),
        Role(
            "architecture",
            "Layers: 20, 32, 44, 56, 110, 164, 1001, or another that fits.",
            unit="layers",
        ),
    ]
    family: Annotated[Family, Role("architecture", "Family of networks.")] = "cifar"
    unit: Annotated[
        UnitKind | None,
        Role("architecture", "Residual unit. Default: the one that fits the depth."),
    ] = None
    stem: Annotated[
        Family | None,
        Role("architecture", "First layers: 3×3, or 7×7 and pooling. Default: the family's."),
    ] = None
    cardinality: Annotated[
        int,
        Field(ge=1, le=1024),
        Role("architecture", "Groups of a bottleneck's 3×3 convolution (ResNeXt)."),
    ] = 1
    base_width: Annotated[
        int,
        Field(ge=1, le=4096),
        Role("architecture", "Channels per group in the first stage.", unit="channels"),
    ] = 64
    shortcut: Annotated[
        Shortcut | None,
        Role("architecture", "Shortcut where the shape changes. Default: by family and unit."),
    ] = None
    stride_on: Annotated[
        StrideOn | None,
        Role("architecture", "Convolution with the stride. Default: first; for imagenet 3x3."),
    ] = None

    dataset: Annotated[
        DatasetName,
        Role(
            "data",
            "Dataset; sample: 2,000 images of CIFAR-10 that come with resvar; folder: images in "
            "DIR/train/<class>/ and DIR/val/<class>/.",
        ),
    ] = "cifar10"
    num_classes: Annotated[
        PositiveInt | None, Role("data", "Classes. Default: as many as there are.", recorded=True)
    ] = None
    image_size: Annotated[
        int, Field(ge=8, le=1024), Role("data", "folder: side of a crop, in pixels.", unit="pixels")
    ] = 224
    normalize: Annotated[
        Literal["pixel-mean", "channel", "imagenet"],
        Role("training", "Normalisation of the images.", SECTION_4_2),
    ] = "pixel-mean"
    crop_padding: Annotated[
        int,
        Field(ge=0, le=16),
        Role(
            "training",
            "Pixels added on each side before a random crop.",
            SECTION_4_2,
            unit="pixels",
        ),
    ] = 4
    flip: Annotated[bool, Role("training", "Mirror images at random.", SECTION_4_2)] = True
    holdout: Annotated[
        int,
        Field(ge=0, lt=50_000),
        Role("training", "Training images set aside and measured.", unit="images"),
    ] = 0

    seed: Annotated[
        int, Field(ge=0, lt=2**63), Role("run", "Seed of weights, order and augmentation.")
    ] = 0
    protocol: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200),
        Role("run", "Training settings: paper, short (10 epochs), quick, or a YAML file."),
    ] = "paper"

    iterations: Annotated[
        PositiveInt, Role("training", "Updates of the weights.", SECTION_4_2, unit="iterations")
    ]
    batch_size: Annotated[
        BatchSize, Role("training", "Images of an update.", APPENDIX, unit="images")
    ]
    bn_batch_size: Annotated[
        BatchSize,
        Role("training", "Images whose statistics BN computes together.", APPENDIX, unit="images"),
    ]
    schedule: Annotated[
        Literal["step", "one-cycle"], Role("training", "Course of the learning rate.", APPENDIX)
    ]
    lr: Annotated[Positive, Role("training", "Learning rate; one-cycle: its peak.", APPENDIX)]
    milestones: Annotated[
        list[PositiveInt],
        Role(
            "training",
            "step: iterations at which lr is multiplied by lr_factor.",
            APPENDIX,
            unit="iterations",
        ),
    ] = []
    lr_factor: Annotated[
        float,
        Field(gt=0, le=1),
        Role("training", "step: factor of the learning rate at a milestone.", APPENDIX),
    ] = 0.1
    warmup_iterations: Annotated[
        int,
        Field(ge=0, le=10**9),
        Role("training", "step: first iterations, at warmup_lr.", APPENDIX, unit="iterations"),
    ] = 0
    warmup_lr: Annotated[
        Positive, Role("training", "Learning rate of the warm-up; one-cycle: the first.", APPENDIX)
    ] = 0.01
    peak_at: Annotated[
        float,
        Field(gt=0, lt=1),
        Role("training", "one-cycle: share of the run before the peak.", unit="share of the run"),
    ] = 0.3
    optimizer: Annotated[
        Literal["sgd", "muon"],
        Role("training", "muon: for the units' convolutions; SGD for the rest."),
    ] = "sgd"
    muon_lr: Annotated[
        Positive,
        Role("training", "muon: peak learning rate, with the course of lr."),
    ] = 0.02
    muon_decay: Annotated[
        NonNegative,
        Role("training", "muon: decoupled weight decay, times the learning rate."),
    ] = 0.0
    momentum: Annotated[
        float, Field(ge=0, lt=1), Role("training", "Momentum of SGD and Muon.", APPENDIX)
    ] = 0.9
    nesterov: Annotated[bool, Role("training", "Nesterov momentum for SGD.")] = False
    weight_decay: Annotated[NonNegative, Role("training", "L2 penalty of SGD.", APPENDIX)] = 1e-4
    weight_decay_on: Annotated[
        Literal["weights", "all"],
        Role("training", "Convolutions and the linear layer, or BN and biases too."),
    ] = "weights"

    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Role("execution", "auto: bf16 autocast where it is native, or fp32.", recorded=True),
    ] = "auto"
    memory_format: Annotated[
        Literal["auto", "contiguous", "channels_last"],
        Role("execution", "Memory format. auto: by device, precision and kernels."),
    ] = "auto"
    compile: Annotated[
        Literal["none", "unit"], Role("execution", "unit: torch.compile for each residual unit.")
    ] = "none"
    capture: Annotated[
        Literal["auto", "none", "iteration"],
        Role("execution", "iteration: CUDA graphs, on a GPU. Same bits.", hashed=False),
    ] = "auto"
    kernels: Annotated[
        Literal["auto", "plain", "fused"],
        Role("execution", "fused: own operators. auto: CPUs only.", recorded=True, before="plain"),
    ] = "auto"
    recompute: Annotated[
        Literal["none", "unit"],
        Role("execution", "unit: less memory, more time. Same bits.", hashed=False),
    ] = "none"
    deterministic: Annotated[
        bool, Role("execution", "GPU: slower kernels that repeat bit for bit.")
    ] = False
    eval_every: Annotated[
        PositiveInt, Role("execution", "Iterations between evaluations.", unit="iterations")
    ] = 391
    checkpoint_every: Annotated[
        PositiveInt,
        Role("execution", "Iterations (and 30 s) between checkpoints.", unit="iterations"),
    ] = 391
    tensorboard: Annotated[
        bool, Role("monitoring", "Write TensorBoard event files.", hashed=False)
    ] = False
    wandb: Annotated[
        bool, Role("monitoring", "Log to Weights & Biases, online or offline.", hashed=False)
    ] = False
    probe_at: Annotated[
        list[Annotated[int, Field(ge=0, le=10**9)]],
        Role(
            "monitoring",
            "Iterations whose weights are kept for `resvar probe`.",
            hashed=False,
            unit="iterations",
        ),
    ] = []

    @pydantic.model_validator(mode="after")
    def _agree(self) -> Settings:
        if self.batch_size % self.bn_batch_size:
            raise ValueError(
                f"'batch_size' {self.batch_size} is not a multiple of 'bn_batch_size' "
                f"{self.bn_batch_size}; set bn_batch_size too (--set bn_batch_size=…)"
            )
        for name in ("milestones", "probe_at"):
            value = getattr(self, name)
            if value != sorted(set(value)):
                raise ValueError(f"'{name}' {quoted(value)} must increase strictly")
        if self.probe_at and self.probe_at[-1] > self.iterations:
            raise ValueError(
                f"'probe_at' {self.probe_at[-1]} is after the last iteration, {self.iterations}"
            )
        if (self.dataset == "folder") != (self.normalize == "imagenet"):
            raise ValueError(
                f"'normalize' {self.normalize} does not fit 'dataset' {self.dataset}: a folder "
                "of images needs imagenet (--set normalize=imagenet), CIFAR pixel-mean or channel"
            )
        if self.dataset == "folder" and self.holdout:
            raise ValueError("'holdout' is for CIFAR; in a folder, move images to val/")
        if self.dataset == "sample" and self.holdout >= SAMPLE_TRAINING_IMAGES:
            raise ValueError(
                f"'holdout' {self.holdout} leaves none of the {SAMPLE_TRAINING_IMAGES:,} training "
                "images of the sample"
            )
        if self.compile == "unit" and self.recompute == "unit":
            raise ValueError("'recompute' unit and 'compile' unit cannot be combined")
        if self.nesterov and self.momentum == 0:
            raise ValueError("'nesterov' needs a 'momentum' above 0")
        return self

    @property
    def ordering(self) -> Ordering:
        return Ordering.of(self)

    @property
    def architecture(self) -> Architecture:
        return plan(**{name: getattr(self, name) for name in ARCHITECTURE})

    @property
    def input_size(self) -> int:
        """Pixels along a side of the network's images."""
        return self.image_size if self.dataset == "folder" else IMAGE_SIZE["cifar"]

    def prescribing(self, values: dict[str, Any]) -> Settings:
        """The same settings, with `values` taken from the protocol's file."""
        copy = self.model_copy()
        copy._prescribed = values
        return copy

    def counting(self, names: Iterable[str]) -> Settings:
        """The same settings; `names` count as changes even if the protocol's file sets them."""
        return self.prescribing({k: v for k, v in self._prescribed.items() if k not in names})

    @property
    def changes(self) -> dict[str, Any]:
        """The hashed settings in which the run differs from its protocol and its usual network.

        Not variant, depth, seed and protocol, which have their own places in the folder's name.
        """
        values = self.model_dump(include=set(CHANGEABLE))
        usual = {name: Settings.model_fields[name].default for name in values} | self._prescribed
        changed = {name: value for name, value in values.items() if value != usual[name]}
        return changed | network_deviations(self)

    @property
    def directory(self) -> Path:
        """The default run directory, below the folder of all runs.

        `resvar.ownership.run_folder` decides; it knows where older versions put the run.
        """
        cell = Path(self.protocol) / f"{self.variant}-{self.depth}"
        return cell / folder_name(self.changes) / f"seed-{self.seed}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self.model_dump() == other.model_dump()

    def work(self, test_images: int, iteration: int = 0) -> float:
        """The cost of the run after `iteration` in training images, for estimates.

        An evaluation that is due at `iteration` itself counts as not done.
        """
        last = max(0, iteration - 1) // self.eval_every * self.eval_every
        images = (self.iterations - iteration) * self.batch_size
        return images + self.evaluations_after(last) * self.evaluation_work(test_images)

    def evaluation_work(self, test_images: int) -> float:
        """The cost of an evaluation in training images: a forward pass is a third of an update."""
        return (test_images + self.holdout) / 3

    def evaluations_after(self, last: int) -> int:
        """Evaluations after the one at iteration `last`, 0 for none, to the end of the run."""
        due = self.iterations // self.eval_every - last // self.eval_every
        at_the_end = self.iterations % self.eval_every != 0 and last < self.iterations
        return due + at_the_end

    @property
    def hash(self) -> str:
        """16 hexadecimal digits: the identity of the run's settings.

        A setting at its default does not count, nor at the value that was in effect before the
        setting existed, so a run keeps its hash when a later version adds settings. Hence a default
        never changes.
        """
        values = self.model_dump(exclude_defaults=True, exclude=set(NOT_HASHED))
        counted = {name: value for name, value in values.items() if value != ROLES[name].before}
        canonical = json.dumps(counted, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return to_yaml(self.model_dump())


ROLES: dict[str, Role] = {
    name: next(entry for entry in info.metadata if isinstance(entry, Role))
    for name, info in Settings.model_fields.items()
}


def names_of(*parts: RolePart) -> tuple[str, ...]:
    """The settings that belong to `parts`, in the order of `Settings`."""
    return tuple(name for name, role in ROLES.items() if role.part in parts)


ARCHITECTURE = names_of("architecture")
"""The arguments of `resvar.models.architecture.plan`."""

TRAINING_HALF = names_of("training")
"""The settings that must be equal for two runs to be comparable."""

PROTOCOL_KEYS = names_of("training", "execution")
"""The settings that a protocol file may contain."""

CHANGEABLE = tuple(name for name in names_of("data", "training", "execution") if ROLES[name].hashed)
"""A run that changes one of these shows it in its folder's name, as it does its network's."""

NOT_HASHED = tuple(name for name, role in ROLES.items() if not role.hashed)

RESOLVED = tuple(name for name, role in ROLES.items() if role.recorded)
"""The settings for which a run records the resolved value instead of the open default."""

BEFORE = {
    name: Settings.model_fields[name].default if role.before is None else role.before
    for name, role in ROLES.items()
    if role.before is not None or (role.part == "training" and name not in RECORDED)
}
"""The values to assume in records that are older than these settings."""

REMOVED = ("micro_batches",)
"""Settings of earlier versions, still found in records. They changed nothing."""


def network_deviations(settings: Settings) -> dict[str, Any]:
    """The settings in which the network deviates from the CIFAR family's at this depth.

    Includes the unit if both basic units and bottlenecks fit the depth.
    """
    asked = settings.model_dump(include=set(ARCHITECTURE))
    found: dict[str, Any] = {} if settings.family == "cifar" else {"family": settings.family}
    try:
        unit = plan(settings.depth, settings.family).unit
    except UserError:
        unit = None
    if asked["unit"] != unit:
        found["unit"] = asked["unit"]
    usual = plan(settings.depth, settings.family, asked["unit"])
    names = ("stem", "cardinality", "base_width", "shortcut", "stride_on")
    return found | {name: asked[name] for name in names if asked[name] != getattr(usual, name)}


def differences(wanted: Settings, found: Settings) -> list[str]:
    """The settings in which a run differs from the one found, as `name: found → wanted`.

    A setting that `wanted` leaves open takes the value that the run found has recorded.
    """
    there, now = found.model_dump(), wanted.model_dump()
    for name in RESOLVED:
        if now[name] == Settings.model_fields[name].default:
            now[name] = there[name]
    changed = [name for name in now if there[name] != now[name] and name not in NOT_HASHED]
    return [f"{name}: {there[name]} → {now[name]}" for name in changed]
