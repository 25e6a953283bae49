"""Which metric decides between epochs, runs and settings, and which of two values is better. Torch-free."""

from collections.abc import Mapping
from typing import Any

DECIDING = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")  # the first of them that a run has


def deciding_metric(row: Mapping[str, Any]) -> str:
    """The metric of a line of metrics.jsonl that decides which epoch is the best."""
    return next(metric for metric in DECIDING if metric in row)


def score(metric: str, value: float) -> float:
    """A value of a metric such that the higher is the better: an accuracy as it is, a loss with its sign turned."""
    return value if metric.endswith("accuracy") else -value
