from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.nn import functional as F

from resvar.bench.profile import DeviceWork, device_work, heading_of, launches, shares
from resvar.kernels.ghost_bn import ghost_batch_norm
from tests.support.interpreter import interpreted


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["aten::convolution_backward"], "convolution"),
        (["aten::copy_", "aten::mkldnn_convolution", "aten::conv2d"], "convolution"),
        (["aten::native_batch_norm_backward"], "BN"),
        (["NativeBatchNormBackward0"], "BN"),
        (["aten::add_", "evaluate_function: NativeBatchNormBackward0"], "addition"),
        (["aten::threshold_backward", "ReluBackward0"], "ReLU"),
        (["resvar::bn_relu_backward"], "fused"),
        (["_GhostBatchNorm"], "fused"),
        (["aten::copy_", "_GhostBatchNormBackward"], "fused"),
        (["aten::add_", "Optimizer.step#SGD.step"], "optimizer"),
        (["aten::add_", "torch::autograd::AccumulateGrad"], "optimizer"),
        (["aten::index", "bench::data"], "data"),
        (["aten::addmm", "aten::linear"], "other"),
        (["aten::_to_copy"], "other"),
    ],
)
def test_the_innermost_operator_with_a_heading_decides(names, found):
    assert heading_of(names) == found


def test_shares_are_of_own_time_by_hand():
    data = SimpleNamespace(name="bench::data", cpu_parent=None, time=1)
    index = SimpleNamespace(name="aten::add", cpu_parent=data, time=2)
    conv = SimpleNamespace(name="aten::conv2d", cpu_parent=None, time=5)
    found = shares([data, index, conv], lambda event: event.time)
    assert found == {"data": 3 / 8, "convolution": 5 / 8}
    assert shares([], lambda event: event.time) == {}


def test_a_real_profile_finds_what_there_is():
    images = torch.randn(8, 16, 16, 16)
    weights = torch.randn(16, 16, 3, 3, requires_grad=True)
    with torch.profiler.profile(acc_events=True) as found:
        signal = F.conv2d(images, weights, padding=1)
        signal = F.batch_norm(signal, None, None, training=True).relu()
        (signal + images).sum().backward()
    of = shares(found.events(), lambda event: event.self_cpu_time_total)
    assert {"convolution", "BN", "ReLU", "addition"} <= set(of)
    assert sum(of.values()) == pytest.approx(1)


def test_the_operator_of_triton_has_a_heading():
    pytest.importorskip("triton")
    x = torch.randn(4, 16, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = torch.ones(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    with interpreted(), torch.profiler.profile(acc_events=True) as found:
        out, _ = ghost_batch_norm(
            x, scale, shift, None, None, group=2, momentum=0.1, eps=1e-5, relu="before"
        )
        out.backward(out.detach())
    events = found.events()
    operators = [e for e in events if heading_of([e.name]) == "fused" and not e.cpu_parent]
    assert len(operators) == 2  # forward and backward, with all that is inside them
    assert shares(operators, lambda e: e.cpu_time_total) == {"fused": 1.0}
    assert shares(events, lambda e: e.self_cpu_time_total)["fused"] > 0.5


def event(name, start, end, device=DeviceType.CUDA, **more):
    """As torch's profiler makes them; times in µs."""
    return FunctionEvent(
        id=0, name=name, thread=0, start_us=start, end_us=end, device_type=device,
        use_device="cuda", **more,
    )  # fmt: skip


RECORDED = [
    event("cudaLaunchKernel", 0, 5, DeviceType.CPU),
    event("bench::data", 0, 90, DeviceType.CPU, is_user_annotation=True),
    event("bench::data", 1, 90, is_user_annotation=True),
    event("Optimizer.step#SGD.step", 100, 200),  # of a torch that does not mark it
    event("moments", 1, 3),
    event("moments", 4, 8),
    event("apply", 8, 18),
    event("Memcpy HtoD (Pinned -> Device)", 20, 21),
    event("Memset (Device)", 21, 22),
    event("Memset (Device)", 22, 23),
    event("Memcpy DtoD (Device -> Device)", 23, 24),
]
"""Of an update: 3 kernels, 4 copies and fills."""


def test_kernels_and_copies_are_counted_without_the_ranges_of_the_host():
    work = device_work(RECORDED, 1)
    assert work[:2] == [DeviceWork("apply", 1, 10.0), DeviceWork("moments", 2, 6.0)]
    assert [one.name for one in work if one.is_kernel] == ["apply", "moments"]
    assert launches(work) == {"kernels": 3, "copies": 4}
    assert launches(device_work(3 * RECORDED, 3)) == {"kernels": 3, "copies": 4}


def test_a_kernel_that_the_profiler_lost_does_not_change_the_number_of_an_update():
    assert launches([DeviceWork("apply", 1050 - 1 / 3, 1.0)])["kernels"] == 1050


def test_without_cupti_the_number_of_kernels_is_not_known():
    host = [one for one in RECORDED if one.device_type is DeviceType.CPU]
    assert launches(device_work(host, 3)) == {"kernels": None, "copies": None}
