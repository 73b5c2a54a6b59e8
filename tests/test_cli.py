"""The door: wrong input gets one sentence that names what is wrong and the remedy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from resvar import __version__
from resvar.cli import app, run_command
from resvar.cli.exits import exit_code
from resvar.errors import OutputError, PeerFailure, RunError, Stopped, UserError
from tests.support.commands import DRIVER, ROOT, TINY, contents, sets, train
from tests.support.pace import pace, processor_seconds

COMMANDS = ("train", "sweep", "status", "report", "data")


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys, tiny_data):
    """Run a command line that must be refused, in an empty folder; returns the sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESVAR_DATA", str(tiny_data))

    def refused(*arguments: object, code: int = 2) -> str:
        before = contents(tmp_path)
        left = run_command([str(word) for word in arguments])
        out, err = capsys.readouterr()
        assert err.startswith("resvar: error: "), err
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in out + err
        assert left == code, err
        assert err.rstrip().endswith((".", "?")), err
        assert not re.search(r"\w See resvar", err), f"two sentences run into each other: {err}"
        assert contents(tmp_path) == before, "nothing is written"
        assert not (tmp_path / "runs").exists()
        return err.removeprefix("resvar: error: ")

    return refused


def says(sentence: str, *parts: str) -> bool:
    """Whether the sentence has each part, case aside; the assertion shows what is missing."""
    missing = [part for part in parts if part.lower() not in sentence.lower()]
    assert not missing, f"{missing} not in: {sentence}"
    return True


