"""`resvar export` and `resvar evaluate` as their users type them: what is written, what is said."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

import resvar
from resvar.cli import run_command
from resvar.config import resolve
from resvar.data.cifar import DATASETS, load_cifar
from resvar.export.formats import save_network
from resvar.training.job import run_training as train
from tests.support.tiny import install, make_cifar

SHORT = (
    "iterations=4", "batch_size=16", "bn_batch_size=16", "eval_every=4", "checkpoint_every=4",
    "schedule=step", "lr=0.05", "warmup_iterations=1", "milestones=[]", "precision=fp32",
)  # fmt: skip

OWN = """\
name: mine
lead: [bn]
trail: [relu]
after_add: []
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Finished runs on tiny data: ResNet-8 in an ordering of one's own, and V1's ResNet-18."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "mine.yaml").write_text(OWN, encoding="utf-8")
    dataset = make_cifar(folder / "data", train=60, test=30)
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        install(dataset, patch)
        for name, options in (
            ("small", {"variant": str(folder / "mine.yaml"), "depth": 8}),
            ("large", {"variant": "original", "depth": 18, "family": "imagenet"}),
        ):
            settings = resolve(options=options, overrides=SHORT)
            console = Console(file=io.StringIO())
            results[name] = train(settings, folder / "data", console, folder / name, "cpu")
    return SimpleNamespace(dataset=dataset, folder=folder, results=results)


@pytest.fixture
def runs(made, monkeypatch, tmp_path):
    """The same from inside an empty folder, the dataset in the place of the official one."""
    install(made.dataset, monkeypatch)
    monkeypatch.setenv("RESVAR_DATA", str(made.folder / "data"))
    monkeypatch.chdir(tmp_path)
    return made


def command(capsys, *arguments: object) -> SimpleNamespace:
    """Exit code, stdout and stderr of `resvar …`."""
    code = run_command([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return SimpleNamespace(code=code, out=streams.out, err=streams.err)


@pytest.mark.heavy
def test_safetensors_carries_all_that_a_user_needs(runs, capsys):
    done = command(capsys, "export", runs.folder / "small", "--out", "x.safetensors")
    assert (done.code, done.err) == (0, "")
    assert done.out == "Wrote x.safetensors: mine-8, after iteration 4.\n"
    model = resvar.load_model("x.safetensors")
    run = resvar.load_run(runs.folder / "small")
    assert model.provenance.settings == run.config
    assert model.provenance.iteration == 4
    assert model.provenance.class_names == tuple(f"class{n}" for n in range(10))
    for key, tensor in run.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)
    images = load_cifar(DATASETS["cifar10"], runs.folder / "data")
    classes = model.probabilities(torch.from_numpy(images.test_images)).argmax(dim=1)
    assert np.array_equal(classes.numpy(), np.load(runs.folder / "small" / "predictions.npy"))


def test_an_exported_file_is_evaluated_like_its_run(runs, capsys):
    command(capsys, "export", runs.folder / "small", "--out", "x.safetensors")
    found = {}
    for source in (runs.folder / "small", runs.folder / "small" / "checkpoint.pt", "x.safetensors"):
        done = command(capsys, "evaluate", source, "--format", "json", "--device", "cpu")
        assert (done.code, done.err) == (0, "")
        values = json.loads(done.out)
        run, _ = values.pop("run"), values.pop("source")
        assert (run is None) == (source == "x.safetensors")
        found[str(source)] = values
    first, *others = found.values()
    assert all(other == first for other in others)
    assert first["test_error"] == runs.results["small"]["test_error"]


def test_without_the_dataset_the_file_says_less_and_the_user_is_told(runs, capsys, monkeypatch):
    monkeypatch.setenv("RESVAR_DATA", "nowhere")
    done = command(capsys, "export", runs.folder / "small", "--out", "x.safetensors")
    assert done.code == 0
    assert done.err.startswith("Note: the file will not say how images are normalised: nowhere")
    assert len(done.err.splitlines()) == 1
    assert resvar.load_model("x.safetensors").provenance.normalization is None
    # It is another thing where the user names the folder.
    refused(capsys, "nowhere", "export", runs.folder / "small", "--data", "nowhere",
            "--out", "y.safetensors")  # fmt: skip


@pytest.mark.heavy
def test_a_file_is_exported_again_without_run_or_dataset(runs, capsys, monkeypatch):
    command(capsys, "export", runs.folder / "large", "--out", "x.safetensors")
    monkeypatch.setenv("RESVAR_DATA", "nowhere")
    again = command(capsys, "export", "x.safetensors", "--out", "y.safetensors")
    assert (again.code, again.err) == (0, "")
    assert Path("x.safetensors").read_bytes() == Path("y.safetensors").read_bytes()
    assert command(capsys, "export", "x.safetensors", "--out", "x.pth").code == 0


@pytest.mark.heavy
def test_torchvision_takes_the_state_dict(runs, capsys, monkeypatch):
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setenv("RESVAR_DATA", "nowhere")  # it is not needed
    done = command(capsys, "export", runs.folder / "large", "--to", "torchvision", "--out", "x.pt")
    assert (done.code, done.err) == (0, "")
    assert "for torchvision.models.resnet18(num_classes=10), after iteration 4." in done.out
    theirs = models.resnet18(num_classes=10)
    theirs.load_state_dict(torch.load("x.pt", weights_only=True), strict=True)
    ours = resvar.load_run(runs.folder / "large").model
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(images), ours(images), rtol=1e-4, atol=1e-5)


