"""All tables of a group of runs."""

from __future__ import annotations

from resvar.reports.comparison_tables import (
    agreement_table,
    contrast_table,
    difference_tables,
    v1_v2_table,
)
from resvar.reports.findings import Group
from resvar.reports.tables import error_tables, map_table, others_table, run_table
from resvar.table import Table


def group_tables(group: Group, abreast: int = 2) -> list[Table]:
    """The tables of a group: test errors, others' reproductions, maps, comparisons with original,
    V1 and V2, agreement of predictions, every run.

    Args:
        abreast: depths whose test errors share a table.
    """
    made = [*error_tables(group, abreast), *others_table(group)]
    made += [map_table(found) for found in group.maps]
    if group.contrasts:
        made.append(contrast_table(group))
    if group.v1_v2:
        made.append(v1_v2_table(group))
    made += difference_tables(group)
    if any(found.pairing or found.predicted_sd is not None for found in group.agreements):
        made.append(agreement_table(group))
    return [*made, run_table(group)]
