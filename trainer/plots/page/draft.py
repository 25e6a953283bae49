"""A page while it is put together: its parts, and what its script draws."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.plots.page.charts import div_of
from trainer.plots.page.markup import Html, clean, el, page, section, together
from trainer.utils.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 1_100_000  # of all images, as text: with the library of 1.4 MB the page stays below 3 MB


@dataclass
class Draft:
    """A page while it is put together.

    Attributes:
        title: of the page.
        parts: name, title and content of each part, in their order.
        charts: by the name of their place.
        images: addresses that hold their bytes.
        captions: of the images, "" for one that is shown in one place.
        cells: the images behind each cell of a matrix, by its name.
        num_bytes: that the images take.
    """

    title: str
    parts: list[tuple[str, str, Html]] = field(default_factory=list)
    charts: dict[str, Any] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    cells: dict[str, list[int]] = field(default_factory=dict)
    num_bytes: int = 0

    def add(self, name: str, title: str, *children: object, wide: bool = False) -> None:
        """A part, to which the list at the top of the page leads."""
        self.parts.append((name, title, section(name, title, *children, wide=wide)))

    def chart(self, name: str, chart: dict[str, Any]) -> Html:
        """A chart; returns its place, to be put into a part."""
        self.charts[name] = chart
        return div_of(name)

    def image(self, pixels: "Tensor", caption: str = "") -> int | None:
        """An image (C, H, W) uint8; returns its number, or None where the page is as large as it may be."""
        from trainer.plots.page.png import address_of  # imports torch

        address = address_of(pixels)
        if self.num_bytes + len(address) > MOST_BYTES:
            return None
        self.num_bytes += len(address)
        self.images.append(address)
        self.captions.append(clean(caption))
        return len(self.images) - 1

    def write(self, path: Path, *head: Html | None) -> None:
        """Write the page in one step.

        Args:
            path: of the file.
            head: what stands above the parts.
        """
        links = el("nav", *(el("a", title, href=f"#{name}") for name, title, _ in self.parts))
        body = [*(part for part in head if part is not None), links]
        data = {"charts": self.charts, "images": self.images, "captions": self.captions, "cells": self.cells}
        text = page(self.title, [*body, el("main", together(part for *_, part in self.parts))], data)
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
