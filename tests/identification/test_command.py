"""`resvar identify` as a user calls it."""

from __future__ import annotations

import json
import re

import pytest

from resvar.cli import run_command

NETWORK = """
import resvar
from torch import nn
print("a line that is not JSON")
def resnet14(**options): return resvar.build_model("full-preact", 14, **options)
def resnet20(): return resvar.build_model("full-preact", 14)
def plain(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def run(capsys, *words):
    code = run_command(["identify", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.usefixtures("file")
def test_a_known_network_exits_with_0_and_says_whose_code_it_runs(capsys):
    code, out, err = run(capsys, "mynet.py:resnet14")
    assert code == 0
    assert "mynet.py:resnet14 is full-preact, ResNet-14" in out
    assert "Running the code of mynet.py:resnet14\n" in err


@pytest.mark.usefixtures("file")
def test_another_network_exits_with_1_and_names_what_differs(capsys):
    code, out, err = run(capsys, "mynet.py:resnet14", "--kwargs", "shortcut=project")
    assert code == 1
    assert "nearest: full-preact, ResNet-14." in out
    assert "differs: projections where the papers pad with zero channels (stages.1.0" in out
    assert "error" not in err


@pytest.mark.usefixtures("file")
def test_a_name_with_another_depth_is_a_difference(capsys):
    code, out, _ = run(capsys, "mynet:resnet20")
    assert code == 1
    assert "its name says 20 layers; it has 14" in out


@pytest.mark.usefixtures("file")
def test_json_is_the_whole_of_stdout(capsys):
    code, out, err = run(capsys, "mynet.py:resnet14", "--format", "json")
    values = json.loads(out)
    assert (code, values["known"], values["published"], values["depth"]) == (0, True, False, 14)
    assert "a line that is not JSON" in err


@pytest.mark.usefixtures("file")
def test_a_file_gets_the_answer_whatever_it_is(capsys, tmp_path):
    words = ("--kwargs", "shortcut=project", "--out", "answer.json")
    code, out, _ = run(capsys, "mynet.py:resnet14", *words)
    assert (code, out) == (1, "Wrote answer.json\n")
    values = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert values["shortcut"] == "project"


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), r"MODULE:CALLABLE is missing; an example is"),
        (("mynet.py:plain",), "this is not a residual network"),
        (("mynet.py:resnet14", "--input", "32"), "'32' is not the shape of an image; an example"),
        (("mynet.py:resnet14", "--input", "1x32x32"), r"cannot be run on an image of 1×32×32"),
        (("mynet.py:resnet", "--input", "3x32x32"), "did you mean 'resnet20'"),
        (("mynet.py:resvarx",), r"has no 'resvarx'\."),
        (("mynet.py:resnet14", "--out", "answer.md"), r"answer\.md"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(words, sentence, capsys, tmp_path):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("resvar: error: ")]
    assert re.search(sentence, line)
    assert not (tmp_path / "answer.md").exists()


@pytest.mark.usefixtures("file")
def test_nothing_is_said_to_run_where_it_is_not_known_what(capsys):
    _, _, err = run(capsys, "mynet.py")
    assert "does not say what to call" in err
    assert "Running" not in err


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ("shortcut=pad", "2 shortcuts change the shape, without projections."),
        ("shortcut=project", "2 shortcuts change the shape, by projection."),
    ],
)
def test_the_facts_say_how_shortcuts_change_the_shape(kwargs, sentence, capsys):
    _, out, _ = run(capsys, "mynet.py:resnet14", "--kwargs", kwargs)
    assert sentence in " ".join(out.split())
