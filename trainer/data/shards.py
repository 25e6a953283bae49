"""data=shards: images in tar files, read where they lie in the files; tars.py knows where that is.

In memory an example takes 40 bytes, however large its image is.
"""

import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainer.data.decoded import mean_std, pixel_sums
from trainer.data.folder import SAMPLE, SAMPLE_SEED, TEST_SEED
from trainer.data.images import (
    MEGAPIXELS,
    Frame,
    ImageError,
    Seen,
    Values,
    decode,
    losses,
    mixed_floats,
    quiet_pillow,
)
from trainer.data.remote import Stored, stored
from trainer.data.shard_files import files_of_parts
from trainer.data.splits import Source, Split
from trainer.data.stratify import TOGETHER, stratified
from trainer.data.tars import INDEX_FORMAT, UNREADABLE, Index, index_of, keep, name_at
from trainer.utils.bar import Bar
from trainer.utils.errors import ConfigError, listed
from trainer.utils.text import emit, number_of, short_repr

CLASS_NAMES = "classes.txt"  # beside the shards: a class on each line, in the order of their numbers


class ShardImages(Dataset[Tensor]):
    """Images in tar files: item i is (C, H, W) uint8, read and decoded when asked for.

    Args:
        files: the tar files.
        where: (N, 3) int64: file, offset, length.
        frame: what an image is decoded to.
    """

    def __init__(self, files: Sequence[Stored], where: Tensor, frame: Frame) -> None:
        self.files, self.where, self.frame = files, where, frame

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> Tensor:
        return self.decoded(index)[0]

    def decoded(self, index: int) -> tuple[Tensor, Values]:
        """Item i, and what is to be known of the values in its file."""
        number, offset, length = self.where[index].tolist()
        shard = self.files[number]
        try:
            with shard.opened() as file:  # opening takes a hundredth of the time of decoding
                if os.fstat(file.fileno()).st_size != shard.size:
                    raise ConfigError(f"{shard} was changed while it was in use.")
                file.seek(offset)
                content = file.read(length)
            with quiet_pillow():
                return decode(io.BytesIO(content), self.frame)
        except OSError as error:
            raise ConfigError(f"{shard} cannot be read: {error.strerror}.") from error
        except ImageError as error:
            raise ConfigError(f"{shard}: {name_at(shard, offset)}: {error}.") from error

    def take(self, indices: Tensor) -> "ShardImages":
        """The same of some images (M,)."""
        return ShardImages(self.files, self.where[indices], self.frame)


def shards(
    _data_root: Path,
    cache: Path,
    *,
    root: str | None = None,
    test_root: str | None = None,
    size: int = 32,
    channels: int = 3,
    depth: int = 16,
    fit: str = "crop",
    max_megapixels: float = MEGAPIXELS,
    interpolation: str = "bilinear",
    test_fraction: float = 0.1,
    cache_gb: float = 50.0,
) -> Source:
    """Images in tar files, which stay there.

    Args:
        cache: folder for the indices, and for copies of files that lie at an address.
        root: a folder of *.tar, one file, or a pattern such as photos/train-{000..127}.tar, or their address. In a
            folder with files named train-*.tar, those named test-*.tar and val-*.tar are the other parts.
        test_root: the same of the test part; None: `test_fraction` of the examples are cut off for it.
        size: height and width in pixels.
        channels: as in images.Frame, like depth, fit, max_megapixels and interpolation.
        test_fraction: share of the examples that becomes the test part.
        cache_gb: room for the copies, in GB.
    Returns:
        A Source whose splits have the shard of each example in `group`; mean and std come from 2,000 training images.
    Raises:
        ConfigError: a file is missing, damaged, compressed or no tar file, or an example has no class.
    """
    if root is None:
        raise ConfigError(
            "data.root is missing. Name your tar files: data.root=FOLDER or data.root=train-{000..127}.tar"
        )
    most = int(cache_gb * 1e9)
    parts = files_of_parts(root, test_root, cache, most)
    files = [file for part in parts.values() for file in part]
    indices = [index_of(file, cache) for file in files]
    check_parts(parts, indices)
    listing = f"{files[0].where.removesuffix(files[0].name)}{CLASS_NAMES}"
    classes, labels = class_numbers(listing, class_names(stored(listing, cache, most)), indices)
    where = torch.cat([torch.cat([torch.full((len(one.codes), 1), i), one.places], 1) for i, one in enumerate(indices)])
    frame = Frame((channels, size, size), depth, fit, max_megapixels, interpolation)
    images = ShardImages(files, where, frame)
    said = f"{number_of(len(where), 'image')} in {number_of(len(files), 'tar file')}"
    emit(f"{said}, read from there, to {size} x {size}")
    group = where[:, 0]
    rows = split_rows(parts, group, labels, test_fraction)
    check_rows(root, rows, labels, classes)
    warn_of_others(indices)
    warn_of_order(labels[rows["train"]], group[rows["train"]])
    split = {name: Split(images.take(part), labels[part], group=group[part]) for name, part in rows.items()}
    digest = hashlib.sha256(repr([index.sha256 for index in indices] + list(classes)).encode()).hexdigest()
    sums, seen = sampled(images.take(rows["train"]), cache, digest)
    emit(*losses(seen, depth))
    ignores = {"test_fraction": "test" in parts, "cache_gb": not any(file.copies for file in files)}
    described = (frame.shape, digest, classes, *mean_std(sums, size * size), split.get("val"))
    void = tuple(key for key, is_void in ignores.items() if is_void)
    return Source(split["train"], split["test"], *described, void, depth=depth, mixed=mixed_floats(seen))


