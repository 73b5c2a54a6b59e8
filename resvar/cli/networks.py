"""The commands that measure, explain and export networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

import resvar.cli.options as opt
from resvar.api import data_folder
from resvar.cli import completion
from resvar.cli.help import HYPHEN, PlainCommand
from resvar.errors import UserError, require_given
from resvar.models.architecture import Family

ListKind = Literal["orderings", "protocols", "sweeps", "launchers", "datasets", "depths"]
ModelFormat = Literal["safetensors", "torchvision", "onnx"]


def evaluate_command(
    source: opt.SourceArgument,
    data: opt.DataOption = None,
    device: opt.DeviceOption = "auto",
    format: Annotated[opt.TextFormat | None, opt.format_option(opt.TextFormat)] = None,
    out: opt.OutOption = None,
) -> None:
    """Measure a trained network on its test set.

    It prints errors by class, the confusion matrix and the calibration, and compares the
    predictions with the recorded ones.

    Example:  resvar evaluate runs/quick/full-preact-20/seed-0
    """
    from resvar.evaluation.commands import evaluate_source

    evaluate_source(source, data_folder(data), device, format, out)


class ProbeHelp(PlainCommand):
    """The help ends with the claims and their thresholds, taken from their definitions."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        del ctx
        from resvar.probes.claims import CLAIMS

        with formatter.section("Claims"):
            formatter.write_dl([(claim.name, claim.help.replace("-", HYPHEN)) for claim in CLAIMS])


def probe_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]…", help="Run directories, or folders with runs.", parser=opt.parse_path
        ),
    ] = None,
    variant: Annotated[
        str | None,
        opt.value(
            "V[,V2…]",
            "Without RUN: orderings, at initialisation. Default: the paper's five.",
            autocompletion=completion.complete_variant,
        ),
    ] = None,
    depth: Annotated[int | None, opt.number("Without RUN: layers, such as 20 or 110.")] = None,
    seed: Annotated[
        int | None, opt.number("Without RUN: seed of the weights. Default: 0.", least=0)
    ] = None,
    at: Annotated[
        list[str] | None,
        opt.value(
            "MOMENT",
            "init, end, or an iteration of the run's setting probe_at. Repeatable. Default: all.",
        ),
    ] = None,
    images: Annotated[
        int, opt.number("Test images, from the first in the official order.", least=1)
    ] = 512,
    data: opt.DataOption = None,
    device: opt.DeviceOption = "auto",
    format: Annotated[opt.PageFormat | None, opt.format_option(opt.PageFormat)] = None,
    out: opt.OutOption = None,
    figures: opt.FiguresOption = None,
) -> None:
    """Measure the signal in each unit, and test the paper's claims.

    It measures what a unit does to the signal and to its gradient. Seven claims of the paper are
    tested: four on each network, one on original after training, two on the runs of two orderings,
    with four seeds or more of each. A claim is supported, not supported, or inconclusive. The
    claims are listed below; docs/why.md explains them.

    The measurements of a RUN are saved in it as probe.json, for `resvar report`.

    Example:  resvar probe --depth 20 --figures figures
    """
    from resvar.probes.command import ProbeOptions, run_probe

    options = ProbeOptions.parse(images, at or (), data_folder(data), device)
    run_probe(runs or [], variant, depth, seed, options, format, out, figures)


