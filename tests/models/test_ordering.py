from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resvar.errors import UserError
from resvar.files import configs
from resvar.models.network import build_model
from resvar.models.ordering import (
    Ordering,
    find_ordering,
    in_paper_order,
    known_variants,
    read_ordering,
)

BN, RELU = ("bn",), ("relu",)
BOTH = ("bn", "relu")

# arXiv:1603.05027, figure 4: lead, between, trail, after the addition.
FIGURE_4 = {
    "original": ((), BOTH, BN, RELU),
    "bn-after-add": ((), BOTH, (), BOTH),
    "relu-before-add": ((), BOTH, BOTH, ()),
    "relu-only-preact": (RELU, BOTH, BN, ()),
    "full-preact": (BOTH, BOTH, (), ()),
}
STEMS = {
    "original": BOTH,
    "bn-after-add": BOTH,
    "relu-before-add": BOTH,
    "relu-only-preact": BN,
    "full-preact": (),
}
PROJECTION_HAS_BN = {"original", "relu-before-add", "relu-only-preact"}
PLACES = ("lead", "trail", "after_add")


def write(path, **values):
    values = {"lead": "[]", "trail": "[bn]", "after_add": "[relu]"} | values
    path.write_text(
        "".join(f"{key}: {value}\n" for key, value in values.items() if value), encoding="utf-8"
    )
    return path


# --- the shipped five -----------------------------------------------------------------------------


def test_the_five_of_figure_4_are_shipped_and_come_first_in_its_order():
    assert known_variants()[:5] == list(FIGURE_4)
    assert in_paper_order(["zebra", "full-preact", "ant", "original"]) == [
        "original", "full-preact", "ant", "zebra",
    ]  # fmt: skip


@pytest.mark.parametrize("variant", FIGURE_4)
def test_a_shipped_ordering_is_that_of_figure_4(variant):
    ordering = find_ordering(variant)
    places = ordering.lead, ordering.between, ordering.trail, ordering.after_add
    assert (ordering.name, places) == (variant, FIGURE_4[variant])
    assert not ordering.unusual


@pytest.mark.parametrize("variant", FIGURE_4)
def test_the_stem_has_what_the_lead_leaves(variant):
    assert find_ordering(variant).stem == STEMS[variant]


@pytest.mark.parametrize("variant", FIGURE_4)
def test_a_projection_has_bn_where_the_trail_begins_with_it(variant):
    assert find_ordering(variant).projection_has_bn is (variant in PROJECTION_HAS_BN)


@pytest.mark.parametrize("variant", FIGURE_4)
def test_each_shipped_file_says_which_figure_it_is(variant):
    letter = "abcde"[list(FIGURE_4).index(variant)]
    assert f"figure: 4({letter})" in (configs() / "variants" / f"{variant}.yaml").read_text(
        encoding="utf-8"
    )


# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.heavy
@settings(max_examples=200)
@given(st.data())
def test_one_bn_and_one_relu_anywhere_is_accepted_and_any_other_number_refused(data):
    places = {
        place: tuple(data.draw(st.lists(st.sampled_from(BOTH), max_size=3), label=place))
        for place in PLACES
    }
    total = Counter(op for ops in places.values() for op in ops)
    if total == {"bn": 1, "relu": 1}:
        ordering = Ordering("mine", **places)
        assert {place: getattr(ordering, place) for place in PLACES} == places
        assert Counter(ordering.stem + ordering.lead) == total
    else:
        with pytest.raises(UserError, match=r"ordering 'mine'.*unusual: true"):
            Ordering("mine", **places)
        assert Ordering("mine", **places, unusual=True).lead == places["lead"]


@pytest.mark.parametrize(("bn", "relu"), list(product(PLACES, PLACES)))
@pytest.mark.parametrize("bn_first", [True, False])
def test_every_cell_of_the_map_builds_a_network(bn, relu, bn_first):
    order = [("bn", bn), ("relu", relu)] if bn_first else [("relu", relu), ("bn", bn)]
    places = {place: tuple(op for op, at in order if at == place) for place in PLACES}
    logits = build_model(Ordering("mine", **places), depth=8)(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"lead": BN, "trail": BN, "after_add": RELU}, r"bn occurs 2 times \(lead, trail\)"),
        ({"trail": ("bn", "bn", "relu")}, r"bn occurs 2 times \(trail, trail\)"),
        ({"lead": BN}, "relu is missing"),
        ({"after_add": RELU}, "bn is missing"),
        ({}, "bn is missing"),
        ({"lead": ("relu", "bn"), "after_add": RELU}, r"relu occurs 2 times \(lead, after_add\)"),
        ({"lead": BOTH, "between": ()}, "'between' must contain bn and relu"),
        ({"lead": BOTH, "between": ("bn", "bn")}, "'between' must contain bn and relu"),
    ],
)
def test_a_broken_rule_is_named_and_unusual_lifts_it(places, message):
    with pytest.raises(UserError, match=message):
        Ordering("mine", **places)
    Ordering("mine", **places, unusual=True)


