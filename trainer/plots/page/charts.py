"""Charts as plain data, which page.js draws with the library: lines, points, bars."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.plots.page.markup import Html, clean, el

MOST_OF_CURVE = 1000  # of a line


def chart(title: str, x: str, y: str, layers: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
    """A chart.

    Args:
        title: above it.
        x: what the horizontal axis shows.
        y: the other one.
        layers: of curve(), dots(), bars(), upright().
        options: `log` has the letters of the logarithmic axes; `percent` those of shares; `ticks` {place: name} of the
            horizontal axis, `names` those of the other one; `height` in pixels; `bare` hides the
            vertical axis; `range` has its ends; `whole` is for whole numbers on the horizontal one.
    """
    named = {
        key: {str(place): clean(name) for place, name in value.items()} if key in ("ticks", "names") else value
        for key, value in options.items()
    }
    if "y" in options.get("percent", "") and (ends := ends_of_shares(layers)):
        named.setdefault("range", ends)
    return {"title": clean(title), "x": clean(x), "y": clean(y), "layers": [*layers], **named}


def ends_of_shares(layers: Sequence[Mapping[str, Any]]) -> list[float]:
    """The ends of an axis of shares, none of which is below 0 or above 1; [] where there are none."""
    values = [v for layer in layers for key in ("y", "low", "high") for v in layer.get(key, ()) if v is not None]
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return []
    low = 0.0 if any(layer["kind"] == "bars" for layer in layers) else min(values)
    room = max(0.1 * (max(values) - low), 0.01)
    # a curve at an end shall not be cut in half
    return [max(low - room, min(low, -0.2 * room)), min(max(values) + room, max(*values, 1 + 0.2 * room))]


def curve(name: str, x: Sequence[float], y: Sequence[float | None], pen: int = 0, **options: Any) -> dict[str, Any]:
    """A line with its name in the legend; `pen` is the number of its colour. What is missing leaves a gap.

    Args:
        name: what it shows.
        x: the places.
        y: the values.
        pen: from 0.
        options: `dash`, `dots`; `tips`, a text for each point.
    """
    stride = -(-len(x) // MOST_OF_CURVE) or 1
    kept = {"x": [*x[::stride]], "y": [*y[::stride]]}
    tips = {"tips": [clean(tip) for tip in options.pop("tips")[::stride]]} if "tips" in options else {}
    return {"kind": "line", "name": clean(name), "pen": pen, **kept, **tips, **options}


def dots(name: str, x: Sequence[float], y: Sequence[float], tips: Sequence[object], pen: int = 0) -> dict[str, Any]:
    """Points, each with what is said where the pointer is on it."""
    return {"kind": "points", "name": clean(name), "pen": pen, "x": [*x], "y": [*y], "tips": [*map(clean, tips)]}


def bars(
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    width: float,
    tips: Sequence[object],
    pen: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Bars from 0 to y; lying ones with `lies`, whose places are then on the other axis."""
    told = {"x": [*x], "y": [*y], "width": width, "tips": [*map(clean, tips)]}
    return {"kind": "bars", "name": clean(name), "pen": pen, **told, **options}


def whiskers(
    name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float], pen: int = 0
) -> dict[str, Any]:
    """Intervals as upright lines."""
    return {"kind": "whiskers", "name": clean(name), "pen": pen, "x": [*x], "low": [*low], "high": [*high]}


def upright(name: str, x: float, pen: int = 2) -> dict[str, Any]:
    """A dashed line at a place."""
    return {"kind": "upright", "name": clean(name), "x": x, "pen": pen}


def parallel(columns: Sequence[Sequence[float]], shades: Sequence[float], tips: Sequence[object]) -> dict[str, Any]:
    """A line for each row through the heights, in [0, 1], that it has in each column; `shades` are opacities."""
    lines = [*map(list, zip(*columns, strict=True))]
    return {"kind": "parallel", "name": "", "pen": 0, "lines": lines, "shades": [*shades], "tips": [*map(clean, tips)]}


def labels(x: Sequence[float], y: Sequence[float], texts: Sequence[object]) -> dict[str, Any]:
    """Texts at places."""
    return {"kind": "labels", "name": "", "pen": 0, "x": [*x], "y": [*y], "texts": [*map(clean, texts)]}


def div_of(name: str) -> Html:
    """Where a chart of the page's data is drawn."""
    return el("div", data_chart=name, class_="chart")


def logarithm_of(values: Iterable[float | None]) -> bool:
    """Whether a logarithmic axis suits these numbers: all above 0, the largest over 20 times the smallest."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    return bool(there) and min(there) > 0 and max(there) > 20 * min(there)
