"""Each claim holds for what it is said of, and fails for a network or runs built to violate it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resvar.models.ordering import PAPER_ORDER, find_ordering
from resvar.probes.claims import (
    CLAIMS,
    MOMENT_CLAIMS,
    REGULARISATION,
    SLOW_START,
    judge,
    monotone_signal,
    rare_truncation,
    scaled_shortcut,
)
from resvar.probes.measurements import Moment
from tests.probes.made import make_moment, make_probe, make_runs, make_unit
from tests.probes.networks import make_network, moment, trained

HOLDS, FAILS, INCONCLUSIVE = "supported", "not supported", "inconclusive"


def test_the_names_are_those_of_the_issue():
    assert [claim.name for claim in CLAIMS] == [
        "monotone-signal", "scaled-shortcut", "identity-forward", "identity-backward",
        "rare-truncation", "slow-start", "regularisation",
    ]  # fmt: skip


def test_of_which_orderings_the_paper_says_it():
    said = {
        claim.name: [name for name in PAPER_ORDER if claim.said_of(find_ordering(name))]
        for claim in CLAIMS
    }
    clean = ["relu-before-add", "relu-only-preact", "full-preact"]
    assert said == {
        "monotone-signal": ["relu-before-add"],
        "scaled-shortcut": ["bn-after-add"],
        "identity-forward": clean,
        "identity-backward": clean,
        "rare-truncation": ["original"],
        "slow-start": ["original", "bn-after-add"],
        "regularisation": ["full-preact"],
    }


@pytest.mark.heavy
@pytest.mark.parametrize("variant", PAPER_ORDER)
def test_of_fresh_networks_holds_what_the_paper_says_and_nothing_else(variant):
    # The factors of BN are near 1 at first: only a deeper network's product leaves it.
    here = moment(make_network(variant, depth=44 if variant == "bn-after-add" else 14))
    for claim in MOMENT_CLAIMS:
        said = claim.said_of(find_ordering(variant))
        assert claim.test(here)[0] == (HOLDS if said else FAILS), claim.name


# --- monotone-signal ------------------------------------------------------------------------------


def test_a_branch_with_negative_values_is_not_monotone():
    network = make_network("relu-before-add")
    network.stages[2][1].branch[-1] = nn.Identity()  # the last ReLU is gone
    word, evidence = monotone_signal(moment(network))
    assert word == FAILS
    assert "stages.2.1" in evidence


def test_branches_that_add_nothing_are_not_monotone():
    network = make_network("relu-before-add")
    for stage in network.stages:
        for unit in stage:
            nn.init.zeros_(unit.branch[-2].weight)
            nn.init.constant_(unit.branch[-2].bias, -1.0)
    word, evidence = monotone_signal(moment(network))
    assert word == FAILS
    assert "0 of 3 steps" in evidence


def test_without_a_step_monotony_cannot_be_said():
    assert monotone_signal(moment(make_network("relu-before-add", depth=8)))[0] == INCONCLUSIVE


# --- scaled-shortcut ------------------------------------------------------------------------------


def test_bn_that_gives_back_what_it_takes_scales_nothing():
    network = make_network("bn-after-add")

    def learn(after_add, given):
        bn = after_add[0]
        with torch.no_grad():
            bn.weight.copy_((given[0].var(dim=(0, 2, 3), correction=0) + bn.eps).sqrt())

    for stage in network.stages:
        for unit in stage:
            unit.after_add.register_forward_pre_hook(learn)
    word, evidence = scaled_shortcut(moment(network))
    assert word == FAILS
    assert "by 1 over all 6" in evidence


@pytest.mark.parametrize(("scale", "word"), [(0.05, HOLDS), (30.0, HOLDS)])
def test_a_bn_anywhere_after_an_addition_is_noticed(scale, word):
    network = make_network("full-preact")
    bn = nn.BatchNorm2d(16)
    nn.init.constant_(bn.weight, scale)
    network.stages[0][1].after_add.append(bn)
    assert scaled_shortcut(moment(network))[0] == word


def test_relu_after_the_addition_does_not_scale_but_its_share_is_said():
    word, evidence = scaled_shortcut(moment(trained(make_network("original"))))
    assert word == FAILS
    assert "ReLU there passes as little as" in evidence


# --- rare-truncation ------------------------------------------------------------------------------


def with_passed(*shares: float) -> Moment:
    """A moment of three units whose ReLU passes these shares."""
    units = [make_unit(at, 3, passed=share) for at, share in enumerate(shares)]
    return make_moment(400, count=3).model_copy(update={"units": units})


@pytest.mark.parametrize(
    ("trained", "word"),
    [
        ((0.9, 0.9, 0.9), HOLDS),
        ((1.0, 1.0, 0.51), HOLDS),  # 0.837 in the mean, more than 0.8 at first
        ((1.0, 1.0, 0.5), FAILS),
        ((0.7, 0.8, 0.9), FAILS),  # as much as at first
        ((0.7, 0.7, 0.7), FAILS),
    ],
)
def test_truncation_is_rare_where_each_unit_passes_most_and_more_than_at_first(trained, word):
    answer, evidence = rare_truncation(with_passed(*trained), with_passed(0.8, 0.8, 0.8))
    assert answer == word
    assert "at initialisation 80.0 %" in evidence
    assert f"at least {100 * min(trained):.1f} %" in evidence


def test_positive_sums_are_not_truncated_and_negative_ones_are():
    initial = moment(make_network("original"))
    for shift, word in ((3.0, HOLDS), (-3.0, FAILS)):
        network = make_network("original")
        for stage in network.stages:
            for unit in stage:
                nn.init.constant_(unit.branch[-1].bias, shift)
        assert rare_truncation(moment(network), initial)[0] == word


def test_truncation_is_asked_of_trained_networks_with_only_a_relu_after_the_addition():
    def of(probe):
        return [(v.iteration, v.word) for v in judge([probe], ()) if v.claim == "rare-truncation"]

    assert of(make_probe("original")) == [(400, FAILS)]  # passes the same share at both moments
    assert of(make_probe("original", iterations=(400,))) == [(400, INCONCLUSIVE)]
    assert of(make_probe("original", iterations=(0,))) == []
    assert of(make_probe("bn-after-add")) == []
    assert of(make_probe("full-preact")) == []


# --- slow-start -----------------------------------------------------------------------------------


def starts(*losses, variant="full-preact", first=200, end=400):
    seeds = [[(first, loss, 60.0, 60.0), (end, 1.0, 40.0, 50.0)] for loss in losses]
    return make_runs(variant, *seeds)


FAST = starts(1.50, 1.51, 1.52, 1.53)


def slow(*losses, theirs=FAST, **more):
    ours = starts(*losses, variant="original", **more)
    return SLOW_START.ask(ours, [ours, theirs])


def test_a_start_that_is_surely_slower_holds():
    word, evidence = slow(1.90, 1.91, 1.92, 1.93)
    assert word == HOLDS
    assert "+0.400 nats" in evidence
    assert "4 and 4 seeds" in evidence


@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ((1.50, 1.51, 1.52, 1.53), FAILS),  # the same
        ((1.30, 1.31, 1.32, 1.33), FAILS),  # faster
        ((1.515, 1.525, 1.535, 1.545), FAILS),  # surely by less than 0.05
        ((1.50, 1.70, 1.90, 2.10), INCONCLUSIVE),  # slower on average, and anything may be
        ((1.90, 1.91, 1.92), INCONCLUSIVE),  # surely slower, but three seeds cannot decide
        ((1.90,), INCONCLUSIVE),  # one seed
        ((), INCONCLUSIVE),
    ],
)
def test_a_start_that_is_not_slower_or_not_surely_so(losses, word):
    assert slow(*losses)[0] == word


def test_the_start_must_be_the_first_half_and_common():
    assert slow(1.9, 1.91, first=300)[0] == INCONCLUSIVE
    late = starts(1.5, 1.51, 1.52, first=300)
    assert slow(1.90, 1.91, 1.92, first=300, theirs=late)[0] == INCONCLUSIVE


def test_without_runs_to_compare_nothing_can_be_said():
    word, evidence = slow(1.9, 1.91, theirs=starts())
    assert word == INCONCLUSIVE
    assert "no finished run of full-preact" in evidence
    assert SLOW_START.ask(starts(1.9, variant="original"), [])[0] == INCONCLUSIVE


def test_the_reference_itself_is_not_compared():
    word, evidence = SLOW_START.ask(FAST, [FAST])
    assert word == INCONCLUSIVE
    assert "is the reference of this claim" in evidence


# --- regularisation -------------------------------------------------------------------------------


def ends(*pairs, variant="full-preact", train_error=1.0):
    seeds = [[(200, 2.0, 60.0, 60.0), (400, loss, train_error, error)] for loss, error in pairs]
    return make_runs(variant, *seeds)


V1 = ends((0.010, 6.6), (0.011, 6.7), (0.012, 6.65), (0.013, 6.62), variant="original")


def regular(ours, theirs=V1):
    return REGULARISATION.ask(ours, [theirs])[0]


def test_regularisation_holds_with_a_higher_loss_and_a_lower_error():
    assert regular(ends((0.020, 6.3), (0.021, 6.35), (0.022, 6.32), (0.023, 6.31))) == HOLDS


@pytest.mark.parametrize(
    "pairs",
    [
        (
            (0.002, 6.3),
            (0.003, 6.35),
            (0.004, 6.32),
            (0.005, 6.31),
        ),  # a lower error, but a lower loss too
        (
            (0.020, 7.3),
            (0.021, 7.35),
            (0.022, 7.32),
            (0.023, 7.31),
        ),  # a higher loss, and a higher error
    ],
)
def test_regularisation_fails_where_either_half_is_contradicted(pairs):
    assert regular(ends(*pairs)) == FAILS


def test_regularisation_cannot_be_said_without_spread_seeds_or_convergence():
    assert regular(ends((0.020, 6.3), (0.021, 7.2), (0.022, 6.0))) == INCONCLUSIVE
    assert regular(ends((0.020, 6.3))) == INCONCLUSIVE
    assert regular(ends()) == INCONCLUSIVE
    better = ends((0.020, 6.3), (0.021, 6.35), (0.022, 6.32), train_error=30.0)
    assert regular(better) == INCONCLUSIVE


# --- words ----------------------------------------------------------------------------------------


def test_runs_are_compared_with_those_that_the_paper_compares_them_with():
    assert SLOW_START.reference(find_ordering("bn-after-add")) == "original"
    assert SLOW_START.reference(find_ordering("original")) == "full-preact"
    assert REGULARISATION.reference(find_ordering("full-preact")) == "original"


def test_every_threshold_is_said_in_words():
    text = " ".join(claim.help for claim in CLAIMS)
    for threshold in ("at least 2 or at most 0.5", "0.0001 in fp32", "1e-12 in fp64",
                      "0.05 nats", "above 5 %"):  # fmt: skip
        assert threshold in text
