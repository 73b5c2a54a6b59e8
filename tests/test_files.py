from __future__ import annotations

import json
import math

import pytest

from resvar.files import configs, replacing, shipped, write_json, write_text
from resvar.strict_yaml import read_yaml

# --- the shipped configurations -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "variants",
            {"original", "bn-after-add", "relu-before-add", "relu-only-preact", "full-preact"},
        ),
        ("protocols", {"paper", "short", "quick"}),
    ],
)
def test_the_shipped_configurations_are_there_and_can_be_read(kind, names):
    found = shipped(kind)
    assert names <= set(found)
    for name, path in found.items():
        assert path == configs() / kind / f"{name}.yaml"
        assert read_yaml(path)


def test_the_published_figures_are_shipped():
    assert read_yaml(configs() / "published.yaml")
    assert shipped("sweeps")


# --- writes that are whole or not there -----------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_by_what_was_written(tmp_path, durable):
    path = tmp_path / "a.txt"
    for content in (b"old", b"new and longer", b""):
        with replacing(path, durable) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_on_the_disk_before_it_takes_the_name_and_the_name_after(tmp_path, disk_calls):
    write_json(tmp_path / "a.json", {})
    assert disk_calls == ["flush a.json.tmp", "a.json.tmp becomes a.json", f"flush {tmp_path.name}"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("before", [b"old", None])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path, error, before):
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_bytes(before)

    def write_half():
        with replacing(path) as file:
            file.write(b"half of the new")
            file.flush()
            assert (path.read_bytes() if before else None) == before  # a reader meets the old one
            raise error

    with pytest.raises(error):
        write_half()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_json_is_standard_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 0.1], "b": None})
    assert json.loads(path.read_text()) == {"a": [1, 0.1], "b": None}
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": number})
    assert json.loads(path.read_text()) == {"a": [1, 0.1], "b": None}
