"""`compile: unit`: each residual unit goes through torch.compile by itself.

A whole network of 110 layers takes minutes to compile. Its units are the same code with other
weights, so that one compilation serves all units of a shape: five or six in a CIFAR network.

On a GPU without `capture` (`resvar.training.capture`) the mode is `reduce-overhead`: each unit is a
CUDA graph of its own, replayed with one launch instead of dozens, since the kernels of small images
are shorter than their launches. Such a graph writes its results to the same memory each time; hence
`begin_micro_batch`, and gradients that are set to zero where they lie and not given away.
"""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from resvar.config import Settings
from resvar.errors import UserError
from resvar.models.network import ResidualNetwork
from resvar.models.unit import ResidualUnit

SHAPES = 64
"""Compilations that one piece of code may have; torch gives up after 8 unless told."""


def compile_units(
    network: ResidualNetwork, settings: Settings, device: torch.device
) -> ResidualNetwork:
    """The same network, whose units compile themselves at their first call in training.

    Names and values of its weights stay as they are.

    Raises:
        UserError: on the processor, where no C++ compiler is found.
    """
    if settings.compile == "none":
        return network
    cuda = device.type == "cuda"
    if not cuda and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError(
            "'compile' unit: no C++ compiler is found here; install g++, or use --set compile=none."
        )
    from torch._dynamo import config

    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, limit, SHAPES)  # the older name is that of torch before 2.6
    mode = "reduce-overhead" if cuda and keeps_gradients(settings) else None
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.compile(dynamic=False, mode=mode)
    if keeps_gradients(settings):
        for weights in network.parameters():
            weights.grad = torch.zeros_like(weights)
    return network


def keeps_gradients(settings: Settings) -> bool:
    """Whether gradients stay where they lie, since graphs of single units add to them there."""
    return settings.compile == "unit" and settings.capture != "iteration"


def begin_micro_batch(settings: Settings) -> None:
    """Say that what captured graphs have put out is no longer needed."""
    if keeps_gradients(settings):
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def uncompiled(settings: Settings) -> AbstractContextManager[Any]:
    """Inside, compiled units compute as they are written: evaluation is not worth compiling."""
    if settings.compile == "none" or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager
