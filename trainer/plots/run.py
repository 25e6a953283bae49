"""Plots of a run: plain data in, one PNG out.

Figures are built with matplotlib's objects and not with pyplot, which is slower to import and keeps a global list of
open figures; they draw with Agg on any machine. Each public function saves what its `_..._figure` twin builds.
matplotlib is slow to import, so import this module where a plot is drawn.
"""

from collections.abc import Mapping, Sequence
from math import ceil, isfinite, nan
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from trainer.plots.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PENS,
    RED,
    STYLE,
    logarithmic,
    save_figure,
    short,
    side_by_side,
    spans,
    style_with_cjk,
)
from trainer.utils.text import one_line

Row = Mapping[str, float | None]  # one line of metrics.jsonl


def curves(rows: Sequence[Row], path: Path, *, best_epoch: int | None = None) -> None:
    """Plot the loss and, for a classifier, the accuracy of training and validation over the epochs.

    Args:
        rows: lines of metrics.jsonl, at least one; a missing key, None, nan and inf leave a gap.
        path: the PNG to write.
        best_epoch: epoch to mark with a dashed line, or None.
    """
    with rc_context(STYLE):
        save_figure(_curves_figure(rows, best_epoch), path)


def learning_rate(points: Sequence[tuple[int, float]], path: Path) -> None:
    """Plot the learning rate over the training steps.

    Args:
        points: (step, lr) pairs in the order of the steps, at least one.
        path: the PNG to write.
    """
    with rc_context(STYLE):
        save_figure(_learning_rate_figure(points), path)


def loss_over_rate(points: Sequence[tuple[float, float]], path: Path, suggestion: float | None) -> None:
    """Plot the loss over a learning rate that grew from step to step.

    Args:
        points: (learning rate, running mean of the loss), at least one.
        path: the PNG to write.
        suggestion: a learning rate to mark with a dashed line, or None.
    """
    with rc_context(STYLE):
        figure, (axes,) = side_by_side(1, width=6.4, height=4.0)
        axes.plot([rate for rate, _ in points], [loss for _, loss in points], color=BLUE)
        axes.set(
            title="Which learning rate?", xlabel="learning rate", ylabel="mean loss of the last steps", xscale="log"
        )
        if suggestion is not None:
            axes.axvline(suggestion, color=GREEN, linestyle="--", linewidth=1.4, label=f"optimizer.lr={suggestion:g}")
            axes.legend()
        save_figure(figure, path)


