"""What a confusion matrix and the predicted probabilities say about a classifier, beyond loss and accuracy.

Pure functions on tensors, in float64 on the CPU (MPS has no float64). Loss and accuracy during training live in
totals.py, plots in plots/.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_BINS = 15  # Guo et al. 2017, section 4 and table 1


@dataclass(frozen=True)
class Report:
    """One evaluation of a classifier; every number except `confusion` is a fraction in [0, 1].

    Attributes:
        confusion: (K, K) int64, on the CPU; entry (i, j) counts the examples of class i predicted as class j.
        precision: K floats, TP / (TP + FP): the share of the predictions of k that are right. 0 for a class that was
            never predicted.
        recall: K floats, TP / (TP + FN): the share of class k that was found. 0 for a class without examples.
        f1: K floats, 2 TP / (2 TP + FP + FN), the harmonic mean of the two. 0 where both are 0.
        macro_precision: unweighted mean of `precision` over all K classes, absent ones included.
        macro_recall: likewise of `recall`.
        macro_f1: the mean of the K f1 scores, not the f1 of the two macro averages.
        balanced_accuracy: the mean of the recalls of the classes that have examples.
        top5_accuracy: share of examples whose label is among the five largest logits; None where K <= 5.
        calibration_error: see `calibration_error`.
    """

    confusion: Tensor
    precision: list[float]
    recall: list[float]
    f1: list[float]
    macro_precision: float
    macro_recall: float
    macro_f1: float
    balanced_accuracy: float
    top5_accuracy: float | None
    calibration_error: float


def classification_report(logits: Tensor, labels: Tensor, *, sigmoids: bool = False) -> Report:
    """Measure raw scores against labels; the prediction is the largest logit, the first one on ties.

    Args:
        logits: (N, K) float, N >= 1; any device.
        labels: (N,) int64 in [0, K).
        sigmoids: see calibration_error().
    Raises:
        ValueError: the shapes disagree, there is no example, or a label lies outside [0, K).
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits must be (N, K) and labels (N,) with N >= 1, not {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    logits, labels = logits.detach().cpu().double(), labels.cpu()
    num_classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), not in [{labels.min()}, {labels.max()}]")
    cells = labels * num_classes + logits.argmax(1)  # (N,): the matrix cell of each example, row by row
    matrix = cells.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)
    hits, predicted, true = matrix.diagonal().double(), matrix.sum(0).double(), matrix.sum(1).double()
    # A hit needs a prediction and an example, so an undefined score is 0 / 0, which the clamp turns into 0 / 1.
    precision, recall = hits / predicted.clamp(min=1), hits / true.clamp(min=1)
    f1 = 2 * hits / (predicted + true).clamp(min=1)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item() if num_classes > 5 else None
    return Report(
        confusion=matrix,
        precision=precision.tolist(),
        recall=recall.tolist(),
        f1=f1.tolist(),
        macro_precision=precision.mean().item(),
        macro_recall=recall.mean().item(),
        macro_f1=f1.mean().item(),
        balanced_accuracy=recall[true > 0].mean().item(),
        top5_accuracy=top5,
        calibration_error=calibration_error(logits, labels, sigmoids=sigmoids),
    )


def calibration_error(logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS, *, sigmoids: bool = False) -> float:
    """Return the expected calibration error: ECE = sum_b (n_b / N) |accuracy_b - confidence_b|.

    The confidence of an example is its largest softmax probability. Bin b of B holds the examples with a confidence in
    ((b - 1) / B, b / B]; accuracy_b and confidence_b are means over its n_b examples.

    Args:
        logits: (N, K) float, N >= 1.
        labels: (N,) int64 in [0, K), on the same device.
        num_bins: B >= 1, bins of equal width.
        sigmoids: whether the network was trained with a sigmoid for each class; the confidence is then the largest.
    Returns:
        A fraction in [0, 1]; 0 means that a share p of the predictions made with confidence p is right.
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, eq. 3.
    """
    top, predictions = logits.double().max(1)
    # Without the (N, K) matrix of probabilities.
    confidence = top.sigmoid() if sigmoids else (top - logits.double().logsumexp(1)).exp()
    gap = (predictions == labels).double() - confidence
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64, device=logits.device)[1:-1]
    bins = torch.bucketize(confidence, edges)  # inner edges only, so that rounding above 1 stays in the last bin
    # n_b cancels: (n_b / N) |mean of the gaps| = |sum of the gaps| / N.
    return gap.new_zeros(num_bins).index_add(0, bins, gap).abs().sum().item() / len(labels)
