"""The command `resvar probe`: measure networks at initialisation, at snapshots and at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resvar.config import resolve
from resvar.console import deliver, deliver_drawn, duration, log, output_format
from resvar.data.splits import Splits, open_images
from resvar.errors import UserError, shortened
from resvar.evaluation.trained import open_trained
from resvar.export.safetensors_file import load_model
from resvar.models.network import ResidualNetwork
from resvar.models.ordering import PAPER_ORDER
from resvar.probes.deletion import delete_units
from resvar.probes.identity import check_identity
from resvar.probes.measurements import Moment, Probe, ProbedNetwork, write_probe
from resvar.probes.render import ProbeResults, print_probe, render_probe
from resvar.probes.runs import read_run_groups
from resvar.probes.series import moment_name
from resvar.probes.signals import measure_signals
from resvar.reports.records import Record
from resvar.reports.search import read_records
from resvar.rundir import CHECKPOINT, PREVIOUS_CHECKPOINT, snapshots
from resvar.settings import Settings
from resvar.strict_yaml import whole_number
from resvar.training.execution import Execution
from resvar.training.machine import choose_device, device_name
from resvar.training.step import build_network

INITIAL, END = "init", "end"

IDENTITY_IMAGES = 8
"""The identity test also runs in fp64, which is slow; a few images suffice."""


@dataclass(frozen=True)
class ProbeOptions:
    """Images per network, moments (empty: all), dataset folder and device."""

    images: int
    at: tuple[str, ...]
    data: Path
    device: torch.device

    @classmethod
    def parse(cls, images: int, at: Sequence[str], data: Path, device: str) -> ProbeOptions:
        """Raises UserError for a moment other than `init`, `end`, a number, or a wrong device."""
        for moment in at:
            if moment not in (INITIAL, END) and whole_number(moment) is None:
                raise UserError(
                    f"--at {shortened(moment)}: use init, end, or a number of iterations."
                )
        return cls(images, tuple(at), data, choose_device(device))


def run_probe(
    folders: Sequence[Path],
    variants: str | None,
    depth: int | None,
    seed: int | None,
    options: ProbeOptions,
    format: str | None,
    out: Path | None,
    figures: Path | None,
) -> None:
    """Probe runs or initial networks; print the results or write them.

    Args:
        format: `table`, `markdown` or `json`; None: by the suffix of `out`.

    Raises:
        UserError: wrong input, or `out` or `figures` cannot be written.
        RunError: a signal is not finite.
    """
    format = output_format(out, format, ("table", "markdown", "json"))
    if folders:
        given = {"variant": variants, "depth": depth, "seed": seed}
        if names := [name for name, value in given.items() if value is not None]:
            raise UserError(f"--{names[0]}: a RUN already determines this; leave one of them out.")
        results = probe_runs(folders, options)
    else:
        if depth is None:
            raise UserError("name the networks: RUN…, or --depth (and --variant).")
        names = [*PAPER_ORDER] if variants is None else [v.strip() for v in variants.split(",")]
        results = probe_variants(names, depth, seed or 0, options)
    if figures is not None:  # first: the reader of the text may leave
        from resvar.probes.pictures import probe_pictures
        from resvar.reports.plotting import write_pictures

        written = write_pictures([*probe_pictures(results)], figures)
        log(f"Wrote {len(written)} figures to {figures}: {', '.join(p.name for p in written)}.")
    if format == "table":
        deliver_drawn(lambda console: print_probe(results, console), out)
    else:
        deliver(render_probe(results, format), out)


def probe_runs(folders: Sequence[Path], options: ProbeOptions) -> ProbeResults:
    """Probe every run at or below `folders`, and save each probe in its run directory.

    Raises:
        UserError: there is no run, a run is damaged, or a moment is missing.
        RunError: a signal is not finite.
    """
    records = read_records(folders)
    targets = [_run_target(record, options.at) for record in records]
    found = _probe_targets(targets, options)
    for record, one in zip(records, found, strict=True):
        try:
            write_probe(record.folder, one)
        except OSError as error:
            log(f"Warning: {record.folder}: the probe is not saved ({error.strerror}).")
    return ProbeResults.of(found, read_run_groups(records))


def probe_variants(
    variants: Sequence[str], depth: int, seed: int, options: ProbeOptions
) -> ProbeResults:
    """Probe networks at initialisation.

    Raises:
        UserError: the network does not exist, or a later moment was requested.
    """
    if set(options.at) - {INITIAL}:
        raise UserError("--at: without a RUN there is only the initialisation; name a RUN.")
    choices = [{"variant": variant, "depth": depth, "seed": seed} for variant in variants]
    targets = [_Target(resolve(options=choice), None, [INITIAL]) for choice in choices]
    return ProbeResults.of(_probe_targets(targets, options))


# --- networks and moments -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """A network at some moments, earliest first; `folder` is its run directory, if any."""

    settings: Settings
    folder: Path | None
    moments: Sequence[str]

    def load(self, moment: str) -> tuple[ResidualNetwork, int]:
        """The network, and the number of updates so far."""
        if moment == INITIAL or self.folder is None:
            return build_network(self.settings), 0
        if moment == END:
            trained = open_trained(self.folder)
            return trained.network, trained.provenance.iteration or 0
        path = snapshots(self.folder)[int(moment)]
        network = load_model(path)
        provenance = network.provenance
        if provenance.settings is None or provenance.settings.hash != self.settings.hash:
            raise UserError(f"{path}: these weights belong to a run with other settings.")
        return network, provenance.iteration or 0


def _run_target(record: Record, at: Sequence[str]) -> _Target:
    """The moments `at` of a run, by default all."""
    if record.settings is None:
        raise UserError(record.message)
    settings, folder = record.settings, record.folder
    kept = snapshots(folder)
    if not at:
        between = [str(number) for number in kept if 0 < number < settings.iterations]
        at = [INITIAL, *between, END]
        if not any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS_CHECKPOINT)):
            log(f"{folder}: there is no checkpoint, so only earlier moments are probed.")
            at = at[:-1]
    rank = {INITIAL: -1.0, END: float("inf")}
    in_order = sorted(set(at), key=lambda moment: rank.get(moment) or float(moment))
    for moment in in_order:
        if moment not in rank and int(moment) not in kept:
            have = ", ".join(map(str, kept)) or "none"
            raise UserError(
                f"{folder}: no weights were kept at iteration {moment} (kept at: {have}); "
                f"train with --set probe_at=[{moment}]."
            )
    return _Target(settings, folder, in_order)


# --- measuring ------------------------------------------------------------------------------------


def _probe_targets(targets: Sequence[_Target], options: ProbeOptions) -> list[Probe]:
    tests: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}  # opens each dataset once
    found = []
    for target in targets:
        plan = Execution.for_inference(target.settings, options.device)
        plan.prepare_process()
        settings = plan.settings
        key = settings.dataset, settings.normalize, settings.holdout, settings.image_size
        if key not in tests:
            tests[key] = _first_images(settings, options)
        images, labels = tests[key]
        begun = time.monotonic()
        moments = []
        for moment in target.moments:
            network, iteration = target.load(moment)
            name = f"{settings.variant}-{settings.depth}, seed {settings.seed}"
            log(f"{name}: {moment_name(iteration)} …")
            # Deletion is slow, so only the last moment of a trained network has it.
            delete = moment == target.moments[-1] and iteration > 0
            moments.append(_measure_moment(network, iteration, images, labels, plan, delete))
        seconds = time.monotonic() - begun
        log(f"  done in {duration(seconds)}.")
        found.append(
            Probe(
                network=ProbedNetwork.of(settings),
                config_hash=None if target.folder is None else target.settings.hash,
                images=len(labels),
                bn_images=min(settings.bn_batch_size, len(labels)),
                device=device_name(options.device),
                seconds=seconds,
                moments=moments,
            )
        )
    return found


def _first_images(settings: Settings, options: ProbeOptions) -> tuple[Tensor, Tensor]:
    """The first test images, normalised: float [N, 3, H, W], and labels int64 [N], on the device.

    Raises:
        UserError: the test set is smaller, or the dataset is missing.
    """
    test = Splits.prepare(open_images(settings, options.data), settings, options.device).test
    if options.images > len(test.labels):
        raise UserError(
            f"--images {options.images}: the test set has only {len(test.labels):,} images."
        )
    images: list[Tensor] = []
    for some, _ in test:
        images.append(some)
        if sum(map(len, images)) >= options.images:
            break
    return torch.cat(images)[: options.images].contiguous(), test.labels[: options.images]


def _measure_moment(
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
        **signals._asdict(),
        identity=check_identity(network, images[few], labels[few]),
        deletion=delete_units(network, images, labels, plan) if delete else None,
    )
