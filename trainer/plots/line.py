"""A linear regression over its data."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trainer.plots.style import BLUE, GREEN, ORANGE, STYLE, save_figure, side_by_side

MAX_POINTS = 5000  # a denser scatter is one blot


def fit(
    x: Tensor,
    y: Tensor,
    weight: Sequence[float],
    bias: float,
    path: Path,
    earlier: Sequence[tuple[float, float]] = (),
) -> None:
    """Plot a linear model y = x w + b over its data, at most MAX_POINTS examples at equal distances.

    One or two features: a panel per feature, with y minus the fitted part of the other feature (a
    component-plus-residual plot, Ezekiel 1924); with one feature that is y itself. The scatter round the line is the
    model's error, while a raw scatter of y against one of two features would mostly show the other feature.
    More features: predicted against true y, with the diagonal on which a perfect model lies.

    Args:
        x: (N, D) float, N >= 1.
        y: (N, 1) float.
        weight: D floats.
        bias: b.
        path: the PNG to write.
        earlier: with one feature, its weight and the bias after each epoch: lines, the earliest palest.
    """
    with rc_context(STYLE):
        save_figure(_fit_figure(x, y, weight, bias, earlier), path)


def _fit_figure(
    x: Tensor, y: Tensor, weight: Sequence[float], bias: float, earlier: Sequence[tuple[float, float]] = ()
) -> Figure:
    stride = ceil(len(x) / MAX_POINTS)
    x, y = x[::stride].detach().cpu().double(), y[::stride].detach().cpu().double().flatten()
    w = torch.tensor(weight, dtype=torch.float64)
    num_panels = len(w) if len(w) <= 2 else 1
    figure, panels = side_by_side(num_panels, width=5.4, height=4.4)
    y_hat = x @ w + bias  # (N,)
    if len(w) > 2:
        _scatter_with_line(panels[0], y, y_hat, slope=1.0, intercept=0.0, label="perfect fit")
        panels[0].set(title=f"Fit over {len(w)} features", xlabel="true y", ylabel="predicted y")
        return figure
    if num_panels == 1:
        ends = torch.stack([x.min(), x.max()])
        shown = earlier[:: ceil(len(earlier) / 10)] if earlier else ()
        for i, (slope, intercept) in enumerate(shown):
            label = "after earlier epochs" if i == len(shown) - 1 else None
            pale = 0.15 + 0.5 * i / len(shown)
            panels[0].plot(ends.numpy(), (slope * ends + intercept).numpy(), color=GREEN, alpha=pale, label=label)
    for j, axes in enumerate(panels):
        part = w[j] * x[:, j] + bias
        _scatter_with_line(axes, x[:, j], part + (y - y_hat), slope=weight[j], intercept=bias, label="fitted line")
        rest = "" if len(w) == 1 else f" - w{2 - j} x{2 - j}"
        axes.set(title=f"w{j + 1} = {weight[j]:.4f}, b = {bias:.4f}", xlabel=f"x{j + 1}", ylabel="y" + rest)
    return figure


def _scatter_with_line(axes: Axes, x: Tensor, y: Tensor, *, slope: float, intercept: float, label: str) -> None:
    alpha = 0.7 if len(x) <= 200 else 0.35
    axes.scatter(x.numpy(), y.numpy(), s=14, color=BLUE, alpha=alpha, linewidths=0, label="examples")
    ends = torch.stack([x.min(), x.max()])
    axes.plot(ends.numpy(), (slope * ends + intercept).numpy(), color=ORANGE, label=label)
    axes.legend()
