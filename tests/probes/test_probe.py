"""`resvar probe` as its users run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from resvar.probes.claims import CLAIMS
from tests.support.commands import contents, train
from tests.support.outcome import differing

PROBED = ("--set", "probe_at=[0,5]")


@pytest.fixture(scope="module")
def made(warm, tmp_path_factory) -> Path:
    """A finished run of ResNet-8 with a snapshot after 5 of its 14 iterations."""
    folder = tmp_path_factory.mktemp("probe")
    done = warm.run(*train(*PROBED, "--out", "run"), cwd=folder)
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def probe(warm, cwd, *arguments):
    return warm.run("probe", "--images", 40, "--device", "cpu", *arguments, cwd=cwd)


def test_a_run_is_probed_at_every_moment_and_nothing_else_in_it_changes(warm, run, made):
    before = contents(run)
    done = probe(warm, run.parent, "run", "--figures", "figures")
    assert done.code == 0, done.err
    after = contents(run)
    assert after.pop("probe.json")
    assert after == before
    assert not differing(run, made)
    for words in ("at initialisation", "after 5 of 14 iterations", "after 14 iterations",
                  "test error without the unit", "identity-backward", "supported"):  # fmt: skip
        assert words in done.out
    saved = json.loads((run / "probe.json").read_text(encoding="utf-8"))
    assert [moment["iteration"] for moment in saved["moments"]] == [0, 5, 14]
    assert [moment["deletion"] is None for moment in saved["moments"]] == [True, True, False]
    drawn = {path.name for path in (run.parent / "figures").iterdir()}
    assert {"gradient-8.svg", "gradient-8.png", "deletion-8.svg", "training-8.png"} <= drawn


def test_the_network_itself_is_what_was_trained(warm, run):
    """The loss of the snapshot at 0 is that of the network built from the seed."""
    for moment in ("init", "0"):
        out = run.parent / f"{moment}.json"
        done = probe(warm, run.parent, "run", "--at", moment, "--format", "json", "--out", out)
        assert done.code == 0, done.err
    one, other = (
        json.loads((run.parent / f"{m}.json").read_text(encoding="utf-8")) for m in ("init", "0")
    )
    assert one["probes"][0]["moments"] == other["probes"][0]["moments"]


def test_the_same_probe_gives_the_same_numbers(warm, run):
    found = []
    for _ in range(2):
        done = probe(warm, run.parent, "run", "--at", "end", "--format", "json")
        assert done.code == 0, done.err
        value = json.loads(done.out)
        value["probes"][0].pop("seconds")
        found.append(value)
    assert found[0] == found[1]


def test_orderings_at_initialisation_are_compared_without_a_run(warm, tmp_path):
    done = probe(warm, tmp_path, "--depth", 8, "--format", "json", "--seed", 3)
    assert done.code == 0, done.err
    value = json.loads(done.out)
    names = [probe["network"]["variant"] for probe in value["probes"]]
    assert names == ["original", "bn-after-add", "relu-before-add", "relu-only-preact",
                     "full-preact"]  # fmt: skip
    assert {probe["network"]["seed"] for probe in value["probes"]} == {3}
    assert not list(tmp_path.iterdir())
    forward = next(c for c in value["claims"] if c["name"] == "identity-forward")
    assert [v["word"] == "supported" for v in forward["verdicts"]] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert all(v["paper"] == (v["word"] == "supported") for v in forward["verdicts"])
    done = probe(warm, tmp_path, "--depth", 8, "--variant", "original,bn-lead-relu-trail",
                 "--format", "markdown", "--out", "page.md")  # fmt: skip
    assert done.code == 0, done.err
    assert "bn-lead-relu-trail-8" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_a_run_without_a_checkpoint_is_probed_at_its_beginning(warm, run):
    for name in ("checkpoint.pt", "snapshots/iteration-000000.safetensors",
                 "snapshots/iteration-000005.safetensors"):  # fmt: skip
        (run / name).unlink()
    done = probe(warm, run.parent, "run")
    assert done.code == 0, done.err
    assert "only earlier moments" in done.err
    assert len(json.loads((run / "probe.json").read_text(encoding="utf-8"))["moments"]) == 1


WRONG = (
    ((), "--depth"),
    (("nowhere",), "nowhere: there is no such folder"),
    (("run", "--variant", "original"), "--variant"),
    (("run", "--seed", "1"), "--seed"),
    (("run", "--at", "soon"), "--at soon"),
    (("run", "--at", "9" * 5000), "use init, end, or a number of iterations"),
    (("run", "--device", "cuda:²"), "choose from auto, cpu, cuda or cuda:N"),
    (("run", "--at", "7"), "kept at: 0, 5"),
    (("--depth", "8", "--at", "end"), "--at"),
    (("--depth", "8", "--variant", "orignal"), "original"),
    (("--depth", "9"), "depth 9"),
    (("run", "--images", "61"), "60"),
    (("run", "--images", "0"), "--images"),
    (("run", "--data", "empty"), "empty"),
    (("run", "--device", "cuda:9"), "cuda:9"),
    (("run", "--format", "csv"), "csv"),
)


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_input_is_one_sentence_and_nothing_is_written(warm, made, arguments, words):
    before = contents(made.parent)
    done = probe(warm, made.parent, *arguments)
    assert done.code == 2, done.err
    lines = [line for line in done.err.splitlines() if not line.endswith("…")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not done.out
    assert contents(made.parent) == before


def test_a_damaged_snapshot_is_named(warm, run):
    path = run / "snapshots" / "iteration-000005.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    done = probe(warm, run.parent, "run", "--at", "5")
    assert done.code == 2
    assert "iteration-000005.safetensors" in done.err
    assert not (run / "probe.json").exists()


def test_the_help_names_the_claims_and_their_thresholds(warm, tmp_path):
    done = warm.run("probe", "--help", cwd=tmp_path)
    words = "".join(done.out.split())  # lines are broken anywhere
    for claim in CLAIMS:
        assert claim.name in words
        assert "".join(claim.help.split()) in words
