"""What is done to the pixels of a batch of images, image by image: moved, cut out, recoloured, erased."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.data.mixing import in_boxes

GREY = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R 601)


def moves(augment: str, height: int, width: int) -> Tensor:
    """Return all ways to shift an image: (M, height * width) int64, the pixel that each pixel is taken from.

    height * width stands for a pixel outside the image.

    Args:
        augment: flip, alternate_flip: plain and mirrored; crop_flip: 9 x 9 offsets of up to 4 pixels, each plain and
            mirrored (He et al. 2016, sec. 4.2); shift: none and one pixel in each of four directions (Nielsen, ch. 6);
            translate: 5 x 5 offsets of up to 2 pixels, where the pixels at the border are repeated in reverse.
        height: of an image, in pixels.
        width: likewise.
    """
    both = [(0, 0, flip) for flip in (False, True)]
    offsets = {
        "flip": both,
        "alternate_flip": both,
        "translate": [(oy, ox, False) for oy in range(-2, 3) for ox in range(-2, 3)],
        "crop_flip": [(oy, ox, flip) for flip in (False, True) for oy in range(-4, 5) for ox in range(-4, 5)],
        "shift": [(0, 0, False), (-1, 0, False), (1, 0, False), (0, -1, False), (0, 1, False)],
    }[augment]
    table = []
    for oy, ox, is_mirrored in offsets:
        rows, columns = torch.arange(height)[:, None] + oy, torch.arange(width) + ox  # (H, 1) and (W,)
        if augment == "translate":
            rows, columns = (n - 1 - (n - 1 - i.abs()).abs() for n, i in ((height, rows), (width, columns)))
        places = pixel_places(rows, columns, height, width)
        table.append((places.flip(1) if is_mirrored else places).flatten())  # mirrored after the shift
    return torch.stack(table)


def pixel_places(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """The numbers of the pixels in these rows and columns (..., H, W) int64; height * width outside the image."""
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, height * width)


def move(x: Tensor, places: Tensor) -> Tensor:
    """Shift each image of x (B, C, H, W) by its row of places (B, H * W); pixels from outside are 0."""
    # One gather for the whole batch: slicing image by image would be a Python call for each.
    b, c, h, w = x.shape
    with_outside = torch.cat([x.view(b, c, h * w), x.new_zeros(b, c, 1)], 2)  # place H * W is the outside
    return with_outside.gather(2, places[:, None].expand(b, c, h * w)).view(b, c, h, w)


def expanded(x: Tensor) -> Tensor:
    """Return each image of x (N, C, H, W) uint8 as it is and moved by a pixel in each direction: (5 N, C, H, W).

    First all as they are, then all moved in one direction, and so on. Source: Nielsen, ch. 6 (expand_mnist).
    """
    ways = moves("shift", *x.shape[2:])
    return torch.cat([move(x, places.expand(len(x), -1)) for places in ways])


def resized_crop(x: Tensor, found: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Cut a rectangle (B, 4) out of each image and scale it to `shape`, bilinearly; see boxes()."""

    def between(start: Tensor, length: Tensor, n: int, whole: int) -> Tensor:
        centers = torch.arange(n, device=x.device) + 0.5
        at = start[:, None] + centers * (length / n)[:, None] - 0.5
        # nothing beside the rectangle is mixed in
        at = torch.maximum(torch.minimum(at, (start + length - 1)[:, None]), start[:, None])
        return (2 * at + 1) / whole - 1  # grid_sample counts from -1 to 1

    top, left, height, width = found.unbind(1)
    rows = between(top, height, shape[0], x.shape[2])[:, :, None].expand(-1, -1, shape[1])
    columns = between(left, width, shape[1], x.shape[3])[:, None].expand(-1, shape[0], -1)
    grid = torch.stack([columns, rows], 3)
    return F.grid_sample(x.float(), grid, align_corners=False, padding_mode="border").round_().to(torch.uint8)


def erased(x: Tensor, found: Tensor) -> Tensor:
    """Make a rectangle of each image black."""
    return x.masked_fill(in_boxes(found, *x.shape[2:]), 0)


def recolored(x: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation (which grey images have not), in this order."""
    for change, factor in zip((brightness, contrast, saturation), factors.unbind(1), strict=True):
        x = change(x, factor[:, None, None, None])
    return x


def blend(x: Tensor, other: Any, factor: Tensor) -> Tensor:
    """x * factor + other * (1 - factor), as bytes; factor: (B, 1, 1, 1)."""
    # apart, since a fused multiplication and addition rounds otherwise, and not every pixel would get one
    return (x * factor).add_(other * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """The images with all pixels times factor (B, 1, 1, 1)."""
    return blend(x, 0.0, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """The images with the distances from their mean grey times factor (B, 1, 1, 1)."""
    total = grey(x).long().sum((1, 2, 3), keepdim=True)  # of whole numbers: in any order the same
    return blend(x, total.float() / (x.shape[2] * x.shape[3]), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """The images with the distances from grey times factor (B, 1, 1, 1)."""
    return x if x.shape[1] == 1 else blend(x, grey(x), factor)


def grey(x: Tensor) -> Tensor:
    """Images of one channel (B, 1, H, W) float32, whole numbers."""
    if x.shape[1] == 1:
        return x.float()
    red, green, blue = (x[:, i : i + 1] * part for i, part in enumerate(GREY))
    return (red + green).add_(blue).floor_()
