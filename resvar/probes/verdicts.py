"""From measurements and runs to verdicts: which claim is asked of what. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from resvar.models.ordering import Ordering, in_paper_order
from resvar.probes.claims import OF_A_MOMENT, OF_RUNS, Course, Word, reference
from resvar.probes.findings import Probe
from resvar.reports.records import Record, RunState, settings_of
from resvar.rundir import read_metrics


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim.

    Attributes:
        of: the network, such as `original-110`, or several by their orderings' name.
        group: what the runs have in common; empty for a network of no run.
        iteration: of the network; None for a claim about whole runs.
        paper: whether the paper says it of this ordering.
    """

    claim: str
    of: str
    group: str
    iteration: int | None
    word: Word
    evidence: str
    paper: bool


@dataclass(frozen=True)
class Cell:
    """Runs of one ordering that may be compared with those of another: one course per seed."""

    ordering: Ordering
    depth: int
    group: str
    courses: tuple[Course, ...]

    @property
    def name(self) -> str:
        return f"{self.ordering.name}-{self.depth}"


def judge(probes: Sequence[Probe], cells: Sequence[Cell]) -> list[Verdict]:
    """Every claim, asked of every network at every moment, and of every cell of runs."""
    verdicts = []
    for probe in probes:
        network = probe.network
        for moment in probe.moments:
            for claim, predicate in OF_A_MOMENT.items():
                answer = predicate(moment)
                verdicts.append(
                    Verdict(
                        claim.name,
                        network.name,
                        f"{network.protocol}, seed {network.seed}",
                        moment.iteration,
                        answer.word,
                        answer.evidence,
                        claim.said_of(network.ordering),
                    )
                )
    return verdicts + _of_runs(cells)


def _of_runs(cells: Sequence[Cell]) -> list[Verdict]:
    by_name = {(cell.group, cell.depth, cell.ordering.name): cell for cell in cells}
    verdicts = []
    for cell in cells:
        for claim, predicate in OF_RUNS.items():
            other = reference(claim, cell.ordering)
            there = by_name.get((cell.group, cell.depth, other))
            courses = there.courses if there is not None else ()
            answer = predicate(cell.ordering.name, cell.courses, other, courses)
            verdicts.append(
                Verdict(
                    claim.name,
                    cell.name,
                    cell.group,
                    None,
                    answer.word,
                    answer.evidence,
                    claim.said_of(cell.ordering),
                )
            )
    return verdicts


def read_cells(records: Iterable[Record]) -> list[Cell]:
    """The finished runs by ordering, depth and what makes them comparable; one course per seed.

    Raises:
        UserError: the metrics of a run are damaged.
    """
    found: dict[tuple[str, int, str], dict[int, Record]] = defaultdict(dict)
    for record in records:
        if record.state is RunState.DONE:
            settings = settings_of(record)
            group = f"{settings.dataset}, {record.label}"
            found[group, settings.depth, settings.variant].setdefault(settings.seed, record)
    rank = {name: at for at, name in enumerate(in_paper_order({key[2] for key in found}))}
    cells = []
    for (group, depth, variant), by_seed in sorted(
        found.items(), key=lambda item: (item[0][0], item[0][1], rank[item[0][2]])
    ):
        records_here = [by_seed[seed] for seed in sorted(by_seed)]
        courses = [course for record in records_here if (course := _course(record)) is not None]
        del variant
        ordering = settings_of(records_here[0]).ordering
        cells.append(Cell(ordering, depth, group, tuple(courses)))
    return cells


def _course(record: Record) -> Course | None:
    """None where the run has no row of metrics."""
    metrics = read_metrics(record.folder)
    if not len(metrics):
        return None
    columns: Mapping[str, list[float]] = {
        name: [float(value) for value in metrics[name]]
        for name in ("iteration", "train_loss", "train_error", "test_error")
    }
    return Course(
        seed=settings_of(record).seed,
        iterations=[int(iteration) for iteration in columns["iteration"]],
        losses=columns["train_loss"],
        train_errors=columns["train_error"],
        test_errors=columns["test_error"],
    )