def bench_command(
    variant: Annotated[str, opt.setting("variant", "full-preact")] = "full-preact",
    depth: Annotated[
        list[int] | None, opt.number("Layers. Repeatable. Default: 110.", least=1)
    ] = None,
    protocol: Annotated[str, opt.setting("protocol")] = "paper",
    sets: opt.SetOption = None,
    compare: Annotated[
        list[str] | None,
        opt.value(
            "KEY=VALUE[,…]",
            "One more contender, with these settings changed, e.g. precision=fp32 or "
            "bn_batch_size=128,threads=1. Repeatable.",
        ),
    ] = None,
    threads: Annotated[
        int | None, opt.number("Threads of a contender. Default: torch's choice.", least=1)
    ] = None,
    baseline: Annotated[
        bool, typer.Option(help="Measure plain PyTorch too, and the ratio to it.")
    ] = True,
    floor: Annotated[
        bool, opt.flag("--floor", "Print a lower bound on the time per iteration instead.")
    ] = False,
    sweep: Annotated[
        bool, opt.flag("--sweep", "Compare one run on all cores with several on fewer.")
    ] = False,
    rounds: Annotated[int, opt.number("Turns per contender.", least=1)] = 7,
    seconds: Annotated[
        float,
        opt.value(
            "SECONDS",
            "Length of a turn in seconds; at least one iteration.",
            parser=opt.parse_seconds,
        ),
    ] = 2.0,
    device: opt.DeviceOption = "auto",
    as_json: Annotated[bool, opt.flag("--json", "Print the figures as JSON.")] = False,
    out: Annotated[
        Path | None,
        opt.out_file(help="Write to FILE instead of the screen; FILE.json gets the figures."),
    ] = None,
) -> None:
    """Measure the speed of training here, its memory and its parts.

    The contenders take turns (A B A B …), each in its own process: the given settings, one more
    for each --compare, and PyTorch code as commonly written (fp32, contiguous, a DataLoader with
    torchvision's transforms, the whole batch at once). The images are random.

    images/s is the median of the turns, with the slowest and the fastest. ratio is to plain
    PyTorch, turn by turn. "of ceiling" is the network's FLOP (forward and backward: three times
    forward) relative to a large matrix product measured in the same run. memory is the peak that
    an iteration adds to the process.

    Example:  resvar bench --depth 20 --compare precision=fp32
    """
    from resvar.bench import bench as benches
    from resvar.bench.contenders import BenchOptions
    from resvar.console import output_format

    if floor and sweep:
        raise UserError("--floor and --sweep cannot be combined; use one at a time.")
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
        format=output_format(out, "json" if as_json else None, ("table", "json")),
        out=out,
    )
    if floor:
        benches.bench_floor(options)
    elif sweep:
        benches.bench_sweep(options)
    else:
        benches.bench_contenders(options)


def export_command(
    source: opt.OptionalSourceArgument = None,
    out: Annotated[
        Path | None, opt.out_file("FILE", "Ends in .safetensors, .onnx, or .pt for torchvision.")
    ] = None,
    to: Annotated[
        ModelFormat | None, opt.choice(ModelFormat, "File format. Default: by the suffix of FILE.")
    ] = None,
    data: opt.DataOption = None,
    force: Annotated[bool, opt.flag("--force", "Replace FILE if it exists.")] = False,
) -> None:
    """Write a trained network as safetensors, ONNX or state dict.

    The metadata of safetensors and ONNX files describes the network and, if the dataset is here,
    how images are normalised; resvar.load_model(FILE) reads safetensors. A state dict for
    torchvision exists only for ImageNet networks in the ordering 'original'.

    Example:  resvar export runs/quick/full-preact-20/seed-0 --out v2.onnx
    """
    example = "resvar export runs/quick/full-preact-20/seed-0 --out v2.onnx"
    require_given({opt.SOURCE_METAVAR: source, "--out FILE": out}, example)
    assert source is not None
    assert out is not None
    from resvar.evaluation.commands import export_source

    export_source(source, out, to, data, force)


