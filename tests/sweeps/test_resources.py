"""What a task asks Slurm for: which source wins, and what is refused."""

from __future__ import annotations

import pytest

from resvar.errors import UserError
from resvar.sweeps.resources import read_resources, to_seconds


def test_the_shipped_file_asks_for_a_gpu_and_leaves_the_rest_to_the_cluster():
    shipped = read_resources(None, {})
    assert shipped.gpus_per_task == 1
    assert (shipped.partition, shipped.time, shipped.cpus_per_task, shipped.mem) == (None,) * 4
    assert shipped.sbatch == {}
    assert shipped.setup == ()


def test_the_command_line_wins_over_a_file_and_that_over_the_shipped_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "partition: gpu\naccount: 1234\ntime: 1-12\nmem: 8G\ngpus_per_task: a100:2\n"
        "setup: [module load cuda]\nsbatch: {constraint: v100, exclusive: true, nice: null}\n",
        encoding="utf-8",
    )
    given = {"partition": "long", "account": None, "time": None}
    read = read_resources(file, given, ["constraint=a100", "--mail_type=END", "oversubscribe"])
    assert (read.partition, read.account, read.time, read.mem) == ("long", "1234", "1-12", "8G")
    assert read.gpus_per_task == "a100:2"
    assert read.setup == ("module load cuda",)
    assert read.signal_delay == 120
    assert read.sbatch == {
        "constraint": "a100", "exclusive": True, "mail-type": "END", "oversubscribe": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("time", "value"),
    [("90", 5400), ("90:30", 5430), ("2:30:15", 9015), ("1-12", 129600), ("1-2:3", 93780),
     ("1-2:3:4", 93784)],
)  # fmt: skip
def test_times_are_those_of_sbatch(time, value):
    """The list in `man sbatch` under --time."""
    assert to_seconds(time) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiem: 3", "unknown key 'tiem'; did you mean 'time'?"),
        ("time: 1_000", "'time' must be a limit such as 90 (minutes), 12:00:00 or 1-12 "),
        ("time: ９０", "'time' must be a limit"),
        ("qos: 1.10", "'qos' must be a name (one such as 1.10 in quotes), not 1.1."),
        ("cpus_per_task: 010", "not '010'; write 10."),
        ("sbatch: {comment: 1.10}", "the value of comment must be one line (such as 1.10 in q"),
        ("time: soon", "'time' must be a limit"),
        ("time: 0", "'time' must be a limit"),
        ("time: true", "'time' must be a limit"),
        ("time: 2", "a task is told to save 120 s before it"),
        ("gpus_per_task: -1", "'gpus_per_task' must be how many"),
        ("gpus_per_task: null", "'gpus_per_task' must be how many"),
        ("cpus_per_task: 0", "'cpus_per_task' must be a whole number from 1"),
        ("mem: lots", "'mem' must be such as 8G"),
        ("partition: [a]", "'partition' must be a name"),
        ('account: "a\\nb"', "'account' must be a name"),
        ("signal_delay: soon", "'signal_delay' must be a whole number from 1"),
        ("setup: {a: b}", "'setup' must be a list of shell lines"),
        ("sbatch: [a]", "'sbatch' must be a mapping"),
        ("sbatch: {array: 1-3}", "'sbatch' cannot set array"),
        ("sbatch: {no_requeue: true}", "'sbatch' cannot set no-requeue"),
        ("sbatch: {gpus: 1}", "gpus has its own key, gpus_per_task"),
        ("sbatch: {C: a}", "'C' is not a long option of sbatch"),
        ('sbatch: {comment: "a\\n#SBATCH --array=1"}', "the value of comment must be one line"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_resources(file, {})
    assert said in str(error.value)
    assert str(file) in str(error.value) or "signal_delay" in said or "told to save" in said


@pytest.mark.parametrize("time", ['"2:30:00"', "2:30:00", "12:00:00", "90:30", "1-12:00"])
def test_times_need_no_quotes(tmp_path, time):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"time: {time}  # no number in base 60\nsbatch: {{begin: 16:00}}\n", encoding="utf-8"
    )
    read = read_resources(file, {})
    assert read.time == time.strip('"')
    assert read.sbatch == {"begin": "16:00"}


def test_names_keep_their_zeros(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("account: 007\npartition: 0x\nqos: 1_0\n", encoding="utf-8")
    read = read_resources(file, {})
    assert (read.account, read.partition, read.qos) == ("007", "0x", "1_0")


def test_names_and_values_of_sbatch_reach_it_as_they_are_written(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "account: 0123\nqos: 1_000\n"
        "sbatch: {begin: 16:00, deadline: 2026-01-20T16:00, comment: on, nice: 010}\n",
        encoding="utf-8",
    )
    found = read_resources(file, {})
    assert (found.account, found.qos) == ("0123", "1_000")
    assert found.sbatch == {
        "begin": "16:00", "deadline": "2026-01-20T16:00", "comment": "on", "nice": "010",
    }  # fmt: skip
