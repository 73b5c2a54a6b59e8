from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import resvar
from resvar.api import load_run
from resvar.config import resolve
from resvar.data.cifar import load_cifar
from resvar.errors import RunError, UserError
from resvar.rundir import (
    guard,
    is_locked,
    locked,
    read_settings,
    write_failure,
    write_metrics,
)
from resvar.training.checkpoint import load_newest, save
from resvar.training.job import run_training as train
from tests.support.tiny import install, make_cifar

COLUMNS = "iteration,epoch,lr,train_loss,train_error,test_loss,test_error,images_per_second,seconds"


def make_settings(*overrides, **options):
    return resolve(
        options={"variant": "full-preact", "depth": 8, "protocol": "quick"} | options,
        overrides=[
            "precision=fp32", "iterations=3", "batch_size=8", "bn_batch_size=8", "eval_every=2",
            *overrides,
        ],
    )  # fmt: skip


def make_row(**values):
    return dict.fromkeys(COLUMNS.split(","), 0.5) | {"iteration": 1} | values


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three iterations on tiny data: its folder, its data, its result."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        dataset = make_cifar(folder / "data", train=20, test=30)
        install(dataset, patch)
        result = train(
            make_settings("holdout=4", "kernels=plain"), folder / "data",
            Console(file=io.StringIO()), folder / "run", "cpu",
        )  # fmt: skip
        images = load_cifar(dataset, folder / "data")
    return folder / "run", images, result


# --- the lock -------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from resvar.rundir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.heavy
def test_a_second_process_is_refused_until_the_first_is_gone_however_it_ended(tmp_path):
    folder = tmp_path / "run"
    assert not is_locked(folder)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, encoding="utf-8"
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            assert is_locked(folder)
            with pytest.raises(RunError) as caught, locked(folder):
                pytest.fail("two processes hold the lock")
            assert f"process {other.pid} on {socket.gethostname()} is working" in str(caught.value)
            assert is_locked(folder)
        finally:
            other.send_signal(signal.SIGKILL)
            other.wait()
    assert not is_locked(folder)
    with locked(folder):
        assert is_locked(folder)
        holder = (folder / "run.lock").read_text(encoding="utf-8")
        assert holder == f"process {os.getpid()} on {socket.gethostname()}"
    assert not is_locked(folder)


def test_an_error_frees_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_the_lock_is_not_taken_through_a_link_or_a_pipe(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "run.lock").symlink_to("mine")
    with (
        pytest.raises(UserError, match=r"run\.lock: .*a link, not a regular file"),
        locked(tmp_path),
    ):
        pytest.fail("it was locked")
    (tmp_path / "run.lock").unlink()
    os.mkfifo(tmp_path / "run.lock")
    assert not is_locked(tmp_path)
    with pytest.raises(UserError, match=r"run\.lock: .*named pipe"), locked(tmp_path):
        pytest.fail("it was locked")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_what_killed_processes_left_of_a_write_is_removed(tmp_path):
    (tmp_path / "snapshots").mkdir()
    random = "0123456789abcdef"
    stale = ["checkpoint.pt.tmp", f"checkpoint.pt.{random}.tmp", f"metrics.csv.{random}.tmp",
             f"snapshots/iteration-000100.safetensors.{random}.tmp"]  # fmt: skip
    kept = ["checkpoint.pt", "mine.tmp", "checkpoint.pt.old.tmp", f"notes.md.{random}.tmp",
            f"probe.json.{random}.tmp", f"snapshots/mine.{random}.tmp"]  # fmt: skip
    for name in stale + kept:
        (tmp_path / name).touch()
    with locked(tmp_path):
        left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {*kept, "run.lock"}


# --- the guard ------------------------------------------------------------------------------------


def test_the_guard_lets_a_new_folder_and_the_same_settings_pass(tmp_path):
    wanted = make_settings()
    guard(tmp_path, wanted)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "config.yaml").write_text(wanted.to_yaml(), encoding="utf-8")
    guard(tmp_path, wanted)
    assert read_settings(tmp_path) == wanted


