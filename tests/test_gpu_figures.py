"""The claims of scripts/check_gpu.py about time, with fakes for the updates."""

from __future__ import annotations

from contextlib import nullcontext

import check_gpu
import gpu_figures
import pytest
import torch
from gpu_claims import Case, Finding

from resvar.bench import turns
from resvar.bench.profile import DeviceWork
from tests.bench.test_bench import FakeCeiling, FakeWorker
from tests.bench.test_profile import RECORDED

GPU = torch.device("cuda")
H100 = "NVIDIA H100 80GB HBM3"


class FakeTraining:
    """Updates of 10 ms with the events of a GPU."""

    def __init__(self, contender, _device):
        self.batch_size = contender.settings.batch_size

    def warm_up(self):
        return 1.0

    def run(self, updates):
        return 0.01 * updates

    def events(self):
        return 3 * RECORDED


WANTED = {"images_per_second": (19_000, None), "kernels": (None, 1150)}


@pytest.fixture
def at_110(monkeypatch):
    """ResNet-110 on an H100 whose updates are fakes."""
    monkeypatch.setattr(gpu_figures, "Training", FakeTraining)
    monkeypatch.setattr(gpu_figures, "device_name", lambda _device: H100)
    return Case(110, GPU)


def test_speed_and_kernels_of_an_update_beside_those_wanted(at_110):
    finding = gpu_figures.speed(at_110, "kernels=fused", wanted=WANTED, table=True)
    assert finding.evidence == (
        "12,800 images/s (wanted on an H100: ≥ 19,000), "
        "3 kernels an update (wanted on an H100: ≤ 1,150)"
    )
    assert finding.verdict == "FAILS"
    assert finding.figures["kernels"] == 3
    assert finding.figures["copies"] == 4
    first, *_, last = finding.lines
    assert " ".join(first.split()) == "apply 1 × 10.0 µs = 0.01 ms 50 %"
    assert max(map(len, finding.lines)) <= 80
    assert last.strip(), last


@pytest.mark.parametrize(
    ("speed", "kernels", "card", "verdict"),
    [
        (19_000, 1_150, H100, "holds"),
        (18_999, 1_150, H100, "FAILS"),
        (19_000, 1_151, H100, "FAILS"),
        (19_000, None, H100, "not checked"),
        (18_999, None, H100, "FAILS"),
        (18_999, 1_151, "NVIDIA A100", "figure"),
    ],
)
def test_a_verdict_only_where_a_figure_is_wanted(
    at_110, monkeypatch, speed, kernels, card, verdict
):
    monkeypatch.setattr(gpu_figures, "device_name", lambda _device: card)
    figures = {"images_per_second": speed, "kernels": kernels}
    finding = gpu_figures.judged(at_110, figures, WANTED)
    assert finding.verdict == verdict
    assert "(wanted on an H100: ≤ 1,150)" in finding.evidence
    for other in (Case(20, GPU), Case(110, GPU, ("precision=fp32",))):
        finding = gpu_figures.judged(other, figures, WANTED)
        assert (finding.verdict, "wanted" in finding.evidence) == ("figure", False)


def test_a_table_shows_the_longest_kernels_and_sums_up_the_others():
    work = [DeviceWork(f"kernel {n}", 2.0, 100.0) for n in range(gpu_figures.SHOWN + 2)]
    lines = gpu_figures.kernel_table(work)
    assert len(lines) == gpu_figures.SHOWN + 1
    assert " ".join(lines[-1].split()) == "2 others 4 × 50.0 µs = 0.20 ms 7 %"


def test_names_of_kernels_fit_a_line():
    name = (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::"
        "BFloat16>, std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<c10::BFloat16>)"
    )
    assert gpu_figures.short("moments") == "moments"
    assert gpu_figures.short(name, 200) == (
        "vectorized_elementwise_kernel<4, CUDAFunctor_add<BFloat16>, array<char*, 3ul> >"
    )
    assert len(gpu_figures.short(name, 40)) == 40


@pytest.fixture
def crowd(monkeypatch):
    """Runs that are one and a half times as slow together."""
    begun = []

    def together(workers, updates):
        return 0.01 * updates * (1.0 if len(workers) == 1 else 1.5)

    def started(contenders, _device):
        begun.extend(contenders)
        return nullcontext([FakeWorker(one) for one in contenders])

    monkeypatch.setattr(gpu_figures, "started_workers", started)
    monkeypatch.setattr(gpu_figures, "run_together", together)
    return begun


def test_several_runs_under_the_service(at_110, crowd, monkeypatch):
    monkeypatch.setattr(gpu_figures, "mps_advice", lambda _slots: None)
    wanted = {"images_per_second": (30_000, None)}
    four = gpu_figures.several(at_110, "kernels=fused", runs=4, wanted=wanted)
    assert four.evidence == (
        "34,133 images/s (wanted on an H100: ≥ 30,000), 12,800 images/s of one run alone"
    )
    assert four.verdict == "holds"
    assert {one.settings.kernels for one in crowd} == {"fused"}
    two = gpu_figures.packing_pays(at_110)
    assert (two.verdict, len(crowd)) == ("holds", 6)
    assert two.evidence == "12,800 → 17,067 images/s in total, 1.33 ×"


def test_without_the_service_several_runs_are_not_checked(at_110, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for finding in (
        gpu_figures.several(at_110, runs=4, wanted=WANTED), gpu_figures.packing_pays(at_110)
    ):  # fmt: skip
        assert finding.verdict == "not checked"
        assert "nvidia-cuda-mps-control is not on the PATH" in finding.evidence


def test_faster_is_a_ratio_of_turns(at_110, monkeypatch):
    class Capturing(FakeWorker):
        """Without capture, an update takes twice as long."""

        def seconds_of(self, iterations):
            slow = self.contender.settings.capture == "none"
            return super().seconds_of(iterations) * (2 if slow else 1)

    def worker(one, *rest):
        return (Capturing if one else FakeCeiling)(one, *rest)

    monkeypatch.setattr(turns, "Worker", worker)
    assert check_gpu.CLAIMS["capturing is faster"].check(at_110) == Finding(
        "holds", "6,400 → 12,800 images/s (median of 5 turns), 2.00 ×",
        {"before": 6400.0, "after": 12800.0, "ratio": 2.0},
    )  # fmt: skip
    assert check_gpu.CLAIMS["compile=unit is faster"].check(at_110).verdict == "FAILS"
