"""How a run is carried out: every `auto` of its settings decided once, for one device.

`Execution.resolve` is the only place that decides. Training, evaluation, estimates and benchmarks
all take the `Execution` that it returns, so that they measure and repeat the same computation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from resvar.errors import UserError
from resvar.kernels.build import (
    BuildError,
    compiler_command,
    compiler_version,
    load_operators,
    loaded_operators,
)
from resvar.kernels.ghost_fuse import triton_obstacle, triton_version
from resvar.models.network import ResidualNetwork
from resvar.settings import Settings
from resvar.training.distributed import SINGLE_PROCESS, Ranks
from resvar.training.machine import computes_bf16, keep_freed_memory

Log = Callable[[str], None]


@dataclass(frozen=True)
class Execution:
    """The decisions that carry out a run on one device.

    Attributes:
        settings: the run's, with `precision` and `kernels` resolved. Both change the last bits of
            a result, so they are recorded with the run.
        ranks: the processes that share the run.
        kernels: what computes here. A run started with `fused` continues with `plain` where
            they are unavailable; its settings stay.
        compiles: whether units are compiled here; likewise.
        memory_format: of images and weights.
        captures: whether an update becomes one CUDA graph, and so a batch of an evaluation. Not
            recorded, since the bits are the same: another device may resume the run, and decides
            again.
        ghost: whether an update takes its batch in one pass, with BN over groups of it: what
            `fused` means on a GPU.
        multi_tensor: whether what an update does to each weight or BN is done to all of them by
            one operation, since a GPU takes as long to start a small kernel as a large one. Same
            bits.
    """

    settings: Settings
    device: torch.device
    ranks: Ranks
    kernels: Literal["plain", "fused"]
    compiles: bool
    memory_format: torch.memory_format
    captures: bool
    ghost: bool = False
    multi_tensor: bool = False

    @classmethod
    def resolve(
        cls,
        settings: Settings,
        device: torch.device,
        ranks: Ranks = SINGLE_PROCESS,
        begun: Settings | None = None,
        log: Log | None = None,
    ) -> Execution:
        """Decide how to train; builds the fused operators where they are needed and missing.

        Args:
            begun: the recorded settings of the run to be resumed. It keeps its precision and its
                kernels; what it cannot have here it continues without.
            log: called with a sentence when operators are built, and when a run cannot use them.

        Raises:
            UserError: a setting requires something that this device or machine cannot do.
        """
        if begun is not None:
            settings = _as_begun(settings, begun)
        settings = _with_precision(settings, device)
        captures = _captures(settings, device, ranks.size)
        without = _refuse if begun is None else partial(_warn, log or (lambda _: None))
        compiles = _choose_compile(settings, device, without)
        kernels = _choose_kernels(settings, device, without, log)
        if settings.kernels == "auto":
            settings = settings.model_copy(update={"kernels": kernels})
        form, gpu = _memory_format(settings), device.type == "cuda"
        ghost = gpu and kernels == "fused"
        return cls(settings, device, ranks, kernels, compiles, form, captures, ghost, gpu)

    @classmethod
    def for_inference(cls, settings: Settings, device: torch.device) -> Execution:
        """Decide how to evaluate: as the run was trained, but without operators or graphs."""
        settings = _with_precision(settings, device)
        form = _memory_format(settings)
        return cls(settings, device, SINGLE_PROCESS, "plain", False, form, captures=False)

    def __str__(self) -> str:
        """A short description for the log: `bf16, channels_last, fused kernels`."""
        s = self.settings
        words: list[str] = [s.precision]
        words += ["channels_last"] if self.memory_format is torch.channels_last else []
        words += ["a CUDA graph per update"] if self.captures else []
        words += ["compiled units"] if self.compiles else []
        words += ["recomputed units"] if s.recompute == "unit" else []
        if self.kernels == "fused":
            words += ["fused ghost BN" if self.ghost else "fused kernels"]
        return ", ".join(words)

    def facts(self) -> dict[str, str]:
        """For `environment.json`: what computes here, and what it was compiled by.

        `operators` is the digest of the library, which another compiler changes; on a GPU, the
        version of Triton.
        """
        facts = {"kernels": self.kernels, "compile": "unit" if self.compiles else "none"}
        if self.ghost:
            facts["operators"] = f"Triton {triton_version()}"
        elif self.kernels == "fused":
            facts["operators"] = loaded_operators() or "unknown"
        if self.compiles and self.device.type == "cpu":
            facts["compiler"] = compiler_version(compiler_command()).partition("\n")[0]
        return facts

    def prepare_process(self, keep_memory: bool = True) -> None:
        """Set torch's switches. They belong to the process, and a process has one run.

        Args:
            keep_memory: on a processor, let the process keep the memory of freed tensors.
        """
        if self.device.type == "cpu" and keep_memory:
            keep_freed_memory()
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = not self.settings.deterministic
            torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
        if self.settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            # Otherwise torch fills each new tensor with NaN; nothing here reads unwritten memory.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    @property
    def images_at_once(self) -> int:
        """Images of a forward pass in training: a micro-batch, or this rank's whole batch."""
        if self.ghost:
            return self.settings.batch_size // self.ranks.size
        return self.settings.bn_batch_size

    @property
    def casts_weights(self) -> bool:
        """Whether all weights are cast to bf16 at once. Not for compiled units, which fuse their
        casts; without a CUDA graph the processor's time to pass the copies costs more."""
        return self.captures and self.settings.precision == "bf16" and not self.compiles

    def to_device(self, network: ResidualNetwork) -> ResidualNetwork:
        """The network on the device, in the memory format."""
        moved: ResidualNetwork = network.to(self.device).to(memory_format=self.memory_format)
        return moved

    def autocast(self) -> AbstractContextManager[Any]:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def forward(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] → logits float32 [N, classes], at the run's precision."""
        images = images.contiguous(memory_format=self.memory_format)
        with self.autocast():
            return network(images).float()


