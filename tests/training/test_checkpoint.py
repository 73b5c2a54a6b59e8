from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from resvar import rundir
from resvar.errors import RunError
from resvar.rundir import locked
from resvar.training import checkpoint
from resvar.training.checkpoint import FORMAT, DamagedError, digest, load, load_newest, save
from tests.support.names import stable_name

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def make_state(iteration=5):
    generator = torch.Generator().manual_seed(iteration)
    return {
        "config_hash": "0123456789abcdef",
        "iteration": iteration,
        "model": {
            "weight": torch.randn(8, 3, 3, 3, generator=generator),
            "last": torch.randn(4, 6, 2, 2, generator=generator).to(
                memory_format=torch.channels_last
            ),
            "half": torch.randn(5, generator=generator).bfloat16(),
            "strange": torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.double),
            "num_batches_tracked": torch.tensor(iteration),
            "empty": torch.zeros(0, 3),
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}, 1: {}}, "param_groups": []},
        "sums": [0.1 + 0.2, 7, 128, 1e-300],
        "rows": [{"iteration": 3, "test_loss": 1 / 3}, {}],
        "seconds": 1.5,
        "nothing": None,
        "flag": True,
    }


def same(a, b):
    """Equal in type, structure and every bit."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return torch.equal(*raw)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and struct.pack("d", a) == struct.pack("d", b)
    return type(a) is type(b) and a == b


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


# --- there and back -------------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = make_state()
    save(tmp_path, state)
    assert same(state, load(tmp_path / NEWEST))
    assert same(state, load_newest(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [NEWEST]


def test_it_is_an_ordinary_torch_file_without_code(tmp_path):
    save(tmp_path, make_state())
    content = torch.load(tmp_path / NEWEST, weights_only=True)
    assert same(content["state"], make_state())


def test_after_two_saves_the_previous_one_is_there(tmp_path):
    for iteration in (1, 2, 3):
        save(tmp_path, make_state(iteration))
    assert load(tmp_path / NEWEST)["iteration"] == 3
    assert load(tmp_path / PREVIOUS)["iteration"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NEWEST]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert load_newest(tmp_path) is None


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path):
    """Anywhere in the file: the state is refused, or the very same; never another one."""
    state = make_state()
    save(tmp_path, state)
    path = tmp_path / NEWEST
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for position in [*range(64), *chance.sample(range(len(whole)), 600)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            assert same(load(path), state), f"position {position}"
        except DamagedError:
            refused += 1
    assert refused > 50


def test_a_changed_number_is_noticed_by_the_digest_even_in_a_sound_file(tmp_path):
    """The archive's own checksums are right here: only the digest can tell."""
    state = make_state()
    save(tmp_path, state)
    content = torch.load(tmp_path / NEWEST, weights_only=True)
    content["state"]["model"]["weight"][3, 1, 2, 0] += 1e-7
    torch.save(content, tmp_path / NEWEST)
    with pytest.raises(DamagedError, match="does not match its digest"):
        load(tmp_path / NEWEST)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        pytest.param(lambda _: b""),
        lambda content: bytes(len(content)),
        lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
        pytest.param(lambda content: b"\x80\x02." + content),
        lambda _: b"not a checkpoint at all\n" * 100,
        lambda _: pickle.dumps([1, 2, 3]),
        lambda _: pickle.dumps({"state": 1}),
    ],
    ids=["half", "last byte", "empty", "zeros", "half zeros", "prefix", "text", "list", "dict"],
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    save(tmp_path, make_state())
    path = tmp_path / NEWEST
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedError):
        load(path)


@pytest.mark.parametrize(
    "content", [5, [], {}, {"format": 1}, {"format": 2, "digest": "", "state": {}}, "text"]
)
def test_a_torch_file_of_another_kind_is_refused(tmp_path, content):
    torch.save(content, tmp_path / NEWEST)
    with pytest.raises(DamagedError):
        load(tmp_path / NEWEST)


@pytest.mark.parametrize("size", [pytest.param(0), 100, 2000])
def test_a_damaged_newest_falls_back_to_the_previous_with_a_warning(tmp_path, size):
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    (tmp_path / NEWEST).write_bytes((tmp_path / NEWEST).read_bytes()[:size])
    warnings = []
    assert load_newest(tmp_path, warnings.append)["iteration"] == 1
    (warning,) = warnings
    assert str(tmp_path / NEWEST) in warning
    assert "damaged" in warning
    assert PREVIOUS in warning
    assert (tmp_path / NEWEST).exists()


def test_a_missing_newest_falls_back_to_the_previous(tmp_path):
    """As after a power cut between the two renames."""
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    (tmp_path / NEWEST).unlink()
    assert load_newest(tmp_path)["iteration"] == 1


