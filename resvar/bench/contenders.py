"""The contenders of a benchmark: named settings with a number of threads. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resvar.config import parse_overrides, resolve
from resvar.errors import UserError, shortened
from resvar.settings import Settings
from resvar.strict_yaml import whole_number

THREADS = "threads"
"""The one key of `--compare` that is not a setting: it belongs to a process."""

BASELINE = "plain PyTorch"


@dataclass(frozen=True)
class Contender:
    """One way to train: a name, the settings, threads of its process (None: torch's default).

    `plain` marks the baseline, `examples/plain.py` in fp32.
    """

    name: str
    settings: Settings
    threads: int | None = None
    plain: bool = False


@dataclass(frozen=True)
class BenchOptions:
    """The command line of `resvar bench`; a turn takes about `seconds`."""

    variant: str
    protocol: str
    depths: Sequence[int] = (110,)
    overrides: Sequence[str] = ()
    compared: Sequence[str] = ()
    threads: int | None = None
    baseline: bool = True
    device: str = "auto"
    rounds: int = 7
    seconds: float = 2.0
    format: str = "table"
    out: Path | None = None

    def contenders(self, depth: int) -> list[Contender]:
        """The plain command line, then one contender per `--compare`, then the baseline.

        Raises:
            UserError: an unknown or wrong setting, or two equal contenders.
        """
        found = [self._contender("resvar", depth, ())]
        found += [self._contender(text, depth, split_changes(text)) for text in self.compared]
        if self.baseline:
            settings = self._settings(depth, ("precision=fp32", "kernels=plain"))
            whole = settings.model_copy(update={"bn_batch_size": settings.batch_size})
            found.append(Contender(BASELINE, whole, self.threads, plain=True))
        seen: dict[tuple[object, ...], str] = {}
        for one in found:
            key = (one.settings.to_yaml(), one.threads, one.plain)
            if key in seen:
                raise UserError(
                    f"--compare {one.name}: this is the same as '{seen[key]}'; change a setting."
                )
            seen[key] = one.name
        return found

    def _settings(self, depth: int, changes: Sequence[str] = ()) -> Settings:
        """The settings with KEY=VALUE changes; a new batch size applies to BN too by default."""
        overrides = [*self.overrides, *changes]
        given = parse_overrides(overrides)
        options: dict[str, object] = {
            "variant": self.variant, "depth": depth, "protocol": self.protocol,
        }  # fmt: skip
        if "batch_size" in given and "bn_batch_size" not in given:
            options["bn_batch_size"] = given["batch_size"]
        settings = resolve(options=options, overrides=overrides)
        if settings.dataset == "folder":
            raise UserError("'dataset' folder: resvar bench only measures images of CIFAR's size.")
        return settings

    def _contender(self, name: str, depth: int, changes: Sequence[str]) -> Contender:
        threads, rest = self.threads, []
        for change in changes:
            key, _, value = change.partition("=")
            if key != THREADS:
                rest.append(change)
            elif 1 <= (whole_number(value) or 0) <= 4096:
                threads = int(value)
            else:
                raise UserError(
                    f"--compare {shortened(name)}: threads must be a number from 1 to 4096, not "
                    f"{shortened(value)}."
                )
        return Contender(name, self._settings(depth, rest), threads)


def split_changes(text: str) -> tuple[str, ...]:
    """`a=1,b=[2,3]` → `("a=1", "b=[2,3]")`: splits at each comma that a new KEY= follows.

    Raises:
        UserError: a part is not KEY=VALUE.
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
