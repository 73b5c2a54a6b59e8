"""Image files as people have them: of any mode, damaged, gigantic, or no images at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader

from resvar.cli import run_command
from resvar.config import resolve
from resvar.data import folder as folders
from resvar.data import photos as images_module
from resvar.data.folder import FolderEvalLoader, FolderTrainLoader, open_folder
from resvar.data.photos import (
    IMAGE_SUFFIXES,
    UnreadableImageError,
    check_images,
    list_images,
    read_image,
)
from resvar.data.splits import open_images
from resvar.errors import RunError, UserError
from resvar.training.environment import require_same_images
from tests.support.permissions import obeyed_permissions

CPU = torch.device("cpu")


def save(path: Path, colour: int = 100, size: tuple[int, int] = (40, 50), mode: str = "RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    value = (colour,) * len(mode) if len(mode) > 1 and mode != "PA" else colour
    Image.new(mode, size, value).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Two classes of grey images, two each to train and one to evaluate."""
    folder = tmp_path / "photos"
    for part, count in (("train", 2), ("val", 1)):
        for name in ("ant", "bee"):
            for number in range(count):
                save(folder / part / name / f"{number}.png", 100 + number)
    return folder


# --- the list -------------------------------------------------------------------------------------


def test_the_list_is_that_of_torchvision(photos):
    save(photos / "train" / "ant" / "more" / "9.JPG")
    save(photos / "train" / "ant" / "a-b" / "1.jpeg")
    save(photos / "train" / "ant.png" / "deep" / "deeper" / "x.bmp")
    (photos / "train" / "linked").symlink_to(photos / "val" / "bee")
    (photos / "train" / "ant" / "notes.txt").write_bytes(b"not an image")
    expected, found = ImageFolder(str(photos / "train")), list_images(photos / "train")
    assert found.samples == expected.samples
    assert found.classes == expected.classes
    assert found.targets == expected.targets
    assert set(IMAGE_SUFFIXES) == set(IMG_EXTENSIONS)


def test_the_checksum_is_that_of_older_runs(photos):
    lines = [
        f"{path.relative_to(photos)} {path.stat().st_size}\n"
        for part in ("train", "val")
        for path in sorted((photos / part).rglob("*.png"))
    ]
    assert open_folder(photos).checksum == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_what_is_hidden_is_left_out(photos):
    expected = open_folder(photos)
    for name in ("train/.git/x", "train/.DS_Store", "train/ant/._1.png", "val/bee/.cache/1.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"not an image")
    (photos / "train" / "ant" / "Thumbs.db").write_bytes(b"not an image")
    assert open_folder(photos) == expected


def test_a_name_that_is_no_text_is_one_like_any_other(photos):
    name = os.fsdecode(b"\xff\xfe.png")
    shutil.copy(photos / "train" / "ant" / "0.png", photos / "train" / "ant" / name)
    images = open_images(settings(), photos)
    assert any(path.endswith(name) for path, _ in images.training.samples)


def settings():
    options = {"variant": "original", "depth": 18, "family": "imagenet", "dataset": "folder"}
    return resolve(options={**options, "protocol": "imagenet"})


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "x.png")


def to_nowhere(folder: Path) -> None:
    (folder / "x.png").symlink_to("nowhere")


def to_itself(folder: Path) -> None:
    (folder / "x.png").symlink_to("x.png")


def circle(folder: Path) -> None:
    (folder / "up").symlink_to("..")


def two_circles(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).symlink_to(".")


def empty_class(folder: Path) -> None:
    (folder.parent / "dog").mkdir()


def empty_file(folder: Path) -> None:
    (folder / "x.png").touch()


def text(folder: Path) -> None:
    (folder / "x.png").write_bytes(b"not an image")


def postscript(folder: Path) -> None:
    (folder / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )


