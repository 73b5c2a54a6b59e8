"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from resvar.config import resolve
from resvar.errors import UserError
from resvar.export import onnx_file
from resvar.export.formats import save_network
from resvar.export.onnx_file import input_size, to_onnx
from resvar.models.network import build_model
from tests.export.networks import quickly, trained


@pytest.mark.heavy
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
    path.write_bytes(to_onnx(network, size=32))
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
    assert str(onnx_file.__file__).encode() not in path.read_bytes()  # no path of this machine


def test_the_images_of_an_onnx_file_have_the_size_of_the_runs():
    cifar = resolve(options={"variant": "original", "depth": 8})
    small, large = quickly(build_model, depth=8), quickly(build_model, depth=18, family="imagenet")
    assert input_size(small, None) == 32
    assert input_size(large, None) == 224
    assert input_size(large, cifar) == 32


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(
        onnx_file.importlib.util, "find_spec", lambda name: None if name == missing else object()
    )
    with pytest.raises(UserError, match=rf"\({missing}\): pip install 'resvar\[onnx\]'"):
        save_network(trained(), tmp_path / "x.onnx", "onnx")
    assert not list(tmp_path.iterdir())
