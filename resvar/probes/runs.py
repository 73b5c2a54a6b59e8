"""Finished runs of one ordering, for claims that compare orderings. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resvar.models.ordering import Ordering, in_paper_order
from resvar.reports.records import Record, RunState, settings_of
from resvar.rundir import read_metrics

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class RunGroup:
    """Finished runs of one ordering, one per seed.

    Attributes:
        group: dataset and protocol; only groups where these are equal are comparable.
        metrics: a row per seed and evaluation, in this order; `seed` and the columns of
            `metrics.csv`.
    """

    ordering: Ordering
    depth: int
    group: str
    metrics: pandas.DataFrame

    @property
    def name(self) -> str:
        return f"{self.ordering.name}-{self.depth}"

    @property
    def first(self) -> pandas.DataFrame:
        """The first evaluation of each seed."""
        return self.metrics.drop_duplicates("seed")

    @property
    def last(self) -> pandas.DataFrame:
        """The last evaluation of each seed."""
        return self.metrics.drop_duplicates("seed", keep="last")


def read_run_groups(records: Iterable[Record]) -> list[RunGroup]:
    """The finished runs among `records`, by group, depth and ordering; one run per seed.

    Raises:
        UserError: the metrics of a run are damaged.
    """
    found: dict[tuple[str, int, str], dict[int, Record]] = defaultdict(dict)
    for record in records:
        if record.state is RunState.DONE:
            settings = settings_of(record)
            group = f"{settings.dataset}, {record.label}"
            found[group, settings.depth, settings.variant].setdefault(settings.seed, record)
    order = in_paper_order({variant for _, _, variant in found})
    keys = sorted(found, key=lambda key: (*key[:2], order.index(key[2])))
    return [_read_group(key[0], dict(sorted(found[key].items()))) for key in keys]


def _read_group(group: str, by_seed: dict[int, Record]) -> RunGroup:
    import pandas

    settings = settings_of(next(iter(by_seed.values())))
    tables = [read_metrics(record.folder).assign(seed=seed) for seed, record in by_seed.items()]
    filled = [table for table in tables if len(table)]  # an empty one has no numeric columns
    metrics = pandas.concat(filled or tables[:1], ignore_index=True)
    return RunGroup(settings.ordering, settings.depth, group, metrics)
