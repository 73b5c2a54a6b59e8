"""The operations that the signal meets, recorded while a network runs.

The network is run once, and every operator of ATen below autograd is seen: a call from
`torch.nn.functional`, a shared or an in-place ReLU and a module are all the same here. Two
operations are connected where the memory that one wrote is what the other read, so an in-place
operation changes the signal for every operation that reads it later, as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resvar.errors import UserError

BATCH_NORM = {
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "batch_norm_with_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
}
CONVOLUTION = {"convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution"}
LINEAR = {"addmm", "mm", "linear"}
EPS, MOMENTUM = 1e-5, 0.1
"""Of BN in torch, where an operator does not pass them."""

COPIES = {"clone", "_to_copy", "alias", "detach", "lift_fresh", "contiguous", "expand"}
"""Operators that change no value, wherever the shape stays."""

CONSTANT = {
    "add": "addition of a constant",
    "sub": "addition of a constant",
    "mul": "multiplication by a constant",
    "div": "multiplication by a constant",
}
"""What these are where only one operand depends on the image."""

RANDOM = {"native_dropout", "bernoulli", "rand", "rand_like", "randn", "randn_like", "uniform",
          "normal", "geometric", "exponential", "multinomial", "_fused_dropout"}  # fmt: skip

Region = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(eq=False)
class Operation:
    """One operation on the signal.

    Attributes:
        kind: `conv`, `bn`, `relu`, `add`, `linear`, `image`, or the operator's name in ATen.
        inputs: the operations whose results it reads, by index; parameters are not among them.
        value: its result, as it was when the operation ended.
        module: the innermost module in which it ran; "" in the network's own `forward`.
        tensors: weight, bias, running mean and variance, as far as it has them, by these names.
        names: the names of these tensors in the network; absent if computed from something.
        arguments: what else defines it: stride, padding, groups, eps …
    """

    index: int
    kind: str
    inputs: tuple[int, ...]
    value: Tensor
    module: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The module as a reader of the code knows it: that of its weight, if it has one.

        A weight that is not a module's `weight`, as in a `ParameterDict`, has its own name.
        """
        weight = self.names.get("weight", "")
        owner, _, last = weight.rpartition(".")
        return (owner if last == "weight" else weight) or self.module


@dataclass(frozen=True)
class Trace:
    """The operations between image and output, in the order in which they ran.

    Attributes:
        output: the index of the operation that gives the logits.
        met: the names of all tensors of the network that some operation read.
    """

    operations: tuple[Operation, ...]
    output: int
    met: frozenset[str]


def trace(network: nn.Module, image: Tensor) -> Trace:
    """Run a network on images [N, C, H, W] and record what they meet.

    The network should be in evaluation mode. Its output is a tensor, or something that contains
    one: the field `logits`, or the first [N, classes] of a tuple or mapping.

    Raises:
        UserError: the output contains no tensor, or does not depend on the image.
        Exception: whatever the network raises.
    """
    with torch.no_grad(), _Recorder(network, image) as recorder:
        output = logits_of(network(image))
    index = recorder.read(output)
    if index is None:
        raise UserError("the network's output does not depend on the image.")
    return Trace(tuple(recorder.operations), index, frozenset(recorder.met))


def random_operations(network: nn.Module, images: Tensor) -> list[str]:
    """The modules in which random numbers are drawn; in training mode, that is dropout."""
    with torch.no_grad(), _Recorder(network, images) as recorder:
        network(images)
    return list(dict.fromkeys(recorder.random))


