"""Networks leave and come back: safetensors files, torchvision's names, ONNX.

A **safetensors** file holds the weights under our names, and in its metadata, under `resvar`, what
the weights are of, as JSON (`Description`): the ordering's four lists, the architecture, the
settings of the run, and how images are normalised. So `resvar.load_model` needs nothing else. The
format holds numbers and text only: no code can run while a file is read.

An **ONNX** file takes normalised images [batch, 3, H, W], any batch, and gives logits; the same
description is in its metadata.

**torchvision** ships the `original` networks of the ImageNet family. Modules are registered in the
same order there, a unit's branch before its projection, and one rule gives their names; S and U
count stages and units from 0, P is a module's place in its part:

    ours                    torchvision's
    stem.P                  conv1, bn1                        for P = 0, 1
    stages.S.U.branch.P     layer<S+1>.U.conv<P/3+1>, bn…     for P = 0, 3, 6 and P = 1, 4, 7
    stages.S.U.shortcut.P   layer<S+1>.U.downsample.P         for P = 0, 1
    classifier              fc

The rest of a name (`weight`, `running_mean`, …) is the same. `to_torchvision` and
`from_torchvision` convert state dicts, bit for bit.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import pydantic
import torch
from pydantic import Field
from torch import Tensor

import resvar
from resvar.config import ARCHITECTURE, Settings
from resvar.data.memory import Normalization
from resvar.errors import UserError
from resvar.files import refuse_newer, replacing
from resvar.models.architecture import Architecture, plan
from resvar.models.network import ResidualNetwork
from resvar.models.ordering import PLACES, Ordering, find_ordering

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT: Literal[1] = 1
"""Of the description; a file with another is refused."""

KEY = "resvar"
"""Where the description stands in a file's metadata."""

State: TypeAlias = dict[str, Tensor]
"""A state dict: tensors by name."""


# --- what a file says about its weights -----------------------------------------------------------


@dataclass(frozen=True)
class Provenance:
    """Where weights come from; None for what is not known.

    Attributes:
        settings: of the run that trained them.
        iteration: updates that they have behind them.
        normalization: what the network's images need.
        class_names: in the order of the logits.
    """

    settings: Settings | None = None
    iteration: int | None = None
    normalization: Normalization | None = None
    class_names: tuple[str, ...] | None = None


UNKNOWN = Provenance()