@pytest.mark.heavy
def test_onnx_runs_on_the_runs_images(runs, capsys):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    done = command(capsys, "export", runs.folder / "small", "--out", "x.onnx")
    assert (done.code, done.err) == (0, "")
    assert done.out == "Wrote x.onnx: mine-8, after iteration 4.\n"
    session = runtime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["resvar"])
    images = load_cifar(DATASETS["cifar10"], runs.folder / "data").test_images
    mean = np.array(about["normalization"]["mean"], np.float32)
    pixels = (images.astype(np.float32) / 255 - mean).transpose(0, 3, 1, 2)
    (logits,) = session.run(None, {"images": np.ascontiguousarray(pixels)})
    recorded = np.load(runs.folder / "small" / "predictions.npy")
    assert np.array_equal(logits.argmax(axis=1), recorded)


def test_a_file_that_is_there_is_replaced_only_with_force(runs, capsys):
    Path("x.safetensors").write_text("precious", encoding="utf-8")
    small = runs.folder / "small"
    refused(capsys, "--force", "export", small, "--out", "x.safetensors")
    assert Path("x.safetensors").read_text(encoding="utf-8") == "precious"
    assert command(capsys, "export", small, "--out", "x.safetensors", "--force").code == 0
    assert resvar.load_model("x.safetensors").ordering.name == "mine"
    assert [path.name for path in Path().iterdir()] == ["x.safetensors"]


def test_an_unfinished_run_is_said_to_be_one(runs, capsys, tmp_path):
    shutil.copytree(runs.folder / "small", tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    settings = resolve(tmp_path / "run" / "config.yaml", overrides=["iterations=9"])
    (tmp_path / "run" / "config.yaml").write_text(
        config.replace("iterations: 4\n", "iterations: 9\n", 1), encoding="utf-8"
    )
    from resvar.training import checkpoint

    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    checkpoint.save(tmp_path / "run", {**state, "config_hash": settings.hash})
    done = command(capsys, "export", "run", "--out", "x.safetensors")
    assert done.out == "Wrote x.safetensors: mine-8, after iteration 4 of 9 (not the last).\n"


def refused(capsys, words: str, *arguments: object) -> None:
    """The command ends with 2 and one sentence on stderr that has the words."""
    done = command(capsys, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("resvar: error: ")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_wrong_input_is_refused_in_a_sentence(runs, capsys):
    small = runs.folder / "small"
    Path("pickle.safetensors").write_bytes(b"\x80\x04.")
    Path("elsewhere.pt").write_bytes(b"x")
    for words, arguments in (
        ("--out FILE is missing", ["export", small]),
        ("must end in one of", ["export", small, "--out", "x.bin"]),
        ("must end in .onnx", ["export", small, "--out", "x.pt", "--to", "onnx"]),
        ("there is no folder", ["export", small, "--out", "no/x.onnx"]),
        ("ImageNet family", ["export", small, "--out", "x.pt"]),
        ("keras", ["export", small, "--out", "x.pt", "--to", "keras"]),
        ("no such run", ["export", "nothing", "--out", "x.onnx"]),
        ("config.yaml is missing", ["evaluate", "."]),
        ("no such run", ["evaluate", "nothing"]),
        ("safetensors", ["evaluate", "pickle.safetensors"]),
        ("in the same folder", ["evaluate", "elsewhere.pt"]),
        ("--device", ["evaluate", small, "--device", "toaster"]),
        ("xml", ["evaluate", small, "--format", "xml"]),
        ("--data", ["evaluate", small, "--data", "nowhere"]),
        ("RUN|CHECKPOINT|FILE is missing", ["evaluate"]),
    ):
        refused(capsys, words, *arguments)
    assert sorted(path.name for path in Path().iterdir()) == ["elsewhere.pt", "pickle.safetensors"]


@pytest.mark.usefixtures("runs")
def test_weights_without_a_run_cannot_be_evaluated_but_exported(capsys):
    save_network(resvar.build_model("original", 8), Path("x.safetensors"), "safetensors")
    refused(capsys, "settings of a run", "evaluate", "x.safetensors")
    done = command(capsys, "export", "x.safetensors", "--out", "y.safetensors")
    assert done.code == 0
    assert done.out == "Wrote y.safetensors: original-8.\n"
    assert "will not say how images are normalised" in done.err