def truncated(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "x.jpg")
    content = (folder / "x.jpg").read_bytes()
    (folder / "x.jpg").write_bytes(content[: len(content) // 2])


def gigantic(folder: Path) -> None:
    (folder / "x.png").write_bytes(png_head(30_000, 30_000))


def a_thread(folder: Path) -> None:
    save(folder / "x.png", size=(1, 300))


def png_head(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims a size."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 1000) + b"IDAT" + bytes(1000)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (pipe, "ant/x.png: this is a pipe, socket or device, not a file"),
        (to_nowhere, "ant/x.png: this link is broken"),
        (to_itself, "ant/x.png: cannot be read .Too many levels"),
        (circle, "up/ant: this link leads back|ant/up: this link leads back"),
        (two_circles, "ant/(one|two): this link leads back"),
        (empty_class, "train: no images by class .none in that of 'dog'"),
        (empty_file, r"ant/x.png: this image cannot be read \(it is empty"),
        (text, r"ant/x.png: this image cannot be read \(it is empty, or not an image"),
        (postscript, r"ant/x.png: this image cannot be read \(it is empty, or not an image"),
        (truncated, r"ant/x.jpg: this image cannot be read \(.*truncated"),
        (gigantic, r"ant/x.png: this image cannot be read \(it has more than 89,478,485 pixels"),
        (a_thread, r"ant/x.png: this image cannot be read \(one side is more than 200 times"),
    ],
)
def test_a_damaged_folder_is_one_sentence_before_anything_is_written(
    photos, tmp_path, capsys, monkeypatch, damage, sentence
):
    damage(photos / "train" / "ant")
    with pytest.raises(UserError, match=sentence) as caught:
        open_images(settings(), photos)
    monkeypatch.chdir(tmp_path)
    assert run_command(train(photos)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"resvar: error: {caught.value}"
    assert not (tmp_path / "run").exists()


def train(photos: Path, *more: str) -> list[str]:
    few = ["iterations=2", "batch_size=4", "bn_batch_size=2", "eval_every=2", "image_size=32"]
    return [
        *("train", "--variant", "full-preact", "--family", "imagenet", "--depth", "18"),
        *("--stem", "cifar", "--dataset", "folder", "--protocol", "imagenet"),
        *("--data", str(photos), "--out", "run", "--device", "cpu"),
        *(word for setting in few for word in ("--set", setting)),
        *more,
    ]


def test_a_folder_that_may_not_be_read_is_one_sentence(photos):
    with obeyed_permissions():
        for place in (photos, photos / "train" / "ant"):
            place.chmod(0)
            try:
                with pytest.raises(UserError, match=rf"{place}: cannot be read .Permission denied"):
                    open_folder(photos)
            finally:
                place.chmod(0o755)
    with pytest.raises(UserError, match=r"cannot be read .File name too long"):
        open_folder(photos / ("x" * 300))


def test_a_large_set_is_not_read_beforehand(photos, monkeypatch):
    monkeypatch.setattr(images_module, "CHECKED", 100)
    text(photos / "train" / "ant")
    assert check_images([list_images(photos / "train")]) == ""
    empty_file(photos / "val" / "ant")
    with pytest.raises(UserError, match=r"val/ant/x.png: .*empty"):
        check_images([list_images(photos / "val")])


# --- an image -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_every_mode_of_8_bits_is_read_as_torchvision_does(tmp_path, mode):
    path = str(save(tmp_path / "x.png", 1 if mode in "1P" else 77, mode=mode))
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(pil_loader(path)))


def test_cmyk_animations_and_other_formats_behind_the_suffix(tmp_path):
    path = save(tmp_path / "x.jpg", 77, mode="CMYK")
    assert np.array_equal(np.asarray(read_image(str(path))), np.asarray(pil_loader(str(path))))
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (10, 20, 30)]
    for kind in ("GIF", "WEBP", "PNG", "MPO"):
        frames[0].save(tmp_path / "x.png", kind, save_all=True, append_images=frames[1:])
        image = read_image(str(tmp_path / "x.png"))
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert abs(int(np.asarray(image)[0, 0, 0]) - 10) < 6


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_grey_values_of_16_bits_are_not_cut_off(tmp_path, order):
    values = np.array([[0, 255, 256, 20_000, 65_535]], order)
    Image.fromarray(values).save(tmp_path / "x.tif")
    image = np.asarray(read_image(str(tmp_path / "x.tif")))
    assert image[0].tolist() == [[value] * 3 for value in (0, 0, 1, 78, 255)]


