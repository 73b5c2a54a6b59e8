"""Stem, residual units and head, found in the operations of a trace.

Operations form a graph. What every path from the image passes is the trunk; where two paths part
and an addition joins them again, there is a residual unit. The operation at which they part decides
which signal the shortcut takes. Operations that are neither convolution, BN nor ReLU are judged by
what they do to values: a mean over all pixels is global average pooling, however it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from resvar.identification.trace import CONSTANT, Operation, Trace
from resvar.models.unit import Padding

LAYERS = {"conv", "bn", "relu", "linear"}
OTHER_LAYERS = {
    "hardtanh", "leaky_relu", "silu", "gelu", "elu", "hardswish", "mish", "_prelu_kernel",
    "sigmoid", "tanh", "softplus", "native_group_norm", "native_layer_norm", "_softmax",
    "_log_softmax",
}  # fmt: skip
"""Operations that no network of ours has, but that are layers by themselves."""

AVERAGES = {"mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d", "sum"}
SPELLINGS_OF_RELU = {"where", "mul", "gt", "ge", "div", "abs", "add", *CONSTANT.values()}
TOLERANCE = 1e-5
"""Relative; values are fp32."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a path: a convolution, BN, ReLU, linear layer, or a block of anything else.

    Attributes:
        op: `conv`, `bn`, `relu`, `linear`; `max`, `mean` or `pad` for a block that does the same;
            otherwise the operators' names.
        lanes: the operations: several where equal branches run side by side and are joined, as in
            the first two forms of ResNeXt's unit (arXiv:1611.05431, figure 3), else one.
        join: the dimension along which the weights of the lanes are concatenated.
        groups: of the convolution, all lanes together.
    """

    op: str
    lanes: tuple[Operation, ...]
    before: Tensor
    after: Tensor
    groups: int = 1
    join: int = 0
    weighted: bool = False
    """Whether a block contains convolutions, BN or linear layers."""

    @property
    def place(self) -> str:
        """The module in which it runs."""
        return self.lanes[0].place

    @property
    def weight_shape(self) -> tuple[int, ...]:
        shape = list(self.lanes[0].tensors["weight"].shape)
        shape[self.join] = sum(lane.tensors["weight"].shape[self.join] for lane in self.lanes)
        return tuple(shape)

    @property
    def channels_in(self) -> int:
        return self.weight_shape[1] * self.groups

    @property
    def channels_out(self) -> int:
        return self.weight_shape[0]


@dataclass(frozen=True, eq=False)
class UnitFound:
    """A residual unit: what comes between the last addition and the split, and the two paths."""

    before: tuple[Step, ...]
    branch: tuple[Step, ...]
    shortcut: tuple[Step, ...]
    name: str
    """Of the module that contains the unit."""

    @property
    def convs(self) -> list[Step]:
        """The convolutions of the branch."""
        return [step for step in self.branch if step.op == "conv"]

    @property
    def projects(self) -> bool:
        """Whether the shortcut contains a convolution."""
        return any(step.op == "conv" for step in self.shortcut)


@dataclass(frozen=True)
class Structure:
    """Stem, units and head, as the signal meets them. The stem ends at the first split."""

    stem: tuple[Step, ...]
    units: tuple[UnitFound, ...]
    head: tuple[Step, ...]


def structure_of(trace: Trace) -> Structure:
    """Find the residual units of a network; there may be none."""
    return _Graph(trace).structure()


@dataclass
class _Graph:
    trace: Trace
    dominator: list[int] = field(init=False)
    consumers: list[int] = field(init=False)

    def __post_init__(self) -> None:
        operations = self.trace.operations
        self.dominator = [0] * len(operations)
        self.consumers = [0] * len(operations)
        for operation in operations[1:]:
            meeting = operation.inputs[0]
            for index in set(operation.inputs):
                self.consumers[index] += 1
                meeting = self._meeting(meeting, index)
            self.dominator[operation.index] = meeting

    def _meeting(self, a: int, b: int) -> int:
        """The last operation on every path to both."""
        while a != b:
            if a > b:
                a = self.dominator[a]
            else:
                b = self.dominator[b]
        return a

    def structure(self) -> Structure:
        parts: list[list[Step]] = [[]]
        units: list[tuple[list[Step], list[Step], Operation]] = []
        for index in reversed(list(self._trunk())):
            paths = self._residual(index)
            if paths is None:
                parts[-1] += self._steps(index)
            else:
                units.append((*paths, self.trace.operations[index]))
                parts.append([])
        stem, *between = [tuple(blocks(part)) for part in parts]
        found = []
        additions = [addition.module for *_, addition in units]
        shared = [_shared_name([*branch, *shortcut]) for branch, shortcut, _ in units]
        telling = len(set(shared)) > 1
        for number, (branch, shortcut, addition) in enumerate(units):
            before = between[number - 1] if number else ()
            own = additions.count(addition.module) == 1
            name = (addition.module if own else "") or (shared[number] if telling else "")
            name = name or f"unit {number + 1}"
            found.append(UnitFound(before, tuple(branch), tuple(shortcut), name))
        return Structure(stem, tuple(found), between[-1] if between else ())

    def _trunk(self) -> Iterator[int]:
        """The operations that every path passes, from the output back to the image."""
        index = self.trace.output
        while index:
            yield index
            index = self.dominator[index]

    def _residual(self, index: int) -> tuple[list[Step], list[Step]] | None:
        """Branch and shortcut, if an operation is the addition of a residual unit."""
        operation = self.trace.operations[index]
        joins = operation.kind == "add" and len(self._inputs(index)) > 1
        if not joins or operation.value.dim() != 4:
            return None
        split = self.dominator[index]
        paths = [self._path(split, term) for term in self._terms(index, split)]
        paths.sort(key=_convolutions)
        shortcut, *branches = paths
        least = _convolutions(shortcut)
        if least > 1 or any(_convolutions(branch) <= least for branch in branches):
            return None
        branch = branches[0] if len(branches) == 1 else _merged(branches, summed=True)
        if branch is None or not any(step.op == "conv" for step in branch):
            return None
        return branch, shortcut

    def _terms(self, index: int, split: int) -> Iterator[int]:
        """The terms of a sum, through additions that only this sum uses."""
        for term in self._inputs(index):
            inner = self.trace.operations[term].kind == "add" and self.consumers[term] == 1
            if inner and term != split and self.dominator[term] == split:
                yield from self._terms(term, split)
            else:
                yield term

    def _inputs(self, index: int) -> list[int]:
        return list(dict.fromkeys(self.trace.operations[index].inputs))

    def _path(self, split: int, end: int) -> list[Step]:
        """The steps after `split`, up to and including `end`."""
        parts: list[list[Step]] = []
        while end != split:
            parts.append(self._steps(end))
            end = self.dominator[end]
        return blocks([step for part in reversed(parts) for step in part])

    def _steps(self, index: int) -> list[Step]:
        """The steps from an operation's dominator to it: one, or those of parallel lanes."""
        operation, start = self.trace.operations[index], self.dominator[index]
        before = self.trace.operations[start].value
        inputs = self._inputs(index)
        if len(inputs) == 1:
            op = operation.kind
            groups = int(operation.arguments["groups"]) if op == "conv" else 1
            return [Step(op, (operation,), before, operation.value, groups)]
        if operation.kind in ("add", "cat"):
            summed = operation.kind == "add"
            terms = list(self._terms(index, start)) if summed else inputs
            if all(self._is_chain(start, term) for term in terms):
                lanes = [self._path(start, term) for term in terms]
                if (joined := _merged(lanes, summed)) is not None:
                    return joined
        inside = [
            op for op in self.trace.operations[start + 1 : index] if self._is_inside(op, start)
        ]
        weighted = any(op.kind in ("conv", "bn", "linear") for op in inside)
        return [Step(operation.kind, (operation,), before, operation.value, weighted=weighted)]

    def _is_chain(self, start: int, end: int) -> bool:
        """Whether every operation after `start`, up to `end`, reads one other."""
        while end > start and len(self._inputs(end)) == 1:
            end = self._inputs(end)[0]
        return end == start

    def _is_inside(self, operation: Operation, start: int) -> bool:
        """Whether an operation runs between `start` and its meeting point."""
        index = operation.index
        while index > start:
            index = self.dominator[index]
        return index == start


