"""Data sets that are folders of images: one folder per class, listed by listing.py, decoded and cached by decoded.py.

Nothing is ever written among the images.
"""

import contextlib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from trainer.data.decoded import cached, mean_std, name_in_cache
from trainer.data.images import MEGAPIXELS, Frame, ImageError, fitting_depth, losses, mixed_floats, read_image
from trainer.data.listing import PARTS, Listing, scan
from trainer.data.splits import Source, Split
from trainer.data.stratify import stratified
from trainer.utils.errors import ConfigError
from trainer.utils.text import emit, number_of, one_line

TEST_SEED = 0  # the test part stays the same whatever data.split_seed says
SAMPLE_SEED = 1  # not TEST_SEED: the images drawn first would all be in the test part
SAMPLE = 2000  # images that a streamed set's mean and std are computed from: their error is below 0.01 of a std


class ImageFiles(Dataset[Tensor]):
    """Images that stay on disk: item i is (channels, size, size) uint8, decoded when asked for."""

    def __init__(self, root: Path, names: Sequence[str], frame: Frame) -> None:
        self.root, self.names, self.frame = root, list(names), frame

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        path = self.root / self.names[index]
        try:
            return read_image(path, self.frame)
        except ImageError as error:
            raise ConfigError(f"{path}: {error}.") from error


def class_folders(
    _data_root: Path,
    cache: Path,
    *,
    root: str | None = None,
    size: int = 32,
    channels: int = 3,
    depth: int | str = 16,
    fit: str = "crop",
    max_megapixels: float = MEGAPIXELS,
    interpolation: str = "bilinear",
    test_fraction: float = 0.1,
    resident: str | bool = "auto",
    on_error: str = "fail",
) -> Source:
    """Your own images: `<root>/{train,test[,val]}/<class>/*`, or `<root>/<class>/*` (then a test part is cut).

    Images in folders inside a class folder belong to the class. Other names of the parts: see listing.PARTS.

    Args:
        cache: folder for the decoded images.
        root: the images' folder, relative to the working directory.
        size: height and width in pixels.
        channels: as in images.Frame, like fit, max_megapixels and interpolation.
        depth: likewise; auto: the fewest bits that hold the values of the set.
        test_fraction: share of the training files that becomes the test part, where there is no test folder.
        resident: auto, True (in memory) or False (decoded again for every batch).
        on_error: fail, or skip (images that cannot be read are left out, the same ones in every run).
    Returns:
        A Source. A streamed one has ImageFiles instead of tensors, and with on_error=fail computes its mean and std
        from a seeded sample of 2,000 training images.
    Raises:
        ConfigError: the folder does not exist or cannot be read, there are fewer than two classes, a class has no
            images, the parts have different classes or no training part, or an image cannot be read.
    """
    if root is None:
        raise ConfigError("data.root is missing. Name the folder of your images: data.root=FOLDER.")
    listing = scan(Path(root).expanduser())
    n = len(listing.names)
    frame = Frame((channels, size, size), 16 if isinstance(depth, str) else depth, fit, max_megapixels, interpolation)
    in_memory = _in_memory(listing, frame, resident)
    wanted = _sample(listing) if not in_memory and on_error == "fail" else None
    decode = partial(cached, listing.root, listing.names, listing.stamps, cache, keep=in_memory, wanted=wanted)
    decoded = decode(frame)
    if depth == "auto" and decoded.peak > 0:
        frame = replace(frame, depth=fitting_depth(decoded.peak))
        decoded = decode(frame)
        emit(f"data.depth=auto: {frame.depth}, since the 16-bit images hold values up to {decoded.peak:,}")
    _report(listing.root, decoded.skipped, on_error, cache)
    emit(*losses(decoded.seen, frame.depth))
    good = torch.zeros(n, dtype=torch.bool) if wanted is None else ~wanted
    good[decoded.kept] = True
    train, test, val = _part_rows(listing, good, test_fraction)
    split = partial(_split, listing, ImageFiles(listing.root, listing.names, frame), decoded.pixels, good.cumsum(0) - 1)
    own_val = split(val) if "val" in listing.parts else None
    ignores = ("test_fraction",) if "test" in listing.parts else ()
    digest, earlier = _digests(listing, good, decoded.digests)
    moments = mean_std(decoded.sums[torch.isin(decoded.kept, train)], size * size)
    described = (frame.shape, digest, listing.classes, *moments, own_val, ignores, earlier, frame.depth)
    return Source(split(train), split(test), *described, mixed=mixed_floats(decoded.seen))


def _sample(listing: Listing) -> Tensor:
    """Return which files (N,) bool to decode for mean and std where decoding every image could take hours."""
    train = listing.rows("train")
    chosen, _ = stratified(None, len(train), min(SAMPLE, len(train)), SAMPLE_SEED)
    return torch.zeros(len(listing.names), dtype=torch.bool).index_fill_(0, train[chosen], True)