def test_an_unusual_ordering_builds_a_network():
    bare = Ordering("bare", between=("relu",), unusual=True)
    network = build_model(bare, depth=8)
    names = Counter(type(module).__name__ for module in network.modules())
    assert (names["BatchNorm2d"], names["ReLU"]) == (1, 4)  # the stem's pair; one relu per unit


@pytest.mark.parametrize(
    ("op", "hint"),
    [("rleu", "did you mean 'relu'"), ("BN", "choose from bn, relu"), ("", "choose from bn")],
)
@pytest.mark.parametrize("place", [*PLACES, "between"])
@pytest.mark.parametrize("unusual", [True, False])
def test_an_unknown_op_is_named_with_its_place(op, hint, place, unusual):
    with pytest.raises(UserError, match=f"'{place}' contains the unknown op '{op}'.*{hint}"):
        Ordering("mine", **{"lead": BOTH, place: (op,)}, unusual=unusual)


# --- by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("orignal", "original"),
        ("full-preactivation", "full-preact"),
        ("fullpreact", "full-preact"),
        ("bn_after_add", "bn-after-add"),
        ("relu-only", "relu-only-preact"),
    ],
)
def test_a_misspelled_variant_is_met_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f"unknown variant '{name}'; did you mean '{nearest}'"):
        find_ordering(name)


def test_a_hopeless_name_is_met_with_all_of_them():
    with pytest.raises(UserError, match=r"choose from original, bn-after-add.*or give a YAML file"):
        find_ordering("xyz")


def test_an_ordering_is_passed_through():
    mine = Ordering("mine", lead=BN, after_add=RELU)
    assert find_ordering(mine) is mine


# --- from a file of one's own ---------------------------------------------------------------------


def test_a_users_own_file_builds_a_network(tmp_path):
    path = write(tmp_path / "swapped.yaml", lead="[relu, bn]", trail="[]", after_add="[]")
    assert read_ordering(path) == Ordering("swapped", lead=("relu", "bn"))
    network = build_model(str(path), depth=8)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert [type(part).__name__ for part in network.head_lead] == ["ReLU", "BatchNorm2d"]


def test_a_file_may_name_itself_and_say_between(tmp_path):
    path = write(tmp_path / "a.yaml", name="my.own_1", between="[relu, bn]", figure="'9'")
    ordering = find_ordering(str(path))
    assert (ordering.name, ordering.between) == ("my.own_1", ("relu", "bn"))


def test_a_copy_of_a_shipped_file_keeps_its_name(tmp_path):
    copy = tmp_path / "original.yaml"
    copy.write_text(
        (configs() / "variants/original.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    assert read_ordering(copy) == find_ordering("original")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"laed": "[bn]"}, "unknown key 'laed'; did you mean 'lead'"),
        ({"zzzz": "1"}, "unknown key 'zzzz'; choose from name, figure, lead"),
        ({"lead": ""}, "'lead' must be a list of ops"),
        ({"trail": ""}, "'trail' must be a list of ops"),
        ({"after_add": ""}, "'after_add' must be a list of ops"),
        ({"lead": "bn"}, "'lead' must be a list of ops"),
        ({"lead": "null"}, "'lead' must be a list of ops"),
        ({"lead": "{bn: relu}"}, "'lead' must be a list of ops"),
        ({"between": "bn"}, "'between' must be a list of ops"),
        ({"lead": "[1]"}, "'lead' must be a list of ops"),
        ({"lead": "[[bn]]"}, "'lead' must be a list of ops"),
        ({"lead": "[tanh]"}, "'lead' contains the unknown op 'tanh'"),
        ({"lead": "[bn]"}, "bn occurs 2 times"),
        ({"after_add": "[]"}, "relu is missing"),
        ({"name": "a/b"}, "'name' must consist of"),
        ({"name": "'a b'"}, "'name' must consist of"),
        ({"name": "''"}, "'name' must consist of"),
        ({"name": "5"}, "'name' must be text"),
        ({"name": "null"}, "'name' must be text"),
        ({"unusual": "1"}, "'unusual' must be true or false"),
        ({"unusual": "maybe"}, "'unusual' must be true or false"),
        ({"name": "full-preact"}, "'full-preact' belongs to a shipped ordering"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, values, message):
    path = write(tmp_path / "mine.yaml", **values)
    with pytest.raises(UserError, match=message) as caught:
        find_ordering(str(path))
    assert str(path) in str(caught.value)


def test_a_shipped_name_taken_through_the_file_name_is_refused(tmp_path):
    path = write(tmp_path / "original.yaml", trail="[]", after_add="[bn, relu]")
    with pytest.raises(UserError, match="'original' belongs to a shipped ordering"):
        find_ordering(str(path))


def test_unusual_in_a_file_lifts_the_rule(tmp_path):
    path = write(tmp_path / "mine.yaml", after_add="[bn, relu]", unusual="true")
    assert find_ordering(str(path)).after_add == BOTH


@pytest.mark.parametrize("name", ["none.yaml", "folder/none.yaml", "folder/none"])
def test_a_missing_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        find_ordering(name)
