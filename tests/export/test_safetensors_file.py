"""safetensors files: complete, the same bytes every time, and refused where they are hostile."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import resvar
from resvar.config import resolve
from resvar.data.memory import Normalization
from resvar.errors import UserError
from resvar.export.description import Description, Provenance
from resvar.export.formats import save_network
from resvar.export.safetensors_file import LoadedModel, load_model
from resvar.models.network import build_model
from resvar.models.ordering import known_variants
from tests.export.networks import same_bits, trained

SIXTH = """\
name: twice
lead: [relu, bn]
between: [relu, bn]
trail: []
after_add: [bn]
unusual: true
"""


@pytest.mark.parametrize("variant", [*known_variants(), "own"])
def test_every_ordering_comes_back_from_safetensors(variant, tmp_path):
    if variant == "own":
        (tmp_path / "twice.yaml").write_text(SIXTH, encoding="utf-8")
        variant = str(tmp_path / "twice.yaml")
    network = trained(variant, num_classes=7)
    network(torch.randn(2, 3, 32, 32)).sum().backward()  # gradients do not matter
    save_network(network, tmp_path / "x.safetensors", "safetensors")
    loaded = resvar.load_model(tmp_path / "x.safetensors")
    assert (loaded.ordering, loaded.architecture) == (network.ordering, network.architecture)
    assert same_bits(loaded.state_dict(), network.state_dict())
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 11, "unit": "bottleneck", "stride_on": "3x3", "shortcut": "pad"},
        {"depth": 18, "family": "imagenet", "stem": "cifar"},
        {"depth": 29, "cardinality": 8, "base_width": 8},
    ],
)
def test_every_choice_of_architecture_comes_back(options, tmp_path):
    network = build_model("original", **options)
    save_network(network, tmp_path / "x.safetensors", "safetensors")
    loaded = load_model(tmp_path / "x.safetensors")
    assert loaded.architecture == network.architecture
    assert same_bits(loaded.state_dict(), network.state_dict())


@pytest.mark.parametrize("normalize", ["pixel-mean", "channel"])
def test_the_origin_comes_back_and_the_model_takes_pixels(normalize, tmp_path):
    settings = resolve(options={"variant": "original", "depth": 8}, overrides=["lr=0.3"])
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    normalization = Normalization.measure(pixels, normalize)
    names = tuple(f"class{n}" for n in range(10))
    network = trained("original")
    provenance = Provenance(settings, 12, normalization, names)
    save_network(network, tmp_path / "x.safetensors", "safetensors", provenance)

    loaded = load_model(tmp_path / "x.safetensors")
    assert isinstance(loaded, LoadedModel)
    assert (loaded.provenance.settings, loaded.provenance.iteration) == (settings, 12)
    assert loaded.provenance.class_names == names
    images = torch.from_numpy(pixels)
    assert torch.equal(loaded.provenance.normalization(images), normalization(images))
    with torch.no_grad():
        wanted = network(normalization(images).contiguous()).softmax(dim=1)
    assert torch.equal(loaded.probabilities(images), wanted)
    with pytest.raises(UserError, match="uint8"):
        loaded.probabilities(images.float())


@pytest.mark.parametrize("size", [(48, 40), (8, 8), (1, 1)])
def test_images_of_another_size_need_a_mean_per_channel(size, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    images = torch.zeros(2, *size, 3, dtype=torch.uint8)
    models = {}
    for kind in ("pixel-mean", "channel"):
        provenance = Provenance(normalization=Normalization.measure(pixels, kind))
        save_network(trained(), tmp_path / f"{kind}.safetensors", "safetensors", provenance)
        models[kind] = load_model(tmp_path / f"{kind}.safetensors")
    sizes = f"images must be 32×32, not {size[0]}×{size[1]}"
    with pytest.raises(UserError, match=sizes):
        models["pixel-mean"].probabilities(images)
    found = models["channel"].probabilities(images)
    assert found.shape == (2, 10)
    assert torch.allclose(found.sum(dim=1), torch.ones(2))
    with pytest.raises(UserError, match="height, width"):
        models["channel"].probabilities(images[:, :0])


def test_without_normalisation_pixels_are_refused(tmp_path):
    save_network(trained(), tmp_path / "x.safetensors", "safetensors")
    with pytest.raises(UserError, match="normalisation"):
        load_model(tmp_path / "x.safetensors").probabilities(
            torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        )


def test_the_file_is_plain_safetensors_in_the_same_bytes_each_time(tmp_path):
    network = trained().to(memory_format=torch.channels_last)
    save_network(network, tmp_path / "a.safetensors", "safetensors")
    save_network(network, tmp_path / "b.safetensors", "safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    read = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(read[key], t) for key, t in network.state_dict().items())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["resvar"])
    assert about["format"] == 1
    assert about["network"]["lead"] == ["bn", "relu"]
    assert about["network"]["num_classes"] == 10


def test_the_model_does_not_hang_on_its_file(tmp_path):
    network = trained()
    path = tmp_path / "x.safetensors"
    save_network(network, path, "safetensors")
    loaded = load_model(path)
    with path.open("r+b") as file:  # in place: a mapped file would change under the network
        file.write(bytes(path.stat().st_size))
    assert same_bits(loaded.state_dict(), network.state_dict())


def test_weights_of_another_precision_are_refused(tmp_path):
    with pytest.raises(UserError, match="fp32"):
        save_network(trained().double(), tmp_path / "x.safetensors", "safetensors")


@dataclass
class File:
    """A good file before it is damaged and written."""

    tensors: dict[str, torch.Tensor]
    about: dict
    metadata: dict

    @classmethod
    def good(cls) -> File:
        network = trained("original")
        about = json.loads(Description.of(network).model_dump_json())
        return cls(dict(network.state_dict()), about, {"resvar": about})

    def write(self, path) -> None:
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.metadata.items()}
        save_file(self.tensors, path, texts)


HOSTILE = {
    "no description": (lambda file: file.metadata.pop("resvar"), "does not describe the network"),
    "no JSON": (lambda file: file.metadata.update(resvar="{"), "description is damaged"),
    "deep JSON": (
        lambda file: file.metadata.update(resvar="[" * 100_000),
        "description is damaged",
    ),
    "a later format": (lambda file: file.about.update(format=2), "its format is 2.*update resvar"),
    "no format": (lambda file: file.about.update(format="2"), "'format'"),
    "unknown name": (lambda file: file.about["network"].update(code="x"), "'network.code'"),
    "missing name": (lambda file: file.about["network"].pop("lead"), "'network.lead'"),
    "unknown op": (lambda file: file.about["network"].update(lead=["exec"]), "unknown op 'exec'"),
    "many ops": (lambda file: file.about["network"].update(lead=["bn"] * 10**5), "'network.lead'"),
    "no such depth": (lambda file: file.about["network"].update(depth=9), "depth 9"),
    "huge depth": (lambda file: file.about["network"].update(depth=6 * 10**5 + 2), "depth"),
    "huge width": (
        lambda file: file.about["network"].update(unit="bottleneck", depth=11, base_width=2**20),
        "lacks|but should be",
    ),
    "overflowing width": (
        lambda file: file.about["network"].update(
            unit="bottleneck", depth=11, base_width=2**20, cardinality=2**20
        ),
        "description is damaged",
    ),
    "huge number": (lambda file: file.about["network"].update(num_classes=10**40), "num_classes"),
    "other classes": (
        lambda file: file.about["network"].update(num_classes=9),
        "classifier.weight",
    ),
    "ragged mean": (
        lambda file: file.about.update(
            normalization={"mean": [[[0, 0, 0]], []], "scale": [1, 1, 1]}
        ),
        "description is damaged",
    ),
    "NaN mean": (
        lambda file: file.about.update(
            normalization={"mean": [float("nan"), 0, 0], "scale": [1, 1, 1]}
        ),
        "description is damaged",
    ),
    "missing tensor": (lambda file: file.tensors.pop("stem.0.weight"), "lacks 'stem.0.weight'"),
    "unknown tensor": (lambda file: file.tensors.update(more=torch.zeros(1)), "unknown 'more'"),
    "other shape": (
        lambda file: file.tensors.update({"classifier.bias": torch.zeros(11)}),
        r"'classifier.bias' is float32 \[11\], but should be float32 \[10\]",
    ),
    "other type": (
        lambda file: file.tensors.update({"classifier.bias": torch.zeros(10).half()}),
        r"'classifier.bias' is F16 \[10\]",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_a_sentence(case, tmp_path):
    change, message = HOSTILE[case]
    path = tmp_path / "x.safetensors"
    file = File.good()
    change(file)
    file.write(path)
    with pytest.raises(UserError, match=message) as refused:
        load_model(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_settings_of_another_network_are_refused(tmp_path):
    settings = resolve(options={"variant": "full-preact", "depth": 8})
    save_network(
        trained("original"), tmp_path / "x.safetensors", "safetensors", Provenance(settings)
    )
    with pytest.raises(UserError, match="different networks"):
        load_model(tmp_path / "x.safetensors")


def test_a_cut_or_changed_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_network(trained(), path, "safetensors")
    whole = path.read_bytes()
    for content in (b"", whole[:4], whole[:300], whole[:-1], b"\xff" * 8 + whole[8:], whole + b"0"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or not a safetensors"):
            load_model(path)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="named pipe"):
        load_model(tmp_path / "pipe.safetensors")


class Bomb:
    """Runs a program when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_and_does_not_run(tmp_path):
    path, exploded = tmp_path / "x.safetensors", tmp_path / "exploded"
    path.write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(UserError, match="damaged or not a safetensors"):
        load_model(path)
    torch.save(Bomb(exploded), path)
    with pytest.raises(UserError, match="damaged or not a safetensors"):
        load_model(path)
    assert not exploded.exists()