# --- wrong words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--variant", "full-preactt", "--depth", "20"],
         ["--variant", "did you mean 'full-preact'"]),
        (["--variant", "orignal", "--depth", "20"], ["did you mean 'original'"]),
        (["--variant", "zzz", "--depth", "20"], ["'zzz'", "original", "full-preact", "YAML"]),
        (["--variant", "", "--depth", "20"], ["--variant"]),
        (["--variant", "missing.yaml", "--depth", "20"], ["missing.yaml", "No such file"]),
        (["--depth", "20"], ["--variant is missing", "--variant full-preact"]),
        ([], ["--variant and --depth are missing", "--variant full-preact --depth 20"]),
        (["--variant", "original"], ["--depth is missing", "--depth 20"]),
        (["--variant", "original", "--depth", "21"], ["--depth", "21", "20 and 26", "20 and 29"]),
        (["--variant", "original", "--depth", "0"], ["--depth", "0"]),
        (["--variant", "original", "--depth", "-20"], ["--depth", "-20"]),
        (["--variant", "original", "--depth", "99999999"], ["--depth", "99999999"]),
        (["--variant", "original", "--depth", "38"], ["38", "6n+2", "9n+2", "--set unit="]),
        (["--variant", "original", "--depth", "32", "--set", "unit=bottleneck"],
         ["32", "bottleneck", "9n+2", "29 and 38"]),
        (["--variant", "original", "--depth", "32", "--set", "unit=basicc"],
         ["'unit' is 'basicc'", "bottleneck"]),
        (["--variant", "original", "--depth", "abc"], ["--depth", "whole number"]),
        (["--variant", "original", "--depth", "20", "--protocol", "papper"],
         ["--protocol", "did you mean 'paper'"]),
        (["--variant", "original", "--depth", "20", "--protocol", "p.yaml"],
         ["p.yaml", "No such file"]),
        (["--variant", "original", "--depth", "20", "--seed", "-1"], ["--seed", "-1"]),
        (["--variant", "original", "--depth", "20", "--seed", "1.5"], ["--seed", "whole number"]),
        (["--variant", "original", "--depth", "20", "--seed", "010"], ["--seed", "'010'"]),
        (["--variant", "original", "--depth", "20", "--sed", "1"],
         ["there is no option --sed; did you mean --seed?", "resvar train --help"]),
        (["--variant", "original", "--depth", "20", "--device", "nonsense"],
         ["--device nonsense", "cpu"]),
        (["--variant", "original", "--depth", "20", "--device", "cuda:x"], ["--device cuda:x"]),
        (["--variant", "original", "--depth", "20", "--nonsense"], ["--nonsense", "--help"]),
        (["--variant"], ["--variant", "--help"]),
        (["--variant", "original", "--depth", "20", "stray"], ["stray", "--help"]),
        (["--config", "missing.yaml"], ["missing.yaml", "No such file"]),
        (["--config", "."], [".", "directory"]),
    ],
)  # fmt: skip
def test_wrong_options_of_train(refuse, arguments, parts):
    assert says(refuse("train", *arguments), *parts)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("lr", ["--set lr", "KEY=VALUE"]),
        ("=3", ["--set", "KEY=VALUE"]),
        ("learning_rate=3", ["--set", "unknown setting 'learning_rate'"]),
        ("bacth_size=64", ["--set", "did you mean 'batch_size'"]),
        ("milestone=[1]", ["--set", "did you mean 'milestones'"]),
        ("lr=fast", ["--set", "'lr'", "'fast'", "number"]),
        ("lr=0", ["--set", "'lr' is 0", "greater than 0"]),
        ("lr=-0.1", ["--set", "'lr' is -0.1", "greater than 0"]),
        ("lr=.nan", ["--set", "'lr' is nan"]),
        ("lr=.inf", ["--set", "'lr' is inf"]),
        ("lr=", ["--set", "'lr'"]),
        ("lr=[", ["--set lr", "YAML"]),
        ("lr=true", ["--set", "'lr'"]),
        ("iterations=0", ["--set", "'iterations' is 0"]),
        ("iterations=-5", ["--set", "'iterations' is -5"]),
        ("iterations=1.5", ["--set", "'iterations' is 1.5", "integer"]),
        ("iterations=ten", ["--set", "'iterations' is 'ten'", "integer"]),
        ("batch_size=0", ["--set", "'batch_size' is 0"]),
        ("batch_size=100", ["batch_size", "100", "bn_batch_size", "64", "--set bn_batch_size"]),
        ("bn_batch_size=0", ["--set", "'bn_batch_size' is 0"]),
        ("seed=-1", ["--set", "'seed' is -1"]),
        ("seed=true", ["--set", "'seed'"]),
        ("seed=99999999999999999999", ["--set", "'seed'"]),
        ("momentum=1", ["--set", "'momentum' is 1"]),
        ("momentum=0", ["nesterov"]),
        ("weight_decay=-1", ["--set", "'weight_decay' is -1"]),
        ("weight_decay_on=some", ["--set", "'weight_decay_on'", "weights"]),
        ("milestones=[20, 10]", ["milestones", "increase"]),
        ("milestones=10", ["--set", "'milestones'", "list"]),
        ("precision=fp8", ["--set", "'precision'", "fp32"]),
        ("dataset=mnist", ["--set", "'dataset'", "cifar10"]),
        ("holdout=-1", ["--set", "'holdout' is -1"]),
        ("holdout=50000", ["--set", "'holdout' is 50000"]),
        ("crop_padding=-1", ["--set", "'crop_padding' is -1"]),
        ("flip=maybe", ["--set", "'flip'", "boolean"]),
        ("eval_every=0", ["--set", "'eval_every' is 0"]),
        ("checkpoint_every=0", ["--set", "'checkpoint_every' is 0"]),
        ("schedule=cosine", ["--set", "'schedule'", "one-cycle"]),
        ("peak_at=1", ["--set", "'peak_at' is 1"]),
        ("family=svhn", ["--set", "'family'", "cifar"]),
        ("cardinality=2", ["cardinality"]),
        ("cardinality=0", ["cardinality"]),
        ("lead=[bn]", ["--variant FILE.yaml"]),
        ("protocol=3", ["--set", "'protocol'"]),
        ("variant=3", ["--set", "'variant'"]),
        ("depth=twenty", ["--set", "'depth'", "integer"]),
    ],
)  # fmt: skip
def test_wrong_settings(refuse, setting, parts):
    more = ["--set", "nesterov=true"] if setting == "momentum=0" else []
    run = ["train", "--variant", "original", "--depth", "20", *more]
    assert says(refuse(*run, "--set", setting), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"- 1\n- 2\n", ["mapping"]),
        (b"just words\n", ["mapping"]),
        (b"", ["mapping"]),
        (b"lr: 0.1\nlr: 0.2\n", ["line 2", "'lr' occurs twice"]),
        (b"lr: !!python/object:os.system x\n", ["line 1", "tags"]),
        (b"lr: !mine 3\n", ["line 1", "tags"]),
        (b"a: &x 3\nb: *x\n", ["line 1", "anchors and aliases"]),
        (b"variant: caf\xe9\n", ["UTF-8"]),
        (b"\x00\x01\x02", ["YAML"]),
        (b"lr: [0.1\n", ["line 2", "YAML"]),
        (b"1: 2\n", ["key 1"]),
        (b"bacth_size: 64\n", ["unknown setting 'bacth_size'", "did you mean 'batch_size'"]),
        (b"lr: fast\n", ["'lr' is 'fast'", "number"]),
        (b"depth: '20'\n", ["'depth' is '20'", "integer"]),
        (b"seed: 1.0\n", ["'seed' is 1.0", "integer"]),
        (b"protocol: papper\n", ["did you mean 'paper'"]),
        (b"variant: original\nlead: bn\n", ["--variant FILE.yaml"]),
    ],
)  # fmt: skip
def test_wrong_config_files(refuse, tmp_path, text, parts):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text)
    # Options override the file, so none is given that would hide the mistake.
    options = [] if b"variant" in text or b"depth" in text else ["--variant", "original"]
    options += [] if b"depth" in text else ["--depth", "20"]
    options += ["--variant", "original"] if b"depth" in text else []
    assert says(refuse("train", "--config", file, *options), "mine.yaml", *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trail: [bn]\nafter_add: [relu]\n", ["'lead'", "list"]),
        ("lead: bn\ntrail: []\nafter_add: [relu]\n", ["'lead'", "list"]),
        ("lead: [bn]\ntrail: []\nafter_add: []\n", ["relu is missing", "unusual"]),
        ("lead: [bn, relu]\ntrail: [bn]\nafter_add: []\n", ["bn occurs 2 times"]),
        ("lead: [bn, rellu]\ntrail: []\nafter_add: []\n", ["'rellu'", "did you mean 'relu'"]),
        ("leed: [bn, relu]\ntrail: []\nafter_add: []\n", ["'leed'", "did you mean 'lead'"]),
        ("name: a/b\nlead: [bn, relu]\ntrail: []\nafter_add: []\n", ["'name'"]),
        ("name: original\nlead: [bn, relu]\ntrail: []\nafter_add: []\n", ["'original'", "another"]),
    ],
)
def test_wrong_variant_files(refuse, tmp_path, text, parts):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    assert says(refuse("train", "--variant", file, "--depth", "20"), "mine.yaml", *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("depth: 20\n", ["unknown setting 'depth'", "training"]),
        ("itterations: 20\n", ["'itterations'", "did you mean 'iterations'"]),
        ("lr: 0.1\n", ["mine", "lacks", "add it"]),
        ("iterations: [1]\nbatch_size: 8\nbn_batch_size: 8\nschedule: step\nlr: 1.0\n",
         ["mine.yaml", "'iterations'", "integer"]),
    ],
)  # fmt: skip
def test_wrong_protocol_files(refuse, tmp_path, text, parts):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    run = ["train", "--variant", "original", "--depth", "20", "--protocol", file]
    assert says(refuse(*run), *parts)