def _shared_name(unit: Sequence[Step]) -> str:
    """The innermost module that contains all layers with weights of a unit."""
    names = [lane.place.split(".")[:-1] for step in unit for lane in step.lanes if lane.names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    return ".".join(parts[0] for parts in shared)


def _convolutions(path: Sequence[Step]) -> int:
    return sum(step.op == "conv" or step.weighted for step in path)


def _merged(lanes: Sequence[list[Step]], summed: bool) -> list[Step] | None:
    """Equal lanes as one path of grouped steps; None if they are not equal or not chains.

    A convolution that reads the common input has its weights concatenated by output; a later one
    has groups. The last one before a sum is a single convolution of all lanes' channels.
    """
    kinds = {tuple(step.op for step in lane) for lane in lanes}
    if len(lanes) < 2 or len(kinds) != 1:
        return None
    ops = kinds.pop()
    convs = [position for position, op in enumerate(ops) if op == "conv"]
    if len(convs) < 2 or convs[0] != 0 or set(ops) - {"conv", "bn", "relu"}:
        return None
    if summed and convs[-1] != len(ops) - 1:
        return None
    if len({step.weight_shape for lane in lanes for step in lane[:1]}) != 1:
        return None
    steps = []
    for position, together in enumerate(zip(*lanes, strict=True)):
        operations = tuple(operation for step in together for operation in step.lanes)
        last = summed and position == convs[-1]
        groups = together[0].groups * (1 if position == 0 or last else len(lanes))
        after = together[0].after if last else torch.cat([step.after for step in together], 1)
        steps.append(
            Step(ops[position], operations, together[0].before, after, groups, join=int(last))
        )
    return steps


# --- blocks of other operations -------------------------------------------------------------------


def blocks(steps: Sequence[Step]) -> list[Step]:
    """Steps with adjacent operations of other kinds as one block, named by what the block does."""
    found: list[Step] = []
    for step in steps:
        last = found[-1] if found else None
        if last is not None and not _is_layer(step) and not _is_layer(last):
            lanes = (*last.lanes, *step.lanes)
            found[-1] = Step("", lanes, last.before, step.after)
        else:
            found.append(step)
    named = [part for step in found for part in ([step] if _is_layer(step) else _named(step))]
    return [step for step in named if step.op != "identity"]


def _is_layer(step: Step) -> bool:
    return step.op in LAYERS | OTHER_LAYERS or step.weighted


def _named(block: Step) -> Iterator[Step]:
    """A block by its meaning, or as the longest parts that have one, such as ReLU and mean."""
    kinds = tuple(lane.kind for lane in block.lanes)
    for end in range(len(kinds), 0, -1):
        after = block.lanes[end - 1].value if end < len(kinds) else block.after
        if op := _meaning(kinds[:end], block.before, after):
            yield Step(op, block.lanes[:end], block.before, after)
            if end < len(kinds):
                yield from _named(Step("", block.lanes[end:], after, block.after))
            return
    yield Step(" + ".join(dict.fromkeys(kinds)), block.lanes, block.before, block.after)


def _meaning(kinds: Sequence[str], before: Tensor, after: Tensor) -> str | None:
    """What a block of operations computes, if it is something that these networks contain."""
    if before.dim() == 4:
        if AVERAGES & set(kinds) and _equal(after, before.mean((2, 3))):
            return "mean"
        if _equal(after, before) and before.shape == after.shape:
            return "identity"
        if min(before.shape[2:]) > 2 and _equal(after, F.max_pool2d(before, 3, 2, 1)):
            return "max"
        if min(before.shape[2:]) > 1 and _equal(after, before.amax((2, 3))):
            return "global maximum"
        if before.shape == after.shape and _equal(after, before.clamp(min=0)):
            return "relu" if set(kinds) <= SPELLINGS_OF_RELU else None
        if after.dim() == 4 and before.shape[1] < after.shape[1]:
            return _padding(before, after)
    elif _equal(after, before):
        return "identity"
    if _equal(after, before):
        return "identity"  # a change of shape
    return None


def _padding(before: Tensor, after: Tensor) -> str | None:
    """How a shortcut without weights makes more channels of fewer pixels."""
    width, extra = before.shape[1], after.shape[1] - before.shape[1]
    stride = ceil(before.shape[2] / after.shape[2])
    if _equal(after, Padding(width, after.shape[1], stride)(before)):
        return "pad"
    sampled = {"takes every second pixel": before[:, :, ::stride, ::stride]}
    if stride > 1:
        sampled["averages pixels"] = F.avg_pool2d(before, stride)
        sampled["takes the largest of the pixels"] = F.max_pool2d(before, stride)
    padded = {"half before and half after": extra // 2, "all after": 0, "all before": extra}
    for how, pixels in sampled.items():
        for where, first in padded.items():
            if _equal(after, F.pad(pixels, (0, 0, 0, 0, first, extra - first))):
                return f"{how} and pads with zero channels, {where}"
        if extra % width == 0 and _equal(after, torch.cat([pixels] * (1 + extra // width), 1)):
            return f"{how} and repeats the channels"
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.numel() != b.numel() or not a.numel():
        return False
    a, b = a.flatten(), b.flatten()
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())
