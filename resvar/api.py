"""The functions for Python users; `resvar` exports them.

    import resvar
    model = resvar.build_model("full-preact", depth=164)
    run = resvar.train("full-preact", 20, protocol="quick")
    runs = resvar.load_runs("runs")

They do what the commands of the same names do. Wrong input raises `resvar.UserError`, other
failures `resvar.RunError`, and Ctrl-C, or a notebook's interrupt, `resvar.Stopped` after a
checkpoint was saved; each message is one sentence. Functions that train print their progress.

Import resvar before torch: it fits torch's threads to the cores of a container, and torch reads
that once, when it loads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resvar.condition import read_result, read_undisturbed, run_stamp
from resvar.config import Spelling, resolve
from resvar.console import percent
from resvar.errors import UserError, require_given
from resvar.ownership import run_folder
from resvar.rundir import CONFIG, read_metrics, read_settings
from resvar.settings import ROLES, Settings

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from resvar.reports.html import Section
    from resvar.reports.records import Record

ReportFormat = Literal["table", "markdown", "csv", "latex", "json", "html"]
ReportPart = Literal["table", "verdicts", "comparisons", "runs"]

PYTHON = Spelling(lambda name: f"train({name}=…)", 'train("full-preact", 20)')
IDENTITY = ("variant", "depth", "protocol", "dataset", "seed")
NO_FIGURES = ("format", "best_test_error_note")


@dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A run read from its directory.

    Attributes:
        folder: the run directory.
        config: every setting.
        metrics: one row per evaluation, with the columns of `metrics.csv`: errors in percent,
            `seconds` since the start of the run.
        result: the content of `result.json`; None while the run is unfinished.
    """

    folder: Path
    config: Settings
    metrics: pandas.DataFrame
    result: dict[str, Any] | None

    def __repr__(self) -> str:
        """One line: which run, how far, and where."""
        c, rows = self.config, self.metrics["iteration"]
        state = (
            f"{int(rows.iloc[-1]) if len(rows) else 0:,} of {c.iterations:,} iterations measured"
        )
        if self.result is not None:
            state = f"test error {percent(self.result['test_error'])}"
        return (
            f"<Run {c.variant}-{c.depth}, protocol {c.protocol}, seed {c.seed}: {state}; "
            f"{self.folder}>"
        )

    @property
    def model(self) -> nn.Module:
        """The network with the weights of the newest checkpoint, in evaluation mode.

        Its input is float [N, 3, H, W], normalised as in training, its output logits [N, classes].

        Raises:
            UserError: there is no checkpoint, or it belongs to another network.
            RunError: all checkpoints are damaged, or one is of a later version of resvar.
        """
        from resvar.evaluation.trained import open_trained

        return open_trained(self.folder).network


# --- reading runs ---------------------------------------------------------------------------------


def load_run(folder: str | Path) -> Run:
    """Read a run directory, even while the run is active.

    Raises:
        UserError: there is no run in the folder, or one of its files is damaged.
        UnreadableError: a file cannot be read here, though nothing shows that it is damaged: no
            permission, or a later version of resvar wrote it. A kind of UserError.
    """
    folder = Path(folder)

    def read() -> Run:
        settings_stamp, _ = run_stamp(folder)
        if settings_stamp is None:
            raise UserError(f"{folder}: there is no run here ({CONFIG} is missing).")
        config = read_settings(folder)
        result = read_result(folder, config)  # first, since a run writes it last
        return Run(folder, config, read_metrics(folder), result)

    return read_undisturbed(folder, read)


def load_runs(*folders: str | Path) -> pandas.DataFrame:
    """A table of every run at or below `folders` (default: `runs`), one row per run.

    Runs that cannot be read have a row too.

    Columns: `variant`, `depth`, `protocol`, `dataset` and `seed`; the other settings in which the
    runs differ; `state` (`done`, `running`, `stopped`, `failed`, `damaged` or `unreadable`); the
    figures of `result.json` (errors in percent), missing values for a run without one; `message`,
    why a run failed or cannot be read; `folder`.

    Raises:
        UserError: a folder does not exist, or there is no run in any of them.
    """
    import pandas

    from resvar.reports.search import read_records

    records = read_records([Path(folder) for folder in folders or ("runs",)])
    settings = [record.settings.model_dump() if record.settings else {} for record in records]
    results = [record.result or {} for record in records]
    varying = [
        name
        for name, role in ROLES.items()
        if role.part != "ordering"
        and name not in IDENTITY
        and len({repr(values[name]) for values in settings if values}) > 1
    ]
    figures = dict.fromkeys(name for result in results for name in result)  # in the file's order
    measured = [name for name in figures if name not in (*ROLES, *NO_FIGURES)]
    rows = [
        {name: values.get(name) for name in (*IDENTITY, *varying)}
        | {"state": record.state.value}
        | {name: result.get(name) for name in measured}
        | {"message": record.message, "folder": str(record.folder)}
        for record, values, result in zip(records, settings, results, strict=True)
    ]
    return pandas.DataFrame(rows)


# --- making runs ----------------------------------------------------------------------------------


