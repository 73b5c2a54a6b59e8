"""Who takes part in a benchmark: settings with a name, and how many threads they get. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resvar.config import Settings, parse_overrides, resolve
from resvar.errors import UserError

THREADS = "threads"
"""The one key of `--compare` that is no setting: it belongs to a process."""

BASELINE = "plain PyTorch"


@dataclass(frozen=True)
class Contender:
    """One way to train: a name, the settings, threads of its process (None: torch's own choice).

    `plain` is the baseline: what people write with PyTorch, in fp32.
    """

    name: str
    settings: Settings
    threads: int | None = None
    plain: bool = False


@dataclass(frozen=True)
class Asked:
    """What the command line says about contenders."""

    variant: str
    protocol: str
    overrides: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    threads: int | None = None
    baseline: bool = True


def contenders(asked: Asked, depth: int) -> list[Contender]:
    """Those of one depth: the settings as they are, one per `--compare`, the baseline last.

    Raises:
        UserError: an unknown or wrong setting, or two contenders that are the same.
    """
    found = [_contender("resvar", asked, depth, ())]
    found += [_contender(text, asked, depth, split(text)) for text in asked.compared]
    if asked.baseline:
        plain = [*asked.overrides, "precision=fp32"]
        plain += [f"{key}=plain" for key in ("kernels",) if key in Settings.model_fields]
        settings = _settings(asked, depth, plain)
        whole = settings.model_copy(update={"bn_batch_size": settings.batch_size})
        found.append(Contender(BASELINE, whole, asked.threads, plain=True))
    seen: dict[tuple[object, ...], str] = {}
    for one in found:
        key = (one.settings.to_yaml(), one.threads, one.plain)
        if key in seen:
            raise UserError(
                f"--compare {one.name}: this is the same as '{seen[key]}'; change a setting."
            )
        seen[key] = one.name
    return found


def split(text: str) -> tuple[str, ...]:
    """`a=1,b=[2,3]` → `("a=1", "b=[2,3]")`: at the commas that a new KEY= follows.

    Raises:
        UserError: a part is no KEY=VALUE.
    """
    parts: list[str] = []
    for piece in text.split(","):
        if "=" in piece:
            parts.append(piece.strip())
        elif parts:
            parts[-1] += f",{piece}"
        else:
            raise UserError(
                f"--compare {text}: write it as KEY=VALUE,…, such as --compare precision=fp32."
            )
    return tuple(parts)


def _contender(name: str, asked: Asked, depth: int, changes: Sequence[str]) -> Contender:
    threads, rest = asked.threads, []
    for change in changes:
        key, _, value = change.partition("=")
        if key == THREADS:
            if not value.isdecimal() or not 1 <= int(value) <= 4096:
                raise UserError(f"--compare {name}: threads must be a number from 1, not {value}.")
            threads = int(value)
        else:
            rest.append(change)
    return Contender(name, _settings(asked, depth, [*asked.overrides, *rest]), threads)


def _settings(asked: Asked, depth: int, overrides: Sequence[str]) -> Settings:
    """The settings; a new batch size brings BN's along unless that is said too."""
    given = parse_overrides(overrides)
    options: dict[str, object] = {
        "variant": asked.variant, "depth": depth, "protocol": asked.protocol,
    }  # fmt: skip
    if "batch_size" in given and "bn_batch_size" not in given:
        options["bn_batch_size"] = given["batch_size"]
    settings = resolve(options=options, overrides=overrides)
    if settings.dataset == "folder":
        raise UserError("'dataset' folder: resvar bench measures on images of CIFAR's size.")
    return settings
