"""The door: one Typer command per verb. Thin, and light to open: torch loads inside the commands.

Exit codes: 0 done; 2 the input is wrong (one sentence on stderr); 1 anything else that went wrong;
130 stopped by Ctrl-C or SIGTERM with a checkpoint saved.
"""

from __future__ import annotations

import enum
import io
import os
import signal
import sys
import threading
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from resvar import __version__
from resvar.errors import PeerFailure, RunError, Stopped, UserError

if TYPE_CHECKING:
    from resvar.reports.html import Section
    from resvar.reports.records import Record

app = typer.Typer(
    name="resvar",
    help="Where should BatchNorm and ReLU stand in a residual unit?\n\n"
    "Trains the five orderings of He et al. 2016 (arXiv:1603.05027) on CIFAR-10, resumes exactly, "
    "and sets the test errors beside the published ones.\n\n"
    "Begin with:  resvar data  ·  resvar train --variant full-preact --depth 20 --protocol quick  "
    "·  resvar report",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


class Launcher(enum.StrEnum):
    """What starts the runs of a sweep."""

    local = "local"
    slurm = "slurm"


class Format(enum.StrEnum):
    """How a report is written."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    json = "json"
    html = "html"


class Findings(enum.StrEnum):
    """How an evaluation is written."""

    table = "table"
    json = "json"


class ProbeFormat(enum.StrEnum):
    """How a probe is written."""

    table = "table"
    json = "json"
    markdown = "markdown"


class ExportFormat(enum.StrEnum):
    """What a network is exported to."""

    safetensors = "safetensors"
    torchvision = "torchvision"
    onnx = "onnx"


class ShowFormat(enum.StrEnum):
    """How `resvar show` writes."""

    table = "table"
    json = "json"
    markdown = "markdown"


class FamilyName(enum.StrEnum):
    """The families of networks, and their stems."""

    cifar = "cifar"
    imagenet = "imagenet"


class ShortcutName(enum.StrEnum):
    """What a shortcut does where the shape changes: options A and B."""

    pad = "pad"
    project = "project"


class UnitName(enum.StrEnum):
    """The two units."""

    basic = "basic"
    bottleneck = "bottleneck"


class StrideName(enum.StrEnum):
    """Which convolution of a unit has the stride."""

    first = "first"
    middle = "3x3"


class DatasetName(enum.StrEnum):
    """The datasets that `resvar data` knows."""

    cifar10 = "cifar10"
    cifar100 = "cifar100"


DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="The dataset's folder. Default: $RESVAR_DATA, else data/."
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="NAME", help="auto (the GPU where there is one), cpu, cuda or cuda:N."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change any setting, e.g. --set lr=0.05. Repeat it for more.",
    ),
]


Interval = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="With --watch: between two looks.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"resvar {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def train(
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="The ordering: original, bn-after-add, relu-before-add, relu-only-preact, "
            "full-preact, or a YAML file of your own.",
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Layers: 20, 32, 44, 56, 110, 164, 1001, or any that fits.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(metavar="cifar|imagenet", help="The networks' family. Default: cifar."),
    ] = None,
    stem: Annotated[
        str | None,
        typer.Option(metavar="cifar|imagenet", help="The stem. Default: the family's own."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="cifar10 (the default), cifar100, or folder: images in DIR/train/<class>/ and "
            "DIR/val/<class>/.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="paper (64,000 iterations, the default), short (10 epochs), quick (minutes), "
            "or a YAML file of training settings.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides weights, order and augmentation. Default: 0.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Settings from a YAML file, such as a run's config.yaml."
        ),
    ] = None,
    sets: Sets = None,
    data: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The run directory. Default: runs/<protocol>/<variant>-<depth>/seed-<seed>.",
        ),
    ] = None,
    device: Device = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the run that is there and start over.")
    ] = False,
) -> None:
    """Train one network, or go on with a run that was stopped.

    Typed again, the same command goes on where it stopped, bit for bit; a finished run says so.
    Ctrl-C saves a checkpoint first. --set tensorboard=true writes TensorBoard event files too
    (pip install 'resvar[tensorboard]').

    Example:  resvar train --variant full-preact --depth 164 --protocol quick
    """
    from resvar.config import resolve

    options = {
        "variant": variant,
        "depth": depth,
        "family": family,
        "stem": stem,
        "dataset": dataset,
        "protocol": protocol,
        "seed": seed,
    }
    settings = resolve(config, options, sets or [])

    from resvar.console import console_for_output
    from resvar.training.train import train as run

    run(settings, _data(data), console_for_output(), out, device, fresh)


@app.command()
def sweep(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE.yaml]", help="A sweep file, or a shipped one by name: table2."
        ),
    ] = None,
    variants: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Orderings, separated by commas.")
    ] = None,
    depths: Annotated[
        str | None, typer.Option(metavar="110,164", help="Depths, separated by commas.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N|A,B,…", help="How many seeds (0 to N-1), or which.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="paper, short, quick, or a YAML file.")
    ] = None,
    sets: Sets = None,
    data: DataDir = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of all runs.")] = Path(
        "runs"
    ),
    device: Device = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Runs at a time. Default: one per GPU, without one a run per core; with Slurm as "
            "many as it starts."
        ),
    ] = None,
    per_gpu: Annotated[
        int | None,
        typer.Option(
            help="Runs that share a GPU, at most; with Slurm, a task of the job array. Default: 1, "
            "or as --jobs."
        ),
    ] = None,
    launcher: Annotated[
        Launcher,
        typer.Option(help="What starts the runs: this machine, or Slurm (resvar[slurm])."),
    ] = Launcher.local,
    launcher_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Slurm: what a task asks for; see configs/launchers/slurm.yaml."
        ),
    ] = None,
    partition: Annotated[
        str | None, typer.Option(metavar="NAME", help="Slurm: default, the cluster's.")
    ] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Slurm: who pays.")] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="LIMIT",
            help="Slurm: of a task, such as 90 (minutes) or 12:00:00. A run that meets it goes on "
            "in the queue.",
        ),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUE]",
            help="Slurm: any other option of sbatch, e.g. --sbatch constraint=a100. Repeat it for "
            "more.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Measure, say what is left in hours, and start nothing."),
    ] = False,
    images_per_second: Annotated[
        str | None,
        typer.Option(
            metavar="DEPTH=N[,…]",
            help="With --estimate: of one device, as `resvar bench` measured there, e.g. "
            "110=240,164=160.",
        ),
    ] = None,
) -> None:
    """Train many networks: variants × depths × seeds.

    Finished runs are skipped and others go on where they stopped, so the same command can be typed
    again at any time. A run that fails is reported at the end while the rest goes on.

    With --launcher slurm the runs become tasks of a job array, and the terminal may be closed:
    resvar status says how they stand. A run that meets its time limit or is preempted saves a
    checkpoint, is requeued, and goes on bit for bit. --dry-run prints the batch script.

    Example:  resvar sweep configs/sweeps/table2.yaml --protocol quick --seeds 1
    """
    resources = {"partition": partition, "account": account, "time": time}
    slurm_only = {**resources, "launcher_config": launcher_config, "sbatch": sbatch}
    if launcher is not Launcher.slurm:
        _only_with_slurm(slurm_only)
    from resvar.sweeps.grid import plan_sweep

    given = {"variants": variants, "depths": depths, "seeds": seeds, "protocol": protocol}
    planned = plan_sweep(file, given, sets or [], out)
    from resvar.sweeps.launch import estimate_here, run_here

    if estimate:
        if dry_run:
            raise UserError("--estimate and --dry-run are two questions; ask one at a time.")
        estimate_here(planned, device, jobs, per_gpu, images_per_second)
        return
    if images_per_second is not None:
        raise UserError("--images-per-second is what --estimate reckons with; give that too.")
    if launcher is Launcher.slurm:
        from resvar.sweeps.resources import read_resources
        from resvar.sweeps.slurm import run_on_slurm

        asked = read_resources(launcher_config, resources, sbatch or [])
        side_by_side = 1 if per_gpu is None else per_gpu
        run_on_slurm(planned, _data(data), device, jobs, side_by_side, asked, dry_run)
        return
    run_here(planned, _data(data), device, jobs, per_gpu, dry_run)


def _only_with_slurm(options: dict[str, Any]) -> None:
    for key, value in options.items():
        if value:
            raise UserError(f"--{key.replace('_', '-')} is for Slurm; say --launcher slurm too.")


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder of all runs.")] = Path(
        "runs"
    ),
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep looking until every run is finished or failed.")
    ] = False,
    interval: Interval = None,
) -> None:
    """What is done, running, queued, waiting or failed, and when it should end.

    Of runs that were handed to Slurm it says too which are queued or requeued, and which were lost
    with their task.

    With --watch the picture is renewed, every 2 seconds (10 where Slurm is asked) unless --interval
    says otherwise. It ends by itself; Ctrl-C leaves earlier with exit code 130, and the runs go on.
    """
    from resvar.reports.status import print_status, watch_status

    if watch:
        watch_status(folder, interval)
        return
    _only_when_watching(interval)
    print_status(folder)


@app.command()
def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]…", help="Folders with runs. Default: runs."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How to write it.")] = Format.table,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of on the screen.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw figures there: SVG, PDF and PNG.")
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="html: renew FILE until no run can change."),
    ] = False,
    interval: Interval = None,
) -> None:
    """Collect the test errors of runs into tables, beside the published ones.

    html is one page with tables, curves, environment and the commands that repeat it; it needs no
    network. With --watch it is renewed every 5 seconds, and an open browser follows; Ctrl-C leaves
    with exit code 130.

    --figures draws the curves, the test errors, V1 against V2 and the 3 x 3 map, beside the report.

    Example:  resvar report runs --format html --out report.html
    """
    from resvar.reports.report import watch_report, write_report

    where = folders or [Path("runs")]
    if watch:
        if figures is not None:
            raise UserError("--figures draws once; leave --watch out.")
        watch_report(where, format.value, out, interval, _probe_sections)
        return
    _only_when_watching(interval)
    write_report(where, format.value, out, figures, _probe_sections)


def _probe_sections(records: Sequence[Record]) -> Sequence[Section]:
    """The section of a report's page on probed runs; the page alone asks for it."""
    from resvar.probes.section import sections

    return sections(records)


def _only_when_watching(interval: float | None) -> None:
    if interval is not None:
        raise UserError("--interval says how often --watch looks; give that too.")


@app.command()
def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT|FILE",
            help="A run directory, a checkpoint inside one, or an exported .safetensors file.",
        ),
    ],
    data: DataDir = None,
    device: Device = "auto",
    format: Annotated[Findings, typer.Option(help="How to write it.")] = Findings.table,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of on the screen.")
    ] = None,
) -> None:
    """Measure a trained network on its test set: errors by class, confusion matrix, calibration.

    Says too whether the predictions are those that the run recorded.

    Example:  resvar evaluate runs/quick/full-preact-20/seed-0
    """
    from resvar.evaluation.commands import evaluate_source

    evaluate_source(source, _data(data), device, format.value, out)