def check_parts(parts: Mapping[str, Sequence[Stored]], indices: Sequence[Index]) -> None:
    """Raise ConfigError for a file that is in two parts, be it as a copy; the indices are those of all files."""
    seen: dict[str, tuple[str, Stored]] = {}
    files = [(part, file) for part, files in parts.items() for file in files]
    for (part, file), index in zip(files, indices, strict=True):
        other, first = seen.setdefault(index.sha256, (part, file))
        if other != part:
            raise ConfigError(f"{first} ({other} part) and {file} ({part} part) are the same. Leave one of them out.")


def split_rows(
    parts: Mapping[str, Sequence[Stored]], group: Tensor, labels: Tensor, test_fraction: float
) -> dict[str, Tensor]:
    """The numbers (M,) of the examples of each part; without files for the test, it is cut from the training part."""
    bounds = torch.tensor([len(part) for part in parts.values()]).cumsum(0).tolist()
    starts = dict(zip(parts, [0, *bounds], strict=False))
    rows = {
        name: ((group >= starts[name]) & (group < starts[name] + len(parts[name]))).nonzero()[:, 0] for name in parts
    }
    if "test" not in rows:
        train = rows["train"]
        num_test = round(len(train) * test_fraction)
        chosen, rest = stratified(labels[train], len(train), num_test, TEST_SEED, spare=True)
        rows |= {"train": train[rest], "test": train[chosen]}
    return rows


def class_numbers(listing: str, names: Sequence[str], indices: Sequence[Index]) -> tuple[tuple[str, ...], Tensor]:
    """The names of all classes, and the class number of each example.

    Where all classes are numbers and classes.txt lies beside the shards, they count its lines from 0.

    Args:
        listing: where classes.txt is looked for.
        names: its lines; none where it is missing.
        indices: of the shards.
    Raises:
        ConfigError: a class is in the shards and not in classes.txt, or twice in it, or there is but one.
    """
    plain = [name.strip() for name in names]
    if "" in plain:
        raise ConfigError(f"{listing}, line {plain.index('') + 1}: a blank line is no name of a class. Take it out.")
    if twice := [name for place, name in enumerate(names) if plain[place] in plain[:place]]:
        raise ConfigError(f"{listing} has the line {short_repr(twice[0])} twice: each class needs its own name.")
    words = sorted({word for index in indices for word in index.words})
    if all(re.fullmatch(r"[0-9]{1,9}", word) for word in words):
        numbers = sorted({int(word) for word in words})
        if names and numbers[-1] >= len(names):
            raise ConfigError(f"{listing} has {len(names)} lines, and there is a class {numbers[-1]}, counted from 0.")
        number_of_word = {word: int(word) if names else numbers.index(int(word)) for word in words}
        names = names or [str(number) for number in numbers]
    else:
        names = names or words
        if unknown := [word for word in words if word not in names]:
            raise ConfigError(f"{listing} has no line {short_repr(unknown[0])}, which is a class in the shards.")
        number_of_word = {word: names.index(word) for word in words}
    if len(names) < 2:
        raise ConfigError(
            f"{listing.removesuffix(CLASS_NAMES)}: there is only the class {names[0]!r}. At least two are needed."
        )
    tables = [torch.tensor([number_of_word[word] for word in index.words]) for index in indices]
    return tuple(names), torch.cat([table[index.codes] for table, index in zip(tables, indices, strict=True)])