def train(
    variant: str | Path | None = None,
    depth: int | None = None,
    *,
    config: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    fresh: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train one network, or resume its run where it stopped; a finished run is returned as it is.

    Args:
        variant: the name of an ordering or the path of a YAML file.
        depth: layers.
        config: a YAML file of settings, such as a run's `config.yaml`; arguments override it.
        data: the folder of the dataset; default `$RESVAR_DATA`, or `data`.
        out: the run directory; default `runs/<protocol>/<variant>-<depth>/seed-<seed>`; a run that
            changes its protocol has a folder such as `lr=0.05` above `seed-<seed>`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        fresh: remove the run in that directory and start over.
        quiet: print nothing.
        settings: any other setting by name, such as `protocol="quick"`, `seed=1` or `lr=0.05`.

    Raises:
        UserError: wrong input; nothing was written.
        RunError: the run cannot be finished, for example because it diverged or the disk is full;
            what it has saved is kept.
        Stopped: Ctrl-C. The message says whether a checkpoint is saved, and at which iteration the
            same call resumes.
    """
    given = {"variant": None if variant is None else str(variant), "depth": depth, **settings}
    resolved = resolve(None if config is None else Path(config), given, spelling=PYTHON)

    from rich.console import Console

    from resvar.console import console_for_progress
    from resvar.training import job

    folder = run_folder(Path("runs"), resolved) if out is None else Path(out)
    console = Console(quiet=True) if quiet else console_for_progress()
    job.run_training(resolved, data_folder(data), console, folder, device, fresh)
    return load_run(folder)


def sweep(
    file: str | Path | None = None,
    *,
    variants: str | Sequence[str] | None = None,
    depths: int | Sequence[int] | None = None,
    seeds: int | Sequence[int] | None = None,
    protocol: str | None = None,
    settings: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    data: str | Path | None = None,
    out: str | Path = "runs",
    device: str = "auto",
    jobs: int | None = None,
    per_gpu: int | None = None,
) -> pandas.DataFrame:
    """Train variants × depths × seeds, and a grid of other settings, on this machine.

    Finished runs are skipped, and the others resumed.

    Args:
        file: a sweep file, or the name of a shipped one such as `table2`; arguments override it.
        variants: one or several names of orderings, or paths of YAML files.
        depths: one or several numbers of layers.
        seeds: how many, or which.
        protocol: the name of a protocol or the path of a YAML file; default `paper`.
        settings: further settings of every run by name.
        grid: several values of a setting, such as `{"lr": [0.1, 0.05]}`; every combination is run.
        data: the folder of the dataset; default `$RESVAR_DATA`, or `data`.
        out: the folder of all runs.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        jobs: runs at a time; default: one per GPU, or one per core.
        per_gpu: maximum number of runs per GPU; default 1.

    Returns:
        The table `load_runs(out)`.

    Raises:
        UserError: wrong input; nothing was started.
        RunError: some runs failed, after all others were trained.
        Stopped: Ctrl-C. The message says how many runs are finished or have a checkpoint.
    """
    from resvar.sweeps.grid import plan_sweep
    from resvar.sweeps.launch import run_here

    if file is None:
        wanted = {"sweep(variants=…)": variants, "sweep(depths=…)": depths}
        require_given(wanted, 'sweep(variants=["original", "full-preact"], depths=[20])')
    given = {
        "variants": [variants] if isinstance(variants, str) else variants and list(variants),
        "depths": [depths] if isinstance(depths, int) else depths and list(depths),
        "seeds": list(seeds) if isinstance(seeds, Sequence) else seeds,
        "protocol": protocol,
    }
    overrides = [f"{name}={json.dumps(value)}" for name, value in (settings or {}).items()]
    overrides += [
        f"{name}={json.dumps(list(listed))[1:-1]}" for name, listed in (grid or {}).items()
    ]
    planned = plan_sweep(None if file is None else Path(file), given, overrides, Path(out))
    run_here(planned, data_folder(data), device, jobs, per_gpu, dry_run=False)
    return load_runs(out)


def report(
    *folders: str | Path,
    format: ReportFormat | None = None,
    out: str | Path | None = None,
    figures: str | Path | None = None,
    full: bool = False,
    what: Sequence[ReportPart] = (),
) -> None:
    """Compare the test errors of runs with the published ones, on the screen or in a file.

    Args:
        folders: folders with runs; default `runs`.
        format: default: by the suffix of `out`, such as `report.html`, or `table`.
        out: a file to write instead of the screen.
        figures: a folder for figures as SVG, PDF and PNG.
        full: print everything, not only the test errors, the verdicts and what is missing; the
            other formats than `table` always do.
        what: the parts that `table`, `markdown` or `latex` contain, or the one in `csv`; default:
            all of them, in `csv` the runs.

    Raises:
        UserError: there is no run, two runs contradict each other, a file cannot be written, or a
            part is not for this format.
        OutputError: stdout cannot be written: its disk is full, or its reader is gone.
    """
    from resvar.reports.report import write_report

    where = [Path(folder) for folder in folders or ("runs",)]
    file, pictures = (None if path is None else Path(path) for path in (out, figures))
    write_report(where, format, file, pictures, probe_sections, full, what)


# --- shared with the commands ---------------------------------------------------------------------


def probe_sections(records: Sequence[Record]) -> Sequence[Section]:
    """The sections of a report's page on probed runs."""
    from resvar.probes.section import saved_probe_sections

    return saved_probe_sections(records)


def data_folder(folder: str | Path | None) -> Path:
    """The folder of the dataset; None: `$RESVAR_DATA`, or `data`."""
    from resvar.data.cifar import default_folder

    return Path(folder) if folder is not None else default_folder()
