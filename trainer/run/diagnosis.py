"""What is measured on a network before its training: whether it can learn, how fast, and with which learning rate.

Each function starts from the same initial weights and leaves them as they were.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.schema import Config
from trainer.config.tasks import CLASSIFICATION
from trainer.run.parts import Parts
from trainer.totals import Batch

FEW_EXAMPLES = 32  # that are learnt by heart
MOST_STEPS, MOST_SECONDS = 500, 10.0  # of each measurement
MOST_NEED = 50  # steps in which most networks learn a few examples
RANGE = (1e-6, 10.0)  # learning rates that are tried
NUM_RATES = 100  # how many
TOO_MUCH = 4.0  # a loss so many times the least one is that of a rate that is too large
MEMORY = 0.8  # of the mean loss, for each step before
SATURATED = 0.01  # a sigmoid that stays this close to 0 or 1 has no gradient


class Patient:
    """A network with its initial weights, to which every measurement returns."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config, self.parts = config, parts
        self.initial = copy.deepcopy(parts.model.state_dict())
        self.unused = copy.deepcopy(parts.optimizer.state_dict())  # with a group of its own for a backbone

    def fresh(self, lr_at: Callable[[int], float]) -> Parts:
        """The parts with the initial weights, a new optimizer, and this learning rate."""
        parts = self.parts
        parts.model.load_state_dict(self.initial)
        parts.optimizer.load_state_dict(copy.deepcopy(self.unused))
        return replace(parts, lr_at=lr_at, update=replace(parts.update, ema=None))

    def losses(self, parts: Parts, batches: Iterator[Batch]) -> Iterator[tuple[float, float]]:
        """Train on batches, and yield the mean loss and the share of right ones of each, before its step."""
        totals, before, right, seen = parts.totals(), 0.0, 0, 0
        for _ in parts.steps(batches, 0, totals):
            loss, hits, n = float(totals.loss_sum), int(totals.num_correct), totals.num_examples
            yield (loss - before) / (n - seen), (hits - right) / (n - seen)
            before, right, seen = loss, hits, n


def endless(parts: Parts) -> Iterator[Batch]:
    """The batches of one epoch after the other."""
    epoch = 1
    while True:
        with closing(parts.train.epoch(epoch)) as batches:
            yield from batches
        epoch += 1


@dataclass(frozen=True)
class Lesson:
    """What became of a few examples that were trained on again and again."""

    steps: int
    first: float  # the loss of the initial weights
    last: float
    right: float  # the share of right ones at the end
    is_learnt: bool
    is_late: bool = False  # whether the time was over before it could be told


def learnt_by_heart(patient: Patient, batch: Batch) -> Lesson:
    """Train on a few examples until they are known."""
    x, y = batch[0][:FEW_EXAMPLES], batch[1][:FEW_EXAMPLES]
    lr, is_named = patient.config.optimizer["lr"], bool(patient.parts.splits.classes)
    parts, until = patient.fresh(lambda _: lr), time.monotonic() + MOST_SECONDS
    lesson = Lesson(0, math.nan, math.nan, 0.0, False)
    for steps, (loss, right) in enumerate(patient.losses(parts, ((x, y) for _ in range(MOST_STEPS)))):
        first = loss if steps == 0 else lesson.first
        is_late = steps < MOST_NEED and time.monotonic() > until
        lesson = Lesson(steps, first, loss, right, loss < first / 10 and (right == 1 or not is_named), is_late)
        if lesson.is_learnt or not math.isfinite(loss) or time.monotonic() > until:
            break
    return lesson


def silent_units(patient: Patient, batch: Batch) -> list[tuple[str, int, int]]:
    """(layer, units, how many of them have no gradient for any example) of each ReLU, sigmoid and tanh."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in patient.parts.model.named_modules():
        kind = type(module).__name__
        if kind in ("ReLU", "ReLU6", "Sigmoid", "Tanh"):

            def note(_: nn.Module, __: Any, y: Tensor, name: str = name, kind: str = kind) -> None:
                values = y.detach().float().transpose(0, 1).flatten(1)  # a row for each unit or channel
                if kind.startswith("ReLU"):
                    silent = (values <= 0).all(dim=1)
                else:
                    low = 0.0 if kind == "Sigmoid" else -1.0
                    silent = ((values - low < SATURATED) | (1 - values < SATURATED)).all(dim=1)
                found[name] = silent  # of the last call, where a layer is called several times

            hooks.append(module.register_forward_hook(note))
    patient.fresh(lambda _: 0.0)
    patient.parts.model.train()
    with torch.no_grad(), patient.parts.machine.autocast():
        patient.parts.model(batch[0])
    for hook in hooks:
        hook.remove()
    return [(name, len(silent), int(silent.sum())) for name, silent in found.items()]


def gradient_norms(patient: Patient, batch: Batch) -> dict[str, float]:
    """The length of the gradient of each weight that has more than one axis, in the first step."""
    parts = patient.fresh(lambda _: 0.0)
    parts = replace(parts, update=replace(parts.update, clip_norm=0.0))  # else they would all be clipped
    for _ in parts.steps([batch], 0, parts.totals()):
        pass
    named = parts.model.named_parameters()
    return {name: float(p.grad.float().norm()) for name, p in named if p.grad is not None and p.dim() > 1}


def examples_per_second(patient: Patient) -> float:
    """How many examples are trained in a second, reading and augmenting included; the first step does not count."""
    lr = patient.config.optimizer["lr"]
    parts = patient.fresh(lambda _: lr)
    totals, start, seen = parts.totals(), 0.0, 0
    for step in parts.steps(endless(parts), 0, totals):
        if step == 1:
            float(totals.loss_sum)  # waits for a GPU
            start, seen = time.perf_counter(), totals.num_examples
        elif step == MOST_STEPS or time.perf_counter() - start > MOST_SECONDS / 4:
            break
    float(totals.loss_sum)
    return (totals.num_examples - seen) / (time.perf_counter() - start)


def range_test(patient: Patient) -> list[tuple[float, float]]:
    """(learning rate, running mean of the loss) while the rate grows from step to step, until the loss is lost."""
    low, high = RANGE
    rates = [low * (high / low) ** (i / (NUM_RATES - 1)) for i in range(NUM_RATES)]
    parts = patient.fresh(lambda step: rates[min(step, NUM_RATES - 1)])
    mean, least, points = 0.0, math.inf, []
    until = time.monotonic() + 3 * MOST_SECONDS
    for i, (loss, _) in enumerate(patient.losses(parts, endless(parts))):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        smooth = mean / (1 - MEMORY ** (i + 1))
        if not math.isfinite(smooth) or smooth > TOO_MUCH * least or i + 1 == NUM_RATES or time.monotonic() > until:
            break
        points.append((rates[i], smooth))  # the loss before the step of this rate: that of the rates before
        least = min(least, smooth)
    return points


def suggested(points: list[tuple[float, float]]) -> float | None:
    """A tenth of the learning rate at which the loss was least, to one digit; None where no rate made it smaller."""
    if len(points) < NUM_RATES // 10:
        return None
    best, least = min(points, key=lambda point: point[1])
    if least > 0.98 * points[0][1]:
        return None
    return float(f"{best / 10:.0e}")


def expected_loss(patient: Patient) -> float | None:
    """The loss of a network that knows nothing, ln K; None for a regression or another loss than cross entropy."""
    splits = patient.parts.splits
    is_one = splits.task == CLASSIFICATION and patient.config.loss.name in ("cross_entropy", "auto")
    return math.log(splits.num_outputs) if is_one else None