def test_when_both_are_damaged_the_way_out_is_named_and_nothing_deleted(tmp_path):
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    for name in (NEWEST, PREVIOUS):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunError, match="--fresh") as caught:
        load_newest(tmp_path)
    assert str(tmp_path / NEWEST) in str(caught.value)
    assert str(tmp_path / PREVIOUS) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_bomb_never_runs(tmp_path, zipped):
    marker = tmp_path / "exploded"
    path = tmp_path / NEWEST
    content = {"format": 1, "digest": "", "state": {"model": Bomb(marker)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DamagedError, match="more than numbers" if zipped else "no.* zip"):
        load(path)
    with pytest.raises(RunError, match="--fresh"):
        load_newest(tmp_path)
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(DamagedError):
        load(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # the bomb was live


def unfold(times: int) -> list[object]:
    """A list that comes to 10 ** times entries, in as many small ones."""
    made: list[object] = [1]
    for _ in range(times):
        made = [made] * 10
    return made


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, content)


@pytest.mark.parametrize(
    ("state", "spoil", "said"),
    [
        (lambda: {"a": torch.zeros(1).expand(10**12)}, None, "unfolds"),
        (lambda: {"a": unfold(12)}, None, "unfolds"),
        (lambda: {"a": ["x" * 10_000] * 10_000}, None, "unfolds"),
        (lambda: {"a": torch.zeros(10**7)}, compressed, "unpacks"),
    ],
    ids=["a stride of 0", "a list of lists of one list", "one long text", "compressed zeros"],
)
def test_a_small_file_never_takes_much_memory_or_time(tmp_path, state, spoil, said):
    """Each is a few kilobytes and would come to gigabytes, or to minutes."""
    path = tmp_path / NEWEST
    torch.save({"format": FORMAT, "digest": "", "state": state()}, path)
    if spoil is not None:
        spoil(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DamagedError, match=said):
        load(path)


@pytest.mark.heavy
def test_many_evaluations_are_no_unfolding(tmp_path):
    """Their names are in the file once, so this is the state that comes to most for its bytes."""
    columns = (*rundir.METRIC_COLUMNS, *rundir.HOLDOUT_COLUMNS)
    rows = [dict.fromkeys(columns, index / 7) for index in range(20_000)]
    whole = [{**row, "iteration": 1, "train_error": 0.0} for row in rows]
    save(tmp_path, {"rows": whole, "model": {}})
    assert load(tmp_path / NEWEST)["rows"] == whole


def test_a_checkpoint_of_a_later_version_is_not_called_damaged(tmp_path):
    save(tmp_path, make_state(1))
    content = torch.load(tmp_path / NEWEST, weights_only=True)
    save(tmp_path, make_state(2))
    torch.save({**content, "format": FORMAT + 1}, tmp_path / NEWEST)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunError, match=r"update resvar") as caught:
        load_newest(tmp_path)
    assert "damaged" not in str(caught.value)
    assert "--fresh" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- the order of a write -------------------------------------------------------------------------


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_name_and_the_name_after(
    tmp_path, monkeypatch, disk_calls
):
    """A power cut at any moment leaves a whole one only in this order."""
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    read = checkpoint.load

    def watched(path):
        disk_calls.append(f"read {stable_name(path)}")
        return read(path)

    monkeypatch.setattr(checkpoint, "load", watched)
    disk_calls.clear()
    save(tmp_path, make_state(3))
    assert disk_calls == [
        f"flush {NEWEST}.tmp",
        f"read {NEWEST}.tmp",
        f"read {NEWEST}",
        f"{PREVIOUS}.tmp becomes {PREVIOUS}",
        f"{NEWEST}.tmp becomes {NEWEST}",
        f"flush {tmp_path.name}",
    ]


