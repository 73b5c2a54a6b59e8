from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from resvar.bench.profile import heading_of, shares


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