@pytest.mark.parametrize(
    "command",
    [
        "train --out=", "train --data=", "train --config=", "sweep --out=", "sweep --data=",
        "report --out=", "report --figures=", "evaluate x --out=", "export x --out=",
        "probe --out=", "show --out=", "data --dir=", "data --archive=",
    ],
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(refuse, command):
    """It is a variable without a value: --out "$FOLDER"."""
    option = command.rpartition(" ")[2].removesuffix("=")
    assert says(refuse(*command.split()), option, "the path is empty")


@pytest.mark.parametrize("command", ["report", "status", "evaluate", "sweep", "probe"])
def test_an_empty_argument_is_not_the_current_folder(refuse, command):
    assert says(refuse(command, ""), "the path is empty")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nonsense"], ["nonsense"]),
        (["trian"], ["trian"]),
        (["--nonsense"], ["--nonsense"]),
        (["data", "--dataset", "mnist"], ["--dataset", "mnist", "cifar100"]),
        (["data", "--archive", "missing.tar.gz"], ["missing.tar.gz"]),
        (["sweep"], ["variants"]),
        (["sweep", "missing.yaml"], ["missing.yaml", "No such file"]),
        (["sweep", "--variants", "original", "--depths", "abc"], ["depths"]),
        (["sweep", "--variants", "original", "--depths", "21"], ["21"]),
        (["sweep", "--variants", "original", "--depths", "20", "--seeds", "0"], ["seeds"]),
        (["sweep", "--variants", "original", "--depths", "20", "--jobs", "0"], ["--jobs", "1"]),
        (["sweep", "--variants", "original", "--depths", "20", "--per-gpu", "0"], ["--per-gpu"]),
        (["sweep", "--variants", "original", "--depths", "20", "--device", "tpu"],
         ["--device tpu", "cpu"]),
        (["sweep", "--variants", "original", "--depths", "20", "--launcher", "x"], ["--launcher"]),
    ],
)  # fmt: skip
def test_other_commands(refuse, arguments, parts):
    assert says(refuse(*arguments), *parts)


