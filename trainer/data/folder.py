"""Data sets that are folders of images: one folder per class, listed here, decoded and cached by decoded.py.

Nothing is ever written among the images.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from trainer.data.decoded import Stamp, cached, mean_std
from trainer.data.images import IMAGE_SUFFIXES, ImageError, read_image
from trainer.data.splits import Source, Split
from trainer.data.stratify import stratified
from trainer.utils.errors import ConfigError

TEST_SEED = 0  # the test part stays the same whatever data.split_seed says
PARTS = ("train", "test", "val")
SAMPLE_SEED = 1  # not TEST_SEED: the images drawn first would all be in the test part
SAMPLE = 2000  # images that a streamed set's mean and std are computed from: their error is below 0.01 of a std


@dataclass(frozen=True)
class Listing:
    """The image files of all parts, in the order train, test, val, then class, then name.

    Attributes:
        names: paths relative to root.
        parts: those of PARTS that have a folder.
        counts: number of files of each part.
        num_ignored: number of other files.
    """

    root: Path
    classes: tuple[str, ...]
    names: list[str]
    stamps: list[Stamp]
    labels: Tensor
    parts: tuple[str, ...]
    counts: tuple[int, ...]
    num_ignored: int

    def rows(self, part: str) -> Tensor:
        """Return the numbers (M,) int64 of a part's files; none for a part that does not exist."""
        if part not in self.parts:
            return torch.arange(0)
        k = self.parts.index(part)
        start = sum(self.counts[:k])
        return torch.arange(start, start + self.counts[k])


class ImageFiles(Dataset[Tensor]):
    """Images that stay on disk: item i is (channels, size, size) uint8, decoded when asked for."""

    def __init__(self, root: Path, names: Sequence[str], *, size: int, channels: int) -> None:
        self.root, self.names, self.size, self.channels = root, list(names), size, channels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        path = self.root / self.names[index]
        try:
            return read_image(path, channels=self.channels, height=self.size, width=self.size)
        except ImageError as error:
            raise ConfigError(f"{path}: {error}.") from error


def class_folders(
    _data_root: Path,
    cache: Path,
    *,
    root: str | None = None,
    size: int = 32,
    channels: int = 3,
    test_fraction: float = 0.1,
    resident: str | bool = "auto",
    on_error: str = "fail",
) -> Source:
    """Your own images: `<root>/{train,test[,val]}/<class>/*`, or `<root>/<class>/*` (then a test part is cut).

    Args:
        cache: folder for the decoded images.
        root: the images' folder, relative to the working directory.
        size: height and width in pixels; the shorter side is fitted and the middle cut out.
        channels: 1 or 3.
        test_fraction: share of the training files that becomes the test part, where there is no test folder.
        resident: auto, True (in memory) or False (decoded again for every batch).
        on_error: fail, or skip (images that cannot be read are left out, the same ones in every run).
    Returns:
        A Source. A streamed one has ImageFiles instead of tensors, and with on_error=fail computes its mean and std
        from a seeded sample of 2,000 training images.
    Raises:
        ConfigError: the folder does not exist, there are fewer than two classes, a class has no images, the parts have
            different classes, or an image cannot be read.
    """
    if root is None:
        raise ConfigError("data.root is missing. Name the folder of your images: data.root=FOLDER.")
    listing = scan(Path(root).expanduser())
    n = len(listing.names)
    in_memory = _in_memory(listing, n * channels * size * size, resident)
    rows = torch.arange(n)
    if not in_memory and on_error == "fail":  # decoding every image could take hours: sample
        train = listing.rows("train")
        rows = stratified(None, len(train), min(SAMPLE, len(train)), SAMPLE_SEED)[0]
    names, stamps = [listing.names[i] for i in rows.tolist()], [listing.stamps[i] for i in rows.tolist()]
    decoded = cached(listing.root, names, stamps, cache, size=size, channels=channels, keep=in_memory)
    if decoded.skipped:
        _report(listing.root, decoded.skipped, on_error)
    kept = rows[decoded.kept]
    good = torch.ones(n, dtype=torch.bool).index_fill_(0, rows, False).index_fill_(0, kept, True)
    train, test, val = _part_rows(listing, good, test_fraction)
    mean, std = mean_std(decoded.sums[torch.isin(kept, train)], size * size)
    files = ImageFiles(listing.root, listing.names, size=size, channels=channels)
    place = good.cumsum(0) - 1  # the row of each good file in the decoded pixels

    def split(part: Tensor) -> Split:
        if decoded.pixels is None:
            return Split(Subset(files, part.tolist()), listing.labels[part])
        chosen = place[part]
        if len(chosen) and bool((chosen.diff() == 1).all()):  # a view of neighbours takes no second copy of the set
            return Split(decoded.pixels[int(chosen[0]) : int(chosen[-1]) + 1], listing.labels[part])
        return Split(decoded.pixels[chosen], listing.labels[part])

    own_val = split(val) if "val" in listing.parts else None
    shape, digest = (channels, size, size), _digest_of_tree(listing, good)
    ignores = ("test_fraction",) if "test" in listing.parts else ()
    return Source(split(train), split(test), shape, digest, listing.classes, mean, std, own_val, ignores)


