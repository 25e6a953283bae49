"""Choosing some examples of a set so that each class keeps its share, and saying which classes a part has none of."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

TOGETHER = 8  # files with many examples each that are read at a time


def stratified(
    labels: Tensor | None, n: int, size: int, seed: int, *, each: bool = False, spare: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose `size` of n examples at random, each class in its share (largest remainders).

    Args:
        labels: (n,) int64 class numbers, or None to choose without classes.
        n: number of examples.
        size: number of examples to choose.
        seed: the choice depends on nothing else.
        each: choose at least one example of each class, where `size` allows it.
        spare: leave at least one example of each class in the rest, where `size` allows it.
    Returns:
        (size,) and (n - size,) int64 indices: chosen and rest, each in ascending order.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    if labels is None or n == 0:  # an empty part has no classes to share among
        chosen = order[:size]
    else:
        # Each class gives its first examples in the shuffled order.
        quota = _quota(torch.bincount(labels), size, each=each, spare=spare)
        chosen = torch.cat([order[labels[order] == k][: int(q)] for k, q in enumerate(quota)])
    # Ascending order: rows that were neighbours stay neighbours, and data on disk is read in the order of the files.
    mask = torch.zeros(n, dtype=torch.bool)
    mask[chosen] = True
    return mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)


def _quota(counts: Tensor, size: int, *, each: bool, spare: bool) -> Tensor:
    """Return how many examples (K,) int64 each class gives; counts (K,) are what it has."""
    # float64, in which counts * size is exact; a stable sort, so that ties always go to the same classes.
    exact = counts.double() * size / counts.sum()
    quota = exact.floor().long()
    quota[torch.argsort(quota - exact, stable=True)[: size - int(quota.sum())]] += 1  # the largest remainders
    present = (counts > 0).long()
    low, high = present * each, counts - present * spare
    if not int(low.sum()) <= size <= int(high.sum()):
        return quota  # no choice of this size has an example of each class; missing_classes() says so
    quota = quota.clamp(low, high)
    while (excess := int(quota.sum()) - size) != 0:  # what a rare class got or gave is settled with the others
        sign = 1 if excess > 0 else -1
        free = quota > low if excess > 0 else quota < high
        surplus = torch.where(free, sign * (quota - exact), -torch.inf)
        quota[torch.argsort(surplus, descending=True, stable=True)[0]] -= sign
    return quota


def missing_classes(parts: Mapping[str, Tensor], classes: Sequence[str]) -> list[str]:
    """Return a line for each part, given by its labels (N,), that has examples but none of some class."""
    lines = []
    for name, labels in parts.items():
        counts = torch.bincount(labels, minlength=len(classes)).tolist() if len(labels) else []
        absent = [name for name, count in zip(classes, counts, strict=False) if count == 0]
        if absent:
            more = f" and {len(absent) - 5:,} more" if len(absent) > 5 else ""
            lines.append(
                f"the {name} part has no example of {len(absent):,} of {len(classes):,} classes: "
                f"{', '.join(absent[:5])}{more}"
            )
    return lines


def mixed(labels: Tensor, size: int, seed: int = 0) -> Tensor:
    """Choose up to `size` of the examples (N,) at random, evenly over the classes, in mixed order: int64 indices."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = torch.argsort(labels[order], stable=True)
    counts = torch.bincount(labels) if len(labels) else labels
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)  # where the class begins in by_class
    turn = torch.empty_like(order)  # how many of its class come before each example
    turn[by_class] = torch.arange(len(labels)) - first
    return order[torch.argsort(turn, stable=True)][:size]


def balanced(labels: Tensor, order: Tensor) -> Tensor:
    """An order in which each class comes equally often, as closely as its length allows, from an order of all examples.

    The examples of a class take turns in the order that they had, from its beginning again where they are too few.

    Args:
        labels: (N,) int64.
        order: (N,) int64, a random order of the N examples.
    Returns:
        (N,) int64, indices, some of them several times and others not at all.
    """
    n = len(order)
    own = [order[labels[order] == k] for k in labels[order].unique().tolist()]
    turns = torch.arange(n).remainder(len(own))  # the class at each place, before the places are mixed
    found = torch.empty_like(order)
    for k, indices in enumerate(own):
        places = (turns == k).nonzero()[:, 0]
        found[places] = indices[torch.arange(len(places)).remainder(len(indices))]
    return found[order]  # as random as the order is


def shuffled(n: int, group: Tensor | None, draws: torch.Generator) -> Tensor:
    """Return an order (n,) of n examples: any, or one in which the examples of TOGETHER files come mixed, then others.

    Args:
        n: number of examples.
        group: (n,) int64, the file of each one; None: each is read by itself.
        draws: decides the order of the files and of the examples.
    """
    if group is None:
        return torch.randperm(n, generator=draws)
    files, own = group.unique(return_inverse=True)
    turn = torch.randperm(len(files), generator=draws) // TOGETHER
    return torch.argsort(turn[own] + torch.rand(n, generator=draws, dtype=torch.float64), stable=True)
