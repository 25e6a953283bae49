"""The loop: the only place that orders forward, backward and step. It knows nothing of config, files or screens."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from trainer.totals import Batch, Totals

LossFn = Callable[[Tensor, Tensor], Tensor]
Autocast = Callable[[], AbstractContextManager[object]]
# inputs, labels or targets, and the weight of their loss in that of the step (0-d; None: it is all of it)
Part = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Update:
    """How the gradients of a step become new weights."""

    # keeps float16 gradients from vanishing; a disabled one hands everything through
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    clip_norm: float = 0.0  # the gradient is scaled down to this L2 norm where it is longer; 0 leaves it
    ema: AveragedModel | None = None  # is moved towards the weights after each step

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Change the weights by their gradients."""
        if self.clip_norm:
            self.scaler.unscale_(optimizer)  # else the norm would be that of the scaled gradient
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
        self.scaler.step(optimizer)  # leaves the step out where a scaled gradient overflowed
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(model)


AS_IT_IS = Update()


def train_epoch(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Iterable[Part]],
    *,
    lr_at: Callable[[int], float],
    step: int,
    totals: Totals,
    autocast: Autocast,
    update: Update = AS_IT_IS,
) -> Iterator[int]:
    """Train on each batch in turn, and hand control back after every step.

    Args:
        model: changed in place; several processes pass a DistributedDataParallel, which averages their gradients.
        loss_fn: loss_fn(y_hat, y) -> 0-d tensor.
        optimizer: of the model's parameters.
        batches: each as the parts that it is computed in, see whole() and in_parts().
        lr_at: the learning rate of a step.
        step: parameter updates done before.
        totals: gets the loss and the hits of every part, measured before its update.
        autocast: entered anew for each part.
        update: what is done with the gradients.
    Yields:
        The number of parameter updates done.
    """
    model.train()  # dropout draws, batch normalisation uses the statistics of the batch
    for parts in batches:
        for group in optimizer.param_groups:  # set, not scheduled: a resumed run then needs no scheduler's state
            group["lr"] = lr_at(step) * group.get("lr_factor", 1.0)  # of a backbone that learns slowly
        optimizer.zero_grad()  # gradients of the step before would add up with those of this one
        for x, y, weight in parts:  # their gradients add up
            with autocast():  # kept open, it would reuse rounded weights from before the update
                y_hat = model(x)
                loss = loss_fn(y_hat, y)
            update.scaler.scale(loss).backward(weight)
            totals.add(loss, y_hat, y)  # on the device: reading a number here would wait for it in every step
        update(model, optimizer)
        step += 1
        yield step  # the caller may save, stop or draw here: between two steps everything is whole


def whole(batches: Iterable[Batch]) -> Iterator[list[Part]]:
    """Each batch in one part."""
    return ([(x, y, None)] for x, y in batches)


def in_parts(
    batches: Iterable[Batch],
    sizes: Iterable[int] | None,
    num_parts: int,
    totals: Totals,
    *,
    world: int = 1,
    distributed: DistributedDataParallel | None = None,
) -> Iterator[Iterator[Part]]:
    """Each batch in up to `num_parts` parts, to save memory, of which one process may have its share only.

    Args:
        batches: what this process has of each batch, which may be no example at all.
        sizes: examples in each whole batch; None: this process has all of each.
        num_parts: parts, one after the other; a short batch has fewer.
        totals: count the examples of the other processes too.
        world: processes that train together.
        distributed: the model of several processes.
    """

    def weighted(x: Tensor, y: Tensor, size: int) -> Iterator[Part]:
        parts = list(zip(x.chunk(num_parts), y.chunk(num_parts), strict=True))
        for i, (x_part, y_part) in enumerate(parts, 1):
            if distributed is not None:  # as no_sync() does: gradients are averaged once, after the last part
                distributed.require_backward_grad_sync = i == len(parts)
            # The loss of a part is the mean over its own n examples, but the gradient has to be that of the mean over
            # all `size` examples of the batch: n / size of it. A sum needs no such share. DistributedDataParallel
            # divides by the number of processes what has to be added up: times world.
            share = world if totals.is_sum else len(y_part) * world / size
            yield x_part, y_part, torch.tensor(share, dtype=totals.loss_sum.dtype, device=x.device)

    for (x, y), n in zip(batches, sizes or itertools.repeat(0), strict=sizes is not None):
        size = n or len(y)
        totals.num_examples += size - len(y)
        yield weighted(x, y, size)


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a split."""

    loss: float  # mean per example
    accuracy: float | None  # a fraction; None for regression
    outputs: Tensor  # (N, K), what the two came from
    labels: Tensor  # (N,) int64, or (N, K) targets


@torch.inference_mode()
def evaluate(
    model: nn.Module, loss_fn: LossFn, batches: Iterable[Batch], totals: Totals, autocast: Autocast
) -> Evaluation:
    """Measure the model on every batch; nothing is changed but `totals`, which must be fresh."""
    model.eval()  # no dropout, and the running statistics of batch normalisation
    outputs, labels = [], []
    for x, y in batches:
        with autocast():
            y_hat = model(x)
            loss = loss_fn(y_hat, y)
        totals.add(loss, y_hat, y)
        outputs.append(y_hat)
        labels.append(y)
    # joined once at the end: growing a tensor would copy it for every batch
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
