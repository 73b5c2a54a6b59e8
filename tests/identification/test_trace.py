"""A trace contains what the signal meets, however the network is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resvar.errors import UserError
from resvar.identification.trace import logits_of, random_operations, trace


class Written(nn.Module):
    """A network whose `forward` is a function of itself and the image."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.written = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.written(self, x)


def kinds(forward, *shape, **parts):
    """The operations of a network and what each reads, without the image."""
    traced = trace(Written(forward, **parts).eval(), torch.randn(shape or (1, 4, 6, 6)))
    return [(operation.kind, operation.inputs) for operation in traced.operations[1:]]


def test_modules_and_functions_are_the_same():
    conv, bn = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
    modules = kinds(lambda m, x: m.relu(m.bn(m.conv(x))), conv=conv, bn=bn, relu=nn.ReLU())
    functions = kinds(
        lambda m, x: F.relu(
            F.batch_norm(
                F.conv2d(x, m.conv.weight),
                m.bn.running_mean,
                m.bn.running_var,
                m.bn.weight,
                m.bn.bias,
            )
        ),
        conv=conv,
        bn=bn,
    )
    assert modules == functions == [("conv", (0,)), ("bn", (1,)), ("relu", (2,))]


@pytest.mark.parametrize(
    "relu",
    [
        torch.relu,
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0.0),
        lambda x: F.threshold(x, 0, 0),
        lambda x: torch.maximum(x, torch.zeros_like(x)),
        lambda x: torch.max(x, torch.zeros(1)),
    ],
)
def test_a_relu_is_known_by_what_it_does(relu):
    assert [kind for kind, _ in kinds(lambda _, x: relu(x))][-1] == "relu"


def test_an_operation_in_place_changes_the_signal_for_whoever_reads_it_later():
    def harmless(_, x):
        y = x + 1
        return F.relu(y) + y

    def harmful(_, x):
        y = x + 1
        return F.relu(y, inplace=True) + y

    constant = ("addition of a constant", (0,))
    assert kinds(harmless) == [constant, ("relu", (1,)), ("add", (2, 1))]
    assert kinds(harmful) == [constant, ("relu", (1,)), ("add", (2, 2))]


def test_the_value_is_that_of_the_moment():
    def forward(_, x):
        y = x * 1.5
        z = y.add_(1)
        return z.mul_(2)

    image = torch.randn(1, 3, 4, 4)
    traced = trace(Written(forward), image.clone())
    values = [image, image * 1.5, image * 1.5 + 1, (image * 1.5 + 1) * 2]
    assert [operation.kind for operation in traced.operations] == [
        "image",
        "multiplication by a constant",
        "addition of a constant",
        "multiplication by a constant",
    ]
    for operation, value in zip(traced.operations, values, strict=True):
        torch.testing.assert_close(operation.value, value)


def test_a_buffer_that_the_signal_is_written_into_carries_it():
    def forward(_, x):
        wide = torch.zeros(1, 8, 6, 6)
        wide[:, 2:6] = x
        return wide + 0

    traced = trace(Written(forward), torch.randn(1, 4, 6, 6))
    reached, waiting = set(), [traced.output]
    while waiting:
        operation = traced.operations[waiting.pop()]
        reached.add(operation.kind)
        waiting += operation.inputs
    assert {"image", "written"} <= reached


def test_copies_and_dropout_in_evaluation_are_no_operations():
    assert kinds(lambda m, x: m.drop(x.clone().detach()), drop=nn.Dropout(0.5)) == []


def test_parts_of_a_tensor_come_from_the_operation_that_divided_it():
    def forward(_, x):
        a, b = x.relu().chunk(2, 1)
        return a + b

    assert kinds(forward)[-1][0] == "add"
    assert len(kinds(forward)[-1][1]) == 2


def test_names_are_those_of_weights_and_modules():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.conv(x)) + F.relu(x)

    blocks = Written(lambda m, x: m.first(m.second(x)), first=Block(), second=Block())
    found = [(op.kind, op.place) for op in trace(blocks, torch.randn(1, 4, 6, 6)).operations[1:5]]
    assert found == [
        ("conv", "second.conv"),
        ("relu", "second.act"),
        ("relu", "second"),
        ("add", "second"),
    ]


def test_a_network_is_left_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()
    trace(network, torch.randn(1, 3, 6, 6))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network)


@pytest.mark.parametrize(
    ("module", "places"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), ["1"]),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), []),
    ],
)
def test_random_numbers_in_training_are_found(module, places):
    assert random_operations(module.train(), torch.randn(2, 3)) == places


def test_logits_are_found_in_what_a_classifier_returns():
    class Output:
        logits = torch.ones(1)

    assert logits_of((torch.zeros(1), torch.ones(1))) == 0
    assert logits_of({"out": torch.ones(1), "aux": None}) == 1
    assert logits_of(Output()) == 1
    with pytest.raises(UserError, match="NoneType"):
        logits_of(None)
