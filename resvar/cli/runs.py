"""The commands that make runs and report on them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import resvar.cli.options as opt
from resvar.api import ReportFormat, data_folder, probe_sections
from resvar.cli import completion
from resvar.errors import UserError
from resvar.rundir import RESULT
from resvar.streams import print_line

if TYPE_CHECKING:
    from resvar.sweeps.grid import Sweep

Downloadable = Literal["cifar10", "cifar100"]


def data_command(
    dir: Annotated[
        Path | None,
        # Named, since Typer 0.27 uses a metavar as the name if the two differ only in case.
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Folder. Default: $RESVAR_DATA, or data/.",
            parser=opt.parse_path,
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        opt.value(
            "FILE",
            "Use a local tar archive: plain, gz, bz2, xz, or, with their programs, zst, lz4.",
            parser=opt.parse_path,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Download from this mirror only."),
    ] = None,
    stall_below: Annotated[
        float | None,
        opt.value(
            "KB/S",
            "Switch to the next source if this one is slower, over 10 s. Default: 200; 0: never.",
        ),
    ] = None,
    dataset: Annotated[Downloadable, opt.choice(Downloadable, "The dataset.")] = "cifar10",
) -> None:
    """Download CIFAR, or unpack a local archive, and verify it.

    The sources in configs/datasets.yaml are tried in order. If one is slow, refuses or breaks off,
    the next continues where it stopped; the last one may be slow.

    The published MD5 of every file is checked before the file is used. An interrupted download
    resumes on the next run. If another process is downloading into the folder, this one waits for
    it. The proxy settings https_proxy and http_proxy are used; a password in an address is not
    shown.

    Example:  resvar data --archive cifar-10-python.tar.gz
    """
    from resvar.data.cifar import DATASETS
    from resvar.data.download import brisk
    from resvar.data.obtain import obtain

    if stall_below is not None and (archive is not None or url is not None):
        other = "--url" if archive is None else "--archive"
        raise UserError(
            f"--stall-below is for several sources, but {other} names one; use only one of them."
        )
    wanted, folder = DATASETS[dataset], data_folder(dir)
    new = obtain(wanted, folder, archive=archive, url=url, early=brisk(stall_below))
    print_line(
        f"{folder / wanted.folder}: {wanted.title} is {'now' if new else 'already'} here; all "
        f"{len(wanted.files)} files have their published MD5."
    )


def train_command(
    variant: opt.VariantOption = None,
    depth: opt.DepthOption = None,
    family: opt.FamilyOption = None,
    stem: opt.StemOption = None,
    dataset: opt.DatasetOption = None,
    protocol: opt.ProtocolOption = None,
    seed: opt.SeedOption = None,
    config: Annotated[
        Path | None,
        opt.value(
            "FILE", "YAML file of settings, such as a run's config.yaml.", parser=opt.parse_path
        ),
    ] = None,
    sets: opt.SetOption = None,
    data: opt.DataOption = None,
    out: Annotated[
        Path | None,
        opt.out_file("DIR", "Run directory. Default: a folder in runs/, which --dry-run shows."),
    ] = None,
    device: opt.DeviceOption = "auto",
    fresh: Annotated[
        bool, opt.flag("--fresh", "Remove the run in that directory and start over.")
    ] = False,
    dry_run: Annotated[
        bool,
        opt.flag("--dry-run", "Print settings, run directory and time; train and write nothing."),
    ] = False,
) -> None:
    """Train one network, or resume its run.

    Rerun the command to resume where it stopped, bit for bit; a finished run says so. Ctrl-C saves
    a checkpoint first. --set tensorboard=true writes TensorBoard event files, and
    --set wandb=true logs to Weights & Biases (pip install 'resvar[tensorboard,wandb]').

    Example:  resvar train --variant full-preact --depth 164 --protocol quick
    """
    from resvar.config import resolve

    options = {
        "variant": variant, "depth": depth, "family": family, "stem": stem, "dataset": dataset,
        "protocol": protocol, "seed": seed,
    }  # fmt: skip
    settings = resolve(config, options, sets or [])

    if dry_run:
        from resvar.training.preview import preview_run

        preview_run(settings, data_folder(data), out, device, fresh)
        return
    from resvar.console import console_for_progress
    from resvar.training.job import run_training

    run_training(settings, data_folder(data), console_for_progress(), out, device, fresh)


def sweep_command(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE.yaml]",
            help="A sweep file, or the name of a shipped sweep (table2), which takes precedence.",
            parser=opt.parse_path,
            autocompletion=completion.complete_sweep,
        ),
    ] = None,
    variants: Annotated[
        str | None,
        opt.value(
            "A,B,…",
            "Orderings, separated by commas.",
            autocompletion=completion.complete_variant,
        ),
    ] = None,
    depths: Annotated[str | None, opt.value("110,164", "Depths, separated by commas.")] = None,
    seeds: Annotated[
        str | None, opt.value("N|A,B,…", "Number of seeds (0 to N-1), or a list.")
    ] = None,
    dataset: opt.DatasetOption = None,
    protocol: opt.ProtocolOption = None,
    sets: opt.GridOption = None,
    data: opt.DataOption = None,
    out: Annotated[Path, opt.out_file("DIR", "Folder of all runs.")] = Path("runs"),
    device: opt.DeviceOption = "auto",
    jobs: Annotated[
        int | None,
        opt.number("Runs at a time. Default: one per GPU, or one per core; with Slurm no limit."),
    ] = None,
    per_gpu: Annotated[
        int | None,
        opt.number(
            "Maximum number of runs per GPU; with Slurm, per task of the job array. Default: 1, or "
            "as --jobs."
        ),
    ] = None,
    stop_after: Annotated[
        float | None,
        typer.Option(
            "--for",
            metavar="TIME",
            help="Stop within this time, such as 90s, 9m, 1.5h or 2h30m, with every run saved. "
            "Rerun the command to resume.",
            parser=opt.parse_duration,
        ),
    ] = None,
    launcher: opt.LauncherOption = "local",
    launcher_config: opt.LauncherConfigOption = None,
    partition: opt.PartitionOption = None,
    account: opt.AccountOption = None,
    time: opt.TimeOption = None,
    sbatch: opt.SbatchOption = None,
    dry_run: Annotated[
        bool, opt.flag("--dry-run", "Print what would be done; do nothing.")
    ] = False,
    estimate: Annotated[
        bool,
        opt.flag("--estimate", "Measure and print the hours left; start nothing."),
    ] = False,
    images_per_second: Annotated[
        str | None,
        opt.value(
            "DEPTH=N[,…]",
            "For the estimated time: training images/s of one run beside the others on its "
            "device, e.g. 110=240,164=160 (see `resvar bench`). Default: measure first.",
        ),
    ] = None,
) -> None:
    """Train many networks: variants × depths × seeds × several values of any setting.

    Finished runs are skipped and the others resumed, so the command can be rerun at any time. A
    failure is reported at the end and does not stop the other runs.

    The seeds of a sweep are declared by it: a report has no verdict before they are complete, and
    further seeds do not change it. --dry-run and --estimate tell which differences they detect.

    With --launcher slurm the runs become tasks of a job array, and the terminal may be closed;
    resvar status shows their progress. A run that reaches its time limit or is preempted saves a
    checkpoint, is requeued, and resumes bit for bit. --dry-run prints the batch script.

    --for TIME stops the sweep early enough for its runs to save checkpoints; in the last seconds no
    run is started. The exit code is then 130, as after Ctrl-C, or 0 if all runs are finished. The
    speed is not measured first. With --estimate it prints how many runs finish in that time.

    Example:  resvar sweep table2 --protocol quick --seeds 1

    Example:  resvar sweep --variants full-preact --depths 20 --protocol quick --set lr=0.1,0.05
    """
    from resvar.sweeps.limit import TimeLimit

    limit = TimeLimit() if stop_after is None else TimeLimit(stop_after)  # from now on
    resources = {"partition": partition, "account": account, "time": time}
    if launcher != "slurm":
        _refuse_slurm_options(**resources, launcher_config=launcher_config, sbatch=sbatch)
    timing = {"--for": stop_after, "--images-per-second": images_per_second}
    _refuse_with_timing({key for key, value in timing.items() if value is not None},
                        estimate, dry_run, launcher)  # fmt: skip
    from resvar.sweeps.grid import plan_sweep

    given = {"variants": variants, "depths": depths, "seeds": seeds, "protocol": protocol}
    chosen = [f"dataset={dataset}"] if dataset else []
    planned = plan_sweep(file, given, [*chosen, *(sets or [])], out)
    folder = data_folder(data)
    from resvar.sweeps.launch import estimate_here, run_here

    if estimate:
        estimate_here(planned, folder, device, jobs, per_gpu, images_per_second, limit)
        _print_forecast(planned)
    elif launcher == "slurm":
        from resvar.sweeps.resources import read_resources
        from resvar.sweeps.slurm import run_on_slurm

        asked = read_resources(launcher_config, resources, sbatch or [])
        side_by_side = 1 if per_gpu is None else per_gpu
        run_on_slurm(planned, folder, device, jobs, side_by_side, asked, dry_run)
    else:
        if not dry_run and not any((run.folder / RESULT).exists() for run in planned.runs):
            _print_forecast(planned)
        run_here(planned, folder, device, jobs, per_gpu, dry_run, images_per_second, limit)
    if dry_run:
        _print_forecast(planned, comment="# ")


def _print_forecast(planned: Sweep, comment: str = "") -> None:
    """What the sweep can decide; in a dry run as comments, since it prints a script."""
    from resvar.reports.forecast import forecast

    for sentence in forecast(planned):
        print_line(f"{comment}{sentence}")


def _refuse_with_timing(
    options: Collection[str], estimate: bool, dry_run: bool, launcher: opt.Launcher
) -> None:
    """Refuse what contradicts --estimate and the options that concern the time."""
    if dry_run and (estimate or options):
        other = "--estimate" if estimate else min(options)
        instead = "use one at a time" if estimate else "use --estimate for the time"
        raise UserError(f"{other} and --dry-run cannot be combined; {instead}.")
    if launcher == "slurm" and "--for" in options:
        raise UserError("--for is for a sweep on this machine; in Slurm --time limits each task.")
    if launcher == "slurm" and options and not estimate:
        raise UserError(
            "--images-per-second is for the time that a sweep announces; in Slurm it announces "
            "none, so add --estimate."
        )


def _refuse_slurm_options(**options: Any) -> None:
    for key, value in options.items():
        if value:
            here = "; a sweep on this machine has --for" if key == "time" else ""
            option = f"--{key.replace('_', '-')}"
            raise UserError(f"{option} is for Slurm; use --launcher slurm too{here}.")


def status_command(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Folder of all runs.", parser=opt.parse_path)
    ] = Path("runs"),
    watch: Annotated[
        bool, opt.flag("--watch", "Refresh until every run is finished or failed.")
    ] = False,
    interval: opt.IntervalOption = None,
) -> None:
    """Show the state of every run, and when the last should end.

    A run is done, running, stopped, waiting, failed, damaged or unreadable (no permission, or
    written by a later version); in Slurm also queued or requeued. A run whose task died is failed.

    --watch refreshes every 2 seconds (10 if Slurm is queried), or every --interval seconds. It
    exits when the last run ends, or on Ctrl-C (exit code 130); the runs continue.

    Example:  resvar status --watch
    """
    from resvar.reports.status import print_status, watch_status

    if watch:
        watch_status(folder, interval)
    else:
        _require_watch(interval)
        print_status(folder)


def report_command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR]…", help="Folders with runs. Default: runs.", parser=opt.parse_path
        ),
    ] = None,
    format: Annotated[ReportFormat | None, opt.format_option(ReportFormat)] = None,
    out: opt.OutOption = None,
    figures: opt.FiguresOption = None,
    full: Annotated[
        bool, opt.flag("--full", "Print every run, the comparisons and the notes too.")
    ] = False,
    what: Annotated[
        str | None,
        opt.value(
            "PART[,…]",
            "Only these parts, in full: table, verdicts, comparisons, runs; csv takes one. "
            "Default: all; in csv runs.",
            autocompletion=completion.complete_report_part,
        ),
    ] = None,
    watch: Annotated[
        bool, opt.flag("--watch", "Rewrite FILE.html until no run can change.")
    ] = False,
    interval: opt.IntervalOption = None,
) -> None:
    """Compare the test errors of runs with the published ones.

    The terminal shows the test errors, the verdicts on V1 and V2, and what is missing. --full adds
    every run below the folders, the comparisons and the notes; the other formats contain all of it.
    A run that cannot be read is not counted, and the report says so.

    html is one page with tables, curves, environment and the commands that repeat the runs; it
    works offline. With --watch it is rewritten every 5 seconds, and an open browser reloads it;
    Ctrl-C stops this with exit code 130.

    --figures draws the curves, the test errors, V1 against V2 and the 3 × 3 map.

    Example:  resvar report runs --out report.html
    """
    from resvar.reports.report import watch_report, write_report

    where = folders or [Path("runs")]
    parts = [] if what is None else [part.strip() for part in what.split(",")]
    if not watch:
        _require_watch(interval)
        write_report(where, format, out, figures, probe_sections, full, parts)
    elif parts:
        raise UserError("--what is not for html, which --watch writes; leave one of them out.")
    elif figures is not None:
        raise UserError("--figures draws once; leave out --watch.")
    else:
        watch_report(where, format, out, interval, probe_sections)


def _require_watch(interval: float | None) -> None:
    if interval is not None:
        raise UserError("--interval needs --watch; add that option.")
