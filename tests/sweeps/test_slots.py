"""Where the runs of a sweep work: GPUs are made up here, since only their names matter."""

from __future__ import annotations

import errno
import shutil

import pytest
import torch

from resvar.errors import UserError
from resvar.sweeps import slots as slots_module
from resvar.sweeps.slots import make_slots, mps_advice

UUIDS = "GPU-8f6d2a1c-1b2c-3d4e-5f60-718293a4b5c6,MIG-0c9e8d7f-6a5b-4c3d-2e1f-0a9b8c7d6e5f"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(slots_module, "available_cores", lambda: 8)
    monkeypatch.setattr(slots_module, "available_memory", lambda: 64 * 2**30)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def gpus(monkeypatch):
    def found(count: int, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return found


def pinned(slots):
    return [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots]


def test_one_run_on_each_gpu_with_its_part_of_the_cores(gpus):
    gpus(4)
    slots = make_slots(None, None, "auto", runs=10)
    assert pinned(slots) == ["0", "1", "2", "3"]
    assert [slot.name for slot in slots] == ["gpu 0", "gpu 1", "gpu 2", "gpu 3"]
    assert {(slot.device, slot.threads) for slot in slots} == {("cuda", 2)}


@pytest.mark.parametrize(
    ("jobs", "per_gpu", "runs", "expected"),
    [
        (1, None, 10, "0"),
        (3, None, 10, "010"),  # spread
        (None, 2, 10, "0101"),  # packed
        (3, 2, 10, "010"),
        (9, 2, 10, "0101"),
        (3, 1, 10, "01"),
        (4, None, 3, "010"),  # no more slots than runs
        (None, None, 1, "0"),
        (None, None, 0, "0"),
    ],
)
def test_jobs_spread_over_the_gpus_and_per_gpu_packs_them(gpus, jobs, per_gpu, runs, expected):
    gpus(2)
    slots = make_slots(jobs, per_gpu, "cuda", runs)
    assert "".join(pinned(slots)) == expected
    assert {slot.threads for slot in slots} == {8 // len(expected)}


def test_two_slots_of_a_gpu_are_not_the_same_slot(gpus):
    """`launch` asks which slots are free: of equal ones the second would wait for the first."""
    gpus(2)
    slots = make_slots(None, 3, "auto", runs=10)
    assert len({slot.name for slot in slots}) == len(slots) == 6
    assert all(slots.count(slot) == 1 for slot in slots)


@pytest.mark.parametrize(
    ("visible", "count", "device", "expected"),
    [
        ("2,5", 2, "auto", ["2", "5"]),
        ("2,5", 2, "cuda:1", ["5"]),
        (" 2, 5 ", 2, "auto", ["2", "5"]),
        ("3,-1,1", 1, "auto", ["3"]),
        (UUIDS, 2, "auto", UUIDS.split(",")),
        (UUIDS, 2, "cuda:1", UUIDS.split(",")[1:]),
        ("GPU-8f6d2a1c", 1, "cuda", ["GPU-8f6d2a1c"]),  # CUDA takes a UUID's beginning too
        (None, 3, "cuda:2", ["2"]),
    ],
)
def test_gpus_that_somebody_has_chosen_are_the_ones_used(gpus, visible, count, device, expected):
    gpus(count, visible)
    assert pinned(make_slots(None, None, device, runs=10)) == expected


@pytest.mark.parametrize(("visible", "device"), [("", "auto"), ("-1", "auto"), ("2,5", "cpu")])
def test_without_gpus_the_cores_are_shared(gpus, visible, device):
    gpus(2 if visible == "2,5" else 0, visible)
    slots = make_slots(4, None, device, runs=10)
    assert [(slot.name, slot.device, slot.threads, slot.environment) for slot in slots] == [
        (f"cpu {number}", "cpu", 2, {}) for number in range(4)
    ]
    assert len(make_slots(None, None, device, runs=10)) == 8


def test_memory_limits_how_many_share_the_processor(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(slots_module, "available_memory", lambda: 9 * 2**30)
    assert [slot.threads for slot in make_slots(None, None, "auto", runs=10)] == [4, 4]


@pytest.mark.parametrize(
    ("jobs", "per_gpu", "device", "said"),
    [
        (0, None, "auto", "--jobs must be at least 1"),
        (None, 0, "auto", "--per-gpu must be at least 1"),
        (None, None, "cuda:2", "this machine has 2 GPUs"),
        (None, None, "gpu", "choose from auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_cannot_be_is_refused(gpus, jobs, per_gpu, device, said):
    gpus(2)
    with pytest.raises(UserError, match=said):
        make_slots(jobs, per_gpu, device, runs=10)


# --- NVIDIA's multi-process service ---------------------------------------------------------------

DEAD = "echo Cannot find MPS control daemon process; exit 1"
HANGING = "exec sleep 600"
ALIVE = {"no servers": "", "servers": "echo 4711; echo 4712"}


@pytest.fixture
def service(monkeypatch, tmp_path):
    """A program in place of NVIDIA's, which knows whom it serves and what it was asked."""

    def install(answer: str | None) -> None:
        program = tmp_path / "bin" / "nvidia-cuda-mps-control"
        program.parent.mkdir(exist_ok=True)
        program.unlink(missing_ok=True)
        if answer is not None:
            program.write_text(
                "#!/bin/sh\n"
                'read asked; [ "$asked" = get_server_list ] || exit 2\n'
                f'[ "$CUDA_MPS_PIPE_DIRECTORY" = {tmp_path} ] || exit 3\n{answer}\n',
                encoding="utf-8",
            )
            program.chmod(0o755)

    # Beside it only what a shell script needs: a machine with GPUs may have the program.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sleep").symlink_to(shutil.which("sleep"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    (tmp_path / "control").touch()  # a daemon that was killed leaves it behind
    return install


@pytest.mark.parametrize("answer", ALIVE.values(), ids=ALIVE)
def test_runs_may_share_a_gpu_where_the_service_answers(gpus, service, answer):
    gpus(2)
    service(answer)
    assert mps_advice(make_slots(None, 2, "auto", runs=10)) is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (DEAD, "service: start it with `nvidia-cuda-mps-control -d`."),
        ("echo Cannot find MPS control daemon process", "start it with"),
        (None, "program nvidia-cuda-mps-control is not on the PATH."),
        (HANGING, "has not answered for 0 s: end its processes, then start it with"),
    ],
    ids=["dead", "dead, exit 0", "missing", "hanging"],
)
def test_where_it_does_not_answer_the_user_is_told_what_to_do(
    gpus, service, monkeypatch, answer, said
):
    if answer == HANGING:
        monkeypatch.setattr(slots_module, "MPS_TIMEOUT", 0.2)
    gpus(2)
    service(answer)
    advice = mps_advice(make_slots(None, 2, "auto", runs=10))
    assert advice is not None
    assert advice.startswith("Runs that share a GPU are faster only under NVIDIA's multi-process")
    assert said in advice


def test_a_program_that_may_not_be_started(gpus, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(slots_module.subprocess, "run", refuse)
    gpus(1)
    advice = mps_advice(make_slots(2, None, "auto", runs=10))
    assert advice is not None
    assert "nvidia-cuda-mps-control cannot be started (Permission denied)." in advice


def test_runs_that_share_no_gpu_need_no_service(gpus, service):
    service("exit 1")
    gpus(2)
    assert mps_advice(make_slots(None, None, "auto", runs=10)) is None
    assert mps_advice(make_slots(None, 2, "auto", runs=10)) is not None
    gpus(0)
    assert mps_advice(make_slots(4, None, "cpu", runs=10)) is None