Count = Annotated[int, Field(ge=1, le=2**20)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Ops = Annotated[list[str], Field(max_length=100)]


class Part(pydantic.BaseModel):
    """A part of a description: frozen, strict, and without unknown names."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class NetworkPart(Part):
    """A network, by the names that settings have."""

    variant: str
    lead: Ops
    between: Ops
    trail: Ops
    after_add: Ops
    unusual: bool
    depth: Count
    family: Literal["cifar", "imagenet"]
    unit: Literal["basic", "bottleneck"]
    stem: Literal["cifar", "imagenet"]
    cardinality: Count
    base_width: Count
    shortcut: Literal["pad", "project"]
    stride_on: Literal["first", "3x3"]
    num_classes: Count

    @classmethod
    def of(cls, network: ResidualNetwork) -> NetworkPart:
        ordering, architecture = network.ordering, network.architecture
        names = set(cls.model_fields) & set(Architecture.__dataclass_fields__)
        values: dict[str, Any] = {name: getattr(architecture, name) for name in names}
        values |= {place: list(getattr(ordering, place)) for place in PLACES}
        return cls(
            variant=ordering.name,
            unusual=ordering.unusual,
            num_classes=network.classifier.out_features,
            **values,
        )

    @property
    def ordering(self) -> Ordering:
        return Ordering.of(self)

    @property
    def architecture(self) -> Architecture:
        return plan(**{name: getattr(self, name) for name in ARCHITECTURE})


class NormalizationPart(Part):
    """`(pixels - mean) * scale` for pixels in [0, 1].

    `mean` has a value per channel, or rows of columns of channels where it differs by pixel.
    """

    mean: list[Number] | list[list[list[Number]]]
    scale: list[Number]

    @classmethod
    def of(cls, normalization: Normalization) -> NormalizationPart:
        mean = normalization.mean.cpu()
        if mean.ndim == 3 and bool((mean == mean[0, 0]).all()):
            mean = mean[0, 0]
        return cls(mean=mean.tolist(), scale=normalization.scale.cpu().tolist())

    def build(self) -> Normalization:
        """Raises ValueError where a row is shorter than another, or channels are not three."""
        mean, scale = torch.tensor(self.mean), torch.tensor(self.scale)
        if mean.shape[-1:] != (3,) or scale.shape != (3,):
            raise ValueError("the normalisation is not that of three channels")
        return Normalization(mean, scale)


class Description(Part):
    """All that is known about a network's weights; the JSON in a file's metadata."""

    format: Literal[1]
    version: str  # of the package that wrote the file
    network: NetworkPart
    settings: Settings | None = None
    iteration: Annotated[int, Field(ge=0)] | None = None
    normalization: NormalizationPart | None = None
    class_names: list[str] | None = None

    @property
    def provenance(self) -> Provenance:
        given, names = self.normalization, self.class_names
        return Provenance(
            self.settings,
            self.iteration,
            None if given is None else given.build(),
            None if names is None else tuple(names),
        )


def describe(network: ResidualNetwork, provenance: Provenance = UNKNOWN) -> Description:
    """The description of a network and of where its weights come from."""
    normalization, names = provenance.normalization, provenance.class_names
    return Description(
        format=FORMAT,
        version=resvar.__version__,
        network=NetworkPart.of(network),
        settings=provenance.settings,
        iteration=provenance.iteration,
        normalization=None if normalization is None else NormalizationPart.of(normalization),
        class_names=None if names is None else list(names),
    )


# --- safetensors ----------------------------------------------------------------------------------


class LoadedModel(ResidualNetwork):
    """A network read from a file, with what the file says of its `provenance`."""

    provenance: Provenance

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """The probability of each class: uint8 [N, H, W, 3] (RGB) → float [N, classes].

        Raises:
            UserError: these are no such images, or the file does not say how they are normalised.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise UserError(
                "images must be uint8 [N, height, width, 3], not "
                f"{_type(pixels.dtype, list(pixels.shape))}."
            )
        if self.provenance.normalization is None:
            raise UserError(
                "the model's file does not hold the normalisation of its images: export the run "
                "again where its dataset is (--data DIR)."
            )
        device = self.classifier.weight.device
        images = self.provenance.normalization.to(device)(pixels.to(device))
        return self(images.contiguous()).softmax(dim=1)  # type: ignore[no-any-return]


def save_safetensors(
    network: ResidualNetwork,
    path: str | Path,
    provenance: Provenance = UNKNOWN,
) -> None:
    """Write a network with its description; `path` is replaced as a whole.

    Raises:
        UserError: the file cannot be written, or the weights are not fp32.
    """
    write(Path(path), to_safetensors(network, provenance))


def to_safetensors(network: ResidualNetwork, provenance: Provenance = UNKNOWN) -> bytes:
    """What `save_safetensors` writes.

    Raises:
        UserError: the weights are not fp32.
    """
    from safetensors.torch import save

    if odd := {p.dtype for p in network.parameters()} - {torch.float32}:
        raise UserError(f"only fp32 weights are written, not {odd.pop()}: call .float() first.")
    about = describe(network, provenance)
    # One key only: safetensors writes several in a random order, and so in other bytes each time.
    return save(_on_host(network.state_dict()), {KEY: about.model_dump_json()})


def load_model(path: str | Path) -> LoadedModel:
    """The network in a file that `resvar export` or `save_safetensors` wrote, in evaluation mode.

    Nothing in the file can run, and no more memory is taken than its weights need.

    Raises:
        UserError: the file is missing, damaged, no safetensors, or not one of resvar's.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file.")
        with safe_open(path, framework="pt") as file:
            keys: list[str] = list(file.keys())
            about = _description(path, file.metadata())
            network = _empty_network(path, about)
            _same_tensors(
                {k: _type(t.dtype, list(t.shape)) for k, t in network.state_dict().items()},
                {key: _type_in_file(file, key) for key in keys},
                str(path),
            )
            # Copies, since what safetensors gives is the file itself, mapped into memory.
            state = {key: file.get_tensor(key).clone() for key in keys}
    except SafetensorError as error:
        raise UserError(
            f"{path}: this is damaged or no safetensors file ({_first_line(error)})."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    network.load_state_dict(state, assign=True)
    return network.eval()


def _description(path: Path, metadata: Mapping[str, str] | None) -> Description:
    if KEY not in (metadata or {}):
        raise UserError(
            f"{path}: the file does not say what network its weights are of; `resvar export` "
            "writes that along."
        )
    text = (metadata or {})[KEY]
    with suppress(ValueError, RecursionError):  # what is no JSON is said below
        about = json.loads(text)
        refuse_newer(path, about.get("format") if isinstance(about, dict) else None, FORMAT)
    try:
        return Description.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        problem = f"'{key}': {first['msg']}" if key else first["msg"]
        raise UserError(f"{path}: its description is damaged ({problem}).") from None


def _empty_network(path: Path, about: Description) -> LoadedModel:
    """The network that a description names, without memory for its weights yet."""
    try:
        ordering, architecture = about.network.ordering, about.network.architecture
        with torch.device("meta"):
            network = LoadedModel(ordering, architecture, about.network.num_classes)
        network.provenance = about.provenance
        if (run := about.settings) and (run.ordering, run.architecture) != (ordering, architecture):
            raise ValueError("'settings' and 'network' name different networks")
    except (UserError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: its description is damaged ({_first_line(error)}).") from None
    return network


def _type(dtype: Any, shape: list[int]) -> str:
    """Such as `float32 [64, 3, 7, 7]`."""
    return f"{dtype} {shape}".removeprefix("torch.")


def _type_in_file(file: Any, key: str) -> str:
    known = {"F32": torch.float32, "I64": torch.int64}
    part = file.get_slice(key)
    return _type(known.get(part.get_dtype(), part.get_dtype()), part.get_shape())


# --- torchvision ----------------------------------------------------------------------------------

TORCHVISION_NAMES = {
    (18, 1, 64): "resnet18", (34, 1, 64): "resnet34", (50, 1, 64): "resnet50",
    (101, 1, 64): "resnet101", (152, 1, 64): "resnet152",
    (50, 32, 4): "resnext50_32x4d", (101, 32, 8): "resnext101_32x8d",
    (101, 64, 4): "resnext101_64x4d",
    (50, 1, 128): "wide_resnet50_2", (101, 1, 128): "wide_resnet101_2",
}  # fmt: skip
"""What torchvision calls the network with a depth, cardinality and base width."""


def to_torchvision(network: ResidualNetwork) -> State:
    """The weights under torchvision's names, in its order, on the CPU.

    `torchvision.models.resnet50(num_classes=…).load_state_dict(…)` takes them, strictly.

    Raises:
        UserError: torchvision has no such network, and why.
    """
    torchvision_name(network)
    state = _on_host(network.state_dict())
    return {torchvision_key(key): tensor for key, tensor in state.items()}


def from_torchvision(state: Mapping[str, Any], network: ResidualNetwork) -> None:
    """Load a state dict of torchvision's ResNets into a network of ours.

    A file from before PyTorch 0.4.1 has no `num_batches_tracked`: these are then 0. Apart from
    this every name and shape must be right; where one is not, the network stays as it was.

    Raises:
        UserError: torchvision has no such network, or a tensor is missing, unknown or mis-shaped.
    """
    torchvision_name(network)
    ours = {torchvision_key(key): key for key in network.state_dict()}
    given = dict(state)
    counters = [key for key in ours if key.endswith(".num_batches_tracked")]
    if not set(counters) & set(given):
        given |= {key: torch.zeros((), dtype=torch.int64) for key in counters}
    for key, value in given.items():
        if not isinstance(value, Tensor):
            raise UserError(f"the state dict: '{key}' is no tensor but {type(value).__name__}.")
    _same_tensors(
        {key: list(network.state_dict()[ours[key]].shape) for key in ours},
        {key: list(value.shape) for key, value in given.items()},
        "the state dict",
    )
    network.load_state_dict({ours[key]: value for key, value in given.items()})


def torchvision_name(network: ResidualNetwork) -> str:
    """How torchvision makes this network, such as `resnet50(num_classes=10)`.

    Raises:
        UserError: it has none such, and why.
    """
    ordering, has = network.ordering, network.architecture
    original = find_ordering("original")
    # On a basic unit both choices of `stride_on` are the same convolution.
    strided = "3x3" if has.unit == "bottleneck" else has.stride_on
    for wrong, what in (
        (has.family != "imagenet", f"only the ImageNet family, not '{has.family}'"),
        (
            any(getattr(ordering, place) != getattr(original, place) for place in PLACES),
            f"only the ordering 'original', not '{ordering.name}'",
        ),
        (has.stem != "imagenet", f"only the ImageNet stem, not '{has.stem}'"),
        (has.shortcut != "project", f"only 'project' shortcuts, not '{has.shortcut}'"),
        (has.stride_on != strided, f"the stride on the 3x3 convolution, not '{has.stride_on}'"),
    ):
        if wrong:
            raise UserError(f"torchvision's ResNets have {what}; a .safetensors file takes any.")
    classes = f"num_classes={network.classifier.out_features}"
    name = TORCHVISION_NAMES.get((has.depth, has.cardinality, has.base_width))
    if name is not None:
        return f"{name}({classes})"
    groups = f"groups={has.cardinality}, width_per_group={has.base_width}"
    return f"resnet.ResNet(resnet.Bottleneck, {[s.units for s in has.stages]}, {classes}, {groups})"


def torchvision_key(key: str) -> str:
    """The name that torchvision has for a tensor of an `original` ImageNet network."""

    def numbered(place: str) -> str:
        """A unit is conv, BN, ReLU, conv, …: the place tells which module, and its number."""
        number, which = divmod(int(place), 3)
        return f"{('conv', 'bn')[which]}{number + 1}"

    module, _, tensor = key.rpartition(".")
    match module.split("."):
        case ["stem", place]:
            theirs = numbered(place)
        case ["stages", stage, unit, "branch", place]:
            theirs = f"layer{int(stage) + 1}.{unit}.{numbered(place)}"
        case ["stages", stage, unit, "shortcut", place]:
            theirs = f"layer{int(stage) + 1}.{unit}.downsample.{place}"
        case _:  # the classifier: there is no other
            theirs = "fc"
    return f"{theirs}.{tensor}"


# --- ONNX -----------------------------------------------------------------------------------------


def save_onnx(
    network: ResidualNetwork,
    path: str | Path,
    provenance: Provenance = UNKNOWN,
    size: int | None = None,
) -> None:
    """Write a network, in evaluation mode, as ONNX: `images` [batch, 3, H, W] → `logits`.

    Args:
        size: height and width of an image; default: that of the run's images, and without
            settings the one that the stem is made for, 32 or 224.

    Raises:
        UserError: the extra packages are missing, or the file cannot be written.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"ONNX needs packages that are not installed ({package}): "
                "pip install 'resvar[onnx]'."
            )
    size = size or _image_size(network, provenance.settings)
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, size, size, device=network.classifier.weight.device)
    training = network.training
    try:
        with _quiet():
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    finally:
        network.train(training)
    assert program is not None  # it is None only where a file is asked for
    model: Any = program.model_proto
    # The exporter notes the source lines of every node, with the folders of this machine.
    for node in [*model.graph.node, *(n for f in model.functions for n in f.node)]:
        del node.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key = KEY
    entry.value = describe(network, provenance).model_dump_json()
    write(Path(path), model.SerializeToString())


