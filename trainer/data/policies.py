"""TrivialAugment and RandAugment: operations with magnitudes, drawn for each image and applied to all that drew one.

Operations and magnitudes are those of torchvision's TrivialAugmentWide and RandAugment (2 operations, magnitude 9 of
30). Sources: Mueller and Hutter 2021, arXiv 2103.10158; Cubuk et al. 2019, arXiv 1909.13719.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.data.pixels import blend, brightness, contrast, move, pixel_places, saturation

LEVELS = 31
MAGNITUDE, AT_ONCE = 9, 2  # of RandAugment: the level, and how many operations an image gets
# (magnitude at the last level in TrivialAugment, in RandAugment, and whether it has a sign)
OPERATIONS: dict[str, tuple[float, float, bool]] = {
    "identity": (0, 0, False),
    "shear_x": (0.99, 0.3, True),
    "shear_y": (0.99, 0.3, True),
    "translate_x": (32, 150 / 331, True),  # pixels; share of the width
    "translate_y": (32, 150 / 331, True),
    "rotate": (135, 30, True),  # degrees
    "brightness": (0.99, 0.9, True),
    "saturation": (0.99, 0.9, True),
    "contrast": (0.99, 0.9, True),
    "sharpness": (0.99, 0.9, True),
    "posterize": (6, 4, False),  # bits that are taken away
    "solarize": (1, 1, False),  # 1 - the threshold
    "autocontrast": (0, 0, False),
    "equalize": (0, 0, False),
}
NAMES = tuple(OPERATIONS)


def trivial(n: int, generator: torch.Generator, *, size: tuple[int, ...]) -> Tensor:
    """Draw one operation at any level for each image: (n, 1, 2) float32, its number and its magnitude."""
    levels = torch.randint(LEVELS, (n, 1), generator=generator)
    return drawn(levels, generator, [largest for largest, _, _ in OPERATIONS.values()])


def randaugment(n: int, generator: torch.Generator, *, size: tuple[int, ...]) -> Tensor:
    """Draw AT_ONCE operations for each image: (n, AT_ONCE, 2), as trivial()."""
    largest = [last for _, last, _ in OPERATIONS.values()]
    for name, side in (("translate_x", size[1]), ("translate_y", size[0])):
        largest[NAMES.index(name)] *= side
    return drawn(torch.full((n, AT_ONCE), MAGNITUDE), generator, largest)


DRAWS: dict[str, Callable[..., Tensor]] = {"trivial": trivial, "randaugment": randaugment}


def drawn(levels: Tensor, generator: torch.Generator, largest: list[float]) -> Tensor:
    """Draw operations and signs for levels (n, M) -> (n, M, 2)."""
    operations = torch.randint(len(OPERATIONS), levels.shape, generator=generator)
    negative = torch.rand(levels.shape, generator=generator) < 0.5
    has_sign = torch.tensor([signed for _, _, signed in OPERATIONS.values()])[operations]
    magnitudes = torch.tensor(largest, dtype=torch.float64)[operations] * levels / (LEVELS - 1)
    return torch.stack([operations, torch.where(negative & has_sign, -magnitudes, magnitudes)], 2).float()


def applied(x: Tensor, chosen: Tensor) -> Tensor:
    """Give each image (B, C, H, W) uint8 its operations (B, M, 2), which are in main memory."""
    for each in chosen.unbind(1):
        operations, magnitudes = each.unbind(1)
        result = x.clone()
        for number in operations.unique().tolist():
            who = (operations == number).nonzero()[:, 0]
            rows, m = who.to(x.device), magnitudes[who, None, None, None].to(x.device)
            result.index_copy_(0, rows, operate(NAMES[int(number)], x.index_select(0, rows), m))
        x = result
    return x


def operate(name: str, x: Tensor, m: Tensor) -> Tensor:
    """Apply one operation to images (B, C, H, W) uint8, with magnitudes (B, 1, 1, 1)."""
    if name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"):
        return moved(name, x, m[:, 0])
    if name in ("brightness", "saturation", "contrast", "sharpness"):
        change = {"brightness": brightness, "saturation": saturation, "contrast": contrast, "sharpness": sharpness}
        return change[name](x, 1 + m)
    if name == "posterize":
        return x & (256 - torch.pow(2, m.round())).to(torch.uint8)
    if name == "solarize":
        return torch.where(x >= 255 * (1 - m), 255 - x, x)
    if name == "identity":
        return x
    from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]  # takes a second

    changed: Tensor = getattr(functional, name)(x)  # autocontrast, equalize
    return changed


def moved(name: str, x: Tensor, m: Tensor) -> Tensor:
    """Shear, translate or rotate images by magnitudes (B, 1, 1): each pixel is the nearest one to where it came from.

    Sheared from the upper left corner, rotated counter-clockwise about the middle; what comes from outside is black.
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device)[:, None] + 0.5  # of the pixels' middles
    columns = torch.arange(width, device=x.device) + 0.5
    if name == "rotate":
        angle = m * (math.pi / 180)
        y, z = rows - height / 2, columns - width / 2
        rows, columns = angle.sin() * z + angle.cos() * y + height / 2, angle.cos() * z - angle.sin() * y + width / 2
    elif name == "shear_x":
        columns = columns + m * rows
    elif name == "shear_y":
        rows = rows + m * columns
    elif name == "translate_x":
        columns = columns - m.trunc()  # whole pixels
    else:
        rows = rows - m.trunc()
    rows, columns = (v.floor().long() for v in torch.broadcast_tensors(rows, columns))
    places = pixel_places(rows, columns, height, width)
    return move(x, places.expand(len(x), height, width).flatten(1))


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """The images with the distances from a smoothed copy times factor (B, 1, 1, 1); the outermost pixels stay."""
    if min(x.shape[2:]) < 3:
        return x
    numbers = x.int()
    around = sum(numbers[:, :, i : i + x.shape[2] - 2, j : j + x.shape[3] - 2] for i in range(3) for j in range(3))
    middle = x[:, :, 1:-1, 1:-1]
    result = x.clone()
    result[:, :, 1:-1, 1:-1] = blend(middle, ((around + 4 * middle.int()) / 13).round(), factor)
    return result