# --- the data -------------------------------------------------------------------------------------


def test_a_missing_dataset(refuse, tmp_path):
    wanted = ["train", "--variant", "original", "--depth", "20", "--device", "cpu"]
    said = refuse(*wanted, "--data", tmp_path / "nowhere")
    assert says(said, "nowhere", "CIFAR-10", "resvar data --dir", "--data")


def test_data_that_are_not_the_official_ones(refuse):
    said = refuse("train", "--variant", "original", "--depth", "20", "--device", "cpu")
    assert says(said, "data_batch_1", "MD5", "c99cafc152244af753f735de768cd75f", "resvar data")


def test_damaged_and_missing_files_of_the_dataset(resvar, tmp_path):
    """In separate processes, which take the tiny data for the official."""
    copy = tmp_path / "copy"
    shutil.copytree(resvar.data, copy)
    file = copy / "cifar-10-batches-py" / "data_batch_3"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    work = tmp_path / "work"
    work.mkdir()
    for spoil in (lambda: None, file.unlink):
        spoil()
        refused = resvar.run(*train("--data", str(copy)), cwd=work)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1
        assert says(refused.err, "resvar: error: ", "data_batch_3", "resvar data --dir")
        assert not list(work.iterdir())


# --- the run that is there ------------------------------------------------------------------------


def test_a_folder_with_a_run_of_other_settings_is_left_alone(refuse, tmp_path):
    from resvar.config import resolve

    out = tmp_path / "there"
    out.mkdir()
    there = resolve(None, {"variant": "original", "depth": 8}, list(TINY))
    (out / "config.yaml").write_text(there.to_yaml(), encoding="utf-8")
    run = ["train", "--variant", "original", "--depth", "8", "--out", out, "--device", "cpu"]
    said = refuse(*run, *sets(*TINY), "--set", "lr=0.5", "--seed", "3")
    assert says(said, "there", "lr: 0.05 → 0.5", "seed: 0 → 3", "--out", "--fresh")
    assert "iterations" not in said, "only what differs is shown"


def test_a_damaged_config_in_the_run_directory(refuse, tmp_path):
    out = tmp_path / "there"
    out.mkdir()
    (out / "config.yaml").write_text("depth: [", encoding="utf-8")
    run = ["train", "--variant", "original", "--depth", "8", "--out", out, "--device", "cpu"]
    assert says(refuse(*run), "config.yaml", "YAML")


def test_a_config_is_over_the_protocol_and_under_the_options(tmp_path):
    from resvar.config import resolve

    file = tmp_path / "mine.yaml"
    file.write_text(
        "variant: original\ndepth: 20\nlr: 0.2\nseed: 4\nmomentum: 0.8\n", encoding="utf-8"
    )
    found = resolve(file, {"seed": 5, "protocol": "quick"}, ["momentum=0.7"])
    assert (found.lr, found.seed, found.momentum, found.iterations) == (0.2, 5, 0.7, 400)


