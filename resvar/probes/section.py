"""What `resvar probe` saved in run directories, as a section of the report's page. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from resvar.console import plain
from resvar.errors import UserError
from resvar.probes.findings import Probe, read_probe
from resvar.probes.outcome import Outcome
from resvar.probes.pictures import pictures
from resvar.probes.render import verdict_table
from resvar.probes.verdicts import judge, read_cells
from resvar.reports.html import Image, Section
from resvar.reports.plotting import inline_svg
from resvar.reports.records import Record
from resvar.rundir import PROBE

TITLE = "Why: what the signal does along the depth"


def sections(records: Sequence[Record]) -> tuple[Section, ...]:
    """A section on the probed runs; none where no run was probed.

    The verdicts are worked out anew from what was measured. A probe that cannot be read, or that
    belongs to other settings than its run, is named in the section.
    """
    if not any((record.folder / PROBE).exists() for record in records):
        return ()
    probes, problems = _saved_probes(records)
    notes = tuple(map(plain, problems))
    if not probes:
        return (Section(TITLE, notes),) if notes else ()
    cells = read_cells(records)
    outcome = Outcome(probes, cells, judge(probes, cells))
    drawn = tuple(Image(found.title, inline_svg(found)) for found in pictures(outcome))
    return (Section(TITLE, notes, (verdict_table(outcome.verdicts),), drawn),)


def _saved_probes(records: Sequence[Record]) -> tuple[list[Probe], list[str]]:
    probes, problems = [], []
    for record in records:
        if record.settings is None:
            continue
        try:
            probe = read_probe(record.folder)
        except UserError as error:
            problems.append(str(error))
            continue
        if probe is None:
            continue
        if probe.config_hash == record.settings.hash:
            probes.append(probe)
        else:
            problems.append(
                f"{record.folder}: its probe belongs to a run with other settings; "
                f"`resvar probe {record.folder}` makes a new one."
            )
    return probes, problems
