"""Networks out and back: torchvision's names, safetensors files that may be hostile, ONNX."""

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
from resvar.export import exchange
from resvar.export.exchange import (
    LoadedModel,
    Provenance,
    choose_format,
    from_torchvision,
    load_model,
    save_onnx,
    save_safetensors,
    to_torchvision,
    torchvision_name,
)
from resvar.models.network import build_model
from resvar.models.ordering import Ordering, known_variants

SHIPPED_BY_TORCHVISION = {
    "resnet18": {"depth": 18},
    "resnet34": {"depth": 34},
    "resnet50": {"depth": 50},
    "resnet101": {"depth": 101},
    "resnet152": {"depth": 152},
    "resnext50_32x4d": {"depth": 50, "cardinality": 32, "base_width": 4},
    "resnext101_32x8d": {"depth": 101, "cardinality": 32, "base_width": 8},
}

SIXTH = """\
name: twice
lead: [relu, bn]
between: [relu, bn]
trail: []
after_add: [bn]
unusual: true
"""


def randomise(network, seed: int = 0):
    """Fill all weights and BN statistics: outputs stay of the size of one."""
    draw = torch.Generator().manual_seed(seed)
    for key, tensor in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
            tensor.uniform_(0.5, 1.0, generator=draw)
        else:
            fan = tensor[0].numel() if tensor.ndim > 1 else 100
            width = (3 / fan) ** 0.5
            tensor.uniform_(-width, width, generator=draw)
    return network.eval()


def quickly(make, **options):
    """A network whose weights are not drawn: `randomise` does that, or a state dict."""
    with torch.device("meta"):
        network = make(**options)
    return network.to_empty(device="cpu").eval()


def trained(variant="full-preact", depth=8, **options):
    """A small network with random BN statistics."""
    return randomise(build_model(variant, depth, **options))


def same_bits(found, wanted) -> bool:
    return list(found) == list(wanted) and all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key])
        for key in wanted
    )


# --- torchvision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED_BY_TORCHVISION)
def test_torchvisions_state_dicts_load_and_convert_back_bit_for_bit(name):
    models = pytest.importorskip("torchvision.models")
    theirs = randomise(quickly(getattr(models, name), num_classes=11))
    options = {"family": "imagenet", "num_classes": 11, **SHIPPED_BY_TORCHVISION[name]}
    ours = quickly(build_model, variant="original", **options)

    from_torchvision(theirs.state_dict(), ours)

    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        wanted, found = theirs(images), ours(images)
    assert torch.equal(found, wanted)
    back = to_torchvision(ours)
    assert same_bits(back, theirs.state_dict())
    quickly(getattr(models, name), num_classes=11).load_state_dict(back, strict=True)
    assert torchvision_name(ours) == f"{name}(num_classes=11)"


def test_a_network_that_torchvision_does_not_name_is_one_of_its_class():
    resnet = pytest.importorskip("torchvision.models.resnet")
    ours = build_model("original", 50, "imagenet", 3, cardinality=2, base_width=32)
    constructor = torchvision_name(ours)
    assert constructor.startswith("resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], num_classes=3")
    theirs = eval(constructor, {"resnet": resnet})
    theirs.load_state_dict(to_torchvision(ours), strict=True)


def test_old_files_without_counters_of_batches_load():
    models = pytest.importorskip("torchvision.models")
    state = models.resnet18(num_classes=3).state_dict()
    old = {key: t for key, t in state.items() if not key.endswith("num_batches_tracked")}
    ours = trained("original", 18, family="imagenet", num_classes=3)
    from_torchvision(old, ours)
    assert same_bits(to_torchvision(ours), state)


