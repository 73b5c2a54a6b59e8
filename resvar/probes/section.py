"""The probes in run directories as a section of the report's HTML page. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from resvar.console import plain
from resvar.errors import UserError
from resvar.probes.measurements import Probe, read_probe
from resvar.probes.pictures import probe_pictures
from resvar.probes.render import ProbeResults, verdict_table
from resvar.probes.runs import read_run_groups
from resvar.reports.html import Image, Section
from resvar.reports.plotting import page_svg
from resvar.reports.records import Record
from resvar.rundir import PROBE

SECTION_TITLE = "Why: what the signal does along the depth"


def saved_probe_sections(records: Sequence[Record]) -> tuple[Section, ...]:
    """A section on the probed runs; none without probes.

    Verdicts are computed from the saved measurements. The section names probes that are damaged or
    belong to other settings than their run.
    """
    if not any((record.folder / PROBE).exists() for record in records):
        return ()
    probes, problems = _saved_probes(records)
    notes = tuple(map(plain, problems))
    if not probes:
        return (Section(SECTION_TITLE, notes),) if notes else ()
    results = ProbeResults.of(probes, read_run_groups(records))
    images = tuple(
        Image(found.title, page_svg(found), found.caption) for found in probe_pictures(results)
    )
    return (Section(SECTION_TITLE, notes, (verdict_table(results.verdicts),), images),)


def _saved_probes(records: Sequence[Record]) -> tuple[list[Probe], list[str]]:
    """The probes, and a sentence for each unusable one."""
    probes, problems = [], []
    for record in records:
        if record.settings is None:
            continue
        try:
            probe = read_probe(record.folder)
        except UserError as error:
            problems.append(str(error))
            continue
        if probe is not None and probe.config_hash == record.settings.hash:
            probes.append(probe)
        elif probe is not None:
            problems.append(
                f"{record.folder}: its probe belongs to a run with other settings; "
                f"`resvar probe {record.folder}` writes a new one."
            )
    return probes, problems