class _WithClaims(typer.core.TyperCommand):
    """Its help ends with the claims and their thresholds, from where they are defined."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        del ctx
        from resvar.probes.claims import in_words

        with formatter.section("Claims"):
            formatter.write_dl(in_words())


@app.command(cls=_WithClaims)
def probe(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]…", help="Run directories, or folders with runs."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="V[,V2…]",
            help="Without RUN: orderings at initialisation. Default: the paper's five.",
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Without RUN: layers, such as 20 or 110.")] = (
        None
    ),
    seed: Annotated[
        int | None, typer.Option(min=0, help="Without RUN: of the weights. Default: 0.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MOMENT",
            help="init, end, or an iteration that --set probe_at=[…] kept. Repeat it for more. "
            "Default: all there are.",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="The first so many test images, in the official order.")
    ] = 512,
    data: DataDir = None,
    device: Device = "auto",
    format: Annotated[ProbeFormat, typer.Option(help="How to write it.")] = ProbeFormat.table,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of on the screen.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw figures there, as SVG and PNG.")
    ] = None,
) -> None:
    """See the signal: what each unit does to it and to the gradient, and what the paper claims.

    Six claims of the paper are asked of what was measured: four of each network, two of runs of two
    orderings with two seeds or more. The answer is: holds, does not hold, or cannot be said from
    this data. They stand below, and docs/why.md says what they mean.

    What was measured on a RUN is saved there as probe.json, for `resvar report`.

    Example:  resvar probe --depth 20 --figures figures
    """
    from resvar.probes.probe import ask, run

    question = ask(images, at, _data(data), device)
    run(runs or [], variant, depth, seed, question, format.value, out, figures)


@app.command()
def bench(
    variant: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="The ordering.")
    ] = "full-preact",
    depth: Annotated[
        list[int] | None, typer.Option(help="Layers. Repeat it for more. Default: 110.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Whose batch and micro-batch: paper, short, …")
    ] = "paper",
    sets: Sets = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE[,…]",
            help="One more contender, with these settings changed, e.g. precision=fp32 or "
            "bn_batch_size=128,threads=1. Repeat it for more.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every contender. Default: torch's own choice.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option(help="Measure plain PyTorch too, and the ratio to it.")
    ] = True,
    floor: Annotated[
        bool, typer.Option("--floor", help="Print the least time of an iteration instead.")
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="One run on all cores against several on fewer.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 7,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="About how long a turn takes; one iteration at least.")
    ] = 2.0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write the figures as JSON.")] = False,
) -> None:
    """Measure what training costs here: speed, memory, and where the time goes.

    The contenders take turns (A B A B …), each in a process of its own: the settings as they are,
    one more for each --compare, and plain PyTorch as people write it (fp32, contiguous, a
    DataLoader with torchvision's transforms, the whole batch at once). Images are made up.

    images/s is the median of the turns, with the slowest and the fastest. ratio is against plain
    PyTorch, turn by turn. "of ceiling" is what the network counts in FLOP (forward and backward:
    three times forward) against a large matrix product measured in the same run. memory is what an
    iteration adds to the process at most.

    Example:  resvar bench --depth 20 --compare precision=fp32 --compare bn_batch_size=128
    """
    from resvar.bench import bench as benches
    from resvar.bench.contenders import BenchOptions

    if floor and sweep:
        raise UserError("--floor and --sweep are two questions; ask one at a time.")
    options = BenchOptions(
        variant=variant,
        protocol=protocol,
        depths=depth or [110],
        overrides=sets or (),
        compared=compare or (),
        threads=threads,
        baseline=baseline,
        device=device,
        rounds=rounds,
        seconds=seconds,
        as_json=as_json,
    )
    if floor:
        benches.bench_floor(options)
    elif sweep:
        benches.bench_sweep(options)
    else:
        benches.bench_contenders(options)


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT|FILE",
            help="A run directory, a checkpoint inside one, or an exported .safetensors file.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Ends in .safetensors, .onnx, or .pt for torchvision."),
    ],
    to: Annotated[
        ExportFormat | None, typer.Option(help="The format. Default: what FILE ends in.")
    ] = None,
    data: DataDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
) -> None:
    """Write a trained network for others: safetensors, ONNX, or a state dict for torchvision.

    safetensors and ONNX files say in their metadata what network it is and, where the dataset is
    here, how images are normalised; resvar.load_model(FILE) reads the former. A state dict for
    torchvision is of ImageNet networks in the ordering 'original'.

    Example:  resvar export runs/quick/full-preact-20/seed-0 --out full-preact-20.safetensors
    """
    from resvar.evaluation.commands import export_source

    export_source(source, out, None if to is None else to.value, data, force)


@app.command()
def show(
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="V[,V2…]",
            help="Orderings by name or YAML file, separated by commas. Default: full-preact.",
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Layers. Default: 164; for imagenet 50.")
    ] = None,
    family: Annotated[FamilyName | None, typer.Option(help="Default: cifar.")] = None,
    cardinality: Annotated[
        int | None, typer.Option(help="Groups of the 3×3 convolution (ResNeXt). Default: 1.")
    ] = None,
    base_width: Annotated[
        int | None, typer.Option(help="Channels per group in the first stage. Default: 64.")
    ] = None,
    stem: Annotated[
        FamilyName | None,
        typer.Option(help="3×3 (cifar), or 7×7 and pooling (imagenet). Default: the family's."),
    ] = None,
    shortcut: Annotated[
        ShortcutName | None, typer.Option(help="Where the shape changes. Default: the paper's.")
    ] = None,
    unit: Annotated[
        UnitName | None, typer.Option(help="Needed only for depths that fit both.")
    ] = None,
    stride_on: Annotated[
        StrideName | None,
        typer.Option(help="Convolution with the stride. Default: first; for imagenet 3x3."),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(min=1, help="Default: 10; with the imagenet stem 1000."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Two networks by name, such as resnet50 resnext50_32x4d, in their original "
            "ordering unless --variant gives one, or one for each.",
        ),
    ] = None,
    format: Annotated[ShowFormat, typer.Option(help="How to write it.")] = ShowFormat.table,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the unit there as well.")
    ] = None,
) -> None:
    """Explain a network: the unit drawn, the stages, layers, parameters, multiply-adds.

    Nothing is trained. Typed alone, it shows the default network and says how to read it.

    Example:  resvar show --compare resnet50 resnet101
    """
    from resvar.explain.show import show_networks

    options = {
        "depth": depth,
        "family": family,
        "cardinality": cardinality,
        "base_width": base_width,
        "stem": stem,
        "shortcut": shortcut,
        "unit": unit,
        "stride_on": stride_on,
    }
    plain = {key: getattr(value, "value", value) for key, value in options.items()}
    show_networks(variant, plain, compare, num_classes, format.value, out)


@app.command()
def data(
    dir: Annotated[
        Path | None,
        # Named, since Typer 0.27 takes a metavar for the name where the two differ in case alone.
        typer.Option(
            "--dir", metavar="DIR", help="Where it goes. Default: $RESVAR_DATA, else data/."
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take it from a local archive: tar.gz, tar.xz, …"),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Download from a mirror instead of the source."),
    ] = None,
    dataset: Annotated[DatasetName, typer.Option(help="Which one.")] = DatasetName.cifar10,
) -> None:
    """Get CIFAR and check it: download it, or take a local archive.

    Every file's published MD5 is checked before anything is used. A download that was cut goes on
    where it stopped.
    """
    from resvar.data.cifar import DATASETS
    from resvar.data.obtain import obtain

    wanted, folder = DATASETS[dataset.value], _data(dir)
    new = obtain(wanted, folder, archive=archive, url=url)
    typer.echo(
        f"{folder / wanted.folder}: {wanted.title} is {'now' if new else 'already'} here; all "
        f"{len(wanted.files)} files have their published MD5."
    )


def _data(folder: Path | None) -> Path:
    from resvar.data.cifar import default_folder

    return folder if folder is not None else default_folder()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; leaves with one of the exit codes above."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name of no encoding is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    _let_threads_wait_briefly(os.environ)
    code = run_command(arguments)
    exec("")  # else Python, interrupted in an earlier one, would leave by a signal, not with a code
    sys.exit(code)


def _let_threads_wait_briefly(environment: MutableMapping[str, str]) -> None:
    """A thread of torch's that waits for the others gives its core away after about 0.1 ms.

    As it comes, GNU's OpenMP spins for some milliseconds first. Where another process wants that
    core, each of the thousands of meetings in an iteration then costs a time slice: on two cores
    with one process beside it ResNet-164 took 32 s an iteration instead of 1, and so 4.5 s. Must
    be said before torch loads; a choice of the user's own stands.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "10000")


def run_command(arguments: list[str] | None = None) -> int:
    """The exit code of a command line (default: this process's own)."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
    try:
        return _code_of(arguments)
    except KeyboardInterrupt:  # while an error was being said
        return _complain(STOPPED, Stopped.exit_code)
    finally:
        _wait_no_more()


def _code_of(arguments: list[str] | None) -> int:
    try:
        code: Any = typer.main.get_command(app).main(
            arguments, prog_name="resvar", standalone_mode=False
        )
        if code == Stopped.exit_code:  # Typer's answer to KeyboardInterrupt
            return _complain(STOPPED, code)
        return code if isinstance(code, int) else 0
    except (UserError, RunError) as error:
        return _complain(str(error), error.exit_code)
    except Stopped as stopped:
        print(f"resvar: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except PeerFailure as echo:
        return echo.exit_code
    except KeyboardInterrupt:
        return _complain(STOPPED, Stopped.exit_code)
    except BrokenPipeError:
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}.", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: an unknown option, a missing value
            return _complain(f"{error.format_message().rstrip('.')}. Try --help.", 2)
        if type(error).__name__ == "Abort":
            return _complain(STOPPED, Stopped.exit_code)
        raise


STOPPED = "stopped; the same command goes on from what is saved."


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Ctrl-C and SIGTERM outside the training loop, which listens for itself.

    What is being imported is imported to its end first: interrupted there, torch aborts.
    """
    del signum
    if _importing(frame) and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return
    raise KeyboardInterrupt


def _wait_no_more() -> None:
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is _interrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _complain(sentence: str, code: int) -> int:
    print(f"resvar: error: {sentence}", file=sys.stderr)
    return code
