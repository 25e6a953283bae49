"""What a run changes in a set that is cut: the normalisation, how many examples are measured, the images' size."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.folder import memory_available
from trainer.data.images import squashed
from trainer.data.splits import Split, Splits
from trainer.data.stratify import stratified
from trainer.utils.bar import Bar
from trainer.utils.errors import ConfigError
from trainer.utils.text import emit

MEASURED_SEED = 2  # the same examples are measured whatever the seed of the run and of the cut: runs stay comparable
AT_ONCE = 500  # images that a thread scales together


def normalized(splits: Splits, normalize: str | list[Any]) -> Splits:
    """The splits with another mean and std.

    Args:
        splits: with those of the set.
        normalize: own (these), none (pixels stay in [0, 1]) or [mean, std], each a number for every channel or a list
            of one number per channel.
    """
    if normalize == "own":
        return splits
    n = len(splits.mean)  # none: (x - 0) / 1 with pixels in [0, 1]
    both = normalize if isinstance(normalize, list) else [0.0, 1.0]
    mean, std = (tuple(v) if isinstance(v, list) else (v,) * n for v in both)
    return replace(splits, mean=mean, std=std)


def measured(splits: Splits, limit: int | None) -> Splits:
    """The splits with at most `limit` examples in validation and test each, of each class its share."""
    return splits if limit is None else replace(splits, val=some(splits.val, limit), test=some(splits.test, limit))


def some(split: Split, limit: int) -> Split:
    """At most `limit` examples of a split."""
    if limit >= len(split):
        return split
    labels = None if split.y.is_floating_point() else split.y
    return split.take(stratified(labels, len(split), limit, MEASURED_SEED, each=True)[0])


def few_of(split: Split, n: int, seed: int = 0) -> Split:
    """Up to n examples of a split, of all its classes alike: a set that lies sorted would give those of one class."""
    labels = split.y if split.y.dtype == torch.int64 else None
    return split.take(stratified(labels, len(split), min(n, len(split)), seed)[0])


def seen_smaller(splits: Splits, size: int) -> Splits:
    """The splits for a model that sees size x size pixels of images that may be stored larger."""
    seen, stored = (splits.in_shape[0], size, size), splits.in_shape
    return splits if seen == stored else replace(splits, in_shape=seen, stored_shape=stored)


def scaled(splits: Splits, size: int | None) -> Splits:
    """The splits with images of size x size pixels (antialiased bilinear); None or their own size: as they are.

    The mean and the standard deviation stay those of the set as it was published.

    Raises:
        ConfigError: they would not fit into memory.
    """
    if size is None or splits.in_shape[1:] == (size, size):
        return splits
    shape = (splits.in_shape[0], size, size)
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    num_bytes, available = sum(map(len, parts.values())) * math.prod(shape), memory_available()
    if num_bytes > 0.8 * available:
        raise ConfigError(
            f"data.size={size} takes {num_bytes / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are free. "
            "Try a smaller one, or fewer images: data.limit=, data.eval_limit=."
        )
    emit(f"images of {splits.in_shape[1]} x {splits.in_shape[2]} pixels are scaled to {size} x {size}")
    return replace(splits, in_shape=shape, **{name: replace(s, x=resized(s.x, size)) for name, s in parts.items()})


def resized(x: Tensor, size: int) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, size, size) uint8, by Pillow, as predict scales files: the same pixels."""
    n, channels = x.shape[:2]
    out = torch.empty(n, size, size, channels, dtype=torch.uint8)
    images, into = x.permute(0, 2, 3, 1).numpy(), out.numpy()

    def scale(some: range) -> int:
        for i in some:
            image = Image.fromarray(images[i] if channels == 3 else images[i, :, :, 0])
            into[i] = np.asarray(squashed(image, size, size)).reshape(size, size, channels)
        return len(some)

    parts = [range(start, min(start + AT_ONCE, n)) for start in range(0, n, AT_ONCE)]
    with Bar("scaling", n, "images") as bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done in pool.map(scale, parts):  # Pillow lets other threads work meanwhile
            bar.add(done)
    return out.permute(0, 3, 1, 2).contiguous()
