"""What a run is: flat, validated settings; where they come from; and how they are written down.

A setting has the same name in YAML, in `--set` and in a run's `config.yaml`. It is looked up in
layers, the later winning: the defaults below, the protocol's file (the training half), `--config`,
the command line's options, `--set`. The variant's file gives the ordering. What comes out is a
frozen `Settings` with nothing left open but `precision: auto`, which the device decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from resvar.errors import UserError, nearest
from resvar.files import parse_yaml, read_yaml, shipped, to_yaml
from resvar.models.architecture import PLAN, Architecture, plan
from resvar.models.ordering import PLACES, Ordering, find_ordering, shipped_as

Count = Annotated[int, Field(ge=1, le=10**9)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(pydantic.BaseModel):
    """Everything that decides a run's numbers. The comments say what is not plain from the name."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    # The network.
    variant: str
    lead: list[str]  # the ordering that `variant` names, written out so that a run stands alone
    between: list[str]
    trail: list[str]
    after_add: list[str]
    unusual: bool = False
    depth: Annotated[int, Field(ge=1, le=10_000)]
    family: Literal["cifar", "imagenet"] = "cifar"
    unit: Literal["basic", "bottleneck"] | None = None
    stem: Literal["cifar", "imagenet"] | None = None
    cardinality: Annotated[int, Field(ge=1, le=1024)] = 1
    base_width: Annotated[int, Field(ge=1, le=4096)] = 64
    shortcut: Literal["pad", "project"] | None = None
    stride_on: Literal["first", "3x3"] | None = None

    # The data.
    dataset: Literal["cifar10", "cifar100", "folder"] = "cifar10"
    num_classes: Count | None = None  # folder: found when the run begins
    image_size: Annotated[int, Field(ge=8, le=1024)] = 224  # folder: side of a crop, in pixels
    normalize: Literal["pixel-mean", "channel", "imagenet"] = "pixel-mean"
    crop_padding: Annotated[int, Field(ge=0, le=16)] = 4
    flip: bool = True
    holdout: Annotated[int, Field(ge=0, lt=50_000)] = 0  # training images kept aside and measured

    # The training.
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    protocol: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "paper"
    iterations: Count
    batch_size: Annotated[int, Field(ge=1, le=50_000)]
    bn_batch_size: Annotated[int, Field(ge=1, le=50_000)]  # images that one BN sees at a time
    schedule: Literal["step", "one-cycle"]
    lr: Positive
    milestones: list[Count] = []  # step: iterations at which lr is multiplied by lr_factor
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_iterations: Annotated[int, Field(ge=0)] = 0  # step: so many iterations at warmup_lr
    warmup_lr: Positive = 0.01  # also where one-cycle starts
    peak_at: Annotated[float, Field(gt=0, lt=1)] = (
        0.3  # one-cycle: share of the run before the peak
    )
    optimizer: Literal["sgd", "muon"] = "sgd"  # muon: filters step along an orthogonal matrix
    muon_lr: Positive = 0.02  # muon: peak rate of the filters, whose course is that of lr
    muon_decay: NotNegative = 0.0  # muon: of the filters, times their rate
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 1e-4
    weight_decay_on: Literal["weights", "all"] = "weights"

    # How it is carried out.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"  # by precision, kernels
    compile: Literal["none", "unit"] = "none"  # unit: torch.compile, each residual unit by itself
    capture: Literal["auto", "none", "iteration"] = "auto"  # on a GPU: an update as a CUDA graph
    kernels: Literal["auto", "plain", "fused"] = "auto"  # fused: our own, on a processor
    recompute: Literal["none", "unit"] = "none"  # unit: less memory, more time, the same bits
    deterministic: bool = False  # on a GPU: slower kernels that repeat bit for bit
    eval_every: Count = 391
    checkpoint_every: Count = 391
    tensorboard: bool = False  # event files beside metrics.csv; the run stays the same run
    probe_at: list[Annotated[int, Field(ge=0, le=10**9)]] = []  # iterations to keep weights of

    @pydantic.model_validator(mode="after")
    def _agree(self) -> Settings:
        if self.batch_size % self.bn_batch_size:
            raise ValueError(
                f"'batch_size' {self.batch_size} is no multiple of 'bn_batch_size' "
                f"{self.bn_batch_size}; set bn_batch_size too (--set bn_batch_size=…)"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"'milestones' {self.milestones} must grow from each to the next")
        if self.probe_at != sorted(set(self.probe_at)):
            raise ValueError(f"'probe_at' {self.probe_at} must grow from each to the next")
        if self.probe_at and self.probe_at[-1] > self.iterations:
            raise ValueError(
                f"'probe_at' {self.probe_at[-1]} lies beyond the last iteration, {self.iterations}"
            )
        if (self.dataset == "folder") != (self.normalize == "imagenet"):
            raise ValueError(
                f"'normalize' {self.normalize} does not go with 'dataset' {self.dataset}: a folder "
                "of images takes imagenet (--set normalize=imagenet), CIFAR pixel-mean or channel"
            )
        if self.dataset == "folder" and self.holdout:
            raise ValueError("'holdout' is for CIFAR; put images of a folder aside in its val/")
        if self.compile == "unit" and self.recompute == "unit":
            raise ValueError("'recompute' unit does not go with 'compile' unit; leave one out")
        if self.nesterov and self.momentum == 0:
            raise ValueError("'nesterov' needs a 'momentum' above 0")
        return self

    @property
    def ordering(self) -> Ordering:
        return Ordering.of(self)

    @property
    def architecture(self) -> Architecture:
        return plan(**{name: getattr(self, name) for name in PLAN})

    @property
    def directory(self) -> Path:
        """The default run directory, below the folder of all runs."""
        return Path(self.protocol) / f"{self.variant}-{self.depth}" / f"seed-{self.seed}"

    @property
    def work(self) -> float:
        """What a run costs, in training images, for estimates: a forward pass is about a third of
        an update, so each of the 10,000 test images counts as a third whenever it is evaluated."""
        evaluations = -(-self.iterations // self.eval_every)
        return self.iterations * self.batch_size + evaluations * (10_000 + self.holdout) / 3

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that change with any setting but `NOT_HASHED`.

        Settings at their default do not count, so that a run keeps its hash when a later version
        adds a setting. For the same reason a default never changes, and `kernels: plain` does not
        count: it is what runs did before there was that setting.
        """
        values = self.model_dump(exclude_defaults=True, exclude=set(NOT_HASHED))
        if self.kernels == "plain":
            values.pop("kernels", None)
        canonical = json.dumps(values, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return to_yaml(self.model_dump())


TRAINING_HALF = (
    "normalize", "crop_padding", "flip", "holdout", "iterations", "batch_size", "bn_batch_size",
    "schedule", "lr", "milestones", "lr_factor", "warmup_iterations", "warmup_lr", "peak_at",
    "optimizer", "muon_lr", "muon_decay", "momentum", "nesterov", "weight_decay", "weight_decay_on",
)  # fmt: skip
"""The settings that make two runs comparable. A protocol file may also hold how to carry it out."""

ADDED_LATER = ("optimizer", "muon_lr", "muon_decay")
"""Of these those that older records lack: their runs did what the defaults say."""

REMOVED = ("micro_batches",)
"""Settings that there were for a while, and that records of that time hold: they change nothing."""

RECORDED = frozenset(TRAINING_HALF) - set(ADDED_LATER)
"""What a run's `config.yaml` holds, however old; a file with all of these is such a record."""

NOT_HASHED = ("tensorboard", "probe_at", "recompute", "capture")
"""Settings that only watch, or trade time for memory: with and without them a run computes the same
bits. Its hash, by which reports know one run from another, leaves them out, and they may change
while it is under way."""

PROTOCOL_KEYS = (
    *TRAINING_HALF, "precision", "memory_format", "compile", "capture", "kernels",
    "recompute", "deterministic", "eval_every", "checkpoint_every",
)  # fmt: skip


# --- from files and the command line to settings --------------------------------------------------


@dataclass
class Layers:
    """Values by name, each with the source that an error message will name."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def add(self, values: Mapping[str, Any], source: str) -> None:
        """Lay `values` over what is there.

        Raises:
            UserError: a name is no setting; the nearest is suggested.
        """
        for key in values:
            if key not in Settings.model_fields:
                hint = nearest(key, Settings.model_fields) or "; `resvar train --help` lists them."
                raise UserError(f"{source}: unknown setting '{key}'{hint}")
        if "variant" in values:  # a new name brings its own ordering
            for place in (*PLACES, "unusual"):
                self.values.pop(place, None)
        self.values.update(values)
        self.sources.update(dict.fromkeys(values, source))


def resolve(
    config: Path | None = None,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """The settings of a run from a file, the command line's options and `KEY=VALUE` overrides.

    Args:
        config: a YAML file of settings, such as a run's `config.yaml`.
        options: settings by name; None means not given.
        overrides: the values of `--set`.

    Raises:
        UserError: an unknown or wrong value, named with its source and the mend.
    """
    layers = Layers() if config is None else _of_file(read_yaml(config), str(config))
    for key, value in (options or {}).items():
        if value is not None:
            layers.add({key: value}, f"--{key.replace('_', '-')}")
    layers.add(parse_overrides(overrides), "--set")
    return _settled(layers)


def settings_in(values: Mapping[str, Any], source: str) -> Settings:
    """The settings that a mapping holds, as `resolve` takes them from a file.

    Raises:
        UserError: an unknown or wrong value, named with `source`.
    """
    return _settled(_of_file(values, source))


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["lr=0.05", "milestones=[10, 20]"]` → values, each read as YAML.

    Raises:
        UserError: no `=`, or the value is no YAML.
    """
    values = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise UserError(f"--set {text}: write it as KEY=VALUE, such as --set lr=0.05.")
        values[key.strip()] = parse_yaml(value, f"--set {key.strip()}")
    return values


def read_protocol(protocol: str) -> tuple[str, dict[str, Any], Path]:
    """Name, values and file of a protocol: a shipped name or the path of a YAML file.

    Raises:
        UserError: there is no such protocol, or its file holds what is no training setting.
    """
    known = shipped("protocols")
    if protocol in known:
        path = known[protocol]
    elif protocol.endswith((".yaml", ".yml")):
        path = Path(protocol)
    else:
        hint = nearest(protocol, known) or f"; known are {', '.join(known)}, or a YAML file."
        raise UserError(f"there is no protocol '{protocol}'{hint}")
    values = read_yaml(path)
    for key in values:
        if key not in PROTOCOL_KEYS:
            hint = nearest(key, PROTOCOL_KEYS) or "; a protocol holds training settings only."
            raise UserError(f"{path}: unknown setting '{key}'{hint}")
    return path.stem, values, path


def deviations(settings: Settings) -> dict[str, Any]:
    """The training settings in which a run leaves the shipped protocol that it names.

    Empty when it follows the protocol to the letter. For a protocol that is not shipped every
    training setting is listed, since nothing says what its name stands for.
    """
    asked = settings.model_dump()
    path = shipped("protocols").get(settings.protocol)
    values = read_yaml(path) if path is not None else {}
    default = {name: Settings.model_fields[name].default for name in TRAINING_HALF}
    return {
        name: asked[name]
        for name in TRAINING_HALF
        if asked[name] != values.get(name, default[name])
    }


def differences(wanted: Settings, found: Settings) -> list[str]:
    """The settings in which two runs differ, as `name: found there → wanted now`."""
    there, now = found.model_dump(), wanted.model_dump()
    for name, still_open in (("precision", "auto"), ("kernels", "auto"), ("num_classes", None)):
        if now[name] == still_open:
            now[name] = there[name]
    changed = [key for key in now if there[key] != now[key] and key not in NOT_HASHED]
    return [f"{key}: {there[key]} → {now[key]}" for key in changed]


def _of_file(values: Mapping[str, Any], source: str) -> Layers:
    layers = Layers()
    recorded = set(values) >= RECORDED
    if recorded:  # a run's record, maybe an old one
        values = {key: value for key, value in values.items() if key not in REMOVED}
    layers.add(values, source)
    if recorded:
        before = {name: Settings.model_fields[name].default for name in ADDED_LATER}
        layers.values = {**before, "kernels": "plain", **layers.values}
    return layers


def _settled(layers: Layers) -> Settings:
    return _validated(_with_ordering(_with_protocol(layers)))


def _with_protocol(layers: Layers) -> Layers:
    """Put the protocol's values under what is there already."""
    asked = layers.values.get("protocol", "paper")
    source = layers.sources.get("protocol", "--protocol")
    if not isinstance(asked, str):
        raise UserError(f"{source}: 'protocol' must be a name or a YAML file, not {asked!r}.")
    # A finished config.yaml may name a protocol file that this machine does not have: it holds
    # all settings itself, and needs no file.
    if asked not in shipped("protocols") and set(layers.values) >= RECORDED:
        return layers
    try:
        name, values, path = read_protocol(asked)
    except UserError as error:
        raise UserError(f"{source}: {error}" if source not in str(error) else str(error)) from None
    under = Layers()
    under.add(values, str(path))
    under.add(layers.values, "")
    under.sources.update(layers.sources)
    under.values["protocol"] = name
    return under


def _with_ordering(layers: Layers) -> Layers:
    """Write out the ordering that the variant names."""
    values, sources = layers.values, layers.sources
    for key, example in (("variant", "full-preact"), ("depth", "110")):
        if key not in values:
            raise UserError(f"'{key}' is missing: say --{key}, such as --{key} {example}.")
    variant, source = values["variant"], sources["variant"]
    if not isinstance(variant, str):
        raise UserError(f"{source}: 'variant' must be a name or a YAML file, not {variant!r}.")
    given = {place: values[place] for place in (*PLACES, "unusual") if place in values}
    if given and set(PLACES) - set(given):
        missing = ", ".join(sorted(set(PLACES) - set(given)))
        raise UserError(
            f"{sources[next(iter(given))]}: an ordering is changed in a YAML file of its own, "
            f"given as --variant FILE.yaml (here {missing} would be missing)."
        )
    try:
        if given and shipped_as(variant) is None:
            ordering = Ordering(variant, **{p: _as_ops(p, v) for p, v in given.items()})
        else:
            ordering = find_ordering(variant)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    written = {place: list(getattr(ordering, place)) for place in PLACES}
    for place in PLACES:
        if given and given[place] != written[place]:
            raise UserError(
                f"{sources[place]}: '{place}: {given[place]}' is not the ordering '{variant}'; "
                "give yours a name of its own in a YAML file (--variant FILE.yaml)."
            )
    values |= {"variant": ordering.name, **written, "unusual": ordering.unusual}
    return layers


def _as_ops(place: str, value: Any) -> Any:
    if place == "unusual":
        if not isinstance(value, bool):
            raise UserError("'unusual' must be true or false.")
        return value
    if not isinstance(value, list) or not all(isinstance(op, str) for op in value):
        raise UserError(f"'{place}' must be a list of ops, such as [bn, relu] or [].")
    return tuple(value)


def _validated(layers: Layers) -> Settings:
    """Check every value, and settle what the architecture decides."""
    try:
        settings = Settings(**layers.values)
    except pydantic.ValidationError as error:
        raise UserError(_one_sentence(error, layers)) from None
    try:
        architecture = settings.architecture
    except UserError as error:
        raise UserError(f"{layers.sources.get('depth', 'depth')}: {error}") from None
    chosen = {key: getattr(architecture, key) for key in ("unit", "stem", "shortcut", "stride_on")}
    return settings.model_copy(update=chosen)


def _one_sentence(error: pydantic.ValidationError, layers: Layers) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ") + "."
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return f"the protocol '{layers.values.get('protocol')}' does not say '{key}'; add it."
    what = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    try:
        given = repr(layers.values.get(key))[:200]
    except ValueError:  # Python refuses to write out integers of thousands of digits
        given = "far too large"
    return f"{layers.sources.get(key, 'settings')}: '{key}' is {given}, but should be {what}."
