"""`resvar probe`: networks looked into, at initialisation, at saved moments and at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from resvar.config import Settings, resolve
from resvar.console import console_for_output, deliver, duration
from resvar.data.splits import EvalLoader, Splits, open_images
from resvar.errors import UserError
from resvar.evaluation.trained import open_trained
from resvar.export.safetensors_file import load_model
from resvar.models.network import ResidualNetwork
from resvar.models.ordering import PAPER_ORDER
from resvar.probes.deletion import delete_units
from resvar.probes.findings import Moment, Network, Probe, write_probe
from resvar.probes.identity import check_identity
from resvar.probes.outcome import Outcome, when
from resvar.probes.render import print_outcome, render
from resvar.probes.signals import measure_signals
from resvar.probes.verdicts import judge, read_cells
from resvar.reports.records import Record, read_records
from resvar.rundir import CHECKPOINT, PREVIOUS_CHECKPOINT, snapshots
from resvar.training.execution import Execution
from resvar.training.machine import choose_device, device_name
from resvar.training.step import build_network

INITIAL, END = "init", "end"

IDENTITY_IMAGES = 8
"""The identity test runs in fp64 too, which is slow, and a few images tell as much as many."""


@dataclass(frozen=True)
class Question:
    """What is asked: how many images, which moments (empty: all there are), on which device."""

    images: int
    at: tuple[str, ...]
    data: Path
    device: torch.device


@dataclass(frozen=True)
class Wanted:
    """A network to probe at some moments.

    Attributes:
        record: of its run; None for one that was never trained.
        moments: what loads the network and says after which iteration it is, earliest first.
    """

    settings: Settings
    record: Record | None
    moments: Sequence[Callable[[], tuple[ResidualNetwork, int]]]


def probe_runs(folders: Sequence[Path], question: Question) -> Outcome:
    """Probe every run at or below `folders`, and save in each what was found.

    Raises:
        UserError: there is no run, one is damaged, or a moment that was asked for is not there.
        RunError: a signal is not finite.
    """
    records = read_records(folders)
    wanted = [_of_run(record, question.at) for record in records]
    found = _probe(wanted, question)
    for probe, want in zip(found, wanted, strict=True):
        assert want.record is not None
        try:
            write_probe(want.record.folder, probe)
        except OSError as error:
            _say(f"Warning: {want.record.folder}: not saved there ({error.strerror}).")
    cells = read_cells(records)
    return Outcome(found, cells, judge(found, cells))


def probe_variants(
    variants: Sequence[str] | None, depth: int, seed: int, question: Question
) -> Outcome:
    """Probe networks at initialisation; by default the five of the paper.

    Raises:
        UserError: there is no such network, or a moment after the first was asked for.
    """
    if set(question.at) - {INITIAL}:
        raise UserError("--at: a network that belongs to no run is at its initialisation; name RUN")
    wanted = []
    for variant in variants or PAPER_ORDER:
        settings = resolve(options={"variant": variant, "depth": depth, "seed": seed})
        wanted.append(Wanted(settings, None, [_initial(settings)]))
    found = _probe(wanted, question)
    return Outcome(found, (), judge(found, ()))


def run(
    folders: Sequence[Path],
    variants: str | None,
    depth: int | None,
    seed: int | None,
    question: Question,
    format: str,
    out: Path | None,
    figures: Path | None,
) -> None:
    """The command: probe, then print or write.

    Raises:
        UserError: wrong input, or nothing can be written where it was asked for.
        RunError: a signal is not finite.
    """
    if folders:
        if given := [
            name
            for name, value in (("variant", variants), ("depth", depth), ("seed", seed))
            if value is not None
        ]:
            raise UserError(f"--{given[0]}: a RUN says itself what it is; name one or the other.")
        outcome = probe_runs(folders, question)
    else:
        if depth is None:
            raise UserError("say which networks: RUN…, or --depth (and --variant).")
        names = None if variants is None else [name.strip() for name in variants.split(",")]
        outcome = probe_variants(names, depth, seed or 0, question)
    _deliver(outcome, format, out)
    if figures is not None:
        from resvar.probes.pictures import pictures
        from resvar.reports.plotting import write_pictures

        written = write_pictures(pictures(outcome), figures)
        _say(f"Wrote {len(written)} figures to {figures}: {', '.join(p.name for p in written)}.")


def ask(images: int, at: Sequence[str] | None, data: Path, device: str) -> Question:
    """The question of the command line's options.

    Raises:
        UserError: a moment is no `init`, `end` or iteration, or there is no such device.
    """
    for moment in at or ():
        if moment not in (INITIAL, END) and not moment.isdecimal():
            raise UserError(f"--at {moment}: write init, end, or a number of iterations.")
    return Question(images, tuple(at or ()), data, choose_device(device))


def _deliver(outcome: Outcome, format: str, out: Path | None) -> None:
    if out is None and format == "table":
        print_outcome(outcome, console_for_output())
    else:
        deliver(render(outcome, format), out)


# --- which network, at which moments --------------------------------------------------------------


def _of_run(record: Record, at: Sequence[str]) -> Wanted:
    """The moments of a run that are asked for, or all there are."""
    if record.settings is None:
        raise UserError(record.message)
    settings, folder = record.settings, record.folder
    kept = snapshots(folder)
    has_end = any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS_CHECKPOINT))
    if not at:
        between = [str(number) for number in kept if 0 < number < settings.iterations]
        at = (INITIAL, *between, *([END] if has_end else []))
        if not has_end:
            _say(f"{folder}: no checkpoint is here, so only the earlier moments are probed.")
    moments = []
    for moment in sorted(set(at), key=lambda word: _rank(word)):
        if moment == INITIAL:
            moments.append(_initial(settings))
        elif moment == END:
            moments.append(_end(folder))
        elif int(moment) in kept:
            moments.append(_snapshot(kept[int(moment)], settings))
        else:
            have = ", ".join(map(str, kept)) or "none"
            raise UserError(
                f"{folder}: no weights are kept of iteration {moment} (kept are: {have}); "
                f"train with --set probe_at=[{moment}]."
            )
    return Wanted(settings, record, moments)


def _rank(moment: str) -> float:
    return {INITIAL: -1.0, END: float("inf")}.get(moment) or float(moment)


def _initial(settings: Settings) -> Callable[[], tuple[ResidualNetwork, int]]:
    return lambda: (build_network(settings), 0)


def _snapshot(path: Path, settings: Settings) -> Callable[[], tuple[ResidualNetwork, int]]:
    def load() -> tuple[ResidualNetwork, int]:
        network = load_model(path)
        provenance = network.provenance
        if provenance.settings is None or provenance.settings.hash != settings.hash:
            raise UserError(f"{path}: these weights belong to a run with other settings.")
        return network, provenance.iteration or 0

    return load


def _end(folder: Path) -> Callable[[], tuple[ResidualNetwork, int]]:
    def load() -> tuple[ResidualNetwork, int]:
        trained = open_trained(folder)
        return trained.network, trained.provenance.iteration or 0

    return load


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class _Tests:
    """The first test images of each dataset that is needed, normalised, opened once."""

    question: Question
    opened: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, settings: Settings) -> tuple[Tensor, Tensor]:
        """Images float [N, 3, H, W] and labels int64 [N], on the device."""
        key = settings.dataset, settings.normalize, settings.holdout, settings.image_size
        if key not in self.opened:
            asked = self.question
            test = Splits.prepare(open_images(settings, asked.data), settings, asked.device).test
            self.opened[key] = _first(test, asked.images)
        return self.opened[key]


def _first(test: EvalLoader, count: int) -> tuple[Tensor, Tensor]:
    if count > len(test.labels):
        raise UserError(f"--images {count}: the test set has {len(test.labels):,} images only.")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for some, theirs in test:
        images.append(some)
        labels.append(theirs)
        if sum(map(len, labels)) >= count:
            break
    return torch.cat(images)[:count].contiguous(), torch.cat(labels)[:count]


def _probe(wanted: Sequence[Wanted], question: Question) -> list[Probe]:
    tests = _Tests(question)
    found = []
    for want in wanted:
        plan = Execution.for_inference(want.settings, question.device)
        plan.prepare_process()
        settings = plan.settings
        images, labels = tests.of(settings)
        begun = time.monotonic()
        moments = []
        for at, load in enumerate(want.moments, start=1):
            network, iteration = load()
            _say(f"{settings.variant}-{settings.depth}, seed {settings.seed}: {when(iteration)} …")
            # Deletion is costly, and said of trained networks: the last one will do.
            delete = at == len(want.moments) and iteration > 0
            moments.append(_measure(network, iteration, images, labels, plan, delete))
        seconds = time.monotonic() - begun
        _say(f"  done in {duration(seconds)}.")
        found.append(
            Probe(
                network=Network.of(settings),
                config_hash=None if want.record is None else want.settings.hash,
                images=len(labels),
                bn_images=min(settings.bn_batch_size, len(labels)),
                device=device_name(question.device),
                seconds=seconds,
                moments=moments,
            )
        )
    return found


def _measure(
    network: ResidualNetwork,
    iteration: int,
    images: Tensor,
    labels: Tensor,
    plan: Execution,
    delete: bool,
) -> Moment:
    in_fp32 = plan.settings.model_copy(update={"precision": "fp32"})
    network = Execution.for_inference(in_fp32, images.device).to_device(network)
    signals = measure_signals(network, images, labels, plan.settings.bn_batch_size)
    few = slice(0, IDENTITY_IMAGES)
    return Moment(
        iteration=iteration,
        loss=signals.loss,
        end_gradient=signals.end_gradient,
        units=signals.units,
        identity=check_identity(network, images[few], labels[few]),
        deletion=delete_units(network, images, labels, plan) if delete else None,
    )


def _say(text: str) -> None:
    """On stderr, so that what the command writes stays clean."""
    print(text, file=sys.stderr)
