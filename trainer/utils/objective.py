"""Which metric decides between epochs, runs and settings, and which of two values is better. Torch-free."""

from collections.abc import Mapping
from typing import Any

OF_CLASSES = ("val_macro_f1", "val_balanced_accuracy")  # measured where monitor= names one of them
# the first of them that a run has decides, unless monitor= names one
DECIDING = (*OF_CLASSES, "val_accuracy", "val_loss", "train_accuracy", "train_loss")


def deciding_metric(row: Mapping[str, Any]) -> str:
    """Return the metric of a line of metrics.jsonl that decides which epoch is best."""
    named: str = row.get("monitor", "")
    return named if named in row else next(metric for metric in DECIDING if metric in row)


def is_share(metric: str) -> bool:
    """Whether a metric is in [0, 1], the higher the better: an accuracy or F1; else it is a loss."""
    return metric.endswith(("accuracy", "f1"))


def score(metric: str, value: float) -> float:
    """Return a number that is higher for better values: an accuracy, F1 or R^2 as it is, others with reversed sign."""
    return value if is_share(metric) or metric == "test_r2" else -value


def rating(metric: str, yours: float, value: float, tolerance: float) -> str:
    """How a figure compares with a published one: within its tolerance, better or worse."""
    if abs(yours - value) <= tolerance:
        return "within"
    return "better" if score(metric, yours) > score(metric, value) else "worse"


def said(reference: Mapping[str, Any]) -> str:
    """The line about a published figure, from what result.json holds of it."""
    tolerance = f" +- {reference['tolerance']:g}" if reference["tolerance"] else ""
    spread = f" +- {reference['std']:.4f}" if reference.get("std") is not None else ""
    yours = f"yours {reference['yours']:.4f}{spread} (n = {reference['n']})"
    source = f" ({reference['source']})" if reference["source"] else ""
    name = reference["metric"].replace("_", " ")
    return f"{name}: {yours}, the book's {reference['value']:g}{tolerance}{source}: {reference['verdict']}"
