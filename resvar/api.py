"""What Python users call: build a network, read runs back.

import resvar
model = resvar.build_model("full-preact", depth=164)
run = resvar.load_run("runs/quick/full-preact-164/seed-0")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resvar.config import Settings
from resvar.errors import UserError
from resvar.rundir import CONFIG, RESULT, read_json, read_metrics, read_settings

if TYPE_CHECKING:
    import pandas
    from torch import nn


@dataclass(frozen=True)
class Run:
    """A run read back: settings, metrics (a row per evaluation), result (None while unfinished)."""

    folder: Path
    config: Settings
    metrics: pandas.DataFrame
    result: dict[str, Any] | None

    @property
    def model(self) -> nn.Module:
        """The network with the weights of the newest checkpoint, in evaluation mode.

        Raises:
            UserError: there is no checkpoint, or not one of this network.
            RunError: all are damaged, or one is of a later version of resvar.
        """
        from resvar.training.checkpoint import load_newest
        from resvar.training.loop import MALFORMED_STATE, build_network

        state = load_newest(self.folder)
        if state is None:
            raise UserError(f"{self.folder}: there is no checkpoint yet.")
        network = build_network(self.config)
        try:
            network.load_state_dict(state["model"])
        except MALFORMED_STATE as error:
            raise UserError(
                f"{self.folder}: the checkpoint does not hold the weights of this run's network."
            ) from error
        return network.eval()


def load_run(folder: str | Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder}: there is no run here ({CONFIG} is missing).")
    return Run(
        folder=folder,
        config=read_settings(folder),
        metrics=read_metrics(folder),
        result=read_json(folder / RESULT) if (folder / RESULT).exists() else None,
    )
