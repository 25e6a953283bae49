"""DATASETS is the index of data sets: each entry reads one and returns a Source; `load` cuts it for a run."""

from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from trainer.config.schema import FITTED, Choice, Paths
from trainer.data.adapt import measured, normalized, scaled, seen_smaller
from trainer.data.augment import stored_size
from trainer.data.folder import class_folders
from trainer.data.shards import shards
from trainer.data.splits import Source, Splits, cut
from trainer.data.synthetic import random, synthetic
from trainer.data.table import table_rows
from trainer.data.vision import cifar10, fashion_mnist, mnist
from trainer.utils.errors import ConfigError
from trainer.utils.text import emit

DATASETS: dict[str, Callable[..., Source]] = {
    "synthetic": synthetic,
    "random": random,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "folder": class_folders,
    "shards": shards,
    "table": table_rows,
}
# options that splits.cut handles, for every set alike
CUT = ("val_fraction", "split_seed", "limit", "expand")
ADAPTED = ("normalize", "eval_limit")  # options that adapt.py handles, and for these sets their size:
SCALED = ("mnist", "fashion_mnist", "cifar10")
# options that batches.py handles
BATCHES = ("augment", "mixup", "cutmix", "first_sizes", "workers", "resident", "order_seed", "drop_last", "balance")


def load(
    choice: Choice,
    paths: Paths,
    sources: MutableMapping[str, Source] | None = None,
    *,
    like: Mapping[str, Any] | None = None,
) -> Splits:
    """Read a data set and cut it into train, validation and test.

    Args:
        choice: name and options of the set.
        paths: folders of the data and of the cache.
        sources: keeps the last set that was read, so that the jobs of a sweep share one copy.
        like: the content of a checkpoint whose set is read again: what data.depth=auto came to, and how it was cut.
    Raises:
        ConfigError: the data is missing, damaged, or too small for what is asked.
    """
    own = {key: value for key, value in choice.options.items() if key not in (*CUT, *ADAPTED, *BATCHES)}
    if choice.name == "folder":  # class_folders() decides whether its images stay on disk
        own["resident"] = choice["resident"]
    if choice.name in FITTED:
        own["size"] = stored_size(choice["size"], choice["augment"])
    size = own.pop("size", None) if choice.name in SCALED else None
    if choice.name == "cifar10":  # where it lies as image files, they are decoded to the size
        own["size"] = size
    if like is not None and choice.name == "table":  # rows become numbers as in the training
        own["known"] = {"columns": like.get("table"), "classes": like["classes"]}
    if like is not None and own.get("depth") == "auto":
        own["depth"] = like["preprocess"].get("depth", 16)
    cuts = {key: choice[key] for key in CUT if key in choice.options}
    key = repr((choice.name, sorted(own.items()), paths.data, paths.cache))
    sources = {} if sources is None else sources
    if key not in sources:
        source = DATASETS[choice.name](Path(paths.data), Path(paths.cache), **own)
        sources.clear()
        sources[key] = source
    if mixed := sources[key].mixed:
        if like is None:
            raise ConfigError(f"data.root={choice['root']}: {mixed}")
        emit(f"warning: {mixed}")  # a run of an earlier version, which took them so
    check_options(choice, sources[key].in_shape)
    splits = cut(sources[key], **cuts, spares=like is None or "spares" in like["data"])
    splits = normalized(splits, choice.options.get("normalize", "own"))
    splits = measured(splits, choice.options.get("eval_limit"))
    return seen_smaller(splits, choice["size"]) if choice.name in FITTED else scaled(splits, size)


def check_options(choice: Choice, in_shape: tuple[int, ...]) -> None:
    """Refuse options for images where there are rows, or of another number of channels.

    Raises:
        ConfigError: names the option.
    """
    for key in ("augment", "mixup", "cutmix"):
        if (value := choice.options.get(key, "none")) not in ("none", 0) and len(in_shape) != 3:
            raise ConfigError(f"data.{key}={value} is for images: data={choice.name} has rows. Leave it out.")
    normalize = choice.options.get("normalize")
    for values in normalize if isinstance(normalize, list) and len(in_shape) == 3 else ():
        if isinstance(values, list) and len(values) != in_shape[0]:
            raise ConfigError(
                f"data.normalize: {values} is not for images of {in_shape[0]} channels. Allowed: one each."
            )