def damaged_states():
    """What is done to a good state dict, and what the error must say."""
    return {
        "missing": (lambda s: s.pop("layer2.0.conv1.weight"), "misses 'layer2.0.conv1.weight'"),
        "counter": (lambda s: s.pop("bn1.num_batches_tracked"), "misses 'bn1.num_batches_tracked'"),
        "unknown": (lambda s: s.update({"layer5.x": torch.zeros(1)}), "unknown 'layer5.x'"),
        "shape": (lambda s: s.update({"fc.weight": torch.zeros(1000, 512)}), r"'fc.weight' is \[1"),
        "no tensor": (lambda s: s.update({"fc.bias": [0.0] * 3}), "'fc.bias' is no tensor"),
    }


@pytest.mark.parametrize("case", damaged_states())
def test_a_wrong_state_dict_is_refused_and_changes_nothing(case):
    models = pytest.importorskip("torchvision.models")
    state = dict(models.resnet18(num_classes=3).state_dict())
    damage, message = damaged_states()[case]
    damage(state)
    ours = build_model("original", 18, "imagenet", 3)
    before = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    with pytest.raises(UserError, match=message):
        from_torchvision(state, ours)
    assert same_bits(ours.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"variant": "original", "depth": 8}, "ImageNet family"),
        ({"variant": "full-preact", "depth": 18, "family": "imagenet"}, "'full-preact'"),
        ({"variant": "original", "depth": 18, "family": "imagenet", "stem": "cifar"}, "stem"),
        ({"variant": "original", "depth": 18, "family": "imagenet", "shortcut": "pad"}, "project"),
        ({"variant": "original", "depth": 50, "family": "imagenet", "stride_on": "first"}, "3x3"),
    ],
)
def test_what_torchvision_does_not_have_is_refused_with_the_reason(options, reason):
    network = quickly(build_model, **options)
    with pytest.raises(UserError, match=reason):
        to_torchvision(network)
    with pytest.raises(UserError, match=reason):
        from_torchvision({}, network)


def test_the_ordering_counts_and_not_its_name():
    own = Ordering("mine", between=("bn", "relu"), trail=("bn",), after_add=("relu",))
    assert "conv1.weight" in to_torchvision(quickly(build_model, variant=own, depth=18,
                                                    family="imagenet"))  # fmt: skip


# --- safetensors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [*known_variants(), "own"])
def test_every_ordering_comes_back_from_safetensors(variant, tmp_path):
    if variant == "own":
        (tmp_path / "twice.yaml").write_text(SIXTH)
        variant = str(tmp_path / "twice.yaml")
    network = trained(variant, num_classes=7)
    network(torch.randn(2, 3, 32, 32)).sum().backward()  # gradients do not matter
    save_safetensors(network, tmp_path / "x.safetensors")
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
    save_safetensors(network, tmp_path / "x.safetensors")
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
    save_safetensors(network, tmp_path / "x.safetensors", provenance)

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


def test_without_normalisation_pixels_are_refused(tmp_path):
    save_safetensors(trained(), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="normalisation"):
        load_model(tmp_path / "x.safetensors").probabilities(
            torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        )


def test_the_file_is_plain_safetensors_in_the_same_bytes_each_time(tmp_path):
    network = trained().to(memory_format=torch.channels_last)
    save_safetensors(network, tmp_path / "a.safetensors")
    save_safetensors(network, tmp_path / "b.safetensors")
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
    save_safetensors(network, path)
    loaded = load_model(path)
    with path.open("r+b") as file:  # in place: a mapped file would change under the network
        file.write(bytes(path.stat().st_size))
    assert same_bits(loaded.state_dict(), network.state_dict())


def test_weights_of_another_precision_are_refused(tmp_path):
    with pytest.raises(UserError, match="fp32"):
        save_safetensors(trained().double(), tmp_path / "x.safetensors")


@dataclass
class File:
    """A good file before it is damaged and written."""

    tensors: dict[str, torch.Tensor]
    about: dict
    metadata: dict

    @classmethod
    def good(cls) -> File:
        network = trained("original")
        about = json.loads(exchange.describe(network).model_dump_json())
        return cls(dict(network.state_dict()), about, {"resvar": about})

    def write(self, path) -> None:
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.metadata.items()}
        save_file(self.tensors, path, texts)


