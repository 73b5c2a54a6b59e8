"""What a setting is: the annotation of a field of `Settings`, and the types of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

RolePart = Literal["ordering", "architecture", "data", "run", "training", "execution", "monitoring"]
"""What a setting belongs to. Runs with the same `training` settings are comparable; a protocol file
contains `training` and `execution` settings."""

APPENDIX = "arXiv:1603.05027, appendix"
SECTION_4_2 = "arXiv:1512.03385, section 4.2 (CIFAR-10)"

RECORDED = frozenset(
    (
        "normalize", "crop_padding", "flip", "holdout", "iterations", "batch_size", "bn_batch_size",
        "schedule", "lr", "milestones", "lr_factor", "warmup_iterations", "warmup_lr", "peak_at",
        "momentum", "nesterov", "weight_decay", "weight_decay_on",
    )
)  # fmt: skip
"""The settings that every `config.yaml` has, however old: a file with all of them is the record of
a run. No newer setting is added here."""


@dataclass(frozen=True)
class Role:
    """What a setting is for, as an annotation of its field.

    Attributes:
        paper: where the paper fixes the value; empty where it is silent.
        hashed: False for a setting that changes none of the run's bits. The hash leaves it out, so
            reports ignore it, and it may change when a run resumes.
        recorded: a run records the resolved value instead of the open default.
        before: the value in effect before the setting existed, if that is not its default; records
            of that time lack it.
        unit: of a number.
    """

    part: RolePart
    help: str
    paper: str = ""
    hashed: bool = True
    recorded: bool = False
    before: Any = None
    unit: str = ""


PositiveInt = Annotated[int, Field(ge=1, le=10**9)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BatchSize = Annotated[int, Field(ge=1, le=50_000)]
Ops = list[str]
DatasetName = Literal["cifar10", "cifar100", "sample", "folder"]
