"""The 3 × 3 map: one BN and one ReLU, each at lead, trail or after_add; nine orderings."""

from __future__ import annotations

import io
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from resvar.config import resolve
from resvar.errors import UserError
from resvar.files import configs, shipped
from resvar.models.network import build_model
from resvar.models.ordering import PAPER_ORDER, Ordering, find_ordering, map_name, read_ordering
from resvar.strict_yaml import read_yaml
from resvar.sweeps.grid import plan_sweep
from resvar.training.job import run_training as train
from tests.support.tiny import install, make_cifar

PLACES = ("lead", "trail", "after_add")

# Rows: the place of BN; columns: that of ReLU. arXiv:1603.05027, figure 4, has five of them.
MAP = {
    ("lead", "lead"): "full-preact",
    ("lead", "trail"): "bn-lead-relu-trail",
    ("lead", "after_add"): "bn-lead-relu-after-add",
    ("trail", "lead"): "relu-only-preact",
    ("trail", "trail"): "relu-before-add",
    ("trail", "after_add"): "original",
    ("after_add", "lead"): "bn-after-add-relu-lead",
    ("after_add", "trail"): "bn-after-add-relu-trail",
    ("after_add", "after_add"): "bn-after-add",
}
NAMES = list(MAP.values())
UNPUBLISHED = [name for name in NAMES if name not in PAPER_ORDER]


def ops_at(bn, relu):
    """The ops of a cell by place."""
    held = [("bn", bn), ("relu", relu)]
    return {place: tuple(op for op, at in held if at == place) for place in PLACES}


# --- nine cells -----------------------------------------------------------------------------------


def test_the_shipped_orderings_on_the_map_are_its_nine_cells_once_each():
    found = [(find_ordering(name).position, name) for name in shipped("variants")]
    on_the_map = [(position, name) for position, name in found if position is not None]
    assert dict(on_the_map) == MAP
    assert len(on_the_map) == len(set(product(PLACES, PLACES))) == 9


@pytest.mark.parametrize("at", MAP)
def test_a_cell_holds_bn_and_relu_where_its_name_says(at):
    ordering = find_ordering(MAP[at])
    assert {place: getattr(ordering, place) for place in PLACES} == ops_at(*at)
    assert (ordering.name, ordering.between) == (MAP[at], ("bn", "relu"))
    assert not ordering.unusual


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_an_unpublished_file_says_so(name):
    comment = (
        (configs() / "variants" / f"{name}.yaml").read_text(encoding="utf-8").split("name:")[0]
    )
    assert "unpublished" in comment
    assert "figure" not in read_yaml(configs() / "variants" / f"{name}.yaml")


@pytest.mark.parametrize(
    ("places", "options"),
    [
        ({"lead": ("relu", "bn")}, {}),
        ({"trail": ("relu", "bn")}, {}),
        ({"lead": ("bn",), "trail": ("relu",), "between": ("relu", "bn")}, {}),
        ({"lead": ("bn", "relu"), "trail": ("bn",)}, {"unusual": True}),
        ({"lead": ("bn", "bn"), "trail": ("relu",)}, {"unusual": True}),
        ({"lead": ("bn",)}, {"unusual": True}),
        ({}, {"unusual": True}),
    ],
)
def test_what_is_no_cell_has_no_position(places, options):
    assert Ordering("mine", **places, **options).position is None


def test_the_position_is_that_of_the_ops_and_not_of_the_name():
    assert Ordering("full-preact-2", trail=("bn", "relu")).position == ("trail", "trail")
    assert Ordering("a", lead=("relu",), after_add=("bn",), unusual=True).position == (
        "after_add",
        "lead",
    )


# --- by place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", MAP)
def test_an_ordering_is_known_by_its_place(at):
    assert map_name(*at) == "bn-{}-relu-{}".format(*at).replace("_", "-")
    assert find_ordering(map_name(*at)) == find_ordering(MAP[at])


def test_a_place_given_to_a_run_means_the_named_ordering():
    options = {"depth": 8, "protocol": "quick"}
    by_place = resolve(options={"variant": "bn-trail-relu-after-add", **options})
    assert by_place == resolve(options={"variant": "original", **options})
    assert by_place.directory == Path("quick/original-8/seed-0")


