"""Image files to one tensor: decoded in several processes, once, and kept in a cache folder.

A cache file is found by what is known of the files without reading them all (names, sizes, times, and a sample of their
contents), so it is never stale, and it is checked before it is used. It also holds a digest of the content of each
file. listing.py knows which files there are.
"""

import hashlib
import os
import pickle
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainer.data.images import Frame, ImageError, Seen, check_regular, decode, quiet_pillow
from trainer.data.listing import Stamp
from trainer.data.workers import images_per_message, in_processes
from trainer.utils.bar import Bar
from trainer.utils.files import replacing
from trainer.utils.locks import try_lock
from trainer.utils.text import emit, number_of

CACHE_FORMAT = 3  # to be raised when decoding changes
CACHE_BYTES = 50 * 10**9  # of all entries together; beyond it the one not used for longest goes
CACHE_NAME = re.compile(r"(.+-\d+x\d+-[0-9a-f]{8})-[0-9a-f]{16}\.pt|[0-9a-f]{64}\.pt")  # the second: format 1
PROBED, PROBE_BYTES = 256, 2**12  # files whose first and last bytes are read at every start: about 10 ms
MIN_FOR_WORKERS = 1000  # images; for fewer, starting processes takes longer than decoding
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Decoded:
    """What decoding found.

    Attributes:
        kept: (M,) int64, the numbers of the good files among those that were to be decoded.
        pixels: (M, C, H, W) uint8, or None if only the sums were wanted.
        sums: (M, 2, C) int64, each image's sum of pixels and of squared pixels; the mean and std of any selection
            follow from them exactly.
        skipped: (name, reason) of each bad file.
        digests: (N, DIGEST_BYTES) uint8, of the content of every file, decoded or not; 0 where it cannot be read.
        peak: as in images.Seen.
        lost: likewise.
    """

    kept: Tensor
    pixels: Tensor | None
    sums: Tensor
    skipped: list[tuple[str, str]]
    digests: Tensor
    peak: int
    lost: dict[str, tuple[int, str]]

    @property
    def seen(self) -> Seen:
        """What the values of the files were."""
        return Seen(self.peak, self.lost)


def cached(
    root: Path,
    names: Sequence[str],
    stamps: Sequence[Stamp],
    cache: Path,
    frame: Frame,
    *,
    keep: bool,
    wanted: Tensor | None = None,
) -> Decoded:
    """Decode files, or read what an earlier start left in the cache folder.

    A cache folder that cannot be written is a warning, not an error.

    Args:
        root: folder that the names start from.
        names: the files.
        stamps: one for each file; when one changes, all are decoded again.
        cache: the cache folder.
        frame: what they are decoded to.
        keep: whether to keep the pixels and not only their sums.
        wanted: (N,) bool, the files to decode; None: all. The content of the others is only digested.
    """
    path = cache / _entry_name(root, names, stamps, frame, keep, wanted)
    num_wanted = len(names) if wanted is None else int(wanted.sum())
    found = _load(path, len(names), num_wanted, frame, keep)
    if found is not None:
        return found
    emit(f"decoding {number_of(num_wanted, 'image')} of {root}, once; cache: {path}")
    decoded = decode_files(root, names, frame, keep=keep, wanted=wanted)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:  # torch.save rejects a name like .tmp-0
            try_lock(file)  # see _remove_abandoned
            torch.save(vars(decoded) | {"crc": _crc(decoded)}, file)
        _prune(path)
        _remove_abandoned(cache)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        emit(f"warning: {path} cannot be written ({error}); the next start decodes again")
    return decoded


def _entry_name(
    root: Path, names: Sequence[str], stamps: Sequence[Stamp], frame: Frame, keep: bool, wanted: Tensor | None
) -> str:
    """Return <folder>-<channels>x<height>-<what and how>-<state of the files>.pt."""
    what = repr((CACHE_FORMAT, str(root.resolve()), frame, keep, wanted is None))
    state = hashlib.sha256("\n".join(map(repr, zip(names, stamps, strict=True))).encode())
    if wanted is not None:
        state.update(wanted.numpy().data)
    # Archives and image layers give every file the same times, so that another set at the same place looks the same.
    for i in torch.linspace(0, len(names) - 1, min(PROBED, len(names))).long().tolist():
        state.update(_ends(root / names[i]))
    short = hashlib.sha256(what.encode()).hexdigest()[:8]
    return f"{name_in_cache(root)}-{frame.shape[0]}x{frame.shape[1]}-{short}-{state.hexdigest()[:16]}.pt"


def name_in_cache(root: Path) -> str:
    """The folder's name as files of the cache have it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", root.resolve().name)[:40].lstrip(".") or "images"


def _ends(path: Path) -> bytes:
    """Return the first and the last bytes of a file; none if it cannot be read."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            start = file.read(PROBE_BYTES)
            file.seek(max(0, os.fstat(file.fileno()).st_size - PROBE_BYTES))
            return start + file.read(PROBE_BYTES)
    except (ImageError, OSError):
        return b""


def _prune(path: Path) -> None:
    """Remove earlier states of the set that was just written, and the entries used longest ago above CACHE_BYTES."""
    own = CACHE_NAME.fullmatch(path.name)
    assert own is not None
    entries = []
    for entry in path.parent.iterdir():
        match = CACHE_NAME.fullmatch(entry.name)
        if match is not None and entry != path:
            with suppress(FileNotFoundError):  # another process removes it
                info = entry.stat()
                entries.append((info.st_mtime_ns, info.st_size, entry, match[1] == own[1]))
    total, num_removed = path.stat().st_size, 0
    for _, size, entry, is_earlier in sorted(entries, reverse=True):
        total += 0 if is_earlier else size
        if is_earlier or total > CACHE_BYTES:
            with suppress(PermissionError):  # on Windows, where another process has it open
                entry.unlink(missing_ok=True)  # elsewhere, that process keeps its content
                num_removed += not is_earlier
    if num_removed:
        emit(f"{path.parent} is kept below {CACHE_BYTES / 1e9:,.0f} GB: {number_of(num_removed, 'old set')} removed")


