"""What a data set is: a Source as its reader returns it, and the Splits that training sees.

A source has a training and a test part. Validation is cut from the training part here, once for all data sets,
stratified and seeded, so that no reader does it in its own way. Nothing here reads a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset, Subset

from trainer.data.columns import Encoding
from trainer.data.pixels import expanded
from trainer.data.stratify import missing_classes, stratified
from trainer.utils.errors import ConfigError


@dataclass(frozen=True)
class Split:
    """Inputs and their labels.

    Attributes:
        x: (N, C, H, W) uint8 images or (N, D) float32 rows in memory; or, for a set that does not fit in memory, a
            Dataset whose item i is one (C, H, W) uint8 image, decoded when asked for.
        y: (N,) int64 class numbers, or (N, 1) float32 targets of a regression.
        names: of the files below the set's folder, N of them, where each example is a file.
        group: (N,) int64, ascending: the file that each example lies in, where files hold many. Those of a few files
            are shuffled together, and then those of the next few.
    """

    x: "Tensor | Dataset[Tensor]"
    y: Tensor
    names: Sequence[str] = ()
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Tensor) -> "Split":
        """Return the examples at `indices` (M,) int64, in that order; images on disk stay on disk."""
        y, names = self.y[indices], [self.names[i] for i in indices.tolist()] if self.names else ()
        if isinstance(self.x, Tensor):
            return Split(self.x.index_select(0, indices), y, names)
        if self.group is not None:
            return Split(self.x.take(indices), y, names, self.group[indices])  # type: ignore[attr-defined]
        return Split(Subset(self.x, indices.tolist()), y, names)  # a Subset keeps numbers, not images


@dataclass(frozen=True)
class Source:
    """A data set as read.

    Attributes:
        in_shape: shape of one example.
        sha256: digest of what was read; a resumed run compares it.
        classes: names in the order of the labels; empty for regression.
        mean: per channel, of the training images scaled to [0, 1]; empty for rows of numbers.
        std: likewise.
        val: a validation part, where the set comes with one.
        ignores: options of the data set that it has no use for.
        earlier_sha256: the digest of the same data in checkpoints of earlier versions, where they had another.
        depth: bits that the values of 16-bit grey files were taken to have.
        of_epoch: the training examples of (epoch, how many), where each epoch has its own.
        table: how the rows of a table become inputs, and outputs its target.
        mixed: why nothing new is to be trained on it: some images would be brighter than others by mistake.
    """

    train: Split
    test: Split
    in_shape: tuple[int, ...]
    sha256: str
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    val: Split | None = None
    ignores: tuple[str, ...] = ()
    earlier_sha256: str = ""
    depth: int = 16
    of_epoch: Callable[[int, int], Split] | None = None
    mixed: str = ""
    table: Encoding | None = None

    @property
    def task(self) -> str:
        """classification where there are classes, otherwise regression."""
        return "classification" if self.classes else "regression"


@dataclass(frozen=True)
class Splits:
    """What a run sees. `val` may be empty (val_fraction=0); batches are normalised with `mean` and `std`."""

    train: Split
    val: Split
    test: Split
    in_shape: tuple[int, ...]
    num_outputs: int
    task: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    ignores: tuple[str, ...] = ()  # options that had no effect
    gaps: tuple[str, ...] = ()  # a line for each part that lacks a class
    earlier_sha256: str = ""
    depth: int = 16
    spares: bool = True  # as in cut()
    of_epoch: Callable[[int, int], Split] | None = None  # see Source
    table: Encoding | None = None  # see Source
    stored_shape: tuple[int, ...] = ()  # of the images in memory or on disk, where they are larger than in_shape says


def cut(
    source: Source,
    *,
    val_fraction: float,
    split_seed: int,
    limit: int | None = None,
    expand: str = "none",
    spares: bool = True,
) -> Splits:
    """Cut validation from the training part, and limit the rest.

    Args:
        source: the data set as read.
        val_fraction: share of the training part below 1, a count from 1 on; no effect where the source has a val.
        split_seed: decides which examples go where; the run's own seed does not.
        limit: number of training examples to keep after the cut, stratified, of each class at least one; None: all.
        expand: none, or shift: train on each image moved by a pixel in each direction, too (augment.expanded).
        spares: keep an example of each class in training, where the sizes allow it; earlier versions did not.
    Returns:
        The splits.
    Raises:
        ConfigError: nothing would be left to train on, or `limit` is more than there is.
    """
    # Seeds are settings of the data, so that runs of different seeds are measured on the same examples.
    n = len(source.train)
    num_val = 0 if source.val is not None else round(n * val_fraction) if val_fraction < 1 else int(val_fraction)
    if num_val >= n:
        raise ConfigError(
            f"data.val_fraction={val_fraction} leaves nothing to train on: the training part has {n:,} examples."
        )
    chosen, rest = stratified(source.train.y if source.classes else None, n, num_val, split_seed, spare=spares)
    train = source.train.take(rest) if num_val else source.train  # take() would copy the whole set
    val = source.val if source.val is not None else source.train.take(chosen)
    if limit is not None:
        if limit > len(train):
            raise ConfigError(f"data.limit={limit} is not allowed: there are {len(train):,} training examples.")
        # Another seed than that of the cut, so that the two choices do not depend on each other.
        kept, _ = stratified(train.y if source.classes else None, len(train), limit, split_seed + 1, each=spares)
        train = train.take(kept)
    if expand == "shift":
        if not isinstance(train.x, Tensor):
            raise ConfigError("data.expand=shift needs a set that is held in memory. Allowed: data.expand=none.")
        train = Split(expanded(train.x), train.y.repeat(5))
    ignores = source.ignores
    if source.val is not None:  # nothing is cut; the seed still decides what data.limit keeps
        ignores = (*ignores, "val_fraction", *(["split_seed"] if limit is None else []))
    labels = {"training": train.y, "validation": val.y, "test": source.test.y}
    gaps = tuple(missing_classes(labels, source.classes)) if source.classes else ()
    num_outputs = len(source.classes) or source.train.y.shape[1]  # K classes, or the targets of an example
    described = (source.in_shape, num_outputs, source.task, source.classes, source.mean, source.std, source.sha256)
    earlier = source.earlier_sha256 or source.sha256
    others = (source.depth, spares, source.of_epoch, source.table)
    return Splits(train, val, source.test, *described, ignores, gaps, earlier, *others)