def _image_size(network: ResidualNetwork, settings: Settings | None) -> int:
    if settings is None:
        return 224 if network.architecture.stem == "imagenet" else 32
    return settings.image_size if settings.dataset == "folder" else 32


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- `resvar export` ------------------------------------------------------------------------------

SUFFIXES = {
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
    "torchvision": (".pt", ".pth"),
}
"""The formats, and how their files end."""


def choose_format(out: Path, to: str | None = None, force: bool = False) -> str:
    """The format of `--out`: what `--to` says, else what the suffix says.

    Raises:
        UserError: the suffix is not of that format, or of none; the file is there already and
            `force` is false; its folder is missing.
    """
    endings = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    found = [name for name, suffixes in SUFFIXES.items() if out.suffix.lower() in suffixes]
    if not found:
        raise UserError(f"--out {out}: the file's name must end in one of {endings}.")
    if to is not None and to != found[0]:
        ending = " or ".join(SUFFIXES[to])
        raise UserError(f"--out {out}: with --to {to} the file's name must end in {ending}.")
    if out.is_dir():
        raise UserError(f"--out {out}: this is a folder.")
    if out.exists() and not force:
        raise UserError(f"--out {out}: the file is there already; --force replaces it.")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist.")
    return found[0]


def export(
    network: ResidualNetwork,
    out: Path,
    to: str,
    provenance: Provenance = UNKNOWN,
) -> None:
    """Write a network to `out` in a format of `SUFFIXES`.

    Raises:
        UserError: the format cannot hold this network, needs more packages, or `out` cannot be
            written.
    """
    if to == "torchvision":
        file = io.BytesIO()
        torch.save(to_torchvision(network), file)
        write(out, file.getvalue())
    elif to == "onnx":
        save_onnx(network, out, provenance)
    else:
        save_safetensors(network, out, provenance)


def write(path: Path, content: bytes) -> None:
    """Replace a file as a whole.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error


# --- helpers --------------------------------------------------------------------------------------


def _on_host(state: Mapping[str, Tensor]) -> State:
    """Copies on the CPU, in the usual memory format."""
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in state.items()}


def _same_tensors(wanted: Mapping[str, Any], found: Mapping[str, Any], source: str) -> None:
    """Compare what is said of each tensor: its shape, or more.

    Raises:
        UserError: a name is missing or unknown, or what is said differs; the first is named.
    """
    for problem, keys in (
        ("misses", [key for key in wanted if key not in found]),
        ("holds the unknown", [key for key in found if key not in wanted]),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{source} {problem} '{keys[0]}'{more}, so it is of another network.")
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(f"{source}: '{key}' is {found[key]}, but should be {value}.")


def _first_line(error: Exception) -> str:
    """What went wrong, in a line without a full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