def test_the_guard_names_what_differs(tmp_path):
    (tmp_path / "config.yaml").write_text(make_settings().to_yaml(), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        guard(tmp_path, make_settings("lr=0.2", seed=3))
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path} contains a run with other settings (")
    assert "seed: 0 → 3" in sentence
    assert "lr: 0.1 → 0.2" in sentence
    assert "depth" not in sentence
    assert "--fresh" in sentence


def test_the_guard_keeps_the_precision_of_a_run_where_it_is_left_open(tmp_path):
    (tmp_path / "config.yaml").write_text(
        make_settings("precision=bf16").to_yaml(), encoding="utf-8"
    )
    guard(tmp_path, make_settings("precision=auto"))
    assert read_settings(tmp_path).precision == "bf16"
    with pytest.raises(UserError, match="precision: bf16 → fp32"):
        guard(tmp_path, make_settings("precision=fp32"))


@pytest.mark.parametrize(
    "line",
    ["seed: 0", "seed: 3", "seed: 999999999999999999", "seed: 9223372036854775807", "seed: 010",
     "seed: 0x10", "seed: '3'", "seed: 3 # three", "seed:   3", "", "seed: -1", "seed: 1.5",
     "seed: null", "seed: 3\nseed: 4", "seed: [3", "seed: 3\n7: 8",
     "seed: 3\nlr: null", "? |-\n seed\n: 3"],
)  # fmt: skip
def test_a_seed_is_read_as_yaml_reads_it(tmp_path, line):
    """Runs of a cell share what is read; whatever line the seed stands on, it means the same."""
    file = tmp_path / "config.yaml"
    text = make_settings(seed=1).to_yaml()
    file.write_text(text, encoding="utf-8")
    assert read_settings(tmp_path).seed == 1
    file.write_text(text.replace("seed: 1", line), encoding="utf-8")
    found = []
    for read in (lambda: read_settings(tmp_path), lambda: resolve(config=file)):
        try:
            found.append(read())
        except UserError as error:
            found.append(str(error))
    assert found[0] == found[1]


def test_what_looks_like_a_seed_in_another_value_is_none(tmp_path):
    text = make_settings().to_yaml().replace("seed: 0\n", "")
    quoted = text.replace("protocol: quick", 'protocol: "a\n\nseed: 3\n\nb"')
    (tmp_path / "config.yaml").write_text(quoted, encoding="utf-8")
    with pytest.raises(UserError, match="seed: 3"):
        read_settings(tmp_path)


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("variant: [", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.yaml"):
        guard(tmp_path, make_settings())


MONSTERS = {
    "base 60": "lr: 1" + ":1" * 400_000,
    "base 60, float": "lr: 1" + ":1" * 2000 + ".0",
    "5,000 digits": "depth: " + "9" * 5000,
    "digits below 10^100": "depth: " + "9" * 99,
    "hexadecimal": "seed: 0x" + "f" * 5000,
    "infinite": "lr: 1e999",
    "not a number": "lr: .nan",
    "a date": "depth: 2016-03-16",
    "no date": "depth: 2024-13-45",
    "octal": "iterations: 0400",
    "nested": "milestones: " + "[" * 900_000,
    "a long list": "milestones: [" + "1, " * 300_000 + "]",
    "a long text": "variant: " + "x" * 900_000,
    "a long name": "? " + "x" * 900_000 + "\n: 1",
    "many names": "".join(f"k{number}: 1\n" for number in range(80_000)),
    "many ops": "lead: [" + "bn, " * 200_000 + "]",
    "NUL": "lr: \0",
    "a byte order mark": "\ufefflr: 0.1",
    "a tab": "lr:\t\t[\t",
    "alias": "lr: *lr",
    "tag": "lr: !!python/object/apply:os.system [ls]",
}


@pytest.mark.heavy
@pytest.mark.parametrize("what", MONSTERS)
def test_no_line_of_a_config_costs_more_than_a_sentence(tmp_path, what):
    """The time of base 60 grew with the square of the digits; huge numbers ended in tracebacks."""
    name = MONSTERS[what].strip("\ufeff").partition(":")[0]
    lines = make_settings().to_yaml().splitlines()
    kept = [line for line in lines if not line.startswith(f"{name}:")]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join([*kept, MONSTERS[what], ""]), encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(UserError) as refused:
        read_settings(tmp_path)
    assert time.process_time() - begun < 8
    said = str(refused.value)
    assert said.startswith(str(path))
    assert len(said.removeprefix(str(path))) < 300
    assert "\n" not in said


# --- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_metrics_have_the_columns_of_the_design(tmp_path, count):
    write_metrics(tmp_path / "metrics.csv", [make_row()] * count)
    lines = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == COLUMNS
    assert len(lines) == 1 + count


def test_held_out_images_add_two_columns_behind(tmp_path):
    row = make_row(holdout_loss=0.25, holdout_error=12.5)
    write_metrics(tmp_path / "metrics.csv", [row])
    header, line = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert header == COLUMNS + ",holdout_loss,holdout_error"
    assert line.endswith(",0.25,12.5")
    assert line.startswith("1,")


numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 10**9), numbers, numbers), min_size=1, max_size=5))
def test_the_text_of_the_metrics_holds_every_bit(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "metrics.csv"
    write_metrics(path, [make_row(iteration=i, test_loss=loss, seconds=s) for i, loss, s in rows])
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    at = {name: place for place, name in enumerate(header.split(","))}
    for line, (iteration, loss, seconds) in zip(lines, rows, strict=True):
        cells = line.split(",")
        assert cells[at["iteration"]] == str(iteration)
        assert float(cells[at["test_loss"]]).hex() == loss.hex()
        assert float(cells[at["seconds"]]).hex() == seconds.hex()


def test_load_run_reads_every_bit_of_the_metrics(tmp_path):
    (tmp_path / "config.yaml").write_text(make_settings().to_yaml(), encoding="utf-8")
    random = np.random.default_rng(0)
    losses = [*random.uniform(0, 3, 500).tolist(), 1 / 3, 0.1 + 0.2, 1e-300]
    rows = [make_row(iteration=i, test_loss=loss) for i, loss in enumerate(losses, start=1)]
    write_metrics(tmp_path / "metrics.csv", rows)
    assert load_run(tmp_path).metrics["test_loss"].tolist() == losses


# --- a run read back ------------------------------------------------------------------------------


def test_a_finished_run_has_the_files_of_the_design(finished):
    folder, _, result = finished
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml", "environment.json", "metrics.csv", "checkpoint.pt", "result.json",
        "predictions.npy",
    } <= names  # fmt: skip
    assert not any(name.endswith(".tmp") for name in names)
    assert "failure.json" not in names
    assert {
        "variant", "depth", "seed", "protocol", "dataset", "iterations", "parameters", "test_error",
        "best_test_error", "train_loss", "train_error", "seconds", "images_per_second", "device",
        "precision", "config_hash", "commit",
    } <= set(result)  # fmt: skip
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == result