def show_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]…",
            help="Networks (resnet50, resnext50_32x4d, resnetv2_50, preact_resnet110), orderings "
            "(original, v2, mine.yaml), or both (full-preact-110). Default: full-preact-164.",
            autocompletion=completion.complete_network,
        ),
    ] = None,
    compare: Annotated[
        bool, opt.flag("--compare", "Mark what differs between two networks.")
    ] = False,
    table: Annotated[
        Family | None,
        opt.choice(Family, "Show the whole family in one table, in the ordering original or NAME."),
    ] = None,
    variant: Annotated[
        str | None,
        opt.value(
            "V[,V2…]",
            "Orderings by name or YAML file, separated by commas: one for all names, or one for "
            "each. Default: that of the name, or original; without a name full-preact.",
            autocompletion=completion.complete_variant,
        ),
    ] = None,
    depth: Annotated[int | None, opt.setting("depth", "164; for imagenet 50")] = None,
    family: opt.FamilyOption = None,
    cardinality: opt.CardinalityOption = None,
    base_width: opt.BaseWidthOption = None,
    stem: opt.StemOption = None,
    shortcut: opt.ShortcutOption = None,
    unit: opt.UnitOption = None,
    stride_on: opt.StrideOnOption = None,
    num_classes: Annotated[
        int | None, opt.setting("num_classes", "10; with the imagenet stem 1000", least=1)
    ] = None,
    format: Annotated[opt.PageFormat | None, opt.format_option(opt.PageFormat)] = None,
    out: Annotated[
        Path | None,
        opt.out_file("FILE", "Write to FILE; FILE.svg gets the units drawn, or the family."),
    ] = None,
) -> None:
    """Explain networks: their units, stages, parameters and cost.

    Nothing is trained. Without options it shows the default network and how to read the tables.

    Example:  resvar show resnet50

    Example:  resvar show --compare original full-preact

    Example:  resvar show --table imagenet --out table.svg
    """
    from resvar.explain.show import show_networks

    options = {
        "depth": depth, "family": family, "cardinality": cardinality, "base_width": base_width,
        "stem": stem, "shortcut": shortcut, "unit": unit, "stride_on": stride_on,
    }  # fmt: skip
    show_networks(names or (), variant, options, compare, table, num_classes, format, out)


def identify_command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:CALLABLE",
            help="A module, or a FILE.py, and what builds the network there.",
        ),
    ] = None,
    kwargs: Annotated[
        str | None,
        opt.value("KEY=VALUE[,…]", "Arguments of the callable, with values as in Python or YAML."),
    ] = None,
    input: Annotated[
        str | None,
        opt.value("CxHxW", "Shape of an image, such as 3x32x32. Default: by the stem."),
    ] = None,
    format: Annotated[opt.TextFormat | None, opt.format_option(opt.TextFormat)] = None,
    out: opt.OutOption = None,
) -> None:
    """Say which ResNet anybody's PyTorch network is, and what differs.

    It runs that code: it imports the module, calls the callable, and follows the signal through
    every operation, however the network is written. Nothing is unpickled. Where the layers are
    those of a network of resvar, both get the same random weights, and logits and gradients are
    compared.

    It exits with 0 for a known network and with 1 for one that differs.

    Example:  resvar identify mynet.py:resnet110 --kwargs num_classes=10
    """
    example = "resvar identify torchvision.models:resnet50"
    require_given({"MODULE:CALLABLE": target}, example)
    assert target is not None
    from resvar.identification.command import identify_target

    if not identify_target(target, kwargs, input, format, out):
        raise typer.Exit(1)


def settings_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A setting, such as lr. Default: all.",
            autocompletion=completion.complete_setting,
        ),
    ] = None,
    format: Annotated[opt.TextFormat | None, opt.format_option(opt.TextFormat)] = None,
    out: opt.OutOption = None,
) -> None:
    """Explain the settings of a run: default, choices, source in the paper, protocols.

    A setting has the same name in YAML, in --set, in Python and in a run's config.yaml.

    Example:  resvar settings lr
    """
    from resvar.explain.reference import print_settings

    print_settings(name, format, out)


def list_command(
    kind: Annotated[
        ListKind | None,
        typer.Argument(metavar="[KIND]", help=f"One of {', '.join(get_args(ListKind))}."),
    ] = None,
    format: Annotated[opt.TextFormat | None, opt.format_option(opt.TextFormat)] = None,
    out: opt.OutOption = None,
) -> None:
    """List the orderings, protocols, sweeps, launchers, datasets and depths by name.

    Example:  resvar list protocols
    """
    from resvar.explain.reference import print_list

    print_list(kind, format, out)
