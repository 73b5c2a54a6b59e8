"""Which kernels a run has: how `auto` is settled, what is refused, and that runs keep theirs."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch
from torch import nn

from resvar.config import resolve
from resvar.errors import UserError
from resvar.kernels import build, ghost_fuse
from resvar.kernels.fuse import is_fused
from resvar.models.unit import ResidualUnit
from resvar.rundir import read_settings
from resvar.strict_yaml import read_yaml
from resvar.training import execution
from resvar.training.execution import Execution
from resvar.training.step import Updater
from tests.support.commands import sets, train
from tests.support.outcome import differing

CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")


def make(*overrides):
    return resolve(options={"variant": "full-preact", "depth": 8}, overrides=overrides)


def kernels_of(settings, device, log=None):
    return Execution.resolve(settings, device, log=log).settings.kernels


def refuse(_say=None):
    raise build.BuildError("no C++ compiler is found")


def fused(network):
    return {is_fused(m) for m in network.modules() if isinstance(m, ResidualUnit | nn.Sequential)}


@pytest.mark.build
@needs_compiler
def test_auto_is_fused_where_it_gains_and_plain_elsewhere():
    assert kernels_of(make("precision=bf16"), CPU) == "fused"
    build.load_operators()
    fast = torch.ops.resvar.takes_convolutions(torch.float32)
    assert kernels_of(make("precision=fp32"), CPU) == ("fused" if fast else "plain")
    layout = make("precision=fp32", "memory_format=channels_last")
    assert kernels_of(layout, CPU) == "fused"
    layout = make("precision=fp32", "memory_format=contiguous")
    assert kernels_of(layout, CPU) == "plain"
    assert kernels_of(make("precision=bf16", "compile=unit"), CPU) == "plain"
    assert kernels_of(make("precision=bf16", "kernels=plain"), CPU) == "plain"
    assert kernels_of(make("precision=bf16"), torch.device("cuda")) == "plain"


@pytest.mark.build
@needs_compiler
def test_in_fp32_a_processor_without_the_instructions_is_left_plain(monkeypatch):
    build.load_operators()
    monkeypatch.setattr(torch.ops.resvar, "takes_convolutions", lambda _: False)
    assert kernels_of(make("precision=fp32"), CPU) == "plain"
    assert kernels_of(make("precision=bf16"), CPU) == "fused"
    assert kernels_of(make("precision=fp32", "kernels=fused"), CPU) == "fused"


def test_where_they_gain_nothing_they_are_not_even_built(monkeypatch):
    def build(_say):
        raise AssertionError("built")

    monkeypatch.setattr(execution, "load_operators", build)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert kernels_of(make("precision=fp32"), CPU) == "plain"
    with pytest.raises(AssertionError, match="built"):
        kernels_of(make("precision=fp32", "kernels=fused"), CPU)


def test_fused_operators_bring_channels_last():
    for kernels, rows in (("fused", True), ("plain", False), ("auto", False)):
        plan = Execution.for_inference(make("precision=fp32", f"kernels={kernels}"), CPU)
        assert plan.memory_format == (torch.channels_last if rows else torch.contiguous_format)


@pytest.mark.build
@needs_compiler
def test_only_a_network_that_asks_is_fused():
    for kernels in ("plain", "fused"):
        plan = Execution.resolve(make("precision=bf16", f"kernels={kernels}"), CPU)
        assert fused(Updater(plan).network) == {kernels == "fused"}


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["memory_format=contiguous"], "they need channels_last"),
        pytest.param(
            ["precision=bf16", "compile=unit"],
            "'compile' unit",
            marks=[pytest.mark.build, needs_compiler],
        ),
        (["precision=bf16"], "no C\\+\\+ compiler is found"),
    ],
)
def test_fused_is_refused_where_it_cannot_be(monkeypatch, overrides, why):
    monkeypatch.setattr(execution, "load_operators", refuse)
    with pytest.raises(UserError, match=f"'kernels' fused: .*{why}.*--set kernels=plain"):
        kernels_of(make("kernels=fused", *overrides), CPU)


def test_without_a_compiler_auto_is_plain_and_says_so(monkeypatch):
    monkeypatch.setattr(execution, "load_operators", refuse)
    said: list[str] = []
    assert kernels_of(make("precision=bf16"), CPU, said.append) == "plain"
    assert said == ["Without the fused operators, which are faster: no C++ compiler is found."]


@pytest.mark.parametrize("wanted", ["kernels=auto", "kernels=fused"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_begun_with_fused_ones_continues_without_and_stays_itself(
    monkeypatch, wanted, device
):
    monkeypatch.setattr(execution, "load_operators", refuse)
    monkeypatch.setattr(execution, "triton_obstacle", lambda _device: "they need Triton")
    begun = make("kernels=fused", "precision=bf16")
    said: list[str] = []
    settings = make(wanted, "precision=bf16")
    plan = Execution.resolve(settings, torch.device(device), begun=begun, log=said.append)
    assert plan.kernels == plan.facts()["kernels"] == "plain"
    assert "fused" not in str(plan)
    assert plan.settings == begun
    assert plan.memory_format == Execution.for_inference(begun, CPU).memory_format
    why = {"cpu": "no C++ compiler is found", "cuda": "they need Triton"}[device]
    assert said == [
        f"Warning: this run was started with fused operators and continues without them: {why}."
    ]


def test_a_resumed_run_keeps_its_precision(monkeypatch):
    monkeypatch.setattr(execution, "computes_bf16", lambda _device: False)
    begun = make("precision=bf16", "kernels=plain")
    assert Execution.resolve(make("kernels=auto"), CPU, begun=begun).settings == begun
    assert Execution.resolve(make("kernels=plain"), CPU).settings.precision == "fp32"


def test_a_run_begun_compiled_continues_uncompiled(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    begun = make("compile=unit", "precision=fp32", "kernels=plain")
    said: list[str] = []
    plan = Execution.resolve(begun, CPU, begun=begun, log=said.append)
    assert (plan.compiles, plan.settings) == (False, begun)
    assert plan.facts() == {"kernels": "plain", "compile": "none"}
    assert not any(module._compiled_call_impl for module in Updater(plan).network.modules())
    assert said[0].startswith(
        "Warning: this run was started with compiled units and continues without them: no C++ "
    )


def test_the_hash_of_plain_is_that_of_runs_from_before_the_setting():
    base = make("precision=bf16")
    assert make("precision=bf16", "kernels=plain").hash == base.hash
    assert make("precision=bf16", "kernels=fused").hash != base.hash


def test_a_record_that_does_not_say_was_made_with_plain_ones(tmp_path):
    lines = make("precision=bf16").to_yaml().splitlines(keepends=True)
    old, mine = tmp_path / "config.yaml", tmp_path / "mine.yaml"
    old.write_text(
        "".join(line for line in lines if not line.startswith("kernels")), encoding="utf-8"
    )
    assert resolve(old).kernels == "plain"
    assert resolve(old, overrides=["kernels=auto"]).kernels == "auto"
    mine.write_text(
        "variant: full-preact\ndepth: 8\n", encoding="utf-8"
    )  # no record: somebody's wish
    assert resolve(mine).kernels == "auto"


# --- runs -----------------------------------------------------------------------------------------


def begin(resvar, folder, *more, **environment):
    """A tiny run in channels_last, where `auto` may fuse."""
    words = train(*sets("memory_format=channels_last", *more), "--out", str(folder))
    return resvar.run(*words, cwd=folder.parent, **environment)


@needs_compiler
def test_a_run_notes_its_kernels_and_goes_on_with_them(warm, tmp_path):
    folder = tmp_path / "run"
    begun = begin(warm, folder)
    assert begun.code == 0, begun.err
    assert "fused kernels; everything goes to" in begun.out
    assert read_yaml(folder / "config.yaml")["kernels"] == "fused"
    assert read_settings(folder).kernels == "fused"
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["kernels"] == "fused"
    other = begin(warm, folder, "kernels=plain")
    assert other.code == 2
    assert "kernels: fused → plain" in other.err


@needs_compiler
def test_a_fused_run_that_was_killed_ends_with_the_same_bits(warm, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert begin(warm, whole).code == 0
    assert begin(warm, broken, RESVAR_TEST_KILL="iteration:8").code == -signal.SIGKILL
    assert begin(warm, broken).code == 0
    assert differing(broken, whole) == []


@needs_compiler
def test_a_run_that_was_begun_plain_goes_on_so(warm, tmp_path):
    """As one from before the setting: its config.yaml does not say, and `auto` leaves it plain."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    assert begin(warm, whole, "kernels=plain").code == 0
    killed = begin(warm, folder, "kernels=plain", RESVAR_TEST_KILL="iteration:8")
    assert killed.code == -signal.SIGKILL
    config = folder / "config.yaml"
    lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
    config.write_text(
        "".join(line for line in lines if not line.startswith("kernels")), encoding="utf-8"
    )
    assert begin(warm, folder).code == 0
    assert read_settings(folder).kernels == "plain"
    assert differing(folder, whole) == []