def gradients(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the length of each hidden layer's gradient over the epochs: how fast the layer learns (Nielsen, ch. 5).

    Args:
        rows: lines of metrics.jsonl with `gradient_norms`, at least one.
        path: the PNG to write.
    """
    with rc_context(STYLE):
        save_figure(_gradients_figure(rows), path)


def confusion(matrix: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: the colour is the share of the row, the number in a cell the count (for K <= 20).

    Args:
        matrix: (K, K) counts, rows true, columns predicted. A row without examples stays pale.
        classes: K names; long ones are shortened, and above 60 classes the axes show numbers instead.
        path: the PNG to write.
    """
    with rc_context(style_with_cjk()):
        save_figure(_confusion_figure(matrix, classes), path, cropped=True)  # a square leaves empty margins


def prediction_grid(
    images: Tensor, titles: Sequence[str], wrong: Sequence[bool] | None, path: Path, *, heading: str = ""
) -> None:
    """Draw the first 32 images, eight in a row, each under its title; wrong ones have a red title and a red frame.

    Args:
        images: (N, C, H, W) uint8, N >= 1, C = 1 (grey) or 3 (RGB).
        titles: N texts, such as caption() returns; `a / b` takes two lines, and a long line is shortened.
        wrong: N flags, or None where the true classes are unknown.
        path: the PNG to write.
        heading: what the titles say.
    """
    with rc_context(style_with_cjk()):
        save_figure(_prediction_figure(images, titles, wrong, heading), path)


def caption(predicted: str, probability: float, *, true: str | None = None, name: str = "") -> str:
    """Return the title of an image: its file, if it has one, the true class, if known, the prediction."""
    name = one_line(name)
    said = f"{short(predicted, 12)} {probability:.0%}"
    file = [name if len(name) <= 18 else f"...{name[-15:]}"] if name else []  # names differ at their ends
    return "\n".join([*file, said if true is None else f"{short(true, 60)} / {said}"])


def comparison(
    curves: Mapping[str, Sequence[tuple[int, float]]], milliseconds: Mapping[str, float], path: Path
) -> None:
    """Plot one run in several libraries: the loss curves, their distance from the first, and the time per step.

    Args:
        curves: (step, loss) pairs by library, at the same steps, at least one.
        milliseconds: time per step, by library.
        path: the PNG to write.
    """
    with rc_context(STYLE):
        save_figure(_comparison_figure(curves, milliseconds), path)


def _curves_figure(rows: Sequence[Row], best_epoch: int | None) -> Figure:
    metrics = [m for m in ("loss", "accuracy") if m == "loss" or any(row.get(f"train_{m}") is not None for row in rows)]
    figure, panels = side_by_side(len(metrics), width=5.4, height=4.0)
    for axes, metric in zip(panels, metrics, strict=True):
        values = _draw_curves(axes, rows, metric)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=GREEN, linestyle="--", linewidth=1.4, label=f"best epoch ({best_epoch})")
        if metric == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
        elif values and spans(values):
            logarithmic(axes)
        ylabel = "mean loss per example" if metric == "loss" else "share of examples right"
        axes.set(title=metric.capitalize(), xlabel="epoch", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if values:
            axes.legend()
    return figure


def _draw_curves(axes: Axes, rows: Sequence[Row], metric: str) -> list[float]:
    """Draw train and val of one metric, and return the finite values drawn."""
    drawn: list[float] = []
    marker = "o" if len(rows) <= 15 else ""
    for split, color in (("train", BLUE), ("val", ORANGE)):
        cells = [row.get(f"{split}_{metric}") for row in rows]
        values = [nan if cell is None or not isfinite(cell) else cell for cell in cells]
        finite = [value for value in values if isfinite(value)]
        if finite:
            epochs = [row["epoch"] or 0 for row in rows]
            axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=split)
        drawn += finite
    return drawn


def _comparison_figure(curves: Mapping[str, Sequence[tuple[int, float]]], milliseconds: Mapping[str, float]) -> Figure:
    figure, (losses, distances, costs) = side_by_side(3, width=5.0, height=4.0)
    (first, reference), *_ = curves.items()
    any_differs = False
    widths = (9, 6, 3.5, 1.2)  # thin over thick, so that equal curves are all visible
    pens = list(zip(curves, (BLUE, ORANGE, GREEN, RED), widths, strict=False))
    for name, color, width in pens:
        steps, values = zip(*curves[name], strict=True)
        marker = "o" if len(steps) == 1 else ""
        losses.plot(steps, values, color=color, linewidth=width, label=name, solid_capstyle="round", marker=marker)
        pairs = zip(values, [value for _, value in reference], strict=True)
        apart = [abs(a - b) / max(abs(a), abs(b)) if a != b else nan for a, b in pairs]
        if name != first:
            differs = any(isfinite(value) for value in apart)
            any_differs |= differs
            label = name if differs else f"{name}: equal bit for bit"
            distances.plot(steps, apart, color=color, linewidth=1.2, marker=marker, label=label)
    if spans([value for curve in curves.values() for _, value in curve]):
        logarithmic(losses)
    losses.set(title="Loss, one curve over the other", xlabel="step", ylabel="training loss")
    distances.set(title=f"Distance from {first}", xlabel="step", ylabel="relative to the loss")
    if any_differs:
        logarithmic(distances)
    for axes in (losses, distances):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.legend()
    bars = costs.bar(list(milliseconds), list(milliseconds.values()), color=[color for _, color, _ in pens])
    costs.bar_label(bars, [f"{ms:.3g}" for ms in milliseconds.values()])
    costs.grid(False)
    costs.set(title="Cost", ylabel="ms per step")
    return figure


