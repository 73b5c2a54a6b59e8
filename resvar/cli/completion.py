"""What the shell completes: names of networks, orderings, protocols, devices, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from resvar.api import ReportPart
from resvar.files import shipped
from resvar.models.names import WELL_KNOWN
from resvar.models.ordering import ALIASES
from resvar.settings import ROLES

Completer = Callable[[str], list[str]]


def completer(names: Callable[[], Iterable[str]]) -> Completer:
    """Complete the last of several words separated by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return complete


complete_variant = completer(lambda: [*ALIASES, *shipped("variants")])
complete_network = completer(lambda: [*WELL_KNOWN, *ALIASES, *shipped("variants")])
complete_protocol = completer(lambda: shipped("protocols"))
complete_sweep = completer(lambda: shipped("sweeps"))
complete_report_part = completer(lambda: get_args(ReportPart))
complete_device = completer(lambda: ["auto", "cpu", "cuda"])
complete_setting = completer(lambda: ROLES)
complete_assignment = completer(lambda: [f"{name}=" for name in ROLES])

NAMES = {"variant": complete_variant, "protocol": complete_protocol}
"""By setting."""