def test_cuda_where_there_is_none(refuse):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = ["train", "--variant", "original", "--depth", "20", "--device", "cuda"]
    assert says(refuse(*run), "--device cuda", "no GPU", "--device cpu")


# --- as a process ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--variant", "full-preactt", "--depth", "20"],
        ["train", "--variant", "full-preact", "--depth", "20", "--set", "lr=-1"],
        ["nonsense"],
        ["sweep", "--variants", "original", "--depths", "20", "--jobs", "0"],
    ],
)
def test_a_process_leaves_with_2_and_one_line(resvar, tmp_path, arguments):
    refused = resvar.run(*arguments, cwd=tmp_path)
    assert refused.code == 2
    assert refused.err.startswith("resvar: error: ")
    assert len(refused.err.splitlines()) == 1
    assert refused.out == ""
    assert not list(tmp_path.iterdir())


# --- help, version, lightness ---------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_teaches(command, capsys):
    assert run_command([*command.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"Usage: resvar {command}".strip())
    assert any(word in text for word in ("Example:", "Start with:")), text


@pytest.mark.parametrize("command", ["train", "sweep", "report"])
def test_help_of_the_commands_that_matter_has_an_example(command, capsys):
    run_command([command, "--help"])
    assert f"Example:  resvar {command}" in capsys.readouterr().out


def test_help_names_every_published_variant_and_protocol(capsys):
    from resvar.files import shipped
    from resvar.models.ordering import PAPER_ORDER

    run_command(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in [*PAPER_ORDER, *shipped("protocols")]:
        assert name in text.replace("- ", "-"), name


def test_version(capsys):
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"resvar {__version__}\n"


def test_no_arguments_show_the_help(capsys):
    run_command([])
    out, err = capsys.readouterr()
    assert "resvar: error" not in err
    assert "Usage: resvar" in out + err


@pytest.mark.parametrize("module", ["resvar", "resvar.cli", "resvar.config", "resvar.data.cifar"])
def test_importing_stays_light(module):
    program = f"import sys, {module}; print(*sorted(sys.modules), sep='\\n')"
    environment = {k: v for k, v in os.environ.items() if str(DRIVER) not in v}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True,
        encoding="utf-8", check=True, timeout=60,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & {"torch", "torchvision", "pandas", "scipy", "numpy"}


@pytest.mark.heavy
def test_help_is_there_at_once(tmp_path):
    """Under 0.4 s of processor time: wall time depends on the load."""
    command = [sys.executable, "-m", "resvar", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    taken = min(processor_seconds(command, tmp_path, **environment) for _ in range(5))
    assert taken < 0.4 * pace()


@pytest.mark.heavy
def test_python_m_and_the_installed_command_are_the_same(tmp_path):
    command = Path(sys.executable).with_name("resvar")
    if not command.exists():
        pytest.skip("resvar is not installed as a command here")
    one = subprocess.run([command, "--help"], capture_output=True, check=True, cwd=tmp_path)
    other = subprocess.run(
        [sys.executable, "-m", "resvar", "--help"], capture_output=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert one.stdout == other.stdout


# --- the choices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "name", "choices"),
    [
        ("train", "family", "cifar|imagenet"), ("train", "stem", "cifar|imagenet"),
        ("train", "dataset", "cifar10|cifar100|sample|folder"),
        ("show", "family", "cifar|imagenet"),
        ("show", "stem", "cifar|imagenet"), ("show", "shortcut", "pad|project"),
        ("show", "unit", "basic|bottleneck"), ("show", "stride-on", "first|3x3"),
    ],
)  # fmt: skip
def test_the_choices_of_a_setting_are_in_the_help_and_in_the_error(
    refuse, capsys, command, name, choices
):
    run_command([command, "--help"])
    assert re.search(rf"--{name} {re.escape(choices)}\s", capsys.readouterr().out)
    said = refuse(command, f"--{name}", "wrong")
    assert says(said, f"--{name}", "'wrong'", *(f"'{word}'" for word in choices.split("|")))
    assert "Value error" not in said


@pytest.mark.parametrize("name", [None, *typer.main.get_command(app).commands])
def test_help_fits_80_columns_and_cuts_nothing(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command([*([name] if name else []), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("...") and "Usage:" not in line]


@pytest.mark.parametrize("name", [None, *typer.main.get_command(app).commands])
def test_help_breaks_no_word_and_shows_no_type(name, capsys, monkeypatch):
    arguments = [*([name] if name else []), "-h"]
    monkeypatch.setenv("COLUMNS", "400")
    assert run_command(arguments) == 0
    words = set(capsys.readouterr().out.split())
    monkeypatch.setenv("COLUMNS", "60")
    assert run_command(arguments) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 60
    assert set(narrow.split()) <= words
    assert not re.search(r"\b(INTEGER|FLOAT|TEXT|PATH|RANGE)\b|<(int|list|Path|float|str)", narrow)


@pytest.mark.parametrize("name", [*typer.main.get_command(app).commands])
def test_the_example_of_every_command_parses(name):
    command = typer.main.get_command(app).commands[name]
    examples = re.findall(r"Example:  resvar (.+)", command.help)
    assert examples
    for example in examples:
        asked, *arguments = example.split()
        assert asked == name
        command.make_context(name, arguments)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("tr", {"train"}), ("train --variant v", {"v1", "v2"}),
        ("train --set lr", {"lr=", "lr_factor="}),
        ("sweep --variants v1,full", {"v1,full-preact"}), ("sweep ta", {"table2"}),
        ("train --protocol s", {"short"}), ("train --dev", {"--device"}),
        ("show resnetv", {"resnetv2_50", "resnetv2_164"}), ("show resnet50 v", {"v1", "v2"}),
        ("show --compare full", {"full-preact"}), ("show --table ", {"cifar", "imagenet"}),
        ("report --format ht", {"html"}), ("train --family ", {"cifar", "imagenet"}),
    ],
)  # fmt: skip
@pytest.mark.process
def test_the_shell_completes_names(typed, found):
    words = f"resvar {typed}"
    asked = {"_RESVAR_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(len(words.split(" ")) - 1)}  # fmt: skip
    code = "import sys; from resvar.cli import run_command; run_command([])"
    left = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        encoding="utf-8",
    )
    assert (left.returncode, set(left.stdout.split()), left.stderr) == (0, found, "")


# --- errors and exit codes ------------------------------------------------------------------------


@pytest.mark.parametrize("variable", [None, "0", "1"])
def test_a_traceback_with_causes_is_shown_when_asked_for(tmp_path, monkeypatch, capsys, variable):
    """A UserError with a cause: what the file system said."""
    if variable is None:
        monkeypatch.delenv("RESVAR_DEBUG", raising=False)
    else:
        monkeypatch.setenv("RESVAR_DEBUG", variable)
    assert run_command(["train", "--config", str(tmp_path / "none.yaml")]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("resvar: error: ")
    assert ("Traceback" in err) == ("FileNotFoundError" in err) == (variable == "1")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no."), 2, "resvar: error: no.\n"),
        (RunError("full."), 1, "resvar: error: full.\n"),
        (Stopped("saved."), 130, "resvar: saved.\n"),
        (PeerFailure(2), 2, ""),
        (KeyboardInterrupt(), 130, "resvar: stopped.\n"),
        (OutputError("closed.", reader_gone=True), 0, ""),
        (OutputError("stdout is full.", reader_gone=False), 1,
         "resvar: error: stdout is full.\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, "resvar: error: Broken pipe.\n"),
        (MemoryError(), 1, "resvar: error: there is not enough memory.\n"),
        (OSError(28, "No space left on device", "x.pt"), 1,
         "resvar: error: No space left on device (x.pt).\n"),
    ],
)  # fmt: skip
def test_an_error_decides_exit_code_and_sentence(capsys, error, code, said):
    def fail():
        raise error

    assert exit_code(fail) == code
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert bool(err) == bool(said)


def test_an_error_of_the_program_is_not_hidden():
    def fail():
        raise KeyError("a mistake")

    with pytest.raises(KeyError):
        exit_code(fail)
