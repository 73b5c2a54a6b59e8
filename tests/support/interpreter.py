"""Run the Triton kernels on the processor, even if Triton was imported before.

`TRITON_INTERPRET=1` only counts at Triton's import, would have to be set for a whole test session,
and would reach every process that a test starts. So the kernels are replaced instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch


@contextmanager
def interpreted() -> Iterator[None]:
    """Within it, `ghost_bn` accepts tensors on the processor and runs in Triton's interpreter.

    The test is skipped without Triton.
    """
    pytest.importorskip("triton", minversion="3.2")
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    from resvar.kernels import ghost_bn_kernels

    with pytest.MonkeyPatch.context() as patch:
        for name, function in vars(ghost_bn_kernels).copy().items():
            if isinstance(function, JITFunction):
                own = interpreter.InterpretedFunction(function.fn)
                helper = name.startswith("_")  # called by a kernel, within its interpreter
                patch.setattr(ghost_bn_kernels, name, own.rewrite() if helper else own)
        options = dataclasses.replace(interpreter.InterpreterOptions(), sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)  # halves the time
        # Triton's own functions are compiled ones if it was imported without the variable.
        patch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine))
        convert = interpreter._convert_float
        patch.setattr(interpreter, "_convert_float", lambda *of: _convert(convert, *of))
        yield


def _convert(convert, values, source, target, rounding):
    """The interpreter's conversion of floats, except fp32 → bf16: to the nearest, as on a GPU.

    The interpreter drops the digits that bf16 does not have.
    """
    import triton.language as tl

    if (source, target) != (tl.float32, tl.bfloat16):
        return convert(values, source, target, rounding)
    nearest = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return nearest.view(torch.uint16).numpy()