HOSTILE = {
    "no description": (lambda file: file.metadata.pop("resvar"), "does not say what network"),
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
        "misses|but should be",
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
    "missing tensor": (lambda file: file.tensors.pop("stem.0.weight"), "misses 'stem.0.weight'"),
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
    save_safetensors(trained("original"), tmp_path / "x.safetensors", Provenance(settings))
    with pytest.raises(UserError, match="different networks"):
        load_model(tmp_path / "x.safetensors")


def test_a_cut_or_changed_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(trained(), path)
    whole = path.read_bytes()
    for content in (b"", whole[:4], whole[:300], whole[:-1], b"\xff" * 8 + whole[8:], whole + b"0"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or no safetensors"):
            load_model(path)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path)


class Bomb:
    """Runs a program when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_and_does_not_run(tmp_path):
    path, exploded = tmp_path / "x.safetensors", tmp_path / "exploded"
    path.write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(UserError, match="damaged or no safetensors"):
        load_model(path)
    torch.save(Bomb(exploded), path)
    with pytest.raises(UserError, match="damaged or no safetensors"):
        load_model(path)
    assert not exploded.exists()


# --- ONNX -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("original", {"depth": 8}),
        ("full-preact", {"depth": 18, "family": "imagenet"}),
    ],
)
def test_onnx_gives_the_same_outputs_for_any_batch(variant, options, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    network = trained(variant, **options).train()
    path = tmp_path / "x.onnx"
    save_onnx(network, path, size=32)
    assert network.training  # as it was
    network.eval()
    assert list(tmp_path.iterdir()) == [path]  # the weights are inside
    one_thread = runtime.SessionOptions()
    one_thread.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, one_thread, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 32, 32)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            wanted = network(images).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    about = json.loads(session.get_modelmeta().custom_metadata_map["resvar"])
    assert about["network"]["variant"] == variant
    assert str(exchange.__file__).encode() not in path.read_bytes()  # no path of this machine


def test_the_images_of_an_onnx_file_have_the_size_of_the_runs():
    cifar = resolve(options={"variant": "original", "depth": 8})
    small, large = quickly(build_model, depth=8), quickly(build_model, depth=18, family="imagenet")
    assert exchange._image_size(small, None) == 32
    assert exchange._image_size(large, None) == 224
    assert exchange._image_size(large, cifar) == 32


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(
        exchange.importlib.util, "find_spec", lambda name: None if name == missing else object()
    )
    with pytest.raises(UserError, match=rf"\({missing}\): pip install 'resvar\[onnx\]'"):
        save_onnx(trained(), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


# --- the file that --out names --------------------------------------------------------------------


def test_the_suffix_says_the_format(tmp_path):
    for name, wanted in (
        ("a.safetensors", "safetensors"), ("a.onnx", "onnx"), ("a.ONNX", "onnx"),
        ("a.pt", "torchvision"), ("a.pth", "torchvision"),
    ):  # fmt: skip
        assert choose_format(tmp_path / name) == wanted
        assert choose_format(tmp_path / name, wanted) == wanted


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("x.bin", None, "must end in one of .safetensors, .onnx, .pt, .pth"),
        ("x", "onnx", "must end in one of"),
        ("x.pt", "safetensors", "must end in .safetensors"),
        ("x.onnx", "torchvision", "must end in .pt or .pth"),
        ("here.onnx", None, "--force"),
        ("folder.onnx", None, "a folder"),
        ("nowhere/x.onnx", None, "does not exist"),
    ],
)
def test_a_wrong_out_is_refused(name, to, message, tmp_path):
    (tmp_path / "here.onnx").write_text("precious")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match=message):
        choose_format(tmp_path / name, to)
