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
        "setup: [module load cuda]\nsbatch: {constraint: v100, exclusive: true, nice: null}\n"
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
        ("time: 2:30:00", 'put the time in quotes: time: "2:30:00"'),
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
        ("sbatch: {gpus: 1}", "gpus has a key of its own, gpus_per_task"),
        ("sbatch: {C: a}", "'C' is no long option of sbatch"),
        ('sbatch: {comment: "a\\n#SBATCH --array=1"}', "the value of comment must be one line"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_resources(file, {})
    assert said in str(error.value)
    assert str(file) in str(error.value) or "signal_delay" in said or "told to save" in said


def test_quoted_times_are_times(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('time: "2:30:00"  # quoted: not 9000\n')
    assert read_resources(file, {}).time == "2:30:00"
