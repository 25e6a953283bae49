"""Colours, fonts and layout of all plots, and how one is saved."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import FuncFormatter, NullFormatter

from trainer.utils.files import replacing
from trainer.utils.text import one_line

# Okabe and Ito 2008: readers with any kind of colour vision can tell them apart.
BLUE, ORANGE, GREEN, RED, INK, FAINT = "#0072B2", "#E69F00", "#009E73", "#C1272D", "#222222", "#B8B8B8"
PENS = (BLUE, ORANGE, GREEN, RED, INK, FAINT)  # of curves in one plot, in this order
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "SimHei")
STYLE: dict[Any, Any] = {  # Any, because matplotlib's stubs list every key as a literal
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,  # the grid lies under bars and curves
    "grid.color": "#E4E4E4",
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.dpi": 120,
    "savefig.dpi": "figure",
}


def save_figure(figure: Figure, path: Path, *, cropped: bool = False) -> None:
    """Replace a PNG in one step and make missing parent folders.

    `cropped` removes empty margins, which takes drawing it twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), replacing(path) as temporary:
        # A class name in a script without an installed font shows as boxes; a warning per glyph would flood the screen.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format="png", bbox_inches="tight" if cropped else None)


def style_with_cjk() -> dict[Any, Any]:
    """Return STYLE with the installed fonts for Chinese and Japanese class names."""
    installed = set(fontManager.get_font_names())  # naming a missing font would warn
    return {**STYLE, "font.family": ["DejaVu Sans", *(font for font in CJK_FONTS if font in installed)]}


def short(text: str, width: int) -> str:
    """Return at most `width` characters of a text, all of them printable."""
    text = one_line(text)
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def spans(values: Sequence[float]) -> bool:
    """Whether a logarithmic scale suits these numbers: all above 0, the largest over 20 times the smallest."""
    return min(values) > 0 and max(values) > 20 * min(values)


def logarithmic(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic."""
    axes.set(**{f"{which}scale": "log"})
    # matplotlib's own labels, 10 to a power, need its parser of formulas: a quarter of a second.
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def side_by_side(num_panels: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of so many inches each."""
    total = width * num_panels
    # Room for labels in inches, since a layout engine, or cropping, would draw the figure twice.
    figure = Figure(figsize=(total, height))
    figure.subplots_adjust(
        left=1.1 / total, right=1 - 0.2 / total, bottom=0.6 / height, top=1 - 0.4 / height, wspace=0.32
    )
    return figure, list(figure.subplots(1, num_panels, squeeze=False)[0])
