"""The C++ operators: their tests use them compiled, in the types that this processor multiplies."""

from __future__ import annotations

import pytest
import torch

from resvar.kernels import build


@pytest.fixture(scope="module")
def built() -> None:
    build.load_operators()


@pytest.fixture(autouse=True)
def _only_types_of_this_processor(request: pytest.FixtureRequest) -> None:
    """Skip a parameter `dtype` for which this processor has no instructions."""
    callspec = getattr(request.node, "callspec", None)
    dtype = callspec.params.get("dtype") if callspec and "built" in request.fixturenames else None
    if dtype is not None and not torch.ops.resvar.takes_convolutions(dtype):
        pytest.skip(f"no instructions for convolutions in {dtype} here")
