"""The limits of cgroups, from trees as the kernel shows them to a host and to containers."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from resvar import fit_threads
from resvar.limits import available_cores, available_memory

PERIOD = "100000"
UNLIMITED = 2**63 - 4096  # what cgroup v1 shows without a limit


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def tree(root, cgroup, mounts, files):
    """A root with /proc/self/cgroup, /proc/self/mountinfo and the files of cgroups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(cgroup) + "\n", encoding="utf-8")
    lines = [
        f"{number} 1 0:{number} {top} {at} rw,nosuid shared:9 - {kind} {kind} {options}"
        for number, (top, at, kind, options) in enumerate(mounts)
    ]
    (root / "proc/self/mountinfo").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


V2 = [("/", "/", "ext4", "rw"), ("/", "/sys/fs/cgroup", "cgroup2", "rw,nsdelegate")]


def v1(top):
    return [
        ("/", "/sys/fs/cgroup", "tmpfs", "rw"),
        (top, "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        (top, "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
    ]


def test_without_cgroups_affinity_and_the_machine_decide(tmp_path):
    assert available_cores(tmp_path) == 8
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory(tmp_path) == pages


def test_unlimited_cgroups_change_nothing(tmp_path):
    files = {"sys/fs/cgroup/a/cpu.max": f"max {PERIOD}", "sys/fs/cgroup/a/memory.max": "max"}
    root = tree(tmp_path, ["0::/a"], V2, files)
    assert available_cores(root) == 8
    assert available_memory(root) == available_memory(tmp_path / "nothing")


def test_the_tightest_level_of_version_2_counts(tmp_path):
    files = {
        "sys/fs/cgroup/user.slice/cpu.max": f"250000 {PERIOD}",
        "sys/fs/cgroup/user.slice/memory.max": "2000000",
        "sys/fs/cgroup/user.slice/a b/cpu.max": f"max {PERIOD}",
        "sys/fs/cgroup/user.slice/a b/memory.max": "3000000",
        "sys/fs/cgroup/other/cpu.max": f"1000 {PERIOD}",
    }
    root = tree(tmp_path, ["0::/user.slice/a b/c"], V2, files)
    assert available_cores(root) == 3
    assert available_memory(root) == 2_000_000


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000", 2), ("100000", 1), ("5000", 1), ("9900000", 8)]
)
def test_a_part_of_a_processor_counts_as_one(tmp_path, quota, cores):
    """`docker run --cpus 1.5`: the container sees its own cgroup as the root."""
    root = tree(tmp_path, ["0::/"], V2, {"sys/fs/cgroup/cpu.max": f"{quota} {PERIOD}"})
    assert available_cores(root) == cores


@pytest.mark.parametrize("path", ["/docker/1f", "/../../elsewhere", "/"])
def test_version_1_in_a_container(tmp_path, path):
    """Docker mounts the container's cgroup itself, and may show the path that the host knows."""
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": PERIOD,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000",
    }
    cgroup = [f"5:cpu,cpuacct:{path}", f"4:memory:{path}", "0::/"]
    root = tree(tmp_path, cgroup, v1("/docker/1f"), files)
    assert available_cores(root) == 2
    assert available_memory(root) == 1_000_000


def test_version_1_on_a_host(tmp_path):
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": PERIOD,
        "sys/fs/cgroup/cpu,cpuacct/slurm/job/cpu.cfs_quota_us": "400000",
        "sys/fs/cgroup/cpu,cpuacct/slurm/job/cpu.cfs_period_us": PERIOD,
        "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": "7000000",
        "sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes": str(UNLIMITED),
    }
    cgroup = ["5:cpu,cpuacct:/slurm/job", "4:memory:/slurm/job", "1:name=systemd:/x"]
    root = tree(tmp_path, cgroup, v1("/"), files)
    assert available_cores(root) == 4
    assert available_memory(root) == 7_000_000


def test_a_mount_point_with_a_space(tmp_path):
    mounts = [("/", "/my\\040groups", "cgroup2", "rw")]
    root = tree(tmp_path, ["0::/"], mounts, {"my groups/cpu.max": f"200000 {PERIOD}"})
    assert available_cores(root) == 2


@pytest.mark.parametrize("text", ["", "max", "a b", "1 2 3"])
def test_what_no_kernel_writes_is_no_limit(tmp_path, text):
    files = {"sys/fs/cgroup/cpu.max": text, "sys/fs/cgroup/memory.max": text + "x"}
    assert available_cores(tree(tmp_path, ["0::/", "nonsense", ""], V2, files)) == 8


def test_a_quota_sets_the_threads_of_openmp_unless_the_user_did():
    given: dict[str, str] = {}
    fit_threads(given, cores=8, by_affinity=8)
    assert given == {}
    fit_threads(given, cores=2, by_affinity=8)
    assert given == {"OMP_NUM_THREADS": "2"}
    fit_threads(given, cores=1, by_affinity=8)
    assert given == {"OMP_NUM_THREADS": "2"}


THREADS = """
import resvar, torch
from resvar.limits import available_cores, available_memory
print(available_cores(), available_memory(), torch.get_num_threads())
"""


@pytest.fixture
def confined():
    """Folders of a cgroup with less than a processor and of one with 6 GB; v1, made as root."""
    made = []
    try:
        for controller, limit, value in (
            ("cpu", "cpu.cfs_quota_us", "90000"),
            ("memory", "memory.limit_in_bytes", str(6 * 2**30)),
        ):
            folder = Path("/sys/fs/cgroup", controller, f"resvar-{os.getpid()}")
            folder.mkdir()
            made.append(folder)
            (folder / limit).write_text(value, encoding="utf-8")
        yield made
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@pytest.mark.process
def test_a_process_in_real_cgroups(confined):
    join = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in confined)
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    found = subprocess.run(
        ["sh", "-c", f'{join} && exec "$@"', "sh", sys.executable, "-c", THREADS],
        env=environment, capture_output=True, encoding="utf-8", check=True, timeout=120,
    )  # fmt: skip
    memory = min(6 * 2**30, available_memory())
    assert found.stdout.split() == ["1", str(memory), "1"]
