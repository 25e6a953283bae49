"""Image files one after the other, in memory that does not grow with their number: for predict."""

import itertools
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from trainer.data.images import Frame, ImageError, Picture, Values, decode, quiet_pillow
from trainer.data.workers import images_per_message, in_processes

SECONDS_FOR_PROCESSES = 5.0  # of decoding: small files are read sooner than processes are started and heard


def each_decoded(pictures: Sequence[Picture], frame: Frame) -> Generator[tuple[Tensor, Values] | str, None, None]:
    """Yield pixels (C, H, W) uint8 and what is to be known of each picture, or why it cannot be read, in order.

    Close the generator if it is not used up: that ends its processes.
    """
    groups = _Groups(pictures, frame)
    first, seconds = [], 0.0
    for k in range(min(2, len(groups))):  # the first one loads the decoders, the second tells how long all will take
        began = time.perf_counter()
        first.append(groups[k])
        seconds = (time.perf_counter() - began) * len(groups)
    are_files = all(isinstance(picture, (Path, str)) for picture in pictures)
    rest = Subset(groups, range(len(first), len(groups)))
    many = are_files and seconds > SECONDS_FOR_PROCESSES
    with in_processes(rest, many=many) as others:
        for pixels, found in itertools.chain(first, others):
            images = iter(pixels.clone() if many else pixels)  # what a process sends holds a file descriptor
            for values in found:
                yield values if isinstance(values, str) else (next(images), values)


class _Groups(Dataset[tuple[Tensor, list[Values | str]]]):
    """Item k: the pixels of the k-th few pictures that can be read, and of each its values or the reason."""

    def __init__(self, pictures: Sequence[Picture], frame: Frame) -> None:
        self.pictures, self.frame = pictures, frame
        self.length = images_per_message(frame.shape, 16)  # few: the bar moves, no process idles

    def __len__(self) -> int:
        return -(-len(self.pictures) // self.length)

    def __getitem__(self, k: int) -> tuple[Tensor, list[Values | str]]:
        images, found = [], list[Values | str]()
        with quiet_pillow():
            for picture in self.pictures[k * self.length : (k + 1) * self.length]:
                try:
                    pixels, values = decode(picture, self.frame)
                except ImageError as error:
                    found.append(str(error))
                else:
                    images.append(pixels)
                    found.append(values)
        return torch.stack(images) if images else torch.empty(0, *self.frame.shape, dtype=torch.uint8), found
