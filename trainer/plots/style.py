"""Colours, fonts and layout of all plots, and how one is saved."""

import warnings
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import FuncFormatter

# Okabe and Ito 2008: told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, RED, INK, FAINT = "#0072B2", "#E69F00", "#009E73", "#C1272D", "#222222", "#B8B8B8"
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "SimHei")
STYLE: dict[Any, Any] = {  # the stubs know the keys only one by one
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.dpi": 120,
    "savefig.dpi": "figure",
}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # 10 to a power takes a parser of formulas, a quarter of a second


def save_figure(figure: Figure, path: Path, *, cropped: bool = False) -> None:
    """Write a PNG; missing parent folders are made.  cropped: without empty margins, which takes drawing it twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # A class name in a script without an installed font shows as boxes; a warning per glyph would flood the screen.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, format="png", bbox_inches="tight" if cropped else None)  # cropping draws it twice


def _style_with_cjk() -> dict[Any, Any]:
    """STYLE plus the installed fonts for Chinese and Japanese class names; naming a missing font would warn."""
    installed = set(fontManager.get_font_names())
    return {**STYLE, "font.family": ["DejaVu Sans", *(font for font in CJK_FONTS if font in installed)]}


def short(text: str, width: int) -> str:
    """At most `width` characters of a text."""
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def side_by_side(num_panels: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels of so many inches each, with room for labels: a layout engine, or cropping, would draw them twice."""
    total = width * num_panels
    figure = Figure(figsize=(total, height))
    figure.subplots_adjust(
        left=1.1 / total, right=1 - 0.2 / total, bottom=0.6 / height, top=1 - 0.4 / height, wspace=0.32
    )
    return figure, list(figure.subplots(1, num_panels, squeeze=False)[0])
