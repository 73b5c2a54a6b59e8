"""Names that people type for settings lead to the right one, or to none."""

from __future__ import annotations

import pytest

from resvar.config import resolve
from resvar.errors import UserError
from resvar.settings import ROLES
from resvar.synonyms import ADVICE, SYNONYMS, meant_setting


def test_every_synonym_belongs_to_one_setting_and_is_none_itself():
    words = [word for others in (*SYNONYMS.values(), *ADVICE) for word in others.split()]
    assert set(SYNONYMS) <= set(ROLES)
    assert len(words) == len(set(words))
    assert not set(words) & set(ROLES)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rate", "lr"), ("learning-rate", "lr"), ("LR", "lr"), ("rl", "lr"),
        ("base_lr", "lr"),
        ("epochs", "iterations"), ("epoch", "iterations"), ("max_steps", "iterations"),
        ("iteration", "iterations"), ("itertions", "iterations"), ("bs", "batch_size"),
        ("batchsize", "batch_size"), ("batch-size", "batch_size"), ("bach_size", "batch_size"),
        ("micro_batch_size", "bn_batch_size"), ("wd", "weight_decay"),
        ("weightdecay", "weight_decay"), ("learnig_rate", "lr"),
        ("weight_decy", "weight_decay"), ("optim", "optimizer"), ("optimiser", "optimizer"),
        ("amp", "precision"), ("dtype", "precision"), ("arch", "variant"), ("model", "variant"),
        ("varient", "variant"), ("num_layers", "depth"), ("dept", "depth"), ("layers", "depth"),
        ("gamma", "lr_factor"), ("scheduler", "schedule"), ("warmup", "warmup_iterations"),
        ("augment", "crop_padding"), ("padding", "crop_padding"), ("hflip", "flip"),
        ("groups", "cardinality"), ("save_every", "checkpoint_every"), ("momentom", "momentum"),
        ("gpu", "--device"), ("device", "--device"), ("data_dir", "--data"), ("seeds", "'seed'"),
        ("val_split", "holdout"), ("gradient_checkpointing", "recompute"),
        ("block", "unit"), ("random_seed", "seed"), ("determinstic", "deterministic"),
    ],
)  # fmt: skip
def test_what_people_type(typed, meant):
    assert meant in meant_setting(typed, ROLES), meant_setting(typed, ROLES)


@pytest.mark.parametrize("typed", ["", "x", "foo", "banana", "verbose", "é" * 5000, "name"])
def test_nothing_is_suggested_for_a_word_that_means_nothing(typed):
    assert meant_setting(typed, ROLES) == ""


@pytest.mark.parametrize("typed", ["learning_rate", "epochs", "banana"])
def test_the_error_points_to_the_list(typed):
    with pytest.raises(UserError, match=r"^--set: unknown setting .*`resvar settings` lists them"):
        resolve(options={"variant": "v2", "depth": 20}, overrides=[f"{typed}=1"])


def test_a_protocol_is_only_told_of_what_it_may_contain():
    assert meant_setting("model", ["lr", "momentum"]) == ""
