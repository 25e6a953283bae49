"""Images moved, many at a time: for augmentation, which draws a move, and for expansion, which makes all of them."""

import torch
from torch import Tensor


def moves(augment: str, height: int, width: int) -> Tensor:
    """Return all ways to shift an image: (M, height * width) int64, the pixel that each pixel is taken from.

    height * width stands for a pixel outside the image.

    Args:
        augment: flip: plain and mirrored; crop_flip: 9 x 9 offsets of up to 4 pixels, each plain and mirrored (He et
            al. 2016, sec. 4.2); shift: none and one pixel in each of four directions (Nielsen, ch. 6).
        height: of an image, in pixels.
        width: likewise.
    """
    offsets = {
        "flip": [(0, 0, flip) for flip in (False, True)],
        "crop_flip": [(oy, ox, flip) for flip in (False, True) for oy in range(-4, 5) for ox in range(-4, 5)],
        "shift": [(0, 0, False), (-1, 0, False), (1, 0, False), (0, -1, False), (0, 1, False)],
    }[augment]
    table = []
    for oy, ox, is_mirrored in offsets:
        rows, columns = torch.arange(height)[:, None] + oy, torch.arange(width) + ox  # (H, 1) and (W,)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        places = torch.where(inside, rows * width + columns, height * width)
        table.append((places.flip(1) if is_mirrored else places).flatten())  # mirrored after the shift
    return torch.stack(table)


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
