"""The valid files and values that the cases start from, and hostile archives."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from resvar.config import resolve
from resvar.data.cifar import Dataset, Images
from resvar.data.splits import Splits
from resvar.settings import Settings
from tests.long.fuzz.damage import VALUES, YAML_SCALARS, YAML_WORDS

NOTES = {
    "format": 1, "iteration": 3, "iterations": 400, "seconds": 1.5, "images_per_second": 70.0,
    "message": "no", "loss": "nan", "torch": "2.0", "threads": 2,
    "resumed": [{"iteration": 2, "changed": {"torch": "2.1"}}],
}  # fmt: skip
"""Some of the entries of the JSON files beside the result."""


def metrics_csv() -> str:
    columns = (
        "iteration,epoch,lr,train_loss,train_error,test_loss,test_error,images_per_second,seconds"
    )
    rows = [f"{i},0.{i},0.05,2.1,80.0,2.2,81.5,70.0,{i}.5" for i in range(1, 9)]
    return "\n".join([columns, *rows]) + "\n"


def overrides() -> st.SearchStrategy[list[str]]:
    names = st.sampled_from(sorted(Settings.model_fields)) | st.text(max_size=10)
    values = st.one_of(
        st.text(max_size=40),
        VALUES.map(json.dumps),
        st.sampled_from([word.decode("latin1") for word in YAML_WORDS]),
        st.sampled_from([scalar for scalar in YAML_SCALARS if "\ud800" not in scalar]),
    )
    one = st.builds("{}={}".format, names, values) | st.text(max_size=30)
    # No NUL, which a command line cannot contain.
    return st.lists(one.filter(lambda text: "\0" not in text), min_size=1, max_size=4)


def small_state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "config_hash": "0123456789abcdef",
        "iteration": 5,
        "model": {"weight": torch.randn(8, 3, 3, 3, generator=generator)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        "rows": [{"iteration": 3, "test_loss": 1 / 3}],
    }


def tiny_training(dataset: Dataset) -> tuple[Settings, Splits]:
    options = {"variant": "original", "depth": 8}
    settings = resolve(
        options=options, overrides=["precision=fp32", "batch_size=4", "bn_batch_size=4"]
    )
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    labels = random.integers(0, 10, 8)
    images = Images(pixels, labels, pixels, labels, ("x",) * 10, dataset.checksum)
    return settings, Splits.prepare(images, settings, torch.device("cpu"))


def pickle_of(checkpoint: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.read(name)


def with_pickle(checkpoint: bytes, pickled: bytes) -> bytes:
    """A checkpoint with a valid archive and this pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def make_tar(dataset: Dataset, folder: Path, mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=f"w:{mode}") as tar:
        tar.add(folder / dataset.folder, dataset.folder)
    return made.getvalue()


def hostile_tars(dataset: Dataset, folder: Path) -> st.SearchStrategy[bytes]:
    """All the right files, and members that no archive should have."""
    names = st.sampled_from(
        [
            "../out",
            "/etc/owned",
            "a/../../out",
            "C:\\out",
            "..\\out",
            *dataset.files,
            "",
            ".",
            "x" * 300,
        ]
    )
    kinds = st.sampled_from(
        [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE,
         tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, b"Z"]
    )  # fmt: skip
    links = st.sampled_from(["/etc/passwd", "../../out", "", "data_batch_1"])
    member = st.tuples(names, kinds, links, st.sampled_from([0, 5, 2**40]))

    def build(members: list[tuple[str, bytes, str, int]], first: bool) -> bytes:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            if not first:
                tar.add(folder / dataset.folder, dataset.folder)
            for name, kind, link, size in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, link, size
                tar.addfile(info)  # a size without content: the reader takes what follows for it
            if first:
                tar.add(folder / dataset.folder, dataset.folder)
        return made.getvalue()

    return st.builds(build, st.lists(member, min_size=1, max_size=3), st.booleans())