def _remove_abandoned(cache: Path) -> None:
    """Remove what killed processes left half written, each as large as a decoded set; a live one has its own locked."""
    for path in cache.glob(".tmp-*"):
        with suppress(OSError):
            with open(path, "r+b") as file:
                is_abandoned = try_lock(file)
            if is_abandoned:  # closed by now: Windows keeps what is open
                path.unlink()


def _load(path: Path, n: int, num_wanted: int, frame: Frame, keep: bool) -> Decoded | None:
    """Return the content of a cache file, or None if there is none or it is damaged."""
    try:
        state = torch.load(path, weights_only=True, mmap=True)
        crc = state.pop("crc")
        found = Decoded(**state)
        whole = crc == _crc(found) and len(found.kept) + len(found.skipped) == num_wanted
        shape = (len(found.kept), *frame.shape)
        whole = whole and (found.pixels is not None) == keep and found.sums.shape == (shape[0], 2, shape[1])
        whole = whole and found.digests.shape == (n, DIGEST_BYTES)
        if found.pixels is not None:
            whole = whole and found.pixels.shape == shape and found.pixels.dtype == torch.uint8
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError):
        return None
    if not whole:
        return None
    with suppress(OSError):  # a cache folder may be read-only
        os.utime(path)  # used now: others are removed first
    return found


def _crc(decoded: Decoded) -> int:
    """Return a checksum of everything: disks and killed programs damage files, and torch.load does not notice."""
    crc = zlib.crc32(repr((decoded.skipped, decoded.peak, decoded.lost)).encode())
    for tensor in (decoded.kept, decoded.sums, decoded.digests, decoded.pixels):
        crc = zlib.crc32(tensor.numpy().data, crc) if tensor is not None and tensor.numel() else crc
    return crc


@dataclass(frozen=True)
class _Chunk:
    """What a worker makes of some neighbouring files."""

    pixels: Tensor
    sums: Tensor
    reasons: dict[int, str]  # of the bad ones, by number
    digests: Tensor
    seen: Seen


class _Chunks(Dataset[_Chunk]):
    """Item k: the k-th run of names."""

    def __init__(
        self, root: Path, names: Sequence[str], frame: Frame, *, keep: bool, wanted: Tensor | None = None
    ) -> None:
        self.root, self.names, self.frame, self.keep, self.wanted = root, names, frame, keep, wanted
        self.length = images_per_message(frame.shape, 256)

    def __len__(self) -> int:
        return -(-len(self.names) // self.length)

    def __getitem__(self, k: int) -> _Chunk:
        images, reasons, digests, seen = [], {}, bytearray(), Seen()
        with quiet_pillow():
            for i in range(k * self.length, min((k + 1) * self.length, len(self.names))):
                path = self.root / self.names[i]
                digests += content_digest(path)
                if self.wanted is not None and not self.wanted[i]:
                    continue
                try:
                    image, values = decode(path, self.frame)
                    images.append(image)
                    seen.add(values, self.names[i])
                except ImageError as error:
                    reasons[i] = str(error)
        pixels = torch.stack(images) if images else torch.empty(0, *self.frame.shape, dtype=torch.uint8)
        kept = pixels if self.keep else pixels[:0].clone()
        own = torch.frombuffer(digests, dtype=torch.uint8).clone().view(-1, DIGEST_BYTES)
        return _Chunk(kept, pixel_sums(pixels), reasons, own, seen)


def content_digest(path: Path) -> bytes:
    """Return a digest of a file's content, of DIGEST_BYTES; zeros where there is none that can be read."""
    # All of it: an image that is not compressed can change in a few bytes anywhere. It costs less than decoding.
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()[:DIGEST_BYTES]
    except (ImageError, OSError):
        return bytes(DIGEST_BYTES)


def decode_files(
    root: Path, names: Sequence[str], frame: Frame, *, keep: bool, wanted: Tensor | None = None
) -> Decoded:
    """Decode files in several processes; the result does not depend on their number. Arguments as in cached()."""
    good = torch.ones(len(names), dtype=torch.bool) if wanted is None else wanted.clone()
    pixels = torch.empty(int(good.sum()) if keep else 0, *frame.shape, dtype=torch.uint8)
    sums, digests, reasons, end, seen = [], [], {}, 0, Seen()
    chunks = _Chunks(root, names, frame, keep=keep, wanted=wanted)
    with (
        Bar("decoding", len(names), "files") as bar,
        in_processes(chunks, many=len(names) >= MIN_FOR_WORKERS) as decoded,
    ):
        for chunk in decoded:
            bar.add(len(chunk.digests))
            if keep:
                pixels[end : end + len(chunk.pixels)] = chunk.pixels
                end += len(chunk.pixels)
            sums.append(chunk.sums.clone())  # what a worker sends holds a file descriptor for as long as it lives
            digests.append(chunk.digests.clone())
            reasons.update(chunk.reasons)
            seen.merge(chunk.seen)
    if end < len(pixels):
        pixels = pixels[:end].clone()  # saving a view would save the whole tensor
    good[list(reasons)] = False
    skipped = [(names[i], reasons[i]) for i in sorted(reasons)]
    kept = good.nonzero().squeeze(1)
    return Decoded(kept, pixels if keep else None, torch.cat(sums), skipped, torch.cat(digests), seen.peak, seen.lost)


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
