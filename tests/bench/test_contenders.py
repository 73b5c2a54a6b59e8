from __future__ import annotations

import pytest

from resvar.bench.contenders import BASELINE, BenchOptions, split_changes
from resvar.errors import UserError


def contenders(*compared, **more):
    return BenchOptions("original", "paper", compared=compared, **more).contenders(20)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("precision=fp32", ("precision=fp32",)),
        ("batch_size=32,threads=1", ("batch_size=32", "threads=1")),
        ("milestones=[1,2],lr=0.5", ("milestones=[1,2]", "lr=0.5")),
    ],
)
def test_splits_at_the_commas_between_settings(text, parts):
    assert split_changes(text) == parts


def test_each_comparison_is_a_contender_and_plain_pytorch_comes_last():
    ours, fp32, one, plain = contenders(
        "precision=fp32", "threads=1,batch_size=32", overrides=["lr=0.5"], threads=2
    )
    assert [ours.name, fp32.name, one.name] == [
        "resvar", "precision=fp32", "threads=1,batch_size=32",
    ]  # fmt: skip
    assert (ours.settings.precision, fp32.settings.precision) == ("auto", "fp32")
    assert (ours.settings.batch_size, ours.settings.bn_batch_size) == (128, 64)
    assert (one.settings.batch_size, one.settings.bn_batch_size) == (32, 32)
    assert [c.threads for c in (ours, fp32, one, plain)] == [2, 2, 1, 2]
    assert [c.plain for c in (ours, fp32, one, plain)] == [False, False, False, True]
    assert plain.name == BASELINE
    assert plain.settings.precision == "fp32"
    assert plain.settings.bn_batch_size == plain.settings.batch_size == 128
    assert {c.settings.lr for c in (ours, fp32, one, plain)} == {0.5}


def test_without_a_baseline_there_is_none():
    assert not any(c.plain for c in contenders(baseline=False))


@pytest.mark.parametrize(
    ("compared", "part"),
    [
        (["fp32"], "KEY=VALUE"),
        (["threads=0"], "threads must be a number from 1"),
        (["threads=two"], "not two"),
        (["threads=²"], "not ²"),
        (["threads=" + "9" * 5000], "threads must be a number from 1 to 4096"),
        (["precison=fp32"], "did you mean 'precision'"),
        (["batch_size=100,bn_batch_size=64"], "not a multiple"),
        (["precision=fp32", "precision=fp32"], "the same as"),
        (["dataset=folder,normalize=imagenet,num_classes=3"], "CIFAR's size"),
    ],
)
def test_wrong_comparisons_are_refused(compared, part):
    with pytest.raises(UserError) as error:
        contenders(*compared)
    assert part in str(error.value)
