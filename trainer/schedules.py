"""The learning rate as a pure function of the step: lr(step) = optimizer.lr * factor(step).

A resumed run therefore needs no scheduler state. Steps are parameter updates and count from 0; an epoch has
`steps_per_epoch` of them; `total_steps` is the planned length of the run, after which the last factor stays. The
keyword arguments after these two are the keys of configs/schedule/<name>.yaml, which has the defaults.
"""

import math
from collections.abc import Callable


def constant(step: int, *, steps_per_epoch: int, total_steps: int, warmup_epochs: float) -> float:
    """1 at every step after a linear warm-up."""
    return _warmup(step, warmup_epochs * steps_per_epoch)


def step_decay(
    step: int, *, steps_per_epoch: int, total_steps: int, step_size: int, gamma: float, warmup_epochs: float
) -> float:
    """gamma ** (epoch // step_size), epoch = step // steps_per_epoch, like torch's StepLR; with a linear warm-up."""
    return gamma ** (step // steps_per_epoch // step_size) * _warmup(step, warmup_epochs * steps_per_epoch)


def cosine(step: int, *, steps_per_epoch: int, total_steps: int, warmup_epochs: float, final_factor: float) -> float:
    """Linear from near 0 to 1 over `warmup_epochs`, then half a cosine from 1 to `final_factor` at `total_steps`.

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5, without restarts; without warm-up it is torch's
    CosineAnnealingLR with T_max = total_steps. A warm-up of w steps starts at 1 / (w + 1): a step at 0 is wasted.
    """
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    return _cos(1.0, final_factor, _progress(step, warmup_steps, total_steps))


def onecycle(
    step: int,
    *,
    steps_per_epoch: int,
    total_steps: int,
    warmup_fraction: float,
    initial_factor: float,
    final_factor: float,
    anneal: str,
) -> float:
    """From `initial_factor` to 1 during the first `warmup_fraction` of the run, then to `final_factor` at its end.

    Both parts are straight lines (anneal=linear) or half cosines (anneal=cos).

    Source: Smith & Topin 2018 (arXiv 1708.07120); like torch's OneCycleLR with initial_factor = 1 / div_factor and
    final_factor = initial_factor / final_div_factor. Deviation: the momentum is constant.
    """
    curve = {"linear": _linear, "cos": _cos}[anneal]
    peak = max(0.0, warmup_fraction * total_steps - 1)  # need not be a whole step; torch does the same
    if step <= peak:
        return curve(initial_factor, 1.0, _progress(step, 0, peak))
    return curve(1.0, final_factor, _progress(step, peak, total_steps - 1))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "step": step_decay,
    "cosine": cosine,
    "onecycle": onecycle,
}


def _warmup(step: int, warmup_steps: float) -> float:
    return min(1.0, (step + 1) / (round(warmup_steps) + 1))  # + 1: a first step at a rate of 0 would be lost


def _progress(step: int, start: float, end: float) -> float:
    # 1 beyond the end, and for a part of length 0: the only step of a run is at its peak.
    return min(1.0, (step - start) / (end - start)) if end > start else 1.0


def _linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _cos(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
