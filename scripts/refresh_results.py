"""Copy finished runs into `results/`, and rewrite its report and the README's table from them.

    python scripts/refresh_results.py runs/quick

Copies the records of finished runs (no checkpoints, no logs); without a folder it only rewrites.
With `--as short-search` the records go below `results/short-search`, with the same subfolders, and
are not in the report. No figure in the README's block is entered by hand.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from resvar import rundir
from resvar.console import pluralize
from resvar.files import shipped
from resvar.reports.figures import figures
from resvar.reports.findings import Group, Report, build
from resvar.reports.first_screen import verdict_sentences
from resvar.reports.parts import group_tables
from resvar.reports.plotting import write_pictures
from resvar.reports.records import RunState, read_records, result_of
from resvar.reports.render import markdown_notes, markdown_table, render_report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
FIGURES = RESULTS / "figures"
README = ROOT / "README.md"
BEGIN, END = "<!-- results: written by scripts/refresh_results.py -->", "<!-- end of results -->"
ABOUT = """Test error in percent, last iteration. [results/](results/README.md) contains every run
with its settings, metrics, predictions and command; all comparisons are in the
[report](results/report.md).
"""
"""The last lines of the README's block."""
RECORDS = (
    rundir.CONFIG,
    rundir.ENVIRONMENT,
    rundir.METRICS,
    rundir.PREDICTIONS,
    rundir.RESULT,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument(
        "--as", dest="subfolder", metavar="NAME", help="a folder next to the protocols' folders"
    )
    asked = parser.parse_args()
    for folder in asked.folders:
        copy_records(folder, asked.subfolder)
    # Folders of other names contain runs that support a note.
    report = build(
        read_records(sorted(filter(Path.is_dir, map(RESULTS.joinpath, shipped("protocols")))))
    )
    text = render_report(report, "markdown").replace(f"{RESULTS.as_posix()}/", "")
    (RESULTS / "report.md").write_text(text, encoding="utf-8")
    draw(report)
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = f"{before}{BEGIN}\n{readme_block(report)}{END}{after}"
    README.write_text(text, encoding="utf-8")


def draw(report: Report) -> None:
    """Draw all figures of the report as SVG; old ones are removed."""
    shutil.rmtree(FIGURES, ignore_errors=True)
    found = [picture for _, picture in figures(report)]
    write_pictures(found, FIGURES, ("svg",))
    lines = [f"\n![{picture.title}](figures/{picture.name}.svg)\n" for picture in found]
    with (RESULTS / "report.md").open("a", encoding="utf-8") as file:
        file.writelines(["\n## Figures\n", *lines])


def copy_records(folder: Path, subfolder: str | None) -> None:
    for record in read_records([folder]):
        if record.state is RunState.DONE and record.settings is not None:
            own = record.folder.relative_to(folder)
            target = RESULTS / (Path(subfolder) / own if subfolder else record.settings.directory)
            target.mkdir(parents=True, exist_ok=True)
            for name in RECORDS:
                shutil.copyfile(record.folder / name, target / name)
            print(f"{record.folder} → {target.relative_to(ROOT)}")


def readme_block(report: Report) -> str:
    """Test errors and V1 against V2 of each group, and a figure of the largest."""
    lines = []
    largest = max(report.groups, key=lambda group: len(group.records), default=None)
    for group in report.groups:
        drawn = (picture for owner, picture in figures(report, curves=False) if owner is group)
        first = next(drawn, None) if group is largest else None
        lines += [f"**{group.heading}** ({made_on(group)})", ""]
        for table in group_tables(group):
            if table.kind == "errors":
                rows = zip(group.variants, table.rows, strict=True)
                kept = tuple(row for variant, row in rows if _has_runs(group, variant))
                lines += markdown_table(replace(table, rows=kept, notes=()))
        lines += markdown_notes(tuple(verdict_sentences(group)))
        if first is not None:
            path = (FIGURES / f"{first.name}.svg").relative_to(ROOT).as_posix()
            lines += [f"![{first.title}]({path})", ""]
    return "\n".join([*lines, ABOUT])


def _has_runs(group: Group, variant: str) -> bool:
    return any(group.entries[variant, depth].outcomes() for depth in group.depths)


def made_on(group: Group) -> str:
    """How many runs a group has, how long they took, and on what."""
    results = [result_of(record) for record in group.records if record.state is RunState.DONE]
    devices = ", ".join(sorted({f"{r['device']} in {r['precision']}" for r in results}))
    hours = sum(r["seconds"] for r in results) / 3600
    return f"{pluralize(len(results), 'run')} of {hours:.1f} hours in total, on {devices}"


if __name__ == "__main__":
    main()
