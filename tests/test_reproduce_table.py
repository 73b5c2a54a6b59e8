"""`make reproduce-table`: its steps, and the sample in place of data that cannot be had."""

from __future__ import annotations

import sys

import pytest

from scripts import reproduce_table

TOLD = "SAYS NOTHING ABOUT THE PAPER"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script with commands that only end with an exit code; its code, output and steps."""

    def run(*arguments, data=0, sweep=0, gpu=False):
        steps = []

        def step(*words):
            steps.append(words)
            print(f"<{words[0]}>")
            return {"data": data, "sweep": sweep}.get(words[0], 0)

        monkeypatch.setattr(reproduce_table, "step", step)
        monkeypatch.setattr(reproduce_table.torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(reproduce_table.torch.cuda, "get_device_name", lambda: "a GPU")
        monkeypatch.setattr(sys, "argv", ["reproduce_table.py", *arguments])
        return reproduce_table.main(), capsys.readouterr().out, steps

    return run


def option(words, name):
    return words[words.index(name) + 1]


def test_with_the_data_there_is_no_word_of_the_sample(run):
    code, out, (data, sweep, *reports) = run()
    assert (code, data) == (0, ("data",))
    assert "sample" not in out
    assert "--dataset" not in sweep
    assert [words[:2] for words in reports] == [("report", "runs/quick")] * 3


def test_without_a_source_the_sample_is_used_and_named_first_and_last(run):
    code, out, (_, sweep, *reports) = run(data=1)
    assert code == 0
    assert option(sweep, "--dataset") == "sample"
    assert (option(sweep, "--protocol"), option(sweep, "--seeds")) == ("quick", "1")
    assert len(reports) == 3
    assert out.index(TOLD) < out.index("<sweep>") < out.rindex("<report>") < out.rindex(TOLD)
    assert out.count("DATA_ARCHIVE=") == 2


def test_on_a_gpu_too_the_sample_takes_the_quick_protocol(run):
    _, _, (_, sweep, *_) = run(gpu=True)
    assert (option(sweep, "--protocol"), option(sweep, "--seeds")) == ("paper", "5")
    _, _, (_, sweep, *_) = run(gpu=True, data=1)
    assert (option(sweep, "--protocol"), option(sweep, "--seeds")) == ("quick", "1")
    _, _, (_, sweep, *_) = run("--protocol", "short", "--seeds", "2", gpu=True, data=1)
    assert (option(sweep, "--protocol"), option(sweep, "--seeds")) == ("short", "2")


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--archive", "missing"), 2), (("--archive", "x"), 1), ((), 2),
                            ((), 130), ((), -15)],
)  # fmt: skip
def test_wrong_input_and_a_stop_are_no_reason_for_the_sample(run, arguments, code):
    found, out, steps = run(*arguments, data=code)
    assert found == code
    assert [words[0] for words in steps] == ["data"]
    assert "sample" not in out


def test_a_failed_sweep_ends_it(run):
    code, out, steps = run(data=1, sweep=130)
    assert code == 130
    assert [words[0] for words in steps] == ["data", "sweep"]
    assert out.count(TOLD) == 1


def test_its_own_lines_fit_eighty_columns(run):
    _, out, _ = run(data=1, gpu=True)
    assert max(map(len, out.splitlines())) <= 80
