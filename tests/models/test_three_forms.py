"""The three forms of ResNeXt's unit, written without `resvar`, are equal, and equal to our unit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from examples.three_forms import FORMS, difference, main, make_paths, outcome
from resvar.models.architecture import plan
from resvar.models.layout import unit_layers
from resvar.models.ordering import find_ordering
from resvar.models.unit import ResidualUnit

BOUND = 1e-12
PARTED = (0, 0, 1)
"""The dimension of each convolution's weights along which the paths lie."""


@pytest.fixture
def signal():
    torch.manual_seed(1)
    return torch.randn(2, 256, 7, 7, dtype=torch.float64, requires_grad=True)


def our_unit(paths, cardinality, width):
    """Our unit of ResNeXt-50's first stage, in training mode, with the weights of the paths."""
    architecture = plan(50, "imagenet", cardinality=cardinality, base_width=width)
    stage = architecture.stages[0]
    layers = unit_layers(find_ordering("original"), architecture, stage, 256, size=7)
    unit = ResidualUnit(layers).double().train()
    convolutions = [part for part in unit.branch if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        for convolution, weights, dim in zip(
            convolutions, zip(*paths, strict=True), PARTED, strict=True
        ):
            convolution.weight.copy_(torch.cat(weights, dim=dim))
    return unit


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("cardinality", "width"), [(1, 64), (8, 14), (32, 4)])
def test_a_form_computes_and_learns_what_our_unit_does(form, cardinality, width, signal):
    paths = make_paths(cardinality, width)
    unit = our_unit(paths, cardinality, width)
    output = unit(signal)
    torch.testing.assert_close(FORMS[form](signal, paths), output, rtol=0, atol=BOUND)

    convolutions = [part.weight for part in unit.branch if isinstance(part, nn.Conv2d)]
    at_signal, *ours = torch.autograd.grad(output.square().sum(), [signal, *convolutions])
    expected = [
        gradient.chunk(cardinality, dim) for gradient, dim in zip(ours, PARTED, strict=True)
    ]
    by_path = [gradient for path in zip(*expected, strict=True) for gradient in path]
    found = outcome(form, signal, paths)
    assert difference(found, [output.detach(), at_signal, *by_path]) < BOUND


@pytest.mark.parametrize("form", FORMS)
def test_paths_may_change_places_but_not_parts(form, signal):
    """The sum does not know an order; a convolution of another path does change it."""
    paths = make_paths(4, 4)
    [expected, *_] = outcome(form, signal, paths)
    [reversed_, *_] = outcome(form, signal, paths[::-1])
    assert difference([reversed_], [expected]) < BOUND
    first, second, *others = paths
    mixed = [first._replace(transform=second.transform), second, *others]
    [changed, *_] = outcome(form, signal, mixed)
    assert difference([changed], [expected]) > 1e-3


def test_the_example_prints_the_weights_of_the_paper_and_no_difference(capsys):
    """arXiv:1611.05431, Table 2: about 70 thousand parameters for both templates."""
    main()
    lines = capsys.readouterr().out.splitlines()
    by_hand = [
        paths * (256 * width + 9 * width * width + 256 * width)
        for paths, width in ((1, 64), (32, 4))
    ]
    for line, weights in zip(lines[:2], by_hand, strict=True):
        assert f"{weights:,}" in line
        assert round(weights, -4) == 70_000
    assert all(float(line.split()[-1]) < BOUND for line in lines[2:])
    assert len(lines) == 2 + len(FORMS)
