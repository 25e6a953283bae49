"""Plots of a sweep: the metric over each option that was swept, and all options at once."""

import math
from collections.abc import Mapping, Sequence
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
    STYLE,
    logarithmic,
    save_figure,
    short,
    side_by_side,
    spans,
)
from trainer.utils.objective import deciding_metric, score

WIDTH = 16  # characters of a name
MAX_CURVES = 2 * len(PENS)
MAX_PANELS, MAX_NAMES, MAX_NUMBERS = 6, 12, 6  # options in a plot; names and numbers that an axis has room for


def draw_sweep(
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    folder: Path,
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Write options.png, curves.png, and parallel.png for two or more swept options; nothing when one job is done.

    Args:
        rows: rows of sweep.csv; those without an objective are left out.
        keys: columns of the options that were swept, as typed.
        folder: where the plots go.
        curves: lines of metrics.jsonl of up to MAX_CURVES jobs, by what they are called.
    """
    done = [row for row in rows if row["objective"] is not None]
    keys = [key for key in keys if len({row[key] for row in done}) > 1][:MAX_PANELS]
    if not keys:
        return
    with rc_context(STYLE):
        save_figure(options_figure(done, keys), folder / "options.png")
        if curves:
            save_figure(curves_figure(curves), folder / "curves.png")
        if len(keys) > 1:
            save_figure(parallel_figure(done, keys), folder / "parallel.png")


def options_figure(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """Draw a panel for each option: a point for each job, and the mean of each value."""
    figure, panels = side_by_side(len(keys), width=4.4, height=4.0)
    values = [row["objective"] for row in rows]
    for axes, key in zip(panels, keys, strict=True):
        places, names = places_of([row[key] for row in rows])
        axes.plot(places, values, "o", color=BLUE, markersize=4, alpha=0.7)
        means = {x: fmean(v for p, v in zip(places, values, strict=True) if p == x) for x in sorted(set(places))}
        line = "-" if names is None else "none"  # a line between two names would mean nothing
        axes.plot(list(means), list(means.values()), linestyle=line, marker="_", markersize=14, color=ORANGE, zorder=1)
        axes.set(title=key, ylabel=rows[0]["metric"])
        mark(axes, places, names)
        if spans(values) and not rows[0]["metric"].endswith("accuracy"):
            logarithmic(axes)
    return figure


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
            axes.plot(*zip(*shown, strict=True), line, color=PENS[i % len(PENS)], linewidth=1.6, label=short(name, 40))
            values += [value for _, value in shown]
        axes.set(title=metric.replace("_", " "), xlabel="epoch", ylabel=metric)
        if spans(values) and metric.endswith("loss"):
            logarithmic(axes)
    panels[0].legend(fontsize=8)
    return figure


def places_of(values: Sequence[Any]) -> tuple[list[float], list[str] | None]:
    """Return the place of each value on its axis, and the names to write there; None for numbers."""
    try:
        return [float(value) for value in values], None
    except (TypeError, ValueError):
        names = list(dict.fromkeys(map(str, values)))
        return [float(names.index(str(value))) for value in values], names


def mark(axes: Axes, places: Sequence[float], names: Sequence[str] | None) -> None:
    """Set the ticks of the x axis: names in their order; numbers at their values, all of them where they are few."""
    if names is None and spans(places):
        logarithmic(axes, "x")
    if names is None and len(set(places)) <= MAX_NUMBERS:
        axes.set_xticks(sorted(set(places)), [f"{place:g}" for place in sorted(set(places))])
    elif names is not None:
        step = -(-len(names) // MAX_NAMES)
        axes.set_xticks(range(0, len(names), step), [short(name, WIDTH) for name in names[::step]], parse_math=False)


def parallel_figure(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """Draw parallel coordinates (Inselberg 1985): an axis for each option, a line for each job, darker if better."""
    figure, (axes,) = side_by_side(1, width=2.0 * (len(keys) + 1) + 1.2, height=4.4)
    columns = []
    for x, key in enumerate((*keys, "objective")):
        places, names = places_of([row[key] for row in rows])
        heights = [math.log(place) for place in places] if names is None and spans(places) else places
        low, high = min(heights), max(heights)
        columns.append([(height - low) / (high - low) if high > low else 0.5 for height in heights])
        axes.axvline(x, color=FAINT, linewidth=1, zorder=0)
        labels = {height: names[int(p)] if names else f"{p:.3g}" for height, p in zip(columns[-1], places, strict=True)}
        if key == "objective" or len(labels) > MAX_NAMES:
            labels = {height: labels[height] for height in (min(labels), max(labels))}
        for height, label in labels.items():
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.text(
                x + 0.03, height, short(label, WIDTH), fontsize=8, color=INK, va="center", parse_math=False, bbox=box
            )
    ranked = sorted(range(len(rows)), key=lambda i: score(rows[i]["metric"], rows[i]["objective"]))  # the best on top
    for rank, index in enumerate(ranked, 1):
        heights = [column[index] for column in columns]
        alpha = 0.08 + 0.92 * (rank / len(rows)) ** 3
        axes.plot(range(len(columns)), heights, color=BLUE, alpha=alpha, linewidth=1.4)
    axes.set_xticks(range(len(columns)), [*(short(key, 40) for key in keys), rows[0]["metric"]], parse_math=False)
    axes.set_xlim(-0.1, len(keys) + 0.35)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set(visible=False)
    axes.set_title("Each line is a job: the better, the darker")
    return figure
