"""The loop: the only place that orders forward, backward and step. It knows nothing of config, files or screens."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from trainer.totals import Batch, Totals

LossFn = Callable[[Tensor, Tensor], Tensor]
Autocast = Callable[[], AbstractContextManager[object]]


def train_epoch(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    lr_at: Callable[[int], float],
    step: int,
    totals: Totals,
    autocast: Autocast,
    accumulate_steps: int = 1,
    clip_norm: float = 0.0,
    scaler: torch.amp.GradScaler | None = None,
    ema: AveragedModel | None = None,
    world: int = 1,
    sizes: Iterable[int] | None = None,
) -> Iterator[int]:
    """Train on each batch in turn, and hand control back after every step.

    Args:
        model: where several processes train together, in a DistributedDataParallel, which averages their gradients.
        lr_at: learning rate of a step.  step: parameter updates done before.
        totals: gets the loss and the hits of every batch, measured before its update.
        autocast: entered anew for each step (kept open, it would reuse rounded weights from before the update).
        accumulate_steps: parts that a batch is computed in, one after the other, to save memory; their gradients add
            up to that of the whole batch.
        clip_norm: the gradient is scaled down to this L2 norm where it is longer; 0 leaves it.
        scaler: keeps float16 gradients from vanishing.  ema: is moved towards the weights after each step.
        world: processes that train together.  sizes: examples in each whole batch, of which `batches` has the part of
            this process, which may be none; None: the batches are whole.
    Yields:
        The number of parameter updates done.
    """
    model.train()
    distributed = model if isinstance(model, DistributedDataParallel) else None
    for (x, y), size in zip(batches, itertools.repeat(0) if sizes is None else sizes, strict=sizes is not None):
        size = size or len(y)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        optimizer.zero_grad()
        parts = [(x, y)]
        if accumulate_steps > 1:
            parts = list(zip(x.chunk(accumulate_steps), y.chunk(accumulate_steps), strict=True))
        for i, (x_part, y_part) in enumerate(parts, 1):
            if distributed is not None:  # what no_sync() does: the gradients are averaged once, after the last part
                distributed.require_backward_grad_sync = i == len(parts)
            n = len(y_part)
            with autocast():
                y_hat = model(x_part)
                loss = loss_fn(y_hat, y_part) if n else y_hat.sum() * 0  # without examples: gradients of 0
            weight = world if totals.is_sum else n * world / size  # times world, since they are averaged
            share = loss if weight == 1 else loss * weight
            (share if scaler is None else scaler.scale(share)).backward()
            totals.add(loss, y_hat, y_part)
        totals.num_examples += size - len(y)  # of the other processes
        update(model, optimizer, clip_norm, scaler)
        if ema is not None:
            ema.update_parameters(model)
        step += 1
        yield step


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, scaler: torch.amp.GradScaler | None
) -> None:
    """Change the weights by their gradients."""
    if clip_norm:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)  # leaves the step out where a scaled gradient overflowed
        scaler.update()


@dataclass(frozen=True)
class Evaluation:
    """Mean loss per example, accuracy (a fraction; None for regression) and the outputs (N, K) they came from."""

    loss: float
    accuracy: float | None
    outputs: Tensor
    labels: Tensor


@torch.inference_mode()
def evaluate(
    model: nn.Module, loss_fn: LossFn, batches: Iterable[Batch], totals: Totals, autocast: Autocast
) -> Evaluation:
    """Measure the model on every batch; nothing is changed but `totals`, which must be fresh."""
    model.eval()
    outputs, labels = [], []
    for x, y in batches:
        with autocast():
            y_hat = model(x)
            loss = loss_fn(y_hat, y) if len(y) else y_hat.sum() * 0
        totals.add(loss, y_hat, y)
        outputs.append(y_hat)
        labels.append(y)
    classes = bool(labels) and labels[0].dtype == torch.int64
    return Evaluation(totals.loss, totals.accuracy if classes else None, torch.cat(outputs), torch.cat(labels))


@torch.inference_mode()
def predict(model: nn.Module, inputs: Iterable[Tensor], autocast: Autocast) -> Tensor:
    """The outputs (N, K) for batches of inputs without labels; (0,) where there is no batch."""
    model.eval()
    outputs = []
    for x in inputs:
        with autocast():
            outputs.append(model(x))
    return torch.cat(outputs) if outputs else torch.empty(0)
