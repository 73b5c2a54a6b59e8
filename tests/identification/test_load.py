"""`MODULE:CALLABLE` and `FILE.py:CALLABLE`; wrong ones end with one sentence."""

from __future__ import annotations

import sys

import pytest
from torch import nn

from resvar.errors import UserError
from resvar.identification.load import load_network

NETWORKS = """
import sys
from dataclasses import dataclass
from torch import nn
print("hello from the file", sys.argv[1:])

class Net(nn.Module):
    def __init__(self, depth=20, widths=(16, 32), block=None, name="x", *, flag=False):
        super().__init__()
        self.got = (depth, widths, block, name, flag)

    @staticmethod
    def small():
        return Net(8)

class Block: pass

def needs(depth, block): return Net(depth, block=block)
def fails(): raise KeyError("no such weights")
def quits(): sys.exit(3)
def gives_text(): return "resnet"
def on_gpu(): return nn.Linear(1, 1).to("nothing")
instance = Net(3)
number = 7
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(NETWORKS, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "kwargs", "got"),
    [
        ("Net", None, (20, (16, 32), None, "x", False)),
        ("Net", "", (20, (16, 32), None, "x", False)),
        ("Net.small", None, (8, (16, 32), None, "x", False)),
        ("instance", None, (3, (16, 32), None, "x", False)),
        ("Net", "depth=110,widths=[16, 32, 64],flag=true", (110, [16, 32, 64], None, "x", True)),
        ("Net", "name='a,b', widths={a: 1, b: 2}", (20, {"a": 1, "b": 2}, None, "a,b", False)),
        ("Net", "name=no, depth=null", (None, (16, 32), None, False, False)),
        ("Net", "depth=None, widths=(1, 2), flag=True", (None, (1, 2), None, "x", True)),
    ],
)
def test_a_network_is_loaded_with_its_arguments(file, name, kwargs, got):
    assert load_network(f"{file}:{name}", kwargs).got == got


def test_an_argument_may_be_an_object_of_the_module(file):
    block = load_network(f"{file}:needs", "depth=2,block=:Block").got[2]
    assert block.__name__ == "Block"


def test_what_the_code_prints_goes_to_stderr_and_our_words_are_hidden(file, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["resvar", "identify", "--secret"])
    load_network(f"{file}:Net")
    captured = capsys.readouterr()
    running = f"Running the code of {file}:Net\n"
    assert (captured.out, captured.err) == ("", f"{running}hello from the file []\n")
    assert sys.argv == ["resvar", "identify", "--secret"]


def test_a_file_finds_its_neighbours_by_either_import(tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "neighbour_of_a_file.py").write_text(
        "from torch.nn import Linear", encoding="utf-8"
    )
    (tmp_path / "alone" / "net.py").write_text(
        "from neighbour_of_a_file import Linear", encoding="utf-8"
    )
    package = tmp_path / "a_package_of_networks"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "layers.py").write_text("from torch.nn import Linear", encoding="utf-8")
    (package / "net.py").write_text("from .layers import Linear", encoding="utf-8")
    before = list(sys.path)
    for folder in ("alone", "a_package_of_networks"):
        network = load_network(
            f"{tmp_path / folder / 'net.py'}:Linear", "in_features=1,out_features=1"
        )
        assert isinstance(network, nn.Linear)
    assert sys.path == before


def test_a_module_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "nets_here.py").write_text(NETWORKS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_network("nets_here:Net").got[0] == 20


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("Nett", None, "has no 'Nett'; did you mean 'Net'?"),
        ("Net.samll", None, "has no 'samll'; did you mean 'small'?"),
        ("needs", None, "needs the arguments depth, block: use --kwargs depth=…,block=… (a value "),
        ("needs", "depth=3", "needs the argument block: use --kwargs block=…"),
        ("Net", "deep=3", "unexpected keyword argument 'deep'; it takes depth, widths, block,"),
        ("Net.small", "depth=3", "it takes no arguments"),
        ("Net", "depth", "--kwargs: 'depth' is not of the form KEY=VALUE"),
        ("Net", "=3", "--kwargs: '=3' is not of the form KEY=VALUE"),
        ("Net", "depth=3,", "--kwargs: '' is not of the form KEY=VALUE"),
        ("Net", "depth=[3", "--kwargs: depth=[3 is not a value of Python or YAML"),
        ("Net", "block=:Blokc", "has no 'Blokc'; did you mean 'Block'?"),
        ("fails", None, "failed: KeyError: 'no such weights'."),
        ("quits", None, "ended the program, with exit code 3."),
        ("gives_text", None, "gives an object of type str, not a torch.nn.Module."),
        ("on_gpu", None, "failed: RuntimeError: "),
        ("instance", "depth=3", "is a network already and takes no --kwargs."),
        ("number", None, "cannot be called: it is of type int."),
    ],
)
def test_a_callable_that_does_not_fit_is_one_sentence(file, name, kwargs, words):
    with pytest.raises(UserError) as caught:
        load_network(f"{file}:{name}", kwargs)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("torchvision.models", "does not say what to call; write MODULE:CALLABLE or FILE.py:"),
        (":resnet50", "does not say what to call"),
        ("torchvision.models:", "does not say what to call"),
        ("nowhere.at.all:net", "there is no module 'nowhere.at.all' here"),
        ("torch.nowhere:net", "there is no module 'torch.nowhere' here"),
        ("nowhere.py:net", "there is no file nowhere.py"),
        ("..:net", "is a relative import"),
    ],
)
def test_a_target_that_does_not_exist_is_one_sentence(target, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_network(target)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:\n", "failed: SyntaxError: "),
        ("import nowhere_at_all_2\n", "failed: ModuleNotFoundError: No module named"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])", "with exit code 2"),
        ("raise ValueError('line one\\nline two')", "failed: ValueError: line one."),
        ("", "has no 'net'."),
        ("\x00", "failed: "),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_sentence(text, words, tmp_path):
    (tmp_path / "net.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_network(f"{tmp_path / 'net.py'}:net")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
