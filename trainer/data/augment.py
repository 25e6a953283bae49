"""Augmentation of whole batches of images: what is drawn for an example depends on (seed, epoch, example) alone.

Each step of data.augment first draws for all examples of an epoch, on the CPU, and is then a function of images and of
what was drawn for them, image by image. So neither the batch, nor the worker, nor the process changes what an example
becomes. Magnitudes and probabilities are those of torchvision's classes of the same names.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.data import policies
from trainer.data.mixing import NOT_MIXED, Mixing
from trainer.data.pixels import erased, move, moves, recolored, resized_crop

MAX_NUMBERS = 2_000_000  # of all images that a step is done to at once on the CPU
TRIES = 10  # rectangles that are drawn for each image: the first that fits into it is taken
OF_RATIO = {"crop": (3 / 4, 4 / 3), "erase": (0.3, 3.3)}  # of the sides of a rectangle
OF_AREA = {"crop": (0.08, 1.0), "erase": (0.02, 0.33)}  # its share of the image
ERASED = 0.5  # share of the images
COLOR = 0.4  # brightness, contrast and saturation times 1 - COLOR to 1 + COLOR


@dataclass(frozen=True)
class Step:
    """One step of data.augment.

    Attributes:
        draw: draw(n, generator) -> (n, ...) on the CPU, for n examples.
        apply: apply(x, drawn) -> images (B, C, H, W) uint8 like x, maybe of another size.
        on_host: apply() looks at what was drawn, which therefore stays in main memory.
        alternates: it is drawn once for the whole run, and each epoch adds 1 to it.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]
    on_host: bool = False
    alternates: bool = False


@dataclass(frozen=True)
class Augment:
    """What is asked for.

    Attributes:
        steps: data.augment: none, a name, or a list of names, in this order.
        mixing: how images are mixed at last.
        sizes: data.first_sizes: height and width in the first epochs, one number for each.
    """

    steps: str | Sequence[str] = "none"
    mixing: Mixing = NOT_MIXED
    sizes: Sequence[int] = ()


UNCHANGED = Augment()


def augment_of(options: Mapping[str, Any], num_classes: int) -> Augment:
    """What the options of a data set ask for, of K classes."""
    mixing = Mixing(options.get("mixup", 0), options.get("cutmix", 0), num_classes)
    return Augment(
        options.get("augment", "none"), mixing if mixing else NOT_MIXED, tuple(options.get("first_sizes", ()))
    )


