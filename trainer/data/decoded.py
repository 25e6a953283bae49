"""Image files to one tensor: decoded in several processes, once, and kept in a cache folder.

A cache file is found by a digest of every name, size and time of change, so it is never stale, and it is checked before
it is used. folder.py knows which files there are and what they show.
"""

import hashlib
import os
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.data.images import ImageError, decode, quiet_pillow
from trainer.data.workers import shutting_down, start_worker
from trainer.utils.files import replacing

CACHE_FORMAT = 1  # to be raised when decoding changes
MIN_FOR_WORKERS = 1000  # images; for fewer, starting processes takes longer than decoding
CHUNK_BYTES = 2**20  # of pixels per message of a worker; in containers /dev/shm may have only 64 MB

Stamp = tuple[int, int]  # size in bytes, time of change in ns


@dataclass(frozen=True)
class Decoded:
    """What decoding found.

    Attributes:
        kept: (M,) int64, the numbers of the good files.
        pixels: (M, C, H, W) uint8, or None if only the sums were wanted.
        sums: (M, 2, C) int64, each image's sum of pixels and of squared pixels; the mean and std of any selection
            follow from them exactly.
        skipped: (name, reason) of each bad file.
        sha256: digest of names and pixels.
    """

    kept: Tensor
    pixels: Tensor | None
    sums: Tensor
    skipped: list[tuple[str, str]]
    sha256: str


def cached(
    root: Path, names: Sequence[str], stamps: Sequence[Stamp], cache: Path, *, size: int, channels: int, keep: bool
) -> Decoded:
    """Decode files, or read what an earlier start left in the cache folder.

    A cache folder that cannot be written is a warning, not an error.

    Args:
        root: folder that the names start from.
        names: the files.
        stamps: one for each file; when one changes, all are decoded again.
        cache: the cache folder.
        size: height and width in pixels.
        channels: 1 or 3.
        keep: whether to keep the pixels and not only their sums.
    """
    key = hashlib.sha256(f"{CACHE_FORMAT} {size} {channels} {keep}\n".encode())
    key.update("\n".join(map(repr, zip(names, stamps, strict=True))).encode())
    path = cache / f"{key.hexdigest()}.pt"
    found = _load(path, len(names), (channels, size, size), keep)
    if found is not None:
        return found
    print(f"decoding {len(names):,} images of {root}, once; cache: {path}", flush=True)
    decoded = decode_files(root, names, size=size, channels=channels, keep=keep)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:  # torch.save rejects a name like .tmp-0
            torch.save(vars(decoded) | {"crc": _crc(decoded)}, file)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        print(f"warning: {path} cannot be written ({error}); the next start decodes again", flush=True)
    return decoded


def _load(path: Path, n: int, in_shape: tuple[int, ...], keep: bool) -> Decoded | None:
    """Return the content of a cache file, or None if there is none or it is damaged."""
    try:
        state = torch.load(path, weights_only=True, mmap=True)
        crc = state.pop("crc")
        found = Decoded(**state)
        whole = crc == _crc(found) and len(found.kept) + len(found.skipped) == n
        shape = (len(found.kept), *in_shape)
        whole = whole and (found.pixels is not None) == keep and found.sums.shape == (shape[0], 2, shape[1])
        if found.pixels is not None:
            whole = whole and found.pixels.shape == shape and found.pixels.dtype == torch.uint8
        return found if whole else None
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError):
        return None


def _crc(decoded: Decoded) -> int:
    """Return a checksum of everything: disks and killed programs damage files, and torch.load does not notice."""
    crc = zlib.crc32(repr((decoded.skipped, decoded.sha256)).encode())
    for tensor in (decoded.kept, decoded.sums, decoded.pixels):
        crc = zlib.crc32(tensor.numpy().data, crc) if tensor is not None and tensor.numel() else crc
    return crc


class _Chunks(Dataset[tuple[Tensor, Tensor, dict[int, str]]]):
    """Item k: pixels and sums of the good images of the k-th run of names; the reasons of the bad ones by number."""

    def __init__(self, root: Path, names: Sequence[str], *, size: int, channels: int, keep: bool) -> None:
        self.root, self.names, self.keep = root, names, keep
        self.shape = (channels, size, size)
        self.length = max(1, min(256, CHUNK_BYTES // (channels * size * size)))

    def __len__(self) -> int:
        return -(-len(self.names) // self.length)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor, dict[int, str]]:
        channels, height, width = self.shape
        images, reasons = [], {}
        with quiet_pillow():
            for i in range(k * self.length, min((k + 1) * self.length, len(self.names))):
                try:
                    images.append(decode(self.root / self.names[i], channels=channels, height=height, width=width))
                except ImageError as error:
                    reasons[i] = str(error)
        pixels = torch.stack(images) if images else torch.empty(0, *self.shape, dtype=torch.uint8)
        return pixels if self.keep else pixels[:0].clone(), pixel_sums(pixels), reasons


def decode_files(root: Path, names: Sequence[str], *, size: int, channels: int, keep: bool) -> Decoded:
    """Decode files in several processes; the result does not depend on their number. Arguments as in cached()."""
    chunks = _Chunks(root, names, size=size, channels=channels, keep=keep)
    # Processes, since threads would be slower than none: with small images most of the time is spent in Python.
    workers = min(num_cores(), 16) if len(names) >= MIN_FOR_WORKERS else 0
    # DataLoader would draw from the global generator, and training would then depend on whether there was a cache.
    loader = DataLoader(
        chunks, batch_size=None, num_workers=workers, worker_init_fn=start_worker, generator=torch.Generator()
    )
    pixels = torch.empty(len(names) if keep else 0, *chunks.shape, dtype=torch.uint8)
    sums, reasons, end = [], {}, 0
    with shutting_down(iter(loader)) as decoded:
        for some_pixels, some_sums, some_reasons in decoded:
            if keep:
                pixels[end : end + len(some_pixels)] = some_pixels
                end += len(some_pixels)
            sums.append(some_sums)
            reasons.update(some_reasons)
    if end < len(pixels):
        pixels = pixels[:end].clone()  # saving a view would save the whole tensor
    good = torch.tensor([i not in reasons for i in range(len(names))], dtype=torch.bool)
    all_sums = torch.cat(sums)
    sha256 = hashlib.sha256("\n".join(map(repr, zip(names, good.tolist(), strict=True))).encode())
    sha256.update((pixels if keep else all_sums).numpy().data)
    skipped = [(names[i], reasons[i]) for i in sorted(reasons)]
    return Decoded(good.nonzero().squeeze(1), pixels if keep else None, all_sums, skipped, sha256.hexdigest())


def num_cores() -> int:
    """Return the number of cores that this process may use; on a cluster these are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pixel_sums(x: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> (N, 2, C) int64: per image and channel the sum of the pixels and of their squares."""
    wide = x.flatten(2).int()
    return torch.stack([wide.sum(2), wide.square().sum(2)], dim=1)


def mean_std(sums: Tensor, num_pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel, of pixels in [0, 1], from (N, 2, C) sums over images of num_pixels each."""
    first, second = (sums.sum(0).double() / (len(sums) * num_pixels)).unbind()
    # A set of one colour has std 0, by which batches cannot be divided.
    std = (second - first.square()).clamp_min(0).sqrt().div(255).clamp_min(1 / 255)
    return tuple(first.div(255).tolist()), tuple(std.tolist())