def test_load_run_gives_config_metrics_and_result(finished):
    folder, _, result = finished
    run = resvar.load_run(folder)
    assert run.config == make_settings("holdout=4", "kernels=plain")
    assert run.result == result
    assert run.metrics.columns.tolist() == [*COLUMNS.split(","), "holdout_loss", "holdout_error"]
    assert run.metrics["iteration"].tolist() == [2, 3]
    assert run.metrics["test_error"].iloc[-1] == result["test_error"]
    rows = load_newest(folder)["rows"]
    assert [row["test_error"] for row in rows] == run.metrics["test_error"].tolist()
    assert result["best_test_error"] == run.metrics["test_error"].min()
    assert (result["variant"], result["depth"], result["iterations"]) == ("full-preact", 8, 3)


def test_the_model_of_a_run_predicts_what_predictions_npy_holds(finished):
    """With pixels prepared by plain NumPy; the held-out images have no part in the mean."""
    folder, images, result = finished
    predictions = np.load(folder / "predictions.npy")
    assert (predictions.dtype, predictions.shape) == (np.int64, (30,))
    model = resvar.load_run(str(folder)).model
    assert not model.training
    mean = (images.train_images[:16] / 255).mean(axis=0)
    x = torch.from_numpy((images.test_images / 255 - mean).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        predicted = model(x).argmax(dim=1).numpy()
    np.testing.assert_array_equal(predicted, predictions)
    error = 100 * (predictions != images.test_labels).mean()
    assert result["test_error"] == pytest.approx(error)
    assert result["parameters"] == sum(p.numel() for p in model.parameters())


def test_an_unfinished_run_can_be_read(tmp_path):
    (tmp_path / "config.yaml").write_text(make_settings().to_yaml(), encoding="utf-8")
    run = load_run(tmp_path)
    assert run.result is None
    assert run.metrics.columns.tolist() == COLUMNS.split(",")
    assert len(run.metrics) == 0
    with pytest.raises(UserError, match="no checkpoint"):
        _ = run.model


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="there is no run here"):
            load_run(folder)


