"""Mini-batches on the device: shuffled, normalised and augmented by (seed, epoch, index) and nothing else.

A set in memory lies on the device as it was read (uint8 images): a batch is one index_select, and normalisation and
augmentation work on the whole batch there. A set on disk is decoded by worker processes. Its images then go through the
same code, so both ways give the same batches.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trainer.data.augment import UNCHANGED, Augment, Augmentation
from trainer.data.splits import Split, Splits
from trainer.data.stratify import balanced, shuffled
from trainer.data.workers import shutting_down, start_worker

MAX_EVAL_BATCH, MAX_EVAL_NUMBERS = 1000, 4_000_000  # examples, and input numbers in total, of an evaluation batch


@dataclass(frozen=True)
class Placement:
    """The device and the floating-point type of batches."""

    device: torch.device
    dtype: torch.dtype = torch.float32


class Batches:
    """The mini-batches of one split. The last one may be short, unless it is dropped.

    Args:
        splits: gives the normalisation and the shape of an example.
        split: the examples.
        placement: device and type of the batches.
        batch_size: number of examples in a batch of all ranks together; None: eval_batch_size().
        seed: shuffles and augments; None takes the examples in order and unchanged.
        augment: what is done to training images.
        drop_last: leave out a last batch that is smaller than the others.
        balance: draw each class equally often, see balanced().
        resident: whether a set in memory is copied to the device once (auto: if it needs at most half of what is free
            there); otherwise each batch is sent there.
        workers: number of processes that decode images on disk.
        rank: number of this process among those that train together; each gets a part of every batch.
        world: number of these processes.
    """

    def __init__(
        self,
        splits: Splits,
        split: Split,
        placement: Placement,
        *,
        batch_size: int | None = None,
        seed: int | None = None,
        augment: Augment = UNCHANGED,
        drop_last: bool = False,
        balance: bool = False,
        resident: str | bool = "auto",
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.placement, self.seed, self.workers = placement, seed, workers
        self.rank, self.world, self.stored_shape = rank, world, splits.stored_shape or splits.in_shape
        self.batch_size, self.drop_last = batch_size or eval_batch_size(splits.in_shape), drop_last
        self.resident, self.of_epoch = resident, splits.of_epoch if seed is not None else None
        self.hold(split)
        self.normalize = normalizer(splits.mean, splits.std, placement)
        self.balance = balance and seed is not None
        augment = augment if seed is not None else UNCHANGED  # evaluation sees the images unchanged
        self.augmentation = Augmentation(augment, self.stored_shape[1:], splits.in_shape[1:], placement.device)

    def hold(self, split: Split) -> None:
        """Take the examples of a split, on the device where they fit there."""
        self.x, self.group, device = split.x, split.group, self.placement.device
        if isinstance(split.x, Tensor) and (fits(split.x, device) if self.resident == "auto" else self.resident):
            self.x = split.x.to(device)
        self.y = split.y.to(device)  # always: labels are small
        if self.y.is_floating_point():  # targets of a regression; class numbers stay int64
            self.y = self.y.to(self.placement.dtype)

    def __len__(self) -> int:
        return len(self.sizes())

    def sizes(self, start: int = 0) -> list[int]:
        """Return the number of examples in each batch of all ranks, from the `start`-th example on."""
        n = len(self.y)
        end = n // self.batch_size * self.batch_size if self.drop_last else n
        return [min(self.batch_size, n - i) for i in range(start, end, self.batch_size)]

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield the batches of an epoch.

        Close the generator if it is not used up: that ends the workers, which ignore the signals that end other
        processes.

        Args:
            epoch: its number, from 1 on.
            start: example to begin with, a multiple of the batch size.
            whole: yield whole batches instead of this rank's part of each.
        Yields:
            x (B, C, H, W) or (B, D), normalised, and y (B,) int64 or (B, 1), both on the device. B is 0 where a batch
            has fewer examples than there are ranks and this is one of the last ranks.
        """
        # Shuffle and draw for all n examples even if start > 0: a resumed epoch must see what the whole one saw.
        n = len(self.y)
        if self.of_epoch is not None:
            self.hold(self.of_epoch(epoch, n))
        order = torch.arange(n)
        if self.seed is not None:
            order = shuffled(n, self.group, generator(self.seed, epoch, "order"))
            if self.balance:
                order = balanced(self.y.cpu(), order)
        used = order[start : start + sum(self.sizes(start))]
        part = (0, 1) if whole else (self.rank, self.world)
        # An image is mixed with its neighbour, which another rank may have: a batch is then cut into parts at last.
        early, late = ((0, 1), part) if self.augmentation.mixing else (part, (0, 1))
        # The order goes to the device once an epoch: a copy for each batch would make the CPU wait for a GPU.
        batches, on_device = (
            [part_of(indices, *early) for indices in each.split(self.batch_size) if len(indices)]
            for each in (used, used.to(self.placement.device))
        )
        # A draw belongs to an example, not to a place in a batch: batch size and number of ranks do not change it. An
        # example that comes several times in an epoch gets others.
        drawn = self.augmentation.draw(n, epoch, partial(generator, self.seed or 0), None if self.balance else order)
        drawn = [each[start:].split(self.batch_size) for each in drawn]
        with closing(self._inputs(batches, on_device)) as inputs:
            for i, (indices, x) in enumerate(zip(on_device, inputs, strict=True)):
                of_batch = [part_of(each[i], *early) for each in drawn]
                x, y = self.normalize(self.augmentation.apply(x, of_batch, epoch)), self.y.index_select(0, indices)
                x, y = self.augmentation.mix(x, y, of_batch)
                yield part_of(x, *late), part_of(y, *late)

    def _inputs(self, batches: Sequence[Tensor], on_device: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        """Yield x of each batch on the device, as it was read."""
        is_cuda = self.placement.device.type == "cuda"
        if isinstance(self.x, Tensor):
            if self.x.device == self.placement.device:
                for i in on_device:  # indices on the CPU would be copied for each batch
                    yield self.x.index_select(0, i)
                return
            for i in batches:
                x = self.x.index_select(0, i)
                # Only a copy from pinned memory runs beside the computation; from other memory the CPU waits for it.
                yield (x.pin_memory() if is_cuda else x).to(self.placement.device, non_blocking=True)
            return
        loader = DataLoader(
            self.x,
            batch_sampler=[indices.tolist() for indices in batches if len(indices)],  # torch cannot stack no images
            num_workers=self.workers,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # DataLoader would draw from the global one, which belongs to the model
            pin_memory=is_cuda,
        )
        with shutting_down(loader) as images:
            for indices in batches:
                x = next(images) if len(indices) else torch.empty(0, *self.stored_shape, dtype=torch.uint8)
                yield x.to(self.placement.device, non_blocking=True)


def part_of(batch: Tensor, rank: int, world: int) -> Tensor:
    """Return the rank's part (M, ...) of a batch (B, ...): neighbours, in order.

    The first B % world ranks have one example more.
    """
    return batch.tensor_split(world)[rank] if world > 1 else batch


def eval_batch_size(in_shape: tuple[int, ...]) -> int:
    """Return the number of examples in a batch that is only evaluated.

    It follows from the size of an example alone, never from settings: sums in other batches would round differently.
    """
    return max(1, min(MAX_EVAL_BATCH, MAX_EVAL_NUMBERS // math.prod(in_shape)))


def fits(x: Tensor, device: torch.device) -> bool:
    """Whether x needs at most half of the free memory of a GPU; on the CPU it stays where it is."""
    return device.type != "cuda" or x.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return a generator that depends on the three arguments alone."""
    # SHA-256, since hash() of a string differs in each process; 63 bits of it, which any integer type holds.
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normalizer(mean: Sequence[float], std: Sequence[float], placement: Placement) -> Callable[[Tensor], Tensor]:
    """Return x -> (x / 255 - mean) / std per channel for uint8 images (B, C, H, W); other x only change their type.

    Args:
        mean: one number per channel, for pixels in [0, 1].
        std: likewise.
        placement: device and type of the result.
    Returns:
        A function that returns a new tensor and leaves its argument unchanged.
    """
    # As x * scale + shift, with both rounded from float64: one pass over the batch less. The result is NCHW even with
    # channels_last: the first convolution converts it in a tenth of the time that it would take here.
    m, s = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))  # (C, 1, 1)
    scale, shift = (v.to(placement.device, placement.dtype) for v in (1 / (255 * s), -m / s))

    def normalize(x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:  # rows of numbers
            return x.to(placement.dtype)
        return x.to(placement.dtype).mul_(scale).add_(shift)

    return normalize
