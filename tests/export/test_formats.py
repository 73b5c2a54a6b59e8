"""The file that `--out` names."""

from __future__ import annotations

import pytest

from resvar.errors import UserError
from resvar.export.formats import choose_format


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
        ("nowhere/x.onnx", None, "there is no folder"),
    ],
)
def test_a_wrong_out_is_refused(name, to, message, tmp_path):
    (tmp_path / "here.onnx").write_text("precious", encoding="utf-8")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match=message):
        choose_format(tmp_path / name, to)