def test_grey_values_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableImageError, match="32-bit grey values; convert them to 8"):
        read_image(str(tmp_path / "x.tif"))


# --- reading processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_one_sentence_from_a_reading_process_too(photos, workers):
    gigantic(photos / "val" / "bee")
    with pytest.raises(UserError, match=r"x.png: this image cannot be read \(it has more than"):
        list(FolderEvalLoader(open_folder(photos).evaluation, 32, CPU, 2, workers))


@pytest.mark.parametrize("free", [0.0, 2e6])
def test_little_shared_memory_changes_nothing(photos, monkeypatch, free):
    """Containers often have 64 MB; a batch of 128 images of ImageNet takes 77."""
    images = open_folder(photos)
    expected = FolderTrainLoader(images.training, 64, 0, 64, True, CPU, workers=0).batch(1)
    monkeypatch.setattr(folders, "free_shared_memory", lambda: free)
    monkeypatch.setattr(folders, "default_collate", None)  # it takes shared memory in a process
    loader = FolderTrainLoader(images.training, 64, 0, 64, True, CPU, workers=1)
    if not free:
        assert loader._loader(0).num_workers == 0  # not even semaphores find room
        return
    found = loader.batch(1)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_free_shared_memory_is_that_of_the_file_system(tmp_path):
    status = os.statvfs(tmp_path)
    free = folders.free_shared_memory(str(tmp_path))
    assert free == pytest.approx(status.f_bavail * status.f_frsize, rel=0.2)
    assert folders.free_shared_memory(str(tmp_path / "none")) == float("inf")


def test_an_exception_in_a_reading_process_is_one_sentence(photos):
    images = open_folder(photos).training

    def full(_path):
        raise OSError(28, "No space left on device")

    images.loader = full
    with pytest.raises(RunError, match=r"died \(OSError: .*No space left on device\)\."):
        FolderTrainLoader(images, 4, 0, 32, True, CPU, workers=1).batch(0)


# --- data that changed ----------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_run_is_not_resumed_with_other_images(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert run_command(train(photos)) == 0
    (run / "result.json").unlink()  # as if it had been killed there
    first, moved = photos / "train" / "ant" / "0.png", photos / "train" / "ant" / "7.png"
    content = first.read_bytes()
    before = {path: path.read_bytes() for path in run.iterdir()}

    def edited() -> None:  # of the same size
        Image.new("RGB", (40, 50), (101,) * 3).save(first)
        first.write_bytes(first.read_bytes().ljust(len(content), b"\0")[: len(content)])

    for change in (
        lambda: first.rename(moved),
        lambda: shutil.copy(first, moved),
        lambda: first.write_bytes(content + b"\0"),
        edited,
    ):
        change()
        with pytest.raises(UserError, match=r"run: the images have changed since .* --fresh"):
            require_same_images(run, open_images(settings(), photos))
        moved.unlink(missing_ok=True)
        first.write_bytes(content)

    edited()
    capsys.readouterr()
    assert run_command(train(photos)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run: the images have changed since this run was started" in line
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    first.write_bytes(content)
    photos.rename(tmp_path / "moved")
    assert run_command(train(tmp_path / "moved")) == 0  # its own images, wherever they lie now

    recorded = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    images = dataclasses.replace(open_images(settings(), tmp_path / "moved"), contents="other")
    for key in ("dataset_contents", "dataset_checksum"):  # older versions recorded less
        with pytest.raises(UserError):
            require_same_images(run, images)
        del recorded[key]
        (run / "environment.json").write_text(json.dumps(recorded), encoding="utf-8")
        require_same_images(run, images)
        images = dataclasses.replace(images, checksum="other")