def scan(root: Path) -> Listing:
    """List the images below root without opening them; errors as in class_folders()."""
    if not root.is_dir():
        raise ConfigError(
            f"{root}: there is no such folder. Images are expected as {root}/CLASS/* or {root}/train/CLASS/*."
        )
    split = bool(_folders(root / "train"))
    parts = tuple(part for part in PARTS if _folders(root / part)) if split else ("train",)
    bases = {part: root / part if split else root for part in parts}
    classes = _folders(bases["train"])
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise ConfigError(f"{bases['train']}: {found}. There must be one folder of images per class, at least two.")
    names: list[str] = []
    stamps: list[Stamp] = []
    labels: list[int] = []
    counts, num_ignored = [], 0
    for part in parts:
        _check_same(bases[part], _folders(bases[part]), classes)
        before = len(names)
        for label, name in enumerate(classes):
            entries, ignored = _images(bases[part] / name)
            prefix = f"{part}/{name}/" if split else f"{name}/"
            names += [prefix + file for file, _ in entries]
            stamps += [stamp for _, stamp in entries]
            labels += [label] * len(entries)
            num_ignored += ignored
        counts.append(len(names) - before)
    return Listing(root, tuple(classes), names, stamps, torch.tensor(labels), parts, tuple(counts), num_ignored)


def _folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; none where there is no such folder."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(path: Path) -> tuple[list[tuple[str, Stamp]], int]:
    """Return (name, stamp) of each image of one class, sorted, and the number of other entries.

    Raises:
        ConfigError: there is no image.
    """
    found, num_ignored = [], 0
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name[name.rfind(".") :].lower() not in IMAGE_SUFFIXES:
                num_ignored += 1
                continue
            try:
                info = entry.stat()
                found.append((name, (info.st_size, info.st_mtime_ns)))
            except FileNotFoundError:  # a dead link: decoding reports it
                found.append((name, (0, 0)))
    if not found:
        raise ConfigError(f"{path}: this class has no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return sorted(found), num_ignored


def _check_same(base: Path, found: list[str], classes: list[str]) -> None:
    missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    if missing or extra:
        lacks = f" lacks {', '.join(missing)}" if missing else ""
        adds = f" has {', '.join(extra)} in addition" if extra else ""
        raise ConfigError(
            f"{base}: its classes are not those of train: it{lacks}{' and' if lacks and adds else ''}{adds}."
        )


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


def _digest_of_tree(listing: Listing, good: Tensor) -> str:
    """Return a digest of names and sizes: all that is known of images that are not read before training."""
    rows = good.nonzero().squeeze(1).tolist()
    return hashlib.sha256("\n".join(repr((listing.names[i], listing.stamps[i][0])) for i in rows).encode()).hexdigest()


def _report(root: Path, skipped: list[tuple[str, str]], on_error: str) -> None:
    """Refuse the bad images, or name them in a warning."""
    shown = [f"  {root / name}: {reason}" for name, reason in skipped[:5]]
    more = [f"  and {len(skipped) - 5:,} more"] if len(skipped) > 5 else []
    lines = "\n".join(shown + more)
    if on_error == "fail":
        raise ConfigError(f"{len(skipped):,} image(s) cannot be read; data.on_error=skip leaves them out:\n{lines}")
    print(f"{len(skipped):,} image(s) cannot be read and are left out:\n{lines}", flush=True)


def _in_memory(listing: Listing, num_bytes: int, resident: str | bool) -> bool:
    """Decide whether the images are held in memory, and print it."""
    ignored = f" ({listing.num_ignored:,} other files ignored)" if listing.num_ignored else ""
    available = memory_available()
    in_memory = num_bytes < available // 2 if resident == "auto" else bool(resident)
    where = f"in memory, {num_bytes / 1e6:,.0f} MB"
    if not in_memory:
        half = f"{num_bytes / 1e6:,.0f} MB is more than half of the {available / 1e6:,.0f} MB available"
        where = f"streamed from disk: {half if resident == 'auto' else 'data.resident=false'}"
    print(f"{len(listing.names):,} images {where}{ignored}", flush=True)
    return in_memory


def memory_available() -> int:
    """Return the bytes that can be used without swapping, by kernel and container; 4 GiB where neither tells."""
    available = 4 * 2**30
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        return max(0, min(available, limit))
    except (OSError, KeyError, ValueError):  # not Linux, or no limit on the container
        return available
