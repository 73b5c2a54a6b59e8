"""Copy finished runs into `results/`, and rewrite its report and the README's table from them.

    python scripts/refresh_results.py runs/quick

Copies the records of finished runs (no checkpoints, no logs); without a folder it only rewrites.
With `--as short-search` the records go below `results/short-search`, with the same subfolders, and
are not in the report. No figure in the README's block is entered by hand.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from itertools import groupby, product
from pathlib import Path

from resvar import rundir
from resvar.console import listed, pluralize
from resvar.files import shipped
from resvar.models.ordering import PAPER_ORDER
from resvar.reports.cells import Cell
from resvar.reports.figures import figures
from resvar.reports.findings import Group, Report, build
from resvar.reports.first_screen import verdict_sentences
from resvar.reports.plotting import write_pictures
from resvar.reports.records import RunState, result_of
from resvar.reports.render import markdown_notes, markdown_table, render_report
from resvar.reports.search import read_records
from resvar.reports.tables import published_cell, row_name
from resvar.table import Table, Value, filled, left, right

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
FIGURES = RESULTS / "figures"
README = ROOT / "README.md"
BEGIN, END = "<!-- results: written by scripts/refresh_results.py -->", "<!-- end of results -->"
DEPTHS = 110, 164
"""The depths of the paper's Table 2, which the README's table repeats."""
RECORDS = (
    rundir.CONFIG,
    rundir.ENVIRONMENT,
    rundir.METRICS,
    rundir.PREDICTIONS,
    rundir.RESULT,
    rundir.PROBE,
)
"""Of a run; the last one only if there is one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument(
        "--as", dest="subfolder", metavar="NAME", help="a folder next to the protocols' folders"
    )
    asked = parser.parse_args()
    for folder in asked.folders:
        copy_records(folder, asked.subfolder)
    report = read_report()
    drawn = draw(report)
    (RESULTS / "report.md").write_text(report_text(report) + drawn, encoding="utf-8")
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = f"{before}{BEGIN}\n{readme_block(report)}{END}{after}"
    README.write_text(text, encoding="utf-8")


def read_report() -> Report:
    """The report on the protocols' folders; runs in other folders support a note."""
    folders = filter(Path.is_dir, map(RESULTS.joinpath, shipped("protocols")))
    return build(read_records(sorted(folders)))


def report_text(report: Report) -> str:
    """The report in Markdown; its paths begin in results/."""
    return render_report(report, "markdown").replace(f"{RESULTS.as_posix()}/", "")


def draw(report: Report) -> str:
    """Draw the report's figures as SVG instead of the old ones; the lines that show them."""
    shutil.rmtree(FIGURES, ignore_errors=True)
    found = [picture for _, picture in figures(report)]
    write_pictures(found, FIGURES, ("svg",))
    lines = [f"\n![{picture.title}](figures/{picture.name}.svg)\n" for picture in found]
    return "".join(["\n## Figures\n", *lines])


def copy_records(folder: Path, subfolder: str | None) -> None:
    for record in read_records([folder]):
        if record.state is RunState.DONE and record.settings is not None:
            own = record.folder.relative_to(folder)
            target = RESULTS / (Path(subfolder) / own if subfolder else record.settings.directory)
            target.mkdir(parents=True, exist_ok=True)
            for name in RECORDS:
                if name != rundir.PROBE or (record.folder / name).exists():
                    shutil.copyfile(record.folder / name, target / name)
            print(f"{record.folder} → {target.relative_to(ROOT)}")


def readme_block(report: Report) -> str:
    """Table 2 of the paper, ours beside theirs; what the order is; what is not reproduced."""
    group = headline(report)
    drawn = (picture for owner, picture in figures(report) if owner is group)
    first = next(picture for picture in drawn if picture.name.endswith("-curves-110"))
    path = (FIGURES / f"{first.name}.svg").relative_to(ROOT).as_posix()
    notes = [*orders(group), *verdict_sentences(group), *comparable_runs(report)]
    return "\n".join(
        [
            f"Ours: {made_on(group)}; the median of n seeds. The paper's: 64,000 iterations, the "
            "median of 5 runs. **The protocols differ: compare the order, not the numbers.**\n",
            *markdown_table(side_by_side(group)),
            *markdown_notes(notes),
            f"![{first.title}]({path})\n",
        ]
    )


