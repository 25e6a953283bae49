"""Classification metrics against values worked out by hand and against plain Python loops."""

import math

import pytest
import torch
from torch import Tensor

from trainer.utils.metrics import calibration_error, classification_report


def one_hot_logits(predictions: list[int], num_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), num_classes).double()


def two_class_logits(confidences: list[float]) -> Tensor:
    """Class 0 is always predicted, with the given probabilities (all of them >= 0.5)."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], 1)


def test_a_case_worked_out_by_hand() -> None:
    report = classification_report(one_hot_logits([0, 0, 1, 1, 2, 0], 3), torch.tensor([0, 0, 0, 1, 1, 2]))
    assert report.confusion.dtype == torch.int64
    assert report.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert report.precision == pytest.approx([2 / 3, 1 / 2, 0])
    assert report.recall == pytest.approx([2 / 3, 1 / 2, 0])
    assert report.f1 == pytest.approx([2 / 3, 1 / 2, 0])
    assert report.macro_f1 == pytest.approx(7 / 18)


def test_absent_and_never_predicted_classes_count_as_zero_in_the_averages() -> None:
    report = classification_report(one_hot_logits([0, 0, 3], 4), torch.tensor([0, 1, 0]))
    assert report.precision == pytest.approx([1 / 2, 0, 0, 0])
    assert report.recall == pytest.approx([1 / 2, 0, 0, 0])
    assert (report.macro_precision, report.macro_recall, report.macro_f1) == pytest.approx((1 / 8, 1 / 8, 1 / 8))


@pytest.mark.parametrize("num_classes", [2, 5, 6, 9])
def test_report_equals_plain_loops_over_random_data(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    logits = 2 * torch.randn(300, num_classes, generator=generator)
    labels = torch.randint(num_classes, (300,), generator=generator)
    report = classification_report(logits, labels)
    rows = logits.double().tolist()
    pairs = [(label, row.index(max(row))) for row, label in zip(rows, labels.tolist(), strict=True)]
    for k in range(num_classes):
        tp, fp, fn = pairs.count((k, k)), sum(p == k != y for y, p in pairs), sum(y == k != p for y, p in pairs)
        assert report.precision[k] == pytest.approx(tp / (tp + fp), rel=1e-12)
        assert report.recall[k] == pytest.approx(tp / (tp + fn), rel=1e-12)
        assert report.f1[k] == pytest.approx(2 * tp / (2 * tp + fp + fn), rel=1e-12)
        assert report.confusion[k].tolist() == [pairs.count((k, j)) for j in range(num_classes)]
    assert report.macro_precision == pytest.approx(sum(report.precision) / num_classes, rel=1e-12)
    assert report.macro_recall == pytest.approx(sum(report.recall) / num_classes, rel=1e-12)
    in_top5 = [sum(z > row[y] for z in row) < 5 for row, (y, _) in zip(rows, pairs, strict=True)]
    expected = sum(in_top5) / 300 if num_classes > 5 else None
    assert report.top5_accuracy == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_calibration_error_equals_a_plain_loop_over_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=generator)
    labels = torch.randint(4, (500,), generator=generator)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        confidence = math.exp(max(row)) / sum(math.exp(z) for z in row)
        bins.setdefault(math.ceil(15 * confidence), []).append((confidence, row.index(max(row)) == label))
    expected = sum(abs(sum(right for _, right in b) - sum(conf for conf, _ in b)) for b in bins.values()) / 500
    assert len(bins) > 8
    assert classification_report(logits, labels).calibration_error == pytest.approx(expected, rel=1e-10)


def test_calibration_error_worked_out_by_hand() -> None:
    logits = two_class_logits([0.8] * 5 + [0.6] * 5)
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 0, 1])  # accuracies 0.6 and 0.8: too sure, then not sure enough
    assert calibration_error(logits, labels) == pytest.approx(0.5 * 0.2 + 0.5 * 0.2)


def test_perfectly_calibrated_predictions_have_no_calibration_error() -> None:
    assert calibration_error(two_class_logits([0.75] * 4), torch.tensor([0, 0, 1, 0])) == pytest.approx(0, abs=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    logits = torch.cat([torch.zeros(1, 2, dtype=torch.float64), two_class_logits([0.9])])  # confidences 0.5 and 0.9
    # Apart: (|1 - 0.5| + |0 - 0.9|) / 2; in one bin the gaps would cancel to |1 - 1.4| / 2.
    assert calibration_error(logits, torch.tensor([0, 1]), num_bins=2) == pytest.approx(0.7)


def test_huge_logits_neither_overflow_nor_leave_the_last_bin() -> None:
    report = classification_report(torch.tensor([[1e30, -1e30], [-1e4, 1e4]]), torch.tensor([0, 0]))
    assert report.calibration_error == 0.5


def test_half_precision_logits_are_measured_in_float64() -> None:
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels = torch.arange(50) % 8
    assert classification_report(logits, labels).calibration_error == calibration_error(logits.double(), labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), r"not \(3, 2\) and \(2,\)"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"must be \(N, K\)"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "N >= 1"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), r"\[0, 2\), not in \[0, 2\]"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), r"not in \[-1, 1\]"),
    ],
)
def test_disagreeing_arguments_are_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_report(logits, labels)


def test_the_confidence_of_sigmoids_is_the_largest_of_them() -> None:
    logits, labels = torch.tensor([[0.0, math.log(3)], [math.log(4), -1.0]]), torch.tensor([1, 1])
    # confidences 3/4, right, and 4/5, wrong: the softmax of the first would be 3/4 too, of the second 0.915
    assert calibration_error(logits, labels, sigmoids=True) == pytest.approx(0.5 * 0.25 + 0.5 * 0.8)
    report = classification_report(logits, labels, sigmoids=True)
    assert report.calibration_error == calibration_error(logits.double(), labels, sigmoids=True)