@pytest.mark.parametrize("content", ["", "{", "[1]", "nonsense", '{"a": ' * 100_000])
def test_a_damaged_result_is_refused_in_words(tmp_path, content):
    (tmp_path / "config.yaml").write_text(make_settings().to_yaml(), encoding="utf-8")
    (tmp_path / "result.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json: this is damaged"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"a,b\n1,2,3\n4\n5,6,7,8\n", b'iteration\n"1\n']
)
def test_damaged_metrics_are_refused_in_words(tmp_path, content):
    (tmp_path / "config.yaml").write_text(make_settings().to_yaml(), encoding="utf-8")
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        load_run(tmp_path)


def test_a_model_whose_checkpoints_are_damaged_is_refused_in_words(tmp_path):
    (tmp_path / "config.yaml").write_text(make_settings().to_yaml(), encoding="utf-8")
    (tmp_path / "checkpoint.pt").write_bytes(b"x" * 100)
    with pytest.raises((UserError, RunError), match=r"checkpoint\.pt is damaged"):
        _ = load_run(tmp_path).model


def test_a_model_of_another_network_is_refused_in_words(tmp_path):
    settings = make_settings()
    (tmp_path / "config.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    state = {"config_hash": settings.hash, "iteration": 1}
    save(tmp_path, {**state, "model": {"classifier.weight": torch.ones(10, 2)}})
    with pytest.raises(UserError, match="does not contain the network"):
        _ = load_run(tmp_path).model


@pytest.mark.parametrize(
    "content", ['{"format": 1, "resumed": 5}', '{"resumed": [{"changed": 1}]}']
)
def test_a_damaged_note_of_where_a_run_was_made_is_one_sentence(tmp_path, monkeypatch, content):
    """It is not needed to go on, so the way out is to take it away."""
    install(make_cifar(tmp_path / "data", train=20, test=10), monkeypatch)
    settings, said = make_settings("checkpoint_every=1"), Console(file=io.StringIO(), width=200)
    out = tmp_path / "run"

    def go_on():
        return train(settings, tmp_path / "data", said, out, "cpu")

    result = go_on()
    (out / "result.json").unlink()
    (out / "environment.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"environment\.json: this is damaged.* remove the file"):
        go_on()
    (out / "environment.json").unlink()
    assert go_on()["test_error"] == result["test_error"]
    assert (
        json.loads((out / "environment.json").read_text(encoding="utf-8"))["torch"]
        == torch.__version__
    )


# --- failures ------------------------------------------------------------------------------------


def test_a_failure_is_read_as_json_with_its_format(tmp_path):
    write_failure(tmp_path / "new", "the disk is full")
    found = json.loads((tmp_path / "new" / "failure.json").read_text(encoding="utf-8"))
    assert found == {"format": 1, "message": "the disk is full"}