class Augmentation:
    """What is asked for, ready to be done to images.

    Args:
        augment: what.
        stored: height and width of the images before; () where the examples are rows.
        shape: after it.
        device: of the images.
    """

    def __init__(self, augment: Augment, stored: tuple[int, ...], shape: tuple[int, ...], device: torch.device) -> None:
        self.shape, self.device, self.mixing, self.sizes = shape, device, augment.mixing, augment.sizes
        self.steps = []
        for name in names_of_steps(augment.steps):
            self.steps.append(step_named(name, stored, shape, device))
            stored = shape if name == "resized_crop" else stored

    def draw(
        self, n: int, epoch: int, generator: Callable[[int, str], torch.Generator], order: Tensor | None
    ) -> list[Tensor]:
        """What each of n examples gets in an epoch, for each step: (n, ...), where it is needed.

        Args:
            n: examples.
            epoch: from 1 on.
            generator: one for each epoch and purpose.
            order: (n,) of the examples; None: as they are drawn.
        """
        # "augment" alone for the first step: as it was when there was only one
        drawn = []
        for i, step in enumerate(self.steps):
            of = step.draw(n, generator(0 if step.alternates else epoch, f"augment{i or ''}"))
            drawn.append((of + epoch if step.alternates else of, step.on_host))
        if self.mixing:
            drawn.append((self.mixing.draw(n, self.shape_in(epoch), generator(epoch, "mixing")), False))
        placed = [(each if order is None else each[order], on_host) for each, on_host in drawn]
        return [each if on_host else each.to(self.device) for each, on_host in placed]

    def apply(self, x: Tensor, drawn: Sequence[Tensor], epoch: int) -> Tensor:
        """Do all steps to a batch, (B, C, H, W) uint8; the middle of larger images is taken where none cuts it out.

        In the first epochs the images may be made smaller then.
        """
        # of large images a few at a time, while they are in the CPU's cache
        few = max(1, MAX_NUMBERS * len(x) // x.numel()) if x.numel() and self.device.type == "cpu" else max(1, len(x))
        for step, of_batch in zip(self.steps, drawn, strict=False):  # the last one may be for mix()
            x = whole_batch([step.apply(*each) for each in zip(x.split(few), of_batch.split(few), strict=True)])
        x, shape = centered(x, self.shape), self.shape_in(epoch)
        return x if shape == self.shape or not len(x) else F.interpolate(x, shape, mode="bilinear", antialias=True)

    def shape_in(self, epoch: int) -> tuple[int, ...]:
        """Height and width of the images in an epoch, from 1 on."""
        return (self.sizes[epoch - 1],) * 2 if 0 < epoch <= len(self.sizes) else self.shape

    def mix(self, x: Tensor, y: Tensor, drawn: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mix a whole batch, normalised (B, C, H, W), where it is asked for: y (B,) becomes (B, K) then."""
        return self.mixing.apply(x, y, drawn[-1]) if self.mixing else (x, y)


def whole_batch(parts: list[Tensor]) -> Tensor:
    """The parts of a batch as one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def names_of_steps(augment: str | Sequence[str]) -> tuple[str, ...]:
    """The steps of data.augment: none, one name, or a list of names, in this order."""
    names = (augment,) if isinstance(augment, str) else tuple(augment)
    return tuple(name for name in names if name != "none")


def stored_size(size: int, augment: str | Sequence[str]) -> int:
    """Pixels to which files are decoded for images of `size` pixels: 8/7 of it where resized_crop cuts them out."""
    return round(size * 8 / 7) if "resized_crop" in names_of_steps(augment) else size


def step_named(name: str, stored: tuple[int, ...], shape: tuple[int, ...], device: torch.device) -> Step:
    """One step, for images of height and width `stored`."""
    if name in ("trivial", "randaugment"):
        return Step(partial(policies.DRAWS[name], size=stored), policies.applied, on_host=True)
    if name == "resized_crop":
        return Step(partial(boxes, size=stored, kind="crop"), partial(resized_crop, shape=shape))
    if name == "erasing":
        return Step(partial(erased_boxes, size=stored), erased)
    if name == "color":
        return Step(color_factors, recolored)
    table = moves(name, *stored).to(device)
    # One number an example, and the pixels' places looked up on the device.
    return Step(
        lambda n, generator: torch.randint(len(table), (n,), generator=generator),
        lambda x, drawn: move(x, table.index_select(0, drawn % len(table))),
        alternates=name == "alternate_flip",
    )


def centered(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The middle (B, C, height, width) of images, as ImageNet is measured; of rows and images of that shape: all."""
    if x.shape[2:] == shape:
        return x
    height, width = shape
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def boxes(n: int, generator: torch.Generator, *, size: tuple[int, ...], kind: str) -> Tensor:
    """Draw rectangles: (n, 4) float32 whole numbers: top, left, height, width.

    Area and logarithm of the ratio of the sides are uniform, in the ranges of `kind`. Where none of TRIES fits into the
    image it is all of it.
    """
    (height, width), (low, high), ratios = size, OF_AREA[kind], OF_RATIO[kind]
    u = torch.rand(n, TRIES + 1, 2, dtype=torch.float64, generator=generator)
    area = height * width * (low + (high - low) * u[:, 1:, 0])
    ratio = torch.exp(math.log(ratios[0]) + math.log(ratios[1] / ratios[0]) * u[:, 1:, 1])
    sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2).round()  # (n, TRIES, 2)
    limits = torch.tensor(size, dtype=torch.float64)
    fits = ((sides >= 1) & (sides <= limits)).all(2)
    sides = torch.where(fits[:, :, None], sides, limits)
    first = fits.int().argmax(1)  # the first that fits, or the first of all
    sides = sides[torch.arange(n), first]
    corners = (u[:, 0] * (limits - sides + 1)).floor()
    return torch.cat([corners, sides], 1).float()


def erased_boxes(n: int, generator: torch.Generator, *, size: tuple[int, ...]) -> Tensor:
    """Draw what is erased: boxes(), of which a share of ERASED has pixels."""
    found = boxes(n, generator, size=size, kind="erase")
    return found * (torch.rand(n, 1, generator=generator) < ERASED)


def color_factors(n: int, generator: torch.Generator) -> Tensor:
    """Draw factors of brightness, contrast and saturation: (n, 3) float32."""
    return 1 + COLOR * (2 * torch.rand(n, 3, generator=generator) - 1)
