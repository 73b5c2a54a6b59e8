"""A setting that is said to have no effect changes no bit of a run; with an effect, it does."""

from __future__ import annotations

import pytest
import torch

from resvar.config import resolve
from resvar.reports.comparable import effective, without_effect
from resvar.settings import TRAINING_HALF
from tests.training.stepping import run, start

UPDATES = 5

SMALL = (
    "batch_size=8", "bn_batch_size=8", "precision=fp32", "kernels=plain", "iterations=5",
    "lr=0.1", "warmup_lr=0.02", "peak_at=0.4", "momentum=0.9", "weight_decay=0.01",
)  # fmt: skip

STEP = ("schedule=step", "milestones=[2]", "warmup_iterations=1")
CYCLE = ("schedule=one-cycle",)

IDLE = [
    (CYCLE, "milestones=[1, 3]"),
    (CYCLE, "lr_factor=0.5"),
    (CYCLE, "warmup_iterations=2"),
    (STEP, "peak_at=0.7"),
    ((*STEP, "milestones=[]"), "lr_factor=0.5"),
    ((*STEP, "warmup_iterations=0"), "warmup_lr=0.07"),
    (STEP, "muon_lr=0.5"),
    (STEP, "muon_decay=0.5"),
    ((*STEP, "weight_decay=0"), "weight_decay_on=all"),
    ((*CYCLE, "weight_decay=0", "optimizer=muon"), "weight_decay_on=all"),
]

ACTIVE = [
    (STEP, "milestones=[3]"),
    (STEP, "lr_factor=0.5"),
    (STEP, "warmup_iterations=2"),
    (STEP, "warmup_lr=0.07"),
    (CYCLE, "warmup_lr=0.07"),
    (CYCLE, "peak_at=0.7"),
    ((*CYCLE, "optimizer=muon"), "muon_lr=0.5"),
    ((*CYCLE, "optimizer=muon"), "muon_decay=0.5"),
    ((*CYCLE, "optimizer=muon"), "nesterov=true"),  # SGD updates what Muon does not
    ((*CYCLE, "optimizer=muon"), "momentum=0.5"),
    ((*CYCLE, "optimizer=muon"), "weight_decay=0.5"),
    (STEP, "weight_decay_on=all"),
]


def make(*overrides):
    return resolve(options={"variant": "full-preact", "depth": 8}, overrides=(*SMALL, *overrides))


def weights(settings):
    network = run(start(settings), UPDATES).network
    return {name: value.clone() for name, value in network.state_dict().items()}


def same_bits(one, other):
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("base", "change"), IDLE)
def test_without_effect_no_bit_changes(base, change):
    usual, changed = make(*base), make(*base, change)
    assert usual != changed
    assert change.partition("=")[0] in without_effect(usual)
    assert same_bits(usual, changed)
    assert effective(usual) == effective(changed)
    assert usual.hash != changed.hash  # as ever


@pytest.mark.parametrize(("base", "change"), ACTIVE)
def test_what_has_an_effect_is_never_left_out(base, change):
    usual, changed = make(*base), make(*base, change)
    assert change.partition("=")[0] not in without_effect(usual)
    assert not same_bits(usual, changed)
    assert effective(usual) != effective(changed)


def test_what_decides_about_others_is_never_left_out_alone():
    """So that two runs with one label leave out the same settings."""
    for settings in (make(*STEP), make(*CYCLE), make(*CYCLE, "optimizer=muon")):
        idle = without_effect(settings)
        assert idle <= set(TRAINING_HALF)
        assert not idle & {"schedule", "optimizer", "weight_decay"}
        assert (
            ("warmup_iterations" in idle)
            is ("milestones" in idle)
            is (settings.schedule == "one-cycle")
        )
