from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.commands import Commands, WarmCommands
from tests.support.tiny import make_marked_cifar


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder with tiny datasets, and the MD5s by which child processes know them."""
    folder = tmp_path_factory.mktemp("tiny")
    make_marked_cifar(folder)
    return folder


@pytest.fixture(scope="session")
def resvar(tiny_data) -> Commands:
    """`resvar` as a process: `resvar.run("train", …, cwd=tmp_path)`."""
    return Commands(tiny_data)


@pytest.fixture(scope="session")
def warm(tiny_data) -> WarmCommands:
    """The same, started faster."""
    return WarmCommands(tiny_data)


@pytest.fixture
def disk_calls(monkeypatch) -> list[str]:
    """What this process flushes to the disk and renames from now on, in order."""
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into /proc")
    calls: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        calls.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        calls.append(f"{path.name} becomes {Path(target).name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", replace)
    return calls


@pytest.fixture(scope="module")
def one_thread():
    """One thread adds in one order, and small convolutions gain nothing from a second one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
