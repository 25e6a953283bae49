"""The data command: where a data set is, whether it is whole, and what its examples look like."""

import shlex
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer import data
from trainer.commands.summary import new_parts
from trainer.config.schema import Config
from trainer.config.verbs import PLACES_OF_DATA
from trainer.data.batches import Batches, Placement
from trainer.data.pack import pack_images
from trainer.data.remote import is_address
from trainer.data.shard_files import expanded_names
from trainer.data.splits import Split, Splits
from trainer.data.stratify import mixed
from trainer.data.vision import CIFAR10_MD5, FASHION_SHA256, MNIST_SHA256, inside
from trainer.run import directory
from trainer.run.parts import Parts, reading
from trainer.run.result import NUM_IMAGES, first, first_batch, title_of
from trainer.utils.bar import Bar
from trainer.utils.errors import ConfigError, listed
from trainer.utils.program import main_py
from trainer.utils.screen import Screen, shown, table
from trainer.utils.text import emit, number_of, one_line

MOST_CLASSES = 30  # that have a line each
ALL_OF_IT = {"on_error": "fail", "limit": None, "eval_limit": None}  # options with which nothing is left out


def run_data(action: str, config: Config) -> None:
    """Do one of ACTIONS."""
    ACTIONS[action](config)


def show(config: Config) -> None:
    """Print sizes, classes and statistics, and draw images as they are and as the model sees them in training."""
    directory.check_writable(Path(config.paths.outputs))
    parts = new_parts(config, Screen())
    splits = parts.splits
    emit("", f"examples     {sizes_of(splits)}, each {' x '.join(map(str, splits.in_shape))}")
    if len(splits.in_shape) == 3:
        for name, values in (("mean", splits.mean), ("std", splits.std)):
            emit(f"{name:13}{', '.join(shown(value) for value in values)} of pixels from 0 to 1, a value each channel")
    emit(*of_labels(splits))
    if config.plots:
        emit(*draw_images(config, parts))


def splits_of(splits: Splits) -> dict[str, Split]:
    """The parts that have examples, by name."""
    return {name: part for name in ("train", "val", "test") if len(part := getattr(splits, name))}


def sizes_of(splits: Splits) -> str:
    """How many examples each part has: 54,000 train, 6,000 val."""
    return ", ".join(f"{len(split):,} {name}" for name, split in splits_of(splits).items())


def of_labels(splits: Splits) -> list[str]:
    """How many examples each class has, or how targets are spread."""
    parts = splits_of(splits)
    if not splits.classes:
        lines = []
        for name, part in parts.items():
            y = part.y.double()
            lines.append(f"{name + ' targets':14}from {y.min():.4g} to {y.max():.4g}, mean {y.mean():.4g}")
        return lines
    counts = {name: torch.bincount(part.y, minlength=len(splits.classes)) for name, part in parts.items()}
    order = list(range(len(splits.classes)))
    if len(order) > MOST_CLASSES:
        order = counts["train"].argsort(descending=True).tolist()[:MOST_CLASSES]
    rows = [
        {"class": one_line(splits.classes[k], 40)} | {name: str(int(count[k])) for name, count in counts.items()}
        for k in order
    ]
    rest = len(splits.classes) - len(rows)
    of_train = counts["train"]
    odd = int(of_train.max()) > 3 * max(1, int(of_train.min()))
    advice = "some classes are much rarer: loss.class_weights=balanced or data.balance=true (docs/own-images.md)"
    return [
        *table(rows),
        *([f"and {number_of(rest, 'class')}es more, rarer ones"] if rest else []),
        *([advice] if odd else []),
    ]


def draw_images(config: Config, parts: Parts) -> list[str]:
    """Draw training images as they are, and the first batch as the model sees it; the lines that say where."""
    splits = parts.splits
    if len(splits.in_shape) != 3:
        return ["no plot: the examples are rows"]
    from trainer.plots import run as plots  # matplotlib takes 0.4 s

    chosen = splits.train.take(mixed(splits.train.y, NUM_IMAGES))
    folder = Path(config.paths.outputs)
    paths = [folder / f"data-{config.data.name}{end}.png" for end in ("", "-batch")]
    titles = [title_of(splits.classes, label) for label in chosen.y]
    plots.prediction_grid(first(chosen), titles, None, paths[0], heading="training images: true class")
    first_batch(splits, parts.train, paths[1])
    return [f"plot         {path}" for path in paths]


def where(config: Config) -> None:
    """Print where the set is looked for, and what is there of it."""
    places = homes_of(config)
    addresses = [name for name in names_typed(config) if is_address(name)]
    for name in addresses:
        emit(f"{name}: an address; copies of files from there are in {Path(config.paths.cache) / 'remote'}")
    if not places and not addresses:
        emit(f"data={config.data.name} is made by the program: it is nowhere on the disk.")
    for path in places:
        there = size_of_place(path)
        emit(f"{path}: {'missing' if there is None else f'{there / 1e6:,.1f} MB'}")
    if is_missing(config):
        emit(fetch_it(config))
    elif places and all(size_of_place(path) is None for path in places):
        emit("It is not there.")


