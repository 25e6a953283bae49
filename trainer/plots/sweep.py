"""Plots of a sweep: the metric over each option that was swept, and all options at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.plots.style import (
    BLUE,
    FAINT,
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
)
from trainer.utils.objective import deciding_metric, is_share, score

WIDTH = 16  # characters of a name
MAX_CURVES = 2 * len(PENS)
PALEST = 0.35  # opacity of the worst job's line, which has to be seen on white
BELOW = -0.12  # where the lines of failed jobs end; the axis goes from 0 to 1
RATES = ("lr", "weight_decay")  # how the names of options end that are compared by factors
MAX_PANELS, MAX_NAMES, MAX_NUMBERS = 6, 12, 6  # options in a plot; names and numbers that an axis has room for


@dataclass(frozen=True)
class Scale:
    """Where the values of an option lie on its axis.

    Attributes:
        kind: "log" for numbers that span factors, "linear" for other numbers, "names" for what is spaced evenly.
        places: of each value, in their order.
        labels: {place: what to write there}, from low to high.
    """

    kind: str
    places: list[float]
    labels: dict[float, str]


def scale_of(values: Sequence[Any], key: str = "") -> Scale:
    """The axis of some values: logarithmic where all are above 0 and the largest is many times the smallest.

    Rates need not be so far apart, and an accuracy or F1 is never logarithmic. Where one of them is 0 beside numbers
    that span factors, as with weight_decay=0,0.0001,0.01, no such axis has room for it: they are spaced evenly, like
    names.

    Args:
        values: numbers or names.
        key: the option, or the metric, that they are of.
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return spaced(values, list(dict.fromkeys(map(str, values))))
    if not all(map(math.isfinite, numbers)):
        return spaced(values, list(dict.fromkeys(map(str, values))))
    above = sorted({number for number in numbers if number > 0})
    is_rate = key.endswith(RATES) and 1 < len(above) <= MAX_NUMBERS  # each is a tick: a decade may have none of its own
    factors = bool(above) and (spans(above) or is_rate) and not is_share(key)
    if factors and min(numbers) == 0:
        return spaced([f"{number:g}" for number in numbers], [f"{number:g}" for number in (0, *above)])
    kind = "log" if factors and min(numbers) > 0 else "linear"
    return Scale(kind, numbers, {number: numeral(number) for number in sorted(set(numbers))})


def numeral(number: float) -> str:
    """A number as an axis shows it: three digits, or all in front of the point."""
    if number.is_integer():
        return f"{number:g}"
    return f"{number:.0f}" if 100 <= abs(number) < 1e6 else f"{number:.3g}"


def spaced(values: Sequence[Any], names: Sequence[str]) -> Scale:
    """Names at 0, 1, 2 ... in this order."""
    return Scale("names", [float(names.index(str(value))) for value in values], dict(enumerate(names)))


def is_seed(key: str) -> bool:
    """Whether a setting is a seed, whose values are chance: they are points beside each other, and have no axis."""
    name = key.rpartition(".")[2]
    return name == "seed" or name.endswith("_seed")


