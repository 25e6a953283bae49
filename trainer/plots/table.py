"""Plots of a regression of a table. As in run.py, each public function saves what its `_..._figure` twin builds."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from trainer.plots.line import MAX_POINTS
from trainer.plots.style import BLUE, INK, ORANGE, save_figure, short, side_by_side, style_with_cjk

MOST_BARS = 40


def predicted_over_true(predicted: Tensor, true: Tensor, target: str, path: Path) -> None:
    """Plot predicted over true numbers, at most MAX_POINTS of them, with the diagonal of a perfect model.

    Args:
        predicted: (N,) float64, N >= 1.
        true: (N,) float64.
        target: the name of the column.
        path: the PNG to write.
    """
    with rc_context(style_with_cjk()):
        save_figure(_predicted_figure(predicted, true, target), path)


def residuals(predicted: Tensor, true: Tensor, target: str, path: Path) -> None:
    """Plot true minus predicted over predicted numbers, and how often each size of it comes.

    Args:
        predicted: (N,) float64, N >= 1.
        true: (N,) float64.
        target: the name of the column.
        path: the PNG to write.
    """
    with rc_context(style_with_cjk()):
        save_figure(_residuals_figure(predicted, true, target), path)


def coefficients(effects: Sequence[tuple[str, float]], target: str, path: Path) -> None:
    """Draw what each input does to the prediction as bars, the largest on top, at most MOST_BARS of them.

    Args:
        effects: (name, change of the target where the column rises by its standard deviation, or is this category).
        target: the name of the column that is predicted.
        path: the PNG to write.
    """
    with rc_context(style_with_cjk()):
        save_figure(_coefficients_figure(effects, target), path, cropped=True)  # names are of any length


def _predicted_figure(predicted: Tensor, true: Tensor, target: str) -> Figure:
    figure, (axes,) = side_by_side(1, width=5.4, height=4.8)
    stride, name = ceil(len(true) / MAX_POINTS), short(target, 30)
    alpha = 0.7 if len(true) <= 200 else 0.35
    axes.scatter(true[::stride].numpy(), predicted[::stride].numpy(), s=14, color=BLUE, alpha=alpha, linewidths=0)
    low, high = (float(end) for end in (min(true.min(), predicted.min()), max(true.max(), predicted.max())))
    axes.plot([low, high], [low, high], color=ORANGE, label="perfect model")
    axes.set_title("Predicted over true")
    axes.set_xlabel(f"true {name}", parse_math=False)
    axes.set_ylabel(f"predicted {name}", parse_math=False)
    axes.legend()
    return figure


def _residuals_figure(predicted: Tensor, true: Tensor, target: str) -> Figure:
    figure, (scatter, counts) = side_by_side(2, width=5.2, height=4.2)
    stride, name = ceil(len(true) / MAX_POINTS), short(target, 30)
    errors, alpha = true - predicted, 0.7 if len(true) <= 200 else 0.35
    scatter.scatter(predicted[::stride].numpy(), errors[::stride].numpy(), s=14, color=BLUE, alpha=alpha, linewidths=0)
    scatter.axhline(0, color=ORANGE)
    scatter.set_title("Residuals")
    scatter.set_xlabel(f"predicted {name}", parse_math=False)
    scatter.set_ylabel("true - predicted")
    counts.hist(errors.numpy(), bins=min(40, max(5, round(len(errors) ** 0.5))), color=BLUE, edgecolor="white")
    counts.axvline(0, color=ORANGE)
    counts.set(title="How often", xlabel="true - predicted", ylabel="rows")
    return figure


def _coefficients_figure(effects: Sequence[tuple[str, float]], target: str) -> Figure:
    shown = sorted(effects, key=lambda effect: abs(effect[1]))[-MOST_BARS:]
    figure = Figure(figsize=(6.4, 1.2 + 0.26 * len(shown)))
    axes = figure.subplots()
    colors = [BLUE if effect >= 0 else ORANGE for _, effect in shown]
    axes.barh(range(len(shown)), [effect for _, effect in shown], color=colors, height=0.7)
    axes.set_yticks(range(len(shown)), [short(name, 30) for name, _ in shown], fontsize=9, parse_math=False)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(False, axis="y")
    axes.margins(y=0.02)
    axes.set_title("Coefficients" if len(shown) == len(effects) else f"The {MOST_BARS} largest coefficients")
    axes.set_xlabel(
        f"change of {short(target, 30)} as the column rises by one standard deviation, or for this category",
        fontsize=9,
        parse_math=False,
    )
    return figure