def test_without_a_compiler_a_run_is_plain_and_fused_is_refused(warm, tmp_path):
    bare = {"CXX": "/no/such", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    refused = begin(warm, tmp_path / "run", "kernels=fused", **bare)
    assert refused.code == 2
    assert "'kernels' fused: no C++ compiler is found" in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "run").exists()
    plain = begin(warm, tmp_path / "run", **bare)
    assert plain.code == 0
    assert "Without the fused operators, which are faster: no C++ compiler" in plain.out
    assert read_settings(tmp_path / "run").kernels == "plain"


@needs_compiler
def test_a_fused_run_without_its_compiler_is_finished_plain_and_records_it(warm, tmp_path):
    folder = tmp_path / "run"
    assert begin(warm, folder, RESVAR_TEST_KILL="iteration:8").code == -signal.SIGKILL
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    resumed = begin(warm, folder, CXX="/no/such", RESVAR_TEST_KILL="iteration:4")
    assert "started with fused operators and continues without them: no C++" in resumed.out
    assert "Warning: kernels changed since this run was started" in resumed.out
    resumed = begin(warm, folder, "kernels=fused", CXX="/no/such")
    assert resumed.code == 0, resumed.err
    assert "kernels changed" not in resumed.out  # since it was started here
    assert (folder / "config.yaml").read_text(encoding="utf-8") == config
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["kernels"] == "plain"
    (note,) = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["resumed"]
    assert note["changed"]["kernels"] == "plain"


