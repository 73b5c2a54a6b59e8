"""Networks written by hand, in several styles, are named as what they are."""

from __future__ import annotations

import pytest

import resvar
from tests.identification.by_hand import (
    UNITS,
    FlatResNet18,
    Functions,
    Modules,
    resnext29,
    resnext50,
    sequential_resnet50,
)


def check(module, ordering, network, published=True):
    found = resvar.identify(module)
    assert (found.known, found.published) == (True, published), str(found)
    assert (found.ordering.name, found.network) == (ordering, network)
    assert found.comparison is not None
    assert max(found.comparison.logits, found.comparison.gradients) < 1e-10
    return found


@pytest.mark.parametrize("style", [Modules, Functions])
@pytest.mark.parametrize("ordering", UNITS)
def test_the_five_orderings_in_two_styles(ordering, style):
    check(style(ordering, 20), ordering, "ResNet-20", published=ordering == "original")


@pytest.mark.parametrize("style", [Modules, Functions])
@pytest.mark.parametrize("ordering", UNITS)
def test_bottlenecks_with_projections(ordering, style):
    check(style(ordering, 29, convs=3), ordering, "ResNet-29", published=False)


@pytest.mark.heavy
def test_resnet_18_with_every_layer_an_attribute():
    check(FlatResNet18(), "full-preact", "ResNet-18", published=False)


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["a", "b", "c"])
def test_the_three_forms_of_resnext(form):
    found = check(resnext29(form, 4, 8), "original", "ResNeXt-29 (4×8d)", published=False)
    assert found.architecture.stride_on == "3x3"


@pytest.mark.slow
def test_the_published_depths():
    check(Modules("full-preact", 110), "full-preact", "ResNet-110")
    check(Functions("relu-only-preact", 110), "relu-only-preact", "ResNet-110")
    check(Functions("original", 164, convs=3), "original", "ResNet-164")
    check(Modules("bn-after-add", 164, convs=3), "bn-after-add", "ResNet-164")


@pytest.mark.slow
def test_resnet_50_of_sequences():
    check(sequential_resnet50(), "original", "ResNet-50")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["a", "b", "c"])
def test_the_three_forms_of_resnext_50(form):
    check(resnext50(form), "original", "ResNeXt-50 (32×4d)")
