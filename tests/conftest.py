"""For all tests: no deadlines, the automatic marker, one thread, processes, Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it once, when it is imported

import hypothesis
import pytest

from tests.support.commands import Commands, WarmCommands
from tests.support.names import stable_name
from tests.support.tiny import make_marked_cifar

for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, _name):  # `nohup` and `&` of a shell ignore them, and children inherit that
        signal.signal(getattr(signal, _name), _handler)

hypothesis.settings.register_profile("resvar", deadline=None)  # a busy machine is not a bug
hypothesis.settings.load_profile("resvar")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start `resvar` as a process; put the files that take long first.

    Of parallel workers none is then left with a long file at the end.
    """
    long = set()
    for item in items:
        if {"resvar", "warm"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.process)
        if any(mark.name in {"process", "build", "slurm"} for mark in item.iter_markers()):
            long.add(item.path)
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """One thread: sums have one order, and small convolutions gain nothing from a second one.

    Set again for each module, since some tests change it.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder with tiny datasets, and the MD5s by which child processes recognise them."""
    folder = tmp_path_factory.mktemp("tiny")
    make_marked_cifar(folder)
    return folder


@pytest.fixture(scope="session")
def resvar(tiny_data) -> Commands:
    """`resvar` as a process: `resvar.run("train", …, cwd=tmp_path)`."""
    return Commands(tiny_data)


@pytest.fixture(scope="session")
def warm(tiny_data) -> WarmCommands:
    """The same, forked from a process that has loaded torch: seconds faster."""
    return WarmCommands(tiny_data)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, or a reason to skip."""
    if not CHROMIUM:
        pytest.skip("no Chromium here: install it (apt-get install chromium) to look at the page")
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def disk_calls(monkeypatch) -> list[str]:
    """The files that this process flushes, links and renames during the test, in order.

    The random part of a temporary name is left out.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into /proc")
    calls: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        calls.append(f"flush {stable_name(Path(f'/proc/self/fd/{descriptor}').readlink())}")
        fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        calls.append(f"{stable_name(path)} becomes {stable_name(Path(target))}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", replace)
    return calls
