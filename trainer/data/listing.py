"""Which image files a folder holds: one list of suffixes and one walk, for training and predict alike.

A data set is a tree of them: one folder per class, below a folder for each part where the set comes in parts. Nothing
is opened here: images.py decodes one file, decoded.py all of a set.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.utils.errors import ConfigError, close_to, did_you_mean

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
)
PARTS = {  # in this order; what each is called by those who publish sets, in any case
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
PART_OF = {name: part for part, names in PARTS.items() for name in names}

Stamp = tuple[int, int, int]  # size in bytes; times in ns when the content and when the entry last changed


@dataclass(frozen=True)
class Images:
    """What walk() found below a folder: (relative name, stamp) of each image, sorted, and the number of other files."""

    images: list[tuple[str, Stamp]]
    num_others: int


@dataclass(frozen=True)
class Listing:
    """The image files of all parts, in the order train, test, val, then class, then name.

    Attributes:
        names: paths relative to root.
        parts: those of PARTS that have a folder.
        counts: number of files of each part.
        num_others: number of files in class folders that are no images.
        left_out: paths, relative to root, of images that lie in no class folder.
    """

    root: Path
    classes: tuple[str, ...]
    names: list[str]
    stamps: list[Stamp]
    labels: Tensor
    parts: tuple[str, ...]
    counts: tuple[int, ...]
    num_others: int
    left_out: list[str]

    def rows(self, part: str) -> Tensor:
        """Return the numbers (M,) int64 of a part's files; none for a part that does not exist."""
        if part not in self.parts:
            return torch.arange(0)
        k = self.parts.index(part)
        start = sum(self.counts[:k])
        return torch.arange(start, start + self.counts[k])


def is_image(name: str) -> bool:
    """Whether a file of this name is taken as an image: by its suffix, unless it is hidden."""
    return not name.startswith(".") and name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def walk(folder: Path) -> Images:
    """Find the images below a folder, at any depth, without opening them.

    Linked files and folders count as what they lead to; a folder that leads back to one above it is not entered again,
    and hidden folders are not entered at all.

    Raises:
        ConfigError: a folder cannot be read.
    """
    images: list[tuple[str, Stamp]] = []
    num_others = 0
    for name, entry in _files(folder):
        if not is_image(entry.name):
            num_others += 1
            continue
        try:
            info = entry.stat()
            images.append((name, (info.st_size, info.st_mtime_ns, info.st_ctime_ns)))
        except OSError:  # a dead link: decoding reports it
            images.append((name, (0, 0, 0)))
    return Images(sorted(images), num_others)


