"""Sums of loss and hits, kept on the device, and readings of them on their way to main memory."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
COUNTED_AT_ONCE = 32  # batches: counting hits takes as long for these as for one,
HELD_AT_ONCE = 1_000_000  # but of large outputs fewer are held


@dataclass(frozen=True)
class Reading:
    """The sum of the losses after some step, on its way to main memory: taking it waits for nothing."""

    step: int
    num_examples: int
    seconds: float  # since the epoch began
    loss_sum: Tensor  # 0-d, in main memory
    arrived: torch.cuda.Event | None  # None: it is there

    @property
    def has_arrived(self) -> bool:
        """Whether `loss` is available without waiting."""
        return self.arrived is None or self.arrived.query()

    @property
    def loss(self) -> float:
        """Mean loss per example up to then. Waits for a GPU to be done with that step, but not with later ones."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.loss_sum) / max(self.num_examples, 1)


@dataclass
class Totals:
    """Running sums over examples, kept on the device, so that nothing waits for the device in between."""

    device: torch.device
    num_examples: int = 0
    is_sum: bool = False  # the losses that are added are sums over their batch, not means
    soft: bool = False  # floating-point labels are shares of the classes (N, K), not targets
    by_rank: Tensor | None = None  # (world,): what loss_sum was added up from, with several processes
    loss_sum: Tensor = field(init=False)  # 0-d float64: sum over examples of the loss
    _num_correct: Tensor = field(init=False)  # 0-d int64, without the batches in _uncounted
    _uncounted: list[Batch] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        real = torch.float32 if self.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        self.loss_sum = torch.zeros((), dtype=real, device=self.device)
        self._num_correct = torch.zeros((), dtype=torch.int64, device=self.device)

    def add(self, loss: Tensor, y_hat: Tensor, y: Tensor) -> None:
        """Add a batch: its loss (0-d), outputs (N, K) and labels (N,) or (N, K), or targets (N, M) for regression."""
        self.num_examples += len(y)
        # a mean becomes the sum over its examples again, so that the short last batch counts by its size
        self.loss_sum.add_(loss.detach(), alpha=1 if self.is_sum else len(y))
        if self.soft and y.is_floating_point():
            y = y.argmax(1)  # the class that most of the image is of
        if y.dtype == torch.int64:
            self._uncounted.append((y_hat.detach(), y))
            if len(self._uncounted) == COUNTED_AT_ONCE or y_hat.numel() * len(self._uncounted) > HELD_AT_ONCE:
                self._count()

    def _count(self) -> None:
        if self._uncounted:
            y_hat, y = map(torch.cat, zip(*self._uncounted, strict=True))
            self._num_correct.add_((y_hat.argmax(1) == y).sum())
            self._uncounted.clear()

    @property
    def num_correct(self) -> Tensor:
        """0-d int64: predictions equal to the label; 0 for regression."""
        self._count()
        return self._num_correct

    def reading(self, step: int, seconds: float) -> Reading:
        """What the loss is now, to be looked at later."""
        if self.device.type != "cuda":
            return Reading(step, self.num_examples, seconds, self.loss_sum.to("cpu", copy=True), None)
        # pinned memory and an event: the copy runs behind the steps, and nobody waits for it
        copied = torch.empty((), dtype=self.loss_sum.dtype, pin_memory=True)
        copied.copy_(self.loss_sum, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Reading(step, self.num_examples, seconds, copied, arrived)

    @property
    def loss(self) -> float:
        """Mean loss per example so far. Reading it waits for the device."""
        return float(self.loss_sum) / max(self.num_examples, 1)

    @property
    def accuracy(self) -> float:
        """Share of right predictions so far. Reading it waits for the device."""
        return int(self.num_correct) / max(self.num_examples, 1)