def class_names(file: Stored | None) -> list[str]:
    """The lines of a file, which may hold names of folders that are no text; none of a missing one."""
    if file is None:
        return []
    text = file.path().read_text(encoding="utf-8-sig", errors="surrogateescape")
    # splitlines() would also split at signs that a name may have
    return text.rstrip("\n").split("\n") if text.strip() else []


def check_rows(root: str, rows: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str]) -> None:
    """Refuse parts without examples, and a class that is not in the training part.

    Raises:
        ConfigError: names the part or the classes.
    """
    if not len(rows["test"]):
        raise ConfigError(f"{root}: the test part is empty. Raise data.test_fraction, or name data.test_root.")
    counts = torch.bincount(labels[rows["train"]], minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        more = f" and {len(empty) - 5:,} classes more" if len(empty) > 5 else ""
        raise ConfigError(f"{root}: no training image of {listed(empty[:5])}{more}.")


def warn_of_others(indices: Sequence[Index]) -> None:
    """Say how many members of the tar files are not used."""
    if others := sum(index.num_others for index in indices):
        emit(f"warning: {number_of(others, 'member')} of the tar files belong to no image: they are not used")


def warn_of_order(labels: Tensor, group: Tensor) -> None:
    """Say where the examples lie sorted by class: those of TOGETHER files are then of a few classes only."""
    num_classes, files = len(labels.unique()), group.unique()
    if len(files) <= TOGETHER:  # all are shuffled together
        return
    seen = [len(labels[torch.isin(group, some)].unique()) for some in files.split(TOGETHER)]
    if min(seen) <= num_classes // 2:
        emit(
            f"warning: the tar files lie sorted by class: {TOGETHER} of them, which are shuffled together, have "
            f"{min(seen)} of {num_classes} classes. Pack the images in a random order."
        )


def sampled(train: ShardImages, cache: Path, digest: str) -> tuple[Tensor, Seen]:
    """The sums of a seeded sample of the training images, and of their values, from the cache or computed now."""
    what = repr((INDEX_FORMAT, digest, train.frame, len(train), int(train.where.sum())))
    kept = cache / "shards" / f"sample-{hashlib.sha256(what.encode()).hexdigest()[:16]}.pt"
    chosen, _ = stratified(None, len(train), min(SAMPLE, len(train)), SAMPLE_SEED)
    with suppress(*UNREADABLE):
        found = torch.load(kept, weights_only=True)
        lost = {str(key): (int(count), str(first)) for key, (count, first) in found["lost"].items()}
        sums, seen = found["sums"], Seen(int(found["peak"]), lost)
        if (sums.dtype, sums.shape) == (torch.int64, (len(chosen), 2, train.frame.shape[0])):
            return sums, seen
    measured, seen = [], Seen()
    with Bar("measuring", len(chosen), "images") as bar:
        for i in chosen.tolist():
            pixels, values = train.decoded(i)
            measured.append(pixel_sums(pixels.unsqueeze(0)))
            number, offset, _ = train.where[i].tolist()
            seen.add(values, name_at(train.files[number], offset) if values.lost or values.floats else "")
            bar.add(1)
    sums = torch.cat(measured)
    keep(kept, {"sums": sums, "peak": seen.peak, "lost": seen.lost})
    return sums, seen
