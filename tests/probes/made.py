"""Probes and courses made up in a moment, for what only lays them out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from resvar.models.ordering import find_ordering
from resvar.probes.measurements import (
    Deletion,
    Identity,
    Moment,
    Probe,
    ProbedNetwork,
    Signal,
    UnitSignals,
)
from resvar.probes.render import ProbeResults
from resvar.probes.runs import RunGroup
from resvar.reports.records import read_record
from tests.reports.runs import make_settings


def make_unit(at: int, count: int, **more) -> UnitSignals:
    level = 1.0 + at
    values = {
        "name": f"stages.{3 * at // count}.{at % (count // 3)}",
        "stage": 3 * at // count,
        "keeps_shape": at == 0 or at % (count // 3) != 0,
        "shortcut": Signal(mean=0.5 * level, std=level, negative=0.25, norm=100 * level),
        "branch": Signal(mean=0.0, std=1.0, negative=0.5, norm=50.0),
        "ratio": 0.5 / level,
        "gradient": 2.0 / level,
        "gradient_ratio": 4.0 / level,
        "gain": 0.9,
        "passed": 0.75,
        "straight": 0.5,
    }
    return UnitSignals(**{**values, **more})


def make_moment(iteration=0, count=9, deletion=False) -> Moment:
    units = [make_unit(at, count) for at in range(count)]
    errors = [60.0 - at for at in range(count)]
    return Moment(
        iteration=iteration,
        loss=2.3,
        end_gradient=0.5,
        units=units,
        identity=Identity(
            images=8, chains=3, longest=3,
            forward={"fp32": 0.5, "fp64": 0.5}, forward_relative={"fp32": 1e-7, "fp64": 1e-16},
            backward={"fp32": 1e-7, "fp64": 1e-16},
        ),
        deletion=Deletion(images=100, precision="fp32", error=50.0, errors=errors)
        if deletion
        else None,
    )  # fmt: skip


def make_probe(variant="full-preact", depth=20, seed=0, iterations=(0, 400)) -> Probe:
    settings = make_settings(variant, depth, seed)
    return Probe(
        network=ProbedNetwork.of(settings),
        config_hash=settings.hash,
        images=100,
        bn_images=64,
        device="a test",
        seconds=1.5,
        moments=[make_moment(at, deletion=at == 400) for at in iterations],
    )


def make_runs(variant: str, *seeds: Sequence[tuple[int, float, float, float]]) -> RunGroup:
    """A sequence per seed: iteration, training loss, training error and test error."""
    names = ["seed", "iteration", "train_loss", "train_error", "test_error"]
    rows = [(seed, *row) for seed, evaluations in enumerate(seeds) for row in evaluations]
    metrics = pandas.DataFrame(rows, columns=names)
    return RunGroup(find_ordering(variant), 20, "cifar10, quick", metrics)


def make_results(*variants: str) -> ProbeResults:
    ends = [[(200, 1.9, 60.0, 60.0), (400, 1.5 + s / 9, 50.0, 50.0)] for s in range(2)]
    groups = [make_runs(variant, *ends) for variant in variants]
    return ProbeResults.of([make_probe(variant) for variant in variants], groups)


def hash_of(folder) -> str:
    settings = read_record(folder).settings
    assert settings is not None
    return settings.hash
