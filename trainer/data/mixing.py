"""mixup and cutmix: each image mixed with its neighbour in the batch, and its label likewise.

Sources: Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Mixing:
    """How images are mixed. With both alphas above 0, each image gets one of the two.

    Attributes:
        mixup: alpha of the share Beta(alpha, alpha) that an image keeps in all its pixels; 0: no mixup.
        cutmix: of the share of pixels that it keeps outside a rectangle; 0: no cutmix.
        num_classes: K.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    num_classes: int = 0

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def draw(self, n: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """What n images of this height and width get: (n, 5) float32, the share and a rectangle (none: mixup)."""
        # NumPy has this distribution; its generator gets what torch's has drawn
        numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        is_cut = numbers.random(n) < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        alpha = np.where(is_cut, self.cutmix, self.mixup)
        share = numbers.beta(alpha, alpha)
        limits = np.array(size)
        # a rectangle of 1 - share of the pixels around any pixel, as far as it lies in the image
        half = np.sqrt(1 - share)[:, None] * limits / 2 * is_cut[:, None]
        center = np.floor(numbers.random((n, 2)) * limits)
        first, last = (np.clip(np.round(center + sign * half), 0, limits) for sign in (-1, 1))
        sides = last - first
        share = np.where(is_cut, 1 - sides.prod(1) / limits.prod(), share)
        return torch.from_numpy(np.concatenate([share[:, None], first, sides], 1)).float()

    def apply(self, x: Tensor, y: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a whole batch: (B, C, H, W) and (B,) int64 -> the same shape, and shares of the classes (B, K)."""
        share, found = drawn[:, :1].to(x.dtype), drawn[:, 1:]
        cut = found[:, 2:].prod(1) > 0
        of_pixel = torch.where(cut[:, None], 1, share)[:, :, None, None]  # (B, 1, 1, 1)
        of_pixel = of_pixel.masked_fill(in_boxes(found, *x.shape[2:]), 0)
        labels = F.one_hot(y, self.num_classes).to(x.dtype)
        mixed = x * of_pixel + x.roll(1, 0) * (1 - of_pixel)
        return mixed, labels * share + labels.roll(1, 0) * (1 - share)


NOT_MIXED = Mixing()


def in_boxes(found: Tensor, height: int, width: int) -> Tensor:
    """Whether each pixel is in the rectangle (B, 4) of its image: (B, 1, height, width)."""
    top, left, h, w = (values[:, None] for values in found.unbind(1))
    rows, columns = (torch.arange(n, device=found.device) for n in (height, width))
    in_rows, in_columns = (rows >= top) & (rows < top + h), (columns >= left) & (columns < left + w)
    return (in_rows[:, :, None] & in_columns[:, None])[:, None]