def draw_sweep(
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    folder: Path,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Write options.png, curves.png, and parallel.png for two or more swept options; nothing when no job is done.

    Args:
        rows: rows of sweep.csv; of those without an objective the failed ones are marked.
        keys: columns of the options that were swept, as typed.
        folder: where the plots go.
        curves: lines of metrics.jsonl of up to MAX_CURVES jobs, by what they are called.
    """
    done = [row for row in rows if row["objective"] is not None]
    failed = [row for row in rows if row["objective"] is None and row["status"] == "failed"]
    keys = [key for key in keys if len({row[key] for row in (*done, *failed)}) > 1]
    if not done or not keys:
        return
    keys = [key for key in keys if not is_seed(key)][:MAX_PANELS]
    with rc_context(STYLE):
        save_figure(options_figure(done, keys, failed), folder / "options.png")
        if curves:
            save_figure(curves_figure(curves), folder / "curves.png")
        if len(keys) > 1:
            save_figure(parallel_figure(done, keys, failed), folder / "parallel.png")


def options_figure(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], failed: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Draw a panel for each option: a point for each job, and the mean of each value; one panel where seeds differ."""
    figure, panels = side_by_side(max(1, len(keys)), width=4.4, height=4.0)
    values, metric = [row["objective"] for row in rows], rows[0]["metric"]
    for axes, key in zip(panels, keys or [""], strict=True):
        scale = scale_of([row[key] if key else f"{len(rows)} seeds" for row in (*rows, *failed)], key)
        places = scale.places[: len(rows)]
        axes.plot(places, values, "o", color=BLUE, markersize=4, alpha=0.7)
        means = {x: fmean(v for p, v in zip(places, values, strict=True) if p == x) for x in sorted(set(places))}
        line = "none" if scale.kind == "names" else "-"  # a line between two names would mean nothing
        axes.plot(list(means), list(means.values()), linestyle=line, marker="_", markersize=14, color=ORANGE, zorder=1)
        axes.set(title=key, ylabel=metric)
        mark(axes, scale)
        if scale_of(values, metric).kind == "log":
            logarithmic(axes)
        if failed and key:  # at the lower edge, whatever the scale of the objective is
            edge = axes.get_xaxis_transform()
            axes.plot(scale.places[len(rows) :], [0.02] * len(failed), "x", color=RED, transform=edge, label="failed")
            axes.legend(fontsize=8)
    return figure


def draw_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the curves of runs over each other.

    Args:
        curves: lines of metrics.jsonl, by what they are called.
        path: the PNG to write.
    """
    with rc_context(STYLE):
        save_figure(curves_figure(curves), path)


def curves_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the training loss, and the metric that decides, of each job over the other."""
    first = next(iter(curves.values()))[0]
    metrics = list(dict.fromkeys(["train_loss", deciding_metric(first)]))
    figure, panels = side_by_side(len(metrics), width=6.0, height=4.4)
    for axes, metric in zip(panels, metrics, strict=True):
        values = []
        for i, (name, rows) in enumerate(curves.items()):
            shown = [(row["epoch"], row[metric]) for row in rows if metric in row]
            line = "-" if i < len(PENS) else "--"
            x, y = [epoch for epoch, _ in shown], [value for _, value in shown]  # empty where a job has no such metric
            axes.plot(x, y, line, color=PENS[i % len(PENS)], linewidth=1.6, label=short(name, 40))
            values += y
        axes.set(title=metric.replace("_", " "), xlabel="epoch", ylabel=metric)
        if spans(values) and not is_share(metric):
            logarithmic(axes)
    panels[0].legend(fontsize=8)
    return figure


def mark(axes: Axes, scale: Scale) -> None:
    """Set the ticks of the x axis: names in their order; numbers at their values, all of them where they are few."""
    labels = list(scale.labels.items())
    if scale.kind == "log":
        logarithmic(axes, "x")
    if scale.kind == "names":
        labels = labels[:: -(-len(labels) // MAX_NAMES)]
    if scale.kind == "names" or len(labels) <= MAX_NUMBERS:
        axes.set_xticks([place for place, _ in labels], [short(name, WIDTH) for _, name in labels], parse_math=False)


def parallel_figure(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], failed: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Draw parallel coordinates (Inselberg 1985): an axis for each option, a line for each job, darker if better.

    The lines of failed jobs are red and end below the last axis.
    """
    figure, (axes,) = side_by_side(1, width=2.0 * (len(keys) + 1) + 1.2, height=4.4)
    metric, objective = rows[0]["metric"], [row["objective"] for row in rows]
    scales = [scale_of([row[key] for row in (*rows, *failed)], key) for key in keys]
    scales.append(scale_of(objective, metric))
    columns = [heights_of(scale) for scale in scales]
    columns[-1] += [BELOW] * len(failed)
    for x, (scale, heights) in enumerate(zip(scales, columns, strict=True)):
        axes.plot([x, x], [0, 1], color=FAINT, linewidth=1, zorder=0)
        labels = {height: scale.labels[place] for height, place in zip(heights, scale.places, strict=False)}
        if x == len(keys) or len(labels) > MAX_NAMES:
            labels = {height: labels[height] for height in (min(labels), max(labels))}
        if failed and x == len(keys):
            labels[BELOW] = "failed"
        for height, label in labels.items():
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.text(
                x + 0.03, height, short(label, WIDTH), fontsize=8, color=INK, va="center", parse_math=False, bbox=box
            )
    ranked = sorted(range(len(rows)), key=lambda i: score(metric, objective[i]))  # the best on top
    for rank, index in enumerate(ranked, 1):
        alpha = PALEST + (1 - PALEST) * (rank / len(rows)) ** 3
        axes.plot([column[index] for column in columns], color=BLUE, alpha=alpha, linewidth=1.4)
    for index in range(len(rows), len(rows) + len(failed)):
        axes.plot([column[index] for column in columns], "--", color=RED, alpha=0.7, linewidth=1, zorder=1)
    axes.set_xticks(range(len(columns)), [*(short(key, 40) for key in keys), metric], parse_math=False)
    axes.set_xlim(-0.1, len(keys) + 0.35)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set(visible=False)
    axes.set_title("Each line is a job: the better, the darker")
    return figure


def heights_of(scale: Scale) -> list[float]:
    """The places of a scale from 0, the lowest, to 1, the highest."""
    heights = [math.log(place) for place in scale.places] if scale.kind == "log" else scale.places
    low, high = min(heights), max(heights)
    return [(height - low) / (high - low) if high > low else 0.5 for height in heights]
