"""Which runs are comparable: those with the same label.

A label names the protocol, and every setting with an effect in which a run deviates from it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from resvar.files import shipped
from resvar.settings import TRAINING_HALF, Settings, network_deviations
from resvar.strict_yaml import read_yaml


def label_of(settings: Settings) -> str:
    """The label that runs in one table share, apart from their dataset.

    The protocol, and in parentheses every setting that deviates from it or from the usual network
    of this depth: `quick (iterations=5, lr=0.05)`. A protocol that is not shipped is identified by
    the first digits of a hash over its values, `mine (3f09c2)`, since its name may mean anything.
    Settings without effect, such as Muon's for a run with SGD, do not count.
    """
    network = [f"{key}={shown(value)}" for key, value in network_deviations(settings).items()]
    if settings.protocol in shipped("protocols"):
        training = [f"{key}={shown(value)}" for key, value in deviations(settings).items()]
    else:
        values = effective(settings).model_dump(include=set(TRAINING_HALF))
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        training = [digest[:6]]
    differing = ", ".join(training + network)
    return f"{settings.protocol} ({differing})" if differing else settings.protocol


def follows_paper(settings: Settings) -> bool:
    """Whether protocol, images and network are the paper's: its figures are comparable."""
    return (
        settings.protocol == "paper"
        and settings.dataset != "sample"
        and not deviations(settings)
        and not network_deviations(settings)
    )


def shown(value: Any) -> str:
    """A setting's value in the syntax of `--set`."""
    return value if isinstance(value, str) else json.dumps(value)


def deviations(settings: Settings) -> dict[str, Any]:
    """The training settings with an effect in which a run deviates from its shipped protocol.

    Of a protocol that is not shipped, every such setting that is not at its default.
    """
    usual = _usual_training(settings.protocol)
    values = effective(settings).model_dump(include=set(usual))
    return {name: values[name] for name in usual if values[name] != usual[name]}


def effective(settings: Settings) -> Settings:
    """The settings, with those without effect as the shipped protocol, or their default, has them.

    Runs whose effective settings are equal have the same bits.
    """
    usual = _usual_training(settings.protocol)
    return settings.model_copy(update={name: usual[name] for name in without_effect(settings)})


def without_effect(settings: Settings) -> frozenset[str]:
    """The training settings that change no bit of a run with these other settings.

    This states once what `training/optim.py`, `training/schedule.py` and `data/` do not read. The
    settings that decide it always have an effect, or are in the list themselves.
    """
    s = settings
    idle = {
        "milestones": s.schedule != "step",
        "lr_factor": s.schedule != "step" or not s.milestones,
        "warmup_iterations": s.schedule != "step",
        "warmup_lr": s.schedule == "step" and not s.warmup_iterations,
        "peak_at": s.schedule != "one-cycle",
        "muon_lr": s.optimizer != "muon",
        "muon_decay": s.optimizer != "muon",
        "weight_decay_on": s.weight_decay == 0,
        "crop_padding": s.dataset == "folder",
    }
    return frozenset(name for name, is_idle in idle.items() if is_idle)


def _usual_training(protocol: str) -> dict[str, Any]:
    """The training settings of a shipped protocol; the defaults of another one."""
    path = shipped("protocols").get(protocol)
    prescribed = read_yaml(path) if path is not None else {}
    defaults = {name: Settings.model_fields[name].default for name in TRAINING_HALF}
    return defaults | {name: prescribed[name] for name in TRAINING_HALF if name in prescribed}