@needs_compiler
def test_other_operators_and_a_limit_of_onednn_are_told_on_resumption(warm, tmp_path):
    folder = tmp_path / "run"
    assert begin(warm, folder, RESVAR_TEST_KILL="iteration:8").code == -signal.SIGKILL
    path = folder / "environment.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**recorded, "operators": "0" * 16}), encoding="utf-8")
    limited = begin(warm, folder, MKL_CBWR="AVX2", RESVAR_TEST_KILL="iteration:4")
    assert "Warning: operators, variables changed since this run was started" in limited.out
    (note,) = json.loads(path.read_text(encoding="utf-8"))["resumed"]
    assert note["changed"] == {"operators": recorded["operators"], "variables": "MKL_CBWR=AVX2"}
    later = ("kernels", "compile", "operators", "onednn", "variables")
    path.write_text(
        json.dumps({k: v for k, v in recorded.items() if k not in later}), encoding="utf-8"
    )
    whole = begin(warm, folder)  # as an older version has left it
    assert whole.code == 0
    assert "changed since" not in whole.out


# --- on a GPU -------------------------------------------------------------------------------------

GPU = torch.device("cuda")


@pytest.fixture
def triton(monkeypatch):
    """A machine with a GPU for which Triton compiles."""
    monkeypatch.setattr(execution, "triton_obstacle", lambda _device: None)
    monkeypatch.setattr(execution, "triton_version", lambda: "3.8.0")


@pytest.mark.usefixtures("triton")
def test_fused_on_a_gpu_takes_the_batch_in_one_pass_with_bn_over_groups():
    plan = Execution.resolve(make("kernels=fused", "precision=bf16"), GPU)
    assert plan.ghost
    assert plan.images_at_once == plan.settings.batch_size > plan.settings.bn_batch_size
    assert plan.memory_format is torch.channels_last
    assert plan.facts() == {"kernels": "fused", "compile": "none", "operators": "Triton 3.8.0"}


@pytest.mark.usefixtures("triton")
def test_auto_on_a_gpu_is_plain_and_takes_micro_batches():
    plan = Execution.resolve(make("precision=bf16"), GPU)
    assert (plan.kernels, plan.ghost) == ("plain", False)
    assert plan.images_at_once == plan.settings.bn_batch_size


@pytest.mark.usefixtures("triton")
def test_on_a_gpu_fused_and_compiled_are_refused_together():
    settings = make("kernels=fused", "precision=bf16", "compile=unit")
    with pytest.raises(UserError, match=r"'kernels' fused: .*'compile' unit.*kernels=plain"):
        Execution.resolve(settings, GPU)


@pytest.mark.parametrize(
    ("cuda", "capability", "module", "why"),
    [
        (None, (9, 0), "torch", "NVIDIA GPU of compute capability 8.0"),
        ("13.0", (7, 5), "torch", "NVIDIA GPU of compute capability 8.0"),
        ("13.0", (9, 0), "no_such_module", "Triton, which is not installed"),
        ("13.0", (9, 0), "torch", None),
    ],
)
def test_what_keeps_the_operators_from_a_gpu(monkeypatch, cuda, capability, module, why):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(ghost_fuse, "TRITON", module)
    monkeypatch.setattr(ghost_fuse, "trial_failure", lambda _device: None)
    found = ghost_fuse.triton_obstacle(GPU)
    assert found is None if why is None else why in found


def test_all_weights_are_cast_at_once_where_an_update_is_captured_in_bf16():
    def casts(device, *overrides):
        return Execution.resolve(make("kernels=plain", *overrides), device).casts_weights

    assert casts(GPU, "precision=bf16")
    assert not casts(GPU, "precision=fp32")
    assert not casts(GPU, "precision=bf16", "capture=none")
    assert not casts(GPU, "precision=bf16", "compile=unit")
    assert not casts(CPU, "precision=bf16")
