"""Which metric decides between epochs, runs and settings, and which of two values is better. Torch-free."""

from collections.abc import Mapping
from typing import Any

DECIDING = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")  # the first of them that a run has decides


def deciding_metric(row: Mapping[str, Any]) -> str:
    """Return the metric of a line of metrics.jsonl that decides which epoch is best."""
    return next(metric for metric in DECIDING if metric in row)


def score(metric: str, value: float) -> float:
    """Return a number that is higher for better values: an accuracy unchanged, a loss with its sign reversed."""
    return value if metric.endswith("accuracy") else -value