def test_a_place_and_its_name_are_the_same_run_of_a_sweep(tmp_path):
    given = {"variants": "original,bn-trail-relu-after-add", "depths": "8"}
    with pytest.raises(UserError, match=r"two runs would share .*original-8"):
        plan_sweep(None, given, [], tmp_path)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("bn-trail-relu-afteradd", "bn-trail-relu-after-add"),
        ("bn-lead-relu-tail", "bn-lead-relu-trail"),
        ("bn_lead_relu_lead", "bn-lead-relu-lead"),
        ("bn-after-ad", "bn-after-add"),
    ],
)
def test_a_misspelled_place_is_met_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f"unknown variant '{name}'; did you mean '{nearest}'"):
        find_ordering(name)


def test_a_file_may_not_take_the_name_of_a_place_for_another_ordering(tmp_path):
    path = tmp_path / "bn-trail-relu-after-add.yaml"
    path.write_text("lead: [bn, relu]\ntrail: []\nafter_add: []\n", encoding="utf-8")
    with pytest.raises(UserError, match="'bn-trail-relu-after-add' belongs to a shipped ordering"):
        find_ordering(str(path))
    path.write_text("lead: []\ntrail: [bn]\nafter_add: [relu]\n", encoding="utf-8")
    assert read_ordering(path) == find_ordering("original")


def test_settings_may_not_call_another_ordering_by_a_place(tmp_path):
    config = tmp_path / "config.yaml"
    settings = resolve(options={"variant": "full-preact", "depth": 8, "protocol": "quick"})
    text = settings.to_yaml()
    config.write_text(
        text.replace("variant: full-preact", "variant: bn-trail-relu-trail"), encoding="utf-8"
    )
    with pytest.raises(UserError, match="differs from the ordering 'bn-trail-relu-trail'"):
        resolve(config)
    config.write_text(
        text.replace("variant: full-preact", "variant: bn-lead-relu-lead"), encoding="utf-8"
    )
    assert resolve(config) == settings


# --- the sweep ------------------------------------------------------------------------------------


def test_the_sweep_plans_the_nine_each_once_before_any_has_a_second_seed(tmp_path):
    sweep = plan_sweep(Path("placement-map"), {}, [], tmp_path)
    assert [run.settings.variant for run in sweep.runs[:9]] == NAMES
    assert len(sweep.runs) == 54
    assert {(run.settings.depth, run.settings.protocol) for run in sweep.runs} == {(110, "paper")}
    given = {"seeds": 1, "depths": "8", "protocol": "quick"}
    small = plan_sweep(configs() / "sweeps" / "placement-map.yaml", given, [], tmp_path)
    assert [run.name for run in small.runs] == [f"quick/{name}-8/seed-0" for name in NAMES]


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 11])
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_builds_computes_and_has_gradients(name, depth):
    network = build_model(name, depth, seed=0)
    logits = network(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (4, 10)
    assert logits.isfinite().all()
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_nine_compute_nine_different_functions():
    """From the same convolutions: BN draws nothing, so a seed means the same ones everywhere."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [build_model(name, 8, seed=0)(images) for name in NAMES]
    for index, first in enumerate(logits):
        for second in logits[index + 1 :]:
            assert not torch.allclose(first, second, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_has_one_bn_and_one_relu_per_unit_outside_of_between(name):
    with torch.device("meta"):
        network = build_model(name, 14)
    units = [unit for stage in network.stages for unit in stage]
    for number, unit in enumerate(units):
        kinds = [type(part).__name__ for part in unit.modules()]
        in_lead = len(find_ordering(name).lead) if number == 0 else 0
        assert kinds.count("BatchNorm2d") + kinds.count("ReLU") == 4 - in_lead


@pytest.mark.heavy
def test_all_nine_train(tmp_path, monkeypatch):
    """ResNet-8 on a tiny dataset: the loss is a number, and lower than at the start."""
    install(make_cifar(tmp_path / "data", train=260, test=20), monkeypatch)
    overrides = [
        "iterations=12", "batch_size=32", "bn_batch_size=32", "eval_every=6", "schedule=step",
        "lr=0.02", "warmup_iterations=0", "milestones=[]", "precision=fp32",
    ]  # fmt: skip
    losses = {}
    for name in NAMES:
        options = {"variant": name, "depth": 8, "protocol": "quick"}
        folder = tmp_path / name
        result = train(
            resolve(options=options, overrides=overrides),
            tmp_path / "data",
            Console(file=io.StringIO()),
            out=folder,
            device="cpu",
        )
        lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
        column = lines[0].split(",").index("train_loss")
        losses[name] = [float(line.split(",")[column]) for line in lines[1:]]
        assert result["variant"] == name
        assert 0 <= result["test_error"] <= 100
    for name, found in losses.items():
        assert all(map(math.isfinite, found)), name
        assert found[-1] < found[0], name