def verify(config: Config) -> None:
    """Read the set, which checks each published file against its digest, and downloads nothing.

    Raises:
        ConfigError: it is not there, or is not what was published.
    """
    places = homes_of(config)
    missing = [path for path in places if size_of_place(path) is None]
    if missing:
        raise ConfigError(f"{missing[0]} is missing. {fetch_it(config) if is_published(config) else ''}".rstrip())
    options = {key: value for key, value in ALL_OF_IT.items() if key in config.data.options}
    for key in options:
        if f"data.{key}" in config.typed and config.data.options[key] != ALL_OF_IT[key]:
            emit(f"warning: data.{key} has no effect on data verify: it reads all of the set")
    fetch_set(replace(config, data=replace(config.data, options={**config.data.options, **options})))


def fetch_set(config: Config) -> None:
    """Read the set and download what is missing of it; published files are checked against their digests."""
    splits = data.load(config.data, config.paths)
    for name, split in splits_of(splits).items():
        if not isinstance(split.x, Tensor):  # those on disk were counted, and a sample was decoded
            batches = Batches(splits, split, Placement(torch.device("cpu"), torch.float32), **reading(config))
            with closing(batches.epoch(0)) as examples, Bar(f"reading {name}", len(split), "examples") as bar:
                for _ in bar.over(examples):
                    pass
    checked = "; its files are the published ones" if is_published(config) and is_official(config) else ""
    emit(f"{config.data.name}: {sizes_of(splits)}: all of it can be read{checked}")


def fetch_it(config: Config) -> str:
    """What to type for what is missing of a published set, to have it where it was looked for."""
    place = f" {shlex.quote(f'paths.data={config.paths.data}')}" if "paths.data" in config.typed else ""
    return f"{main_py()} data fetch {config.data.name}{place} downloads it."


def is_published(config: Config) -> bool:
    """Whether the set can be downloaded."""
    return config.data.name in ("mnist", "fashion_mnist", "cifar10")


def is_official(config: Config) -> bool:
    """Whether the published files are there, not CIFAR-10 as image files."""
    return all(path.is_file() for path in homes_of(config))


def homes_of(config: Config) -> list[Path]:
    """The files or folders of a set, there or not; where it may lie in several ways, those of the one that is there."""
    root = Path(config.paths.data)
    if config.data.name in ("mnist", "fashion_mnist"):
        name, digests = ("MNIST", MNIST_SHA256) if config.data.name == "mnist" else ("FashionMNIST", FASHION_SHA256)
        folder = inside(root, name, "raw")
        packed = [folder / f"{file}.gz" for file in digests]
        plain = [folder / file for file in digests]
        return [gz if gz.is_file() and not file.is_file() else file for gz, file in zip(packed, plain, strict=True)]
    if config.data.name == "cifar10":
        batches = [inside(root, "cifar-10-batches-py") / name for name in CIFAR10_MD5]
        tree, archive = inside(root, "cifar10"), root / "cifar-10-python.tar.gz"
        if all(path.is_file() for path in batches):
            return batches
        if (tree / "train").is_dir():
            return [tree]
        return [archive] if archive.is_file() else batches
    return [Path(name).expanduser() for name in names_typed(config) if not is_address(name)]


def names_typed(config: Config) -> list[str]:
    """The files, folders and addresses that the options of a set name; each file of a pattern of shards."""
    options = [config.data.options.get(key.removeprefix("data.")) for key in PLACES_OF_DATA]
    typed = [name for name in options if name is not None]
    return [each for name in typed for each in (expanded_names(name) if config.data.name == "shards" else [name])]


def is_missing(config: Config) -> bool:
    """Whether to read a published set would download some of it."""
    return is_published(config) and any(size_of_place(path) is None for path in homes_of(config))


def size_of_place(path: Path) -> int | None:
    """The bytes of a file, or of all files below a folder; None where it is missing."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else None


def pack_set(config: Config) -> None:
    """Write a folder of images as tar files beside it, for data=shards.

    Raises:
        ConfigError: it is no folder of images, or there are tar files of it already.
    """
    if config.data.name != "folder":
        raise ConfigError(f"data pack {config.data.name}: only data=folder has images to pack, with data.root=PHOTOS.")
    root = Path(config.data["root"]).expanduser()
    beside = root if root.name.strip(".") else root.resolve()  # of data.root=. the name is not in the path
    to = beside.parent / f"{root.resolve().name}-shards"
    names = pack_images(root, to)
    emit(f"{to}: {listed(names[:3])}{f' and {len(names) - 3:,} more' if len(names) > 3 else ''}, classes.txt")
    emit(f"train        {main_py()} {shlex.join(['data=shards', f'data.root={to}'])}")


ACTIONS: dict[str, Callable[[Config], None]] = {
    "show": show,
    "where": where,
    "verify": verify,
    "fetch": fetch_set,
    "pack": pack_set,
}