def headline(report: Report) -> Group:
    """The group with the most cells of the paper's table; of equals, the paper's own protocol.

    `quick` is a smoke test, and is never in the README.
    """
    labels = ("paper", "short")
    groups = [g for g in report.groups if g.label in labels and g.dataset == "cifar10"]
    return max(groups, key=lambda group: len(_cells_of_table(group)))


def _cells_of_table(group: Group) -> set[tuple[str, int]]:
    """Variant and depth of the cells of Table 2 with a finished run."""
    found = {key for key, cell in group.cells.items() if cell.summary}
    return found & set(product(PAPER_ORDER, DEPTHS))


def side_by_side(group: Group) -> Table:
    """The orderings of the paper; at each depth our median error (n), and the paper's."""
    columns = [left("test error in %", row_name)]
    for depth in DEPTHS:

        def ours(variant: str, depth: int = depth) -> str | None:
            summary = group.cells[variant, depth].summary
            return f"{summary.median:.2f} ({summary.n})" if summary else None

        def theirs(variant: str, depth: int = depth) -> Value:
            return published_cell(group.cells[variant, depth], group)

        columns.append(right(f"ResNet-{depth}, {group.label}: ours (n)", ours))
        columns.append(right(f"ResNet-{depth}: the paper's", theirs))
    return filled("", columns, PAPER_ORDER, kind="errors")


def orders(group: Group) -> Iterator[str]:
    """The order of the orderings by error at each depth, ours and the paper's."""
    for depth in DEPTHS:
        cells = [group.cells[variant, depth] for variant in PAPER_ORDER]
        ours = {cell.variant: cell.summary.median for cell in cells if cell.summary}
        theirs = {c.variant: c.published.test_error for c in cells if c.published}
        seeds = sorted({f"{cell.summary.n}" for cell in cells if cell.summary})
        mine, papers = (_ranking({v: found[v] for v in ours}) for found in (ours, theirs))
        if len(ours) > 1:
            yield (
                f"ResNet-{depth}, {group.label}, n = {listed(seeds)}, from the lowest error to the "
                f"highest: {mine}; in the paper "
                + ("the same order." if mine == papers else f"{papers}.")
            )


def _ranking(errors: dict[str, float]) -> str:
    """`full-preact, relu-only-preact = original`: from the lowest error; = where they are equal."""
    levels = groupby(sorted(errors, key=errors.__getitem__), key=lambda v: f"{errors[v]:.2f}")
    return ", ".join(" = ".join(level) for _, level in levels)


def comparable_runs(report: Report) -> Iterator[str]:
    """Our runs with the paper's protocol, and what of its table has none."""
    groups = [group for group in report.groups if group.like_paper]
    for group in groups:
        cells = [_cell_text(cell) for cell in group.cells.values() if cell.summary]
        yield f"The paper's own protocol: {'; '.join(cells)}."
    known = set().union(*map(_cells_of_table, groups))
    missing = [f"ResNet-{d}" for d in DEPTHS if not {(v, d) for v in PAPER_ORDER} <= known]
    if missing:
        yield (
            f"Not reproduced yet: the paper's figures for {listed(missing)}. They take the paper's "
            "protocol, and so a GPU."
        )


def _cell_text(cell: Cell) -> str:
    """`ResNet-20, original: 8.54 % (n = 1; the paper's: 8.75)`."""
    assert cell.summary is not None
    theirs = f"the paper's: {cell.published.test_error:.2f}" if cell.published else "unpublished"
    name, summary = f"ResNet-{cell.depth}, {cell.variant}", cell.summary
    return f"{name}: {summary.median:.2f} % (n = {summary.n}; {theirs})"


def made_on(group: Group) -> str:
    """The protocol, how many runs a group has, how long they took, and on what."""
    results = [result_of(record) for record in group.records if record.state is RunState.DONE]
    devices = listed(sorted({f"{r['device']} in {r['precision']}" for r in results}))
    iterations = listed(sorted({f"{r['iterations']:,}" for r in results}))
    hours = sum(r["seconds"] for r in results) / 3600
    return (
        f"protocol {group.label}, {iterations} iterations, {pluralize(len(results), 'run')} of "
        f"{hours:.1f} hours in total on {devices}"
    )


if __name__ == "__main__":
    main()