def _files(folder: Path) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield (path relative to the folder, entry) of each file below it, in no particular order."""
    # Each folder comes with the device and inode of those above it: a loop of links ends where one comes again.
    waiting: list[tuple[Path, str, tuple[tuple[int, int], ...]]] = [(folder, "", ())]
    while waiting:
        path, prefix, above = waiting.pop()
        try:
            info = path.stat()
            own = (info.st_dev, info.st_ino)
            if own in above:
                continue
            with os.scandir(path) as entries:
                inside = list(entries)
        except OSError as error:
            raise ConfigError(f"{path}: this folder cannot be read: {error.strerror}.") from error
        for entry in inside:
            if not _is_folder(entry):
                yield prefix + entry.name, entry
            elif not entry.name.startswith("."):
                waiting.append((path / entry.name, f"{prefix}{entry.name}/", (*above, own)))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: decoding reports it if it is called an image
        return False


def scan(root: Path) -> Listing:
    """List the images of a data set without opening them.

    Args:
        root: its folder: `<root>/{train,test[,val]}/<class>/*` (or as PARTS calls them), or `<root>/<class>/*`.
            Images in folders inside a class folder belong to the class.
    Raises:
        ConfigError: see class_folders().
    """
    if not os.path.isdir(root):
        beside = []
        with contextlib.suppress(ConfigError):
            beside = [str(root.with_name(name)) for name in close_to(root.name, _folders(root.parent))]
        raise ConfigError(
            f"{root}: there is no such folder.{did_you_mean(beside)} "
            f"Images are expected as {root}/CLASS/* or {root}/train/CLASS/*."
        )
    folders = part_folders(root)
    bases = {part: root / name for part, name in folders.items()} or {"train": root}
    classes = _folders(bases["train"])
    _check_classes(bases["train"], classes)
    names: list[str] = []
    stamps: list[Stamp] = []
    labels: list[int] = []
    counts, num_others = [], 0
    for part, base in bases.items():
        _check_same(base, _folders(base), classes)
        before = len(names)
        for label, name in enumerate(classes):
            found = walk(base / name)
            if not found.images:
                raise ConfigError(f"{base / name}: this class has no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            prefix = f"{folders[part]}/{name}/" if folders else f"{name}/"
            names += [prefix + file for file, _ in found.images]
            stamps += [stamp for _, stamp in found.images]
            labels += [label] * len(found.images)
            num_others += found.num_others
        counts.append(len(names) - before)
    left_out = list(_left_out(root, folders))
    return Listing(
        root, tuple(classes), names, stamps, torch.tensor(labels), tuple(bases), tuple(counts), num_others, left_out
    )


def part_folders(root: Path) -> dict[str, str]:
    """Return the name of the folder of each part, in the order of PARTS; none where root has the class folders itself.

    Raises:
        ConfigError: two folders are the same part, or there is a test or a val part and none to train on.
    """
    found: dict[str, list[str]] = {}
    for name in _folders(root):
        if (part := PART_OF.get(name.lower())) and _folders(root / name):  # without folders inside it may be a class
            found.setdefault(part, []).append(name)
    for part, same in found.items():
        if len(same) > 1:
            raise ConfigError(f"{root}: {' and '.join(same)} are both taken as the {part} part. Join or rename them.")
    if found and "train" not in found:
        name = next(iter(found.values()))[0]
        raise ConfigError(
            f"{root}: {name} holds folders, like a {PART_OF[name.lower()]} part, but there is no train folder with "
            f"class folders. Add {root / 'train'}, or rename {name} if it is a class."
        )
    return {part: found[part][0] for part in PARTS if part in found}


def _check_classes(base: Path, classes: list[str]) -> None:
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise ConfigError(f"{base}: {found}. There must be one folder of images per class, at least two.")
    if all(name.lower() in PART_OF for name in classes):
        raise ConfigError(
            f"{base}: {', '.join(classes)} hold images but no class folders. There must be one folder of images per "
            f"class: {base / classes[0] / 'CLASS'}/*."
        )


def _left_out(root: Path, folders: Mapping[str, str]) -> Iterator[str]:
    """Yield the images that belong to no class: loose ones, and those in folders beside the parts."""
    for base, prefix in [(root, ""), *((root / name, f"{name}/") for name in folders.values())]:
        with os.scandir(base) as entries:
            yield from sorted(
                prefix + entry.name for entry in entries if is_image(entry.name) and not _is_folder(entry)
            )
    if folders:
        for name in sorted(set(_folders(root)) - set(folders.values())):
            with suppress(ConfigError):  # such as lost+found: not part of the set
                yield from (f"{name}/{image}" for image, _ in walk(root / name).images)


def _folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; none where there is no such folder."""
    if not os.path.isdir(path):  # Path.is_dir raises where a name is too long
        return []
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{path}: this folder cannot be read: {error.strerror}.") from error


def _check_same(base: Path, found: list[str], classes: list[str]) -> None:
    missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    if missing or extra:
        lacks = f" lacks {', '.join(missing)}" if missing else ""
        adds = f" has {', '.join(extra)} in addition" if extra else ""
        raise ConfigError(
            f"{base}: its classes are not those of train: it{lacks}{' and' if lacks and adds else ''}{adds}."
        )