def logits_of(output: Any) -> Tensor:
    """The tensor in what a classifier returns.

    Raises:
        UserError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", named)
    if isinstance(logits, Tensor):
        return logits
    tensors = [value for value in _flattened(output) if isinstance(value, Tensor)]
    if tensors:
        return next((tensor for tensor in tensors if tensor.dim() == 2), tensors[0])
    raise UserError(f"the network returns {type(output).__name__}, not a tensor of logits.")


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations. Memory that was seen is kept, so that no address is used twice."""

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = [Operation(0, "image", (), image.clone())]
        self.random: list[str] = []
        self.met: set[str] = set()
        self._at: dict[Region, int] = {region(image): 0}
        self._values: dict[int, list[Operation]] = {}
        self._written: dict[int, tuple[Region, int]] = {}
        self._kept: list[Tensor] = [image]
        self._names = {
            storage(tensor): name
            for name, tensor in [*network.named_buffers(), *network.named_parameters()]
        }
        self._running: list[str] = []
        self._handles: list[Any] = []
        for name, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks; its operations are seen all the same
            self._handles += [
                module.register_forward_pre_hook(lambda *_, n=name: self._running.append(n)),
                module.register_forward_hook(lambda *_: self._left(), always_call=True),
            ]

    def _left(self) -> None:
        self._running.pop()  # and return None: the value of a hook replaces the module's output

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.rstrip("_")
        module = self._running[-1] if self._running else ""
        if name in RANDOM:
            self.random.append(module)
        tensors = [value for value in _flattened((args, kwargs)) if isinstance(value, Tensor)]
        self.met |= {self._names.get(storage(tensor), "") for tensor in tensors}
        read = (self.read(tensor) for tensor in tensors)
        inputs = tuple(index for index in read if index is not None)
        if not inputs:
            return func(*args, **kwargs)
        given = _by_name(func, args, kwargs)
        changed = [given[a.name] for a in func._schema.arguments if _is_changed(a, given)]
        for tensor in changed:
            self._keep_values(tensor)
        result = func(*args, **kwargs)
        results = [v for v in _flattened(result) if isinstance(v, Tensor) and v.is_floating_point()]
        if not results:
            return result
        self._kept += [*results, *tensors]
        value = results[0]
        if name in COPIES and self.operations[inputs[0]].value.shape == value.shape:
            self._at[region(value)] = inputs[0]
            return result
        operation = Operation(len(self.operations), name, inputs, value, module)
        self._describe(operation, name, given)
        self._append(operation)
        for part in results[1:]:  # of chunk, split or unbind
            self._at[region(part)] = operation.index
        if any(storage(tensor) == storage(value) for tensor in changed):
            self._written[storage(value)] = (region(value), operation.index)
        return result

    def _append(self, operation: Operation) -> None:
        self.operations.append(operation)
        self._at[region(operation.value)] = operation.index
        self._values.setdefault(storage(operation.value), []).append(operation)

    def _keep_values(self, tensor: Tensor) -> None:
        """Before its memory is overwritten, copy what earlier operations left there."""
        for operation in self._values.pop(storage(tensor), ()):
            operation.value = operation.value.clone()

    def read(self, tensor: Tensor) -> int | None:
        """The operation that a tensor comes from; None if it does not depend on the image."""
        here = region(tensor)
        found = self._at.get(here)
        where, last = self._written.get(here[0], (here, -1))
        if where == here or (found is not None and last < found):
            return found
        # A part of this memory was written after it was seen as a whole.
        inputs = tuple(index for index in (found, last) if index is not None)
        self._kept.append(tensor)
        self._append(Operation(len(self.operations), "written", inputs, tensor))
        return self._at[here]

    def _describe(self, operation: Operation, name: str, given: dict[str, Any]) -> None:
        """Kind, tensors and arguments of the operations that a residual network consists of."""
        if name in CONVOLUTION and not given.get("transposed"):
            operation.kind = "conv"
            known = ("stride", "padding", "dilation", "groups")
            operation.arguments = {key: given[key] for key in known}
        elif name in BATCH_NORM:
            operation.kind = "bn"
            operation.arguments = {
                "eps": given.get("eps", given.get("epsilon", EPS)),
                "momentum": given.get(
                    "momentum", given.get("exponential_average_factor", MOMENTUM)
                ),
            }
        elif name in LINEAR and len(operation.inputs) == 1:
            operation.kind = "linear"
            given = _linear_tensors(name, given)
        elif name in CONSTANT and len(operation.inputs) == 1:
            operation.kind = CONSTANT[name]
            product = self.operations[operation.inputs[0]]
            bias = given.get("other")
            if name == "add" and _lacks(product, bias):
                operation.kind, operation.inputs = "linear", product.inputs
                operation.tensors, operation.names = dict(product.tensors), dict(product.names)
                given = {"bias": bias}
        elif name == "add":
            if given.get("alpha", 1) != 1:
                operation.kind = "weighted addition"
        elif name == "relu" or _clamps_below_zero(name, given):
            operation.kind = "relu"
        else:
            operation.arguments = {
                key: value for key, value in given.items() if not isinstance(value, Tensor)
            }
            return
        for key in ("weight", "bias", "running_mean", "running_var"):
            if isinstance(tensor := given.get(key), Tensor):
                operation.tensors[key] = tensor
                if own := self._names.get(storage(tensor)):
                    operation.names[key] = own


def region(tensor: Tensor) -> Region:
    """The memory that a tensor covers."""
    return storage(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


def storage(tensor: Tensor) -> int:
    """The address of a tensor's memory."""
    return int(tensor.untyped_storage()._cdata)


def _is_changed(argument: Any, given: Mapping[str, Any]) -> bool:
    """Whether an operator writes to an argument."""
    alias = argument.alias_info
    return alias is not None and alias.is_write and isinstance(given.get(argument.name), Tensor)


def _by_name(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operator by the names in its schema."""
    named = {
        argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)
    }
    return {**named, **kwargs}


def _linear_tensors(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Weight [out, in] and bias of a product with a matrix."""
    if name == "linear":
        return given
    return {"weight": given["mat2"].t(), "bias": given["self"] if name == "addmm" else None}


def _lacks(product: Operation, bias: Any) -> bool:
    """Whether an operation is a product of a matrix without bias, and a tensor could be that."""
    open_ = product.kind == "linear" and "bias" not in product.tensors
    return open_ and isinstance(bias, Tensor) and bias.shape == product.value.shape[1:]


def _clamps_below_zero(name: str, given: Mapping[str, Any]) -> bool:
    """Other spellings of ReLU: `clamp(min=0)`, `threshold(0, 0)`, `maximum` with zero."""
    if name == "clamp":
        return given.get("min") == 0 and given.get("max") is None
    if name == "clamp_min":
        return not isinstance(given["min"], Tensor) and bool(given["min"] == 0)
    if name == "threshold":
        return bool(given.get("threshold") == 0 and given.get("value") == 0)
    if name == "maximum":
        return any(
            isinstance(value, Tensor) and value.numel() > 0 and not value.any()
            for value in (given.get("self"), given.get("other"))
        )
    return False


def _flattened(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flattened(item)
    elif isinstance(value, Mapping):
        yield from _flattened(list(value.values()))
    else:
        yield value