def _split(listing: Listing, files: ImageFiles, pixels: Tensor | None, place: Tensor, part: Tensor) -> Split:
    """Return the files of a part (M,) as a Split; `place` (N,) is the row of each good file in the decoded pixels."""
    y, names = listing.labels[part], [listing.names[i] for i in part.tolist()]
    if pixels is None:
        return Split(Subset(files, part.tolist()), y, names)
    chosen = place[part]
    if len(chosen) and bool((chosen.diff() == 1).all()):  # a view of neighbours takes no second copy of the set
        return Split(pixels[int(chosen[0]) : int(chosen[-1]) + 1], y, names)
    return Split(pixels[chosen], y, names)


def _part_rows(listing: Listing, good: Tensor, test_fraction: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of the good files of train, test and val; without a test folder, test is cut from train.

    Raises:
        ConfigError: a class has no training images left, or the test part is empty.
    """
    train, test, val = (rows[good[rows]] for rows in map(listing.rows, PARTS))
    if "test" not in listing.parts:
        _check_each_class(listing, train, "can be read")
        size = round(len(train) * test_fraction)
        chosen, rest = stratified(listing.labels[train], len(train), size, TEST_SEED, spare=True)
        train, test = train[rest], train[chosen]
        _check_each_class(listing, train, f"is left when data.test_fraction={test_fraction} is cut off for the test")
    else:
        _check_each_class(listing, train, "can be read")
    if len(test) == 0:
        raise ConfigError(f"{listing.root}: the test part is empty. Add images or raise data.test_fraction.")
    return train, test, val


def _check_each_class(listing: Listing, train: Tensor, what: str) -> None:
    counts = torch.bincount(listing.labels[train], minlength=len(listing.classes)).tolist()
    empty = [name for name, count in zip(listing.classes, counts, strict=True) if count == 0]
    if empty:
        raise ConfigError(f"{listing.root}: no training image of {', '.join(empty)} {what}.")


def _digests(listing: Listing, good: Tensor, digests: Tensor) -> tuple[str, str]:
    """Return a digest of the good files' names and contents, and what earlier versions had: of names and sizes.

    The first is the same for a copy of the set, whatever its times, and another one when an image is edited.
    """
    rows = good.nonzero().squeeze(1)
    names = [listing.names[i] for i in rows.tolist()]
    sizes = [listing.stamps[i][0] for i in rows.tolist()]
    earlier = hashlib.sha256("\n".join(map(repr, zip(names, sizes, strict=True))).encode())
    digest = hashlib.sha256("\n".join(map(repr, names)).encode())
    digest.update(digests[rows].numpy().data)
    return digest.hexdigest(), earlier.hexdigest()


def _report(root: Path, skipped: list[tuple[str, str]], on_error: str, cache: Path) -> None:
    """Refuse the bad images, or name them in a warning; where they are many, all of them in a file beside the cache."""
    if not skipped:
        return
    lines = [one_line(f"{root / name}: {reason}") for name, reason in skipped]
    shown, more = [f"  {line}" for line in lines[:5]], []
    if len(lines) > 5:
        path = cache / f"{name_in_cache(root)}-unreadable.txt"
        more = [f"  and {len(lines) - 5:,} more"]
        with contextlib.suppress(OSError):  # a list that cannot be kept must not hide what is wrong
            cache.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
            more = [f"  and {len(lines) - 5:,} more, all of them in {path}"]
    said = f"{number_of(len(skipped), 'image')} cannot be read"
    if on_error == "fail":
        raise ConfigError(f"{said}; training with data.on_error=skip leaves out what cannot be:", *shown, *more)
    emit(f"{said}, left out:", *shown, *more)


def _in_memory(listing: Listing, frame: Frame, resident: str | bool) -> bool:
    """Decide whether the images are held in memory, and print it and their size."""
    num_bytes = len(listing.names) * math.prod(frame.shape)
    ignored = f" ({number_of(listing.num_others, 'other file')} ignored)" if listing.num_others else ""
    available = memory_available()
    in_memory = num_bytes < available // 2 if resident == "auto" else bool(resident)
    where = f"in memory, {num_bytes / 1e6:,.0f} MB"
    if not in_memory:
        half = f"{num_bytes / 1e6:,.0f} MB is more than half of the {available / 1e6:,.0f} MB available"
        where = f"streamed from disk: {half if resident == 'auto' else 'data.resident=false'}"
    how = {"crop": "cropped", "pad": "padded", "squash": "squashed"}[frame.fit]
    size = f"{how} to {frame.shape[1]} x {frame.shape[2]} pixels (data.fit, data.size)"
    emit(f"{number_of(len(listing.names), 'image')} {where}{ignored}, {size}")
    if left_out := listing.left_out:
        more = f" and {len(left_out) - 3:,} more" if len(left_out) > 3 else ""
        shown = ", ".join(str(listing.root / name) for name in left_out[:3])
        emit(f"warning: {number_of(len(left_out), 'image')} in no class folder, left out: {shown}{more}")
    return in_memory


def memory_available() -> int:
    """Return the bytes that can be used without swapping, by kernel and container; 4 GiB where neither tells."""
    available = 4 * 2**30
    try:
        read = partial(Path.read_text, encoding="utf-8")
        fields = dict(line.split(":", 1) for line in read(Path("/proc/meminfo")).splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = int(read(group / "memory.max")) - int(read(group / "memory.current"))
        return max(0, min(available, limit))
    except (OSError, KeyError, ValueError):  # not Linux, or no limit on the container
        return available
