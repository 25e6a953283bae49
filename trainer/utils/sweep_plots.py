"""Pictures of a sweep: the metric over each option that was swept, and all options at once."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.utils.plots import BLUE, FAINT, INK, ORANGE, PLAIN, STYLE, save, side_by_side

MAX_PANELS, MAX_NAMES = 6, 12  # options in a picture, and names of values on an axis


def draw(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], folder: Path) -> None:
    """options.png, and parallel.png where at least two options were swept; nothing where only one job is done.

    Args:
        rows: of sweep.csv; those without an objective are left out.
        keys: the columns of the options that were swept, as typed.
    """
    done = [row for row in rows if row["objective"] is not None]
    keys = [key for key in keys if len({row[key] for row in done}) > 1][:MAX_PANELS]
    if not keys:
        return
    with rc_context(STYLE):
        save(options_figure(done, keys), folder / "options.png")
        if len(keys) > 1:
            save(parallel_figure(done, keys), folder / "parallel.png")


def options_figure(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """A panel for each option: a point for each job, and a line through the means."""
    figure, panels = side_by_side(len(keys), width=4.4, height=4.0)
    for axes, key in zip(panels, keys, strict=True):
        places, names = places_of([row[key] for row in rows])
        values = [row["objective"] for row in rows]
        axes.plot(places, values, "o", color=BLUE, markersize=4, alpha=0.7)
        means = {x: fmean(v for p, v in zip(places, values, strict=True) if p == x) for x in sorted(set(places))}
        axes.plot(list(means), list(means.values()), color=ORANGE, linewidth=1.6, zorder=1)
        axes.set(title=key, xlabel=key, ylabel=rows[0]["metric"])
        mark(axes, places, names)
    return figure


def places_of(values: Sequence[Any]) -> tuple[list[float], list[str] | None]:
    """Where each value is on its axis, and the names to write there; None for numbers, which stand where they are."""
    try:
        return [float(value) for value in values], None
    except (TypeError, ValueError):
        names = list(dict.fromkeys(map(str, values)))
        return [float(names.index(str(value))) for value in values], names


def mark(axes: Axes, places: Sequence[float], names: Sequence[str] | None) -> None:
    """Ticks: names in their order, numbers where they are, on a logarithmic scale where they are far apart."""
    if names is not None:
        step = -(-len(names) // MAX_NAMES)
        axes.set_xticks(
            range(0, len(names), step), [name[:16] for name in names[::step]], rotation=20, parse_math=False
        )
    elif min(places) > 0 and max(places) > 20 * min(places):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(PLAIN)


def parallel_figure(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """Parallel coordinates (Inselberg 1985): a line for each job, an axis for each option; the better, the darker."""
    figure, (axes,) = side_by_side(1, width=2.0 * (len(keys) + 1) + 1.2, height=4.4)
    columns = []
    for key in (*keys, "objective"):
        places, names = places_of([row[key] for row in rows])
        is_log = key != "objective" and names is None and min(places) > 0 and max(places) > 20 * min(places)
        heights = [math.log(place) for place in places] if is_log else places
        low, high = min(heights), max(heights)
        columns.append([(height - low) / (high - low) if high > low else 0.5 for height in heights])
        x = len(columns) - 1
        axes.axvline(x, color=FAINT, linewidth=1, zorder=0)
        labels = {height: str(row[key]) for height, row in zip(columns[-1], rows, strict=True)}
        if key == "objective" or len(labels) > MAX_NAMES:
            labels = {height: labels[height] for height in (min(labels), max(labels))}
        for height, label in labels.items():
            text = f"{float(label):.4g}" if names is None else label[:16]
            axes.text(x + 0.02, height, text, fontsize=8, color=INK, va="center", parse_math=False)
    better = columns[-1] if rows[0]["metric"].endswith("accuracy") else [1 - height for height in columns[-1]]
    for index in sorted(range(len(rows)), key=lambda i: better[i]):  # the best on top
        heights = [column[index] for column in columns]
        axes.plot(range(len(columns)), heights, color=BLUE, alpha=0.12 + 0.88 * better[index] ** 2, linewidth=1.4)
    axes.set_xticks(range(len(columns)), [*keys, rows[0]["metric"]], parse_math=False)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set(visible=False)
    axes.set_title("Each line is a job: the better, the darker")
    return figure
