"""Mini-batches on the device: shuffled, normalised and augmented, each by (seed, epoch, index) and nothing else.

A set in memory lives on the device as it was read (uint8 pictures): a batch is one index_select, and normalisation and
augmentation work on the whole batch there. A set on disk is decoded by worker processes; what happens to the pictures
afterwards is the same code, so both ways give the same batches.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trainer.data.splits import Split, Splits
from trainer.data.workers import shutting_down, start_worker

MAX_EVAL_BATCH, MAX_EVAL_NUMBERS = 1000, 4_000_000  # examples, and inputs in total, of a batch that is only evaluated


@dataclass(frozen=True)
class Placement:
    """Where batches go and in what form: device, floating-point type."""

    device: torch.device
    dtype: torch.dtype = torch.float32


class Batches:
    """The mini-batches of one split. The last one may be short.

    Args:
        splits: gives the normalisation and the shape.  split: the examples.
        seed: shuffles and augments; None takes the examples in order, as they are.
        augment: none, crop_flip or shift.  workers: processes that decode pictures on disk.
        resident: hold a set that is in memory in the device's own (auto: if half of what is free there is enough), or
            send each batch there.
        rank, world: of several processes, each of which gets a part of every batch.
    """

    def __init__(
        self,
        splits: Splits,
        split: Split,
        placement: Placement,
        *,
        batch_size: int | None = None,
        seed: int | None = None,
        augment: str = "none",
        resident: str | bool = "auto",
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.placement, self.seed, self.workers = placement, seed, workers
        self.rank, self.world, self.in_shape = rank, world, splits.in_shape
        self.batch_size = batch_size or eval_batch_size(splits.in_shape)
        self.x = split.x
        if isinstance(split.x, Tensor) and (fits(split.x, placement.device) if resident == "auto" else resident):
            self.x = split.x.to(placement.device)
        self.y = split.y.to(placement.device)
        if self.y.is_floating_point():
            self.y = self.y.to(placement.dtype)
        self.normalize = normalizer(splits.mean, splits.std, placement)
        self.augment = augment if seed is not None else "none"
        if self.augment != "none":
            self.moves = moves(self.augment, *splits.in_shape[1:]).to(placement.device)

    def __len__(self) -> int:
        return -(-len(self.y) // self.batch_size)

    def sizes(self, start: int = 0) -> list[int]:
        """The number of examples in each whole batch, from the `start`-th example on."""
        n = len(self.y)
        return [min(self.batch_size, n - i) for i in range(start, n, self.batch_size)]

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The batches of an epoch, from its `start`-th example on (a multiple of the batch size).

        Close it where it may not be used up: that ends the workers, which ignore the signals that end other processes.

        Args:
            whole: not only the part of this rank.
        Yields:
            x (B, C, H, W) or (B, D) normalised, and y (B,) int64 or (B, 1), on the device. B is 0 where a batch has
            fewer examples than there are ranks, and this is one of the last ranks.
        """
        n = len(self.y)
        order = (
            torch.arange(n) if self.seed is None else torch.randperm(n, generator=generator(self.seed, epoch, "order"))
        )
        batches = order[start:].split(self.batch_size) if start < n else ()
        on_device = order.to(self.placement.device)[start:].split(self.batch_size) if start < n else ()
        if self.world > 1 and not whole:
            batches, on_device = (
                tuple(part_of(indices, self.rank, self.world) for indices in each) for each in (batches, on_device)
            )
        if self.augment != "none":
            assert self.seed is not None
            draws = torch.randint(len(self.moves), (n,), generator=generator(self.seed, epoch, "augment"))
            draws = draws.to(self.placement.device)
        with closing(self._inputs(batches, on_device)) as inputs:
            for indices, x in zip(on_device, inputs, strict=True):
                if self.augment != "none":
                    x = move(x, self.moves.index_select(0, draws[indices]))
                yield self.normalize(x), self.y.index_select(0, indices)

    def _inputs(self, batches: Sequence[Tensor], on_device: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        is_cuda = self.placement.device.type == "cuda"
        if isinstance(self.x, Tensor):
            if self.x.device == self.placement.device:
                for i in on_device:
                    yield self.x.index_select(0, i)
                return
            for i in batches:
                x = self.x.index_select(0, i)
                yield (x.pin_memory() if is_cuda else x).to(self.placement.device, non_blocking=True)
            return
        loader = DataLoader(
            self.x,
            batch_sampler=[indices.tolist() for indices in batches if len(indices)],
            num_workers=self.workers,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # of its own: the global one belongs to the model
            pin_memory=is_cuda,
        )
        with shutting_down(iter(loader)) as pictures:
            for indices in batches:
                x = next(pictures) if len(indices) else torch.empty(0, *self.in_shape, dtype=torch.uint8)
                yield x.to(self.placement.device, non_blocking=True)


def part_of(batch: Tensor, rank: int, world: int) -> Tensor:
    """The rank's part (M, ...) of a batch (B, ...): neighbours, in order; the first B % world ranks have one more."""
    return batch.tensor_split(world)[rank]


def eval_batch_size(in_shape: tuple[int, ...]) -> int:
    """Examples per batch when only measuring: by the size of an example, never by settings, so that it repeats."""
    numbers = 1
    for length in in_shape:
        numbers *= length
    return max(1, min(MAX_EVAL_BATCH, MAX_EVAL_NUMBERS // numbers))


def fits(x: Tensor, device: torch.device) -> bool:
    """Whether x takes at most half of what is free on a GPU; on the CPU it is where it is."""
    return device.type != "cuda" or x.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A generator that depends on its three arguments alone."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normalizer(mean: Sequence[float], std: Sequence[float], placement: Placement) -> Callable[[Tensor], Tensor]:
    """x -> (x / 255 - mean) / std per channel for uint8 pictures (B, C, H, W); rows of numbers only change their type.

    Returns:
        A function that makes a new tensor of the placement's type; its argument stays as it is. Its layout is NCHW for
        channels_last too: the first convolution changes it in a tenth of the time that it takes here.
    """
    m, s = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    scale, shift = (v.to(placement.device, placement.dtype) for v in (1 / (255 * s), -m / s))

    def normalize(x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            return x.to(placement.dtype)
        return x.to(placement.dtype).mul_(scale).add_(shift)

    return normalize


def moves(augment: str, height: int, width: int) -> Tensor:
    """All ways to shift a picture: (M, height * width) int64, for each pixel the place in the picture it comes from.

    height * width stands for a pixel from outside. crop_flip: 9 x 9 offsets of up to 4 pixels, each plain and mirrored
    (He et al. 2016, sec. 4.2). shift: none and one pixel in each of four directions (Nielsen, ch. 6).
    """
    if augment == "crop_flip":
        offsets = [(oy, ox, flip) for flip in (False, True) for oy in range(-4, 5) for ox in range(-4, 5)]
    else:
        offsets = [(0, 0, False), (-1, 0, False), (1, 0, False), (0, -1, False), (0, 1, False)]
    table = []
    for oy, ox, flip in offsets:
        rows, columns = torch.arange(height)[:, None] + oy, torch.arange(width) + ox
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        places = torch.where(inside, rows * width + columns, height * width)
        table.append((places.flip(1) if flip else places).flatten())
    return torch.stack(table)


def move(x: Tensor, places: Tensor) -> Tensor:
    """Shift each picture of x (B, C, H, W) by its row of places (B, H * W); what comes from outside is 0."""
    b, c, h, w = x.shape
    with_outside = torch.cat([x.view(b, c, h * w), x.new_zeros(b, c, 1)], 2)
    return with_outside.gather(2, places[:, None].expand(b, c, h * w)).view(b, c, h, w)