def _learning_rate_figure(points: Sequence[tuple[int, float]]) -> Figure:
    figure, (axes,) = side_by_side(1, width=6.4, height=3.6)
    steps, rates = zip(*points, strict=True)
    axes.plot(steps, rates, color=BLUE, marker="o" if len(points) == 1 else "")
    axes.set(title="Learning rate", xlabel="step (parameter updates)", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    return figure


def _confusion_figure(matrix: Tensor, classes: Sequence[str]) -> Figure:
    num_classes, counts = len(matrix), matrix.cpu().double()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(max(4.0, 2.6 + 0.56 * num_classes), 15.0)
    figure = Figure(figsize=(side + 1.0, side))
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02, format=PercentFormatter(xmax=1))
    bar.set_label("share of the true class")
    bar.outline.set(visible=False)
    axes.grid(False)
    accuracy = counts.trace().item() / max(counts.sum().item(), 1)
    axes.set(title=f"{accuracy:.2%} of {int(counts.sum()):,} right", xlabel="predicted class", ylabel="true class")
    if num_classes <= 60:
        names, size = [short(name, 18) for name in classes], 10 if num_classes <= 20 else 7
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(num_classes), names, fontsize=size, parse_math=False, **slanted)
        axes.set_yticks(range(num_classes), names, fontsize=size, parse_math=False)
    if num_classes <= 20:
        for row, column in torch.cartesian_prod(torch.arange(num_classes), torch.arange(num_classes)).tolist():
            count, share = int(counts[row, column]), shares[row, column].item()
            color = "white" if share > 0.5 else INK if count else FAINT
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
    return figure


def _prediction_figure(
    images: Tensor, titles: Sequence[str], wrong: Sequence[bool] | None, heading: str = ""
) -> Figure:
    # One pair of axes, in inches, for all images: axes for each would take a second, most of it for layout and ticks.
    shown = images[:32].cpu().permute(0, 2, 3, 1)  # (N, H, W, C)
    num_rows, num_columns = ceil(len(shown) / 8), min(len(shown), 8)
    room, gap = 1.3, 0.15  # side of an image, and the gap between two
    ratio = shown.shape[1] / shown.shape[2]
    width, height = min(room, room / ratio * 2.5), room * min(max(ratio, 0.4), 2.5)
    height = min(height, width * ratio)
    texts = [[short(line, 18) for line in t.replace(" / ", " /\n").split("\n")] for t in titles[: len(shown)]]
    step = height + 0.16 + 0.13 * max(2, *map(len, texts))  # inches, with room for the longest title
    across = (room + gap) * num_columns + gap
    lines = wrap(heading, int(13 * across))  # of this size 13 characters take an inch at most
    start = 0.18 * len(lines) + 0.12 if lines else 0.0
    figure = Figure(figsize=(across, start + step * num_rows + gap))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    for index, pixels in enumerate(shown):
        row, column = divmod(index, 8)
        left, top = gap + (room + gap) * column + (room - width) / 2, start + step * (row + 1) - height
        extent = (left, left + width, top + height, top)
        axes.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
        is_wrong = wrong is not None and wrong[index]
        if is_wrong:
            axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=RED, linewidth=2.5))
        color, weight = (RED, "bold") if is_wrong else (INK, "normal")
        place: dict[str, Any] = {"ha": "center", "va": "bottom", "linespacing": 1.0, "parse_math": False}
        axes.text(
            left + width / 2, top - 0.05, "\n".join(texts[index]), fontsize=8, color=color, weight=weight, **place
        )
    if lines:
        axes.text(gap, 0.1, "\n".join(lines), fontsize=9, color=INK, va="top", parse_math=False)
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0))
    axes.set_axis_off()
    return figure


def _gradients_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure, (axes,) = side_by_side(1, width=7.0, height=4.4)
    names = list(rows[0]["gradient_norms"])
    biases = [name for name in names if name.endswith("bias")] or names
    hidden = biases[:-1] or biases  # the book leaves the output layer out
    many = len(hidden) > len(PENS)  # then from dark to light, and three of them are named
    told = {0, len(hidden) // 2, len(hidden) - 1} if many else range(len(hidden))
    for i, name in enumerate(hidden):
        lengths = [row["gradient_norms"].get(name, nan) for row in rows]
        label = f"hidden layer {i + 1} ({name})" if biases[:-1] else name
        pen = colormaps["viridis"](i / (len(hidden) - 1)) if many else PENS[i]
        label = label if i in told else "_"  # matplotlib leaves these out of the legend
        axes.plot([row["epoch"] for row in rows], lengths, color=pen, linewidth=1.4, label=label)
    axes.set(title="Speed of learning", xlabel="epoch", ylabel="length of the gradient, after the epoch's last step")
    if all(row["gradient_norms"].get(name, 0) > 0 for row in rows for name in hidden):
        logarithmic(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend()
    return figure
