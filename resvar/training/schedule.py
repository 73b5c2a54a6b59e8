"""The learning rate as a pure function of the iteration.

`step` is the paper's (arXiv:1603.05027, appendix; arXiv:1512.03385, section 4.2): some iterations
at a low rate, then `lr`, multiplied by `lr_factor` at each milestone. `one-cycle` rises linearly to
`lr` and falls linearly to zero (arXiv:1708.07120), for protocols of a few epochs.
"""

from __future__ import annotations

from resvar.settings import Settings


def learning_rate(iteration: int, settings: Settings) -> float:
    """The rate of update `iteration`, counted from 0."""
    if settings.schedule == "step":
        return _step(iteration, settings)
    return _one_cycle(iteration, settings)


def _step(iteration: int, settings: Settings) -> float:
    if iteration < settings.warmup_iterations:
        return settings.warmup_lr
    passed = sum(iteration >= milestone for milestone in settings.milestones)
    return settings.lr * settings.lr_factor**passed


def _one_cycle(iteration: int, settings: Settings) -> float:
    peak = settings.peak_at * settings.iterations
    if iteration < peak:
        return settings.warmup_lr + (settings.lr - settings.warmup_lr) * iteration / peak
    return settings.lr * (settings.iterations - iteration) / (settings.iterations - peak)