# --- interrupted writes ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["os.fsync", "torch.save", "resvar.training.checkpoint.load"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch, where, error):
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_arguments, **_options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(type(error)):
            save(tmp_path, make_state(3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load_newest(tmp_path)["iteration"] == 2


def test_what_does_not_read_back_is_one_sentence_and_changes_nothing(tmp_path, monkeypatch):
    """As from memory or a controller that flips bits: the write itself seems to succeed."""
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, weights = torch.save, make_state(3)["model"]["weight"].numpy().tobytes()

    def flip(content, file):
        whole = io.BytesIO()
        write(content, whole)
        flipped = bytearray(whole.getvalue())
        flipped[flipped.index(weights) + 5] ^= 1
        file.write(flipped)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", flip)
        with pytest.raises(RunError, match="does not read back"):
            save(tmp_path, make_state(3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.98, 0.999])
def test_a_file_that_may_not_grow_is_an_error_of_the_disk(tmp_path, share):
    """torch's writer replaces the disk's error with its own; `save` reports the disk's."""
    import resource

    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = int(share * len(before[NEWEST]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save(tmp_path, make_state(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save(tmp_path, make_state(3))
    assert load_newest(tmp_path)["iteration"] == 3


def test_a_damaged_newest_never_pushes_out_the_good_one_before_it(tmp_path, monkeypatch):
    """Killed between the renames of the next save, there would be no whole checkpoint left."""
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    (tmp_path / NEWEST).write_bytes(b"")

    def killed(_self, _target):
        raise KeyboardInterrupt

    replace, calls = Path.replace, []
    for at in (1, 2):
        calls.clear()

        def at_rename(self, target, at=at):
            calls.append(target)
            return killed(self, target) if len(calls) == at else replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", at_rename)
            with contextlib.suppress(KeyboardInterrupt):
                save(tmp_path, make_state(3))
        assert load_newest(tmp_path)["iteration"] in (1, 3)
        assert load(tmp_path / PREVIOUS)["iteration"] == 1
        (tmp_path / NEWEST).write_bytes(b"")


@pytest.mark.parametrize("rename", [1, 2])
def test_an_error_between_the_renames_leaves_a_whole_checkpoint(tmp_path, monkeypatch, rename):
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    replace, calls = Path.replace, []

    def fail(self, target):
        calls.append(target)
        if len(calls) == rename:
            raise OSError(5, "Input/output error")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="Input/output"):
            save(tmp_path, make_state(3))
    assert load_newest(tmp_path)["iteration"] == 2
    save(tmp_path, make_state(4))
    assert load_newest(tmp_path)["iteration"] == 4


@pytest.mark.parametrize("name", ["checkpoint.pt.tmp", "checkpoint.pt.0123456789abcdef.tmp"])
def test_a_forgotten_half_file_of_a_killed_process_does_no_harm(tmp_path, name):
    save(tmp_path, make_state(1))
    (tmp_path / name).write_bytes(b"half")
    assert load_newest(tmp_path)["iteration"] == 1
    with locked(tmp_path):
        assert not (tmp_path / name).exists()
        save(tmp_path, make_state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NEWEST, "run.lock"]


# --- readers at the same time ---------------------------------------------------------------------


def test_the_newest_checkpoint_is_never_missing(tmp_path, monkeypatch):
    save(tmp_path, make_state(1))
    rename, seen = Path.replace, []

    def watched(path, target):
        seen.append(load(tmp_path / NEWEST)["iteration"])
        rename(path, target)
        seen.append(load(tmp_path / NEWEST)["iteration"])

    monkeypatch.setattr(Path, "replace", watched)
    save(tmp_path, make_state(2))
    assert seen == [1, 1, 1, 2]
    assert load(tmp_path / PREVIOUS)["iteration"] == 1


def test_a_file_that_gets_the_name_during_a_read_does_not_disturb_it(tmp_path, monkeypatch):
    save(tmp_path, make_state(1))
    read = torch.load

    def replaced_before(*arguments, **options):
        monkeypatch.undo()
        save(tmp_path, {**make_state(2), "more": torch.zeros(1000)})
        return read(*arguments, **options)

    monkeypatch.setattr(torch, "load", replaced_before)
    assert load(tmp_path / NEWEST)["iteration"] == 1
    assert load(tmp_path / NEWEST)["iteration"] == 2


def test_a_kill_between_the_two_names_leaves_nothing_behind(tmp_path):
    """Both names are of one file then; POSIX lets its rename do nothing."""
    save(tmp_path, make_state(1))
    os.link(tmp_path / NEWEST, tmp_path / PREVIOUS)
    save(tmp_path, make_state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NEWEST]
    assert [load(tmp_path / name)["iteration"] for name in (PREVIOUS, NEWEST)] == [1, 2]


def test_a_file_system_without_hard_links_keeps_both_checkpoints(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for iteration in (1, 2, 3):
        save(tmp_path, make_state(iteration))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NEWEST]
    assert [load(tmp_path / name)["iteration"] for name in (PREVIOUS, NEWEST)] == [2, 3]


@pytest.mark.parametrize("name", [NEWEST, PREVIOUS])
def test_a_pipe_in_place_of_a_checkpoint_is_not_waited_for(tmp_path, name):
    for iteration in (1, 2):
        save(tmp_path, make_state(iteration))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(DamagedError, match="named pipe"):
        load(tmp_path / name)
    assert load_newest(tmp_path)["iteration"] == (1 if name == NEWEST else 2)


# --- the digest -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(6), torch.zeros(2, 3)),
        (torch.zeros(6), torch.zeros(6, dtype=torch.int32)),
        (torch.tensor(0.0), torch.tensor(-0.0)),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": True}),
        ({"a": None}, {}),
        ([1, [2]], [[1], 2]),
        ([[], []], [[[]]]),
        (0.1 + 0.2, 0.3),
    ],
)
def test_the_digest_tells_states_apart(a, b):
    assert digest(a) != digest(b)
    assert digest(a) == digest(a)


@pytest.mark.parametrize(("a", "b"), [([1, 23], [12, 3]), ([0.5, 71], [0.57, 1])])
def test_the_digest_tells_numbers_apart_that_read_the_same_in_a_row(a, b):
    assert digest(a) != digest(b)


def test_the_digest_does_not_depend_on_memory_layout():
    plain = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert digest(plain) == digest(plain.to(memory_format=torch.channels_last))


def test_the_file_is_a_zip_that_other_tools_can_open(tmp_path):
    save(tmp_path, make_state())
    assert zipfile.ZipFile(tmp_path / NEWEST).testzip() is None