# --- the decisions --------------------------------------------------------------------------------


def _as_begun(settings: Settings, begun: Settings) -> Settings:
    """The settings of a run to be resumed: what they leave open is as the run has recorded it."""
    names = [name for name in ("precision", "kernels") if getattr(settings, name) == "auto"]
    return settings.model_copy(update={name: getattr(begun, name) for name in names})


def _with_precision(settings: Settings, device: torch.device) -> Settings:
    """`auto` is bf16 autocast where the device computes bf16 in hardware, else fp32."""
    if settings.precision != "auto":
        return settings
    return settings.model_copy(update={"precision": "bf16" if computes_bf16(device) else "fp32"})


def _memory_format(settings: Settings) -> torch.memory_format:
    """`auto` is channels_last for bf16 convolutions and for the fused operators."""
    if settings.memory_format != "auto":
        named = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
        return named[settings.memory_format]
    rows = settings.precision == "bf16" or settings.kernels == "fused"
    return torch.channels_last if rows else torch.contiguous_format


def _captures(settings: Settings, device: torch.device, processes: int) -> bool:
    """`auto` captures on a GPU, for a run that one process has to itself."""
    obstacle = None
    if device.type != "cuda":
        obstacle = "only a GPU captures graphs"
    elif processes > 1:
        obstacle = "a run shared by several processes waits for the others within an update"
    if obstacle is not None and settings.capture == "iteration":
        raise UserError(f"'capture' iteration: {obstacle}; use --set capture=auto.")
    return obstacle is None and settings.capture != "none"


def _choose_compile(settings: Settings, device: torch.device, without: Without) -> bool:
    """On a processor, torch.compile calls a C++ compiler."""
    if settings.compile == "none":
        return False
    if device.type == "cuda":
        return True
    try:
        compiler_version(compiler_command())
    except BuildError as error:
        without("compile", str(error))
        return False
    return True


def _choose_kernels(
    settings: Settings, device: torch.device, without: Without, log: Log | None
) -> Literal["plain", "fused"]:
    """`auto` is `fused` on a CPU where that gains something and can be built."""
    if settings.kernels == "plain" or (settings.kernels == "auto" and device.type != "cpu"):
        return "plain"
    obstacle = _obstacle(settings, device)
    if obstacle is None and device.type == "cpu":
        try:
            load_operators(log)
            obstacle = _no_gain(settings)
        except BuildError as error:
            obstacle = str(error)
            if settings.kernels == "auto" and log is not None:
                log(f"Without the fused operators, which are faster: {obstacle}.")
    if obstacle is None:
        return "fused"
    if settings.kernels == "fused":
        without("kernels", obstacle)
    return "plain"


Without = Callable[[str, str], None]
"""Called with a setting that is not possible here, and the reason."""


def _refuse(setting: str, obstacle: str) -> None:
    asked, instead = {"compile": ("unit", "none"), "kernels": ("fused", "plain")}[setting]
    raise UserError(f"'{setting}' {asked}: {obstacle}; use --set {setting}={instead}.")


def _warn(log: Log, setting: str, obstacle: str) -> None:
    """The settings of a resumed run are fixed, so it continues without."""
    what = {"compile": "compiled units", "kernels": "fused operators"}[setting]
    log(f"Warning: this run was started with {what} and continues without them: {obstacle}.")


def _obstacle(settings: Settings, device: torch.device) -> str | None:
    """Why the fused operators need not even be built."""
    if device.type == "cuda":
        if (obstacle := triton_obstacle(device)) is not None:
            return obstacle
    elif device.type != "cpu":
        return "they are for CPUs and NVIDIA GPUs"
    if settings.compile != "none":
        return "they cannot be combined with 'compile' unit, which fuses in its own way"
    if settings.memory_format == "contiguous":
        return "they need channels_last (--set memory_format=channels_last, or auto)"
    if _only_for_speed(settings) and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return NO_GAIN
    return None


def _no_gain(settings: Settings) -> str | None:
    """In fp32 `auto` would change the memory format for the operators' sake alone, which may cost
    more than they gain where they do not compute the weights' gradients."""
    if _only_for_speed(settings) and not torch.ops.resvar.takes_convolutions(torch.float32):
        return NO_GAIN
    return None


def _only_for_speed(settings: Settings) -> bool:
    return settings.kernels == settings.memory_format == "auto" and settings.precision == "fp32"


NO_GAIN = "they gain nothing in fp32 on this processor"
