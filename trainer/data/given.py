"""Images and rows of numbers as a caller has them in memory, made into what the rest of the program takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.images import Picture
from trainer.utils.errors import ConfigError

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
ALLOWED = "a path, a PIL image, a uint8 array or tensor (H, W) or (H, W, C), a batch (N, H, W, C), or a list of these"


def images_given(images: Any, channels: int) -> list[Picture]:
    """An image in memory, or each of a batch.

    Three axes are a batch of grey images where the model is for such and the last axis cannot be one of colours.

    Args:
        images: a PIL image, or a uint8 array or tensor.
        channels: of the images that the model takes.
    Raises:
        ConfigError: it is none of these, or not of such a shape or type.
    """
    if isinstance(images, Image.Image):
        return [images]
    if not isinstance(images, (np.ndarray, Tensor)):
        raise ConfigError(f"{type(images).__name__} is no image. Allowed: {ALLOWED}.")
    if images.dtype not in (np.uint8, torch.uint8):
        advice = "Values from 0 to 1 become such by (x * 255).round() and a change of type."
        kind = str(images.dtype).removeprefix("torch.")
        raise ConfigError(f"images of type {kind} are not allowed. Allowed: uint8, 0 to 255. {advice}")
    array = images.cpu().numpy() if isinstance(images, Tensor) else images
    has_colours = array.ndim > 2 and array.shape[-1] in CHANNELS
    if array.ndim == 2 or (array.ndim == 3 and has_colours):
        array = array[None]
    elif not (array.ndim == 4 and has_colours) and not (array.ndim == 3 and channels == 1):
        shape = ", ".join(map(str, array.shape))
        advice = (
            "Channels come last: x.permute(0, 2, 3, 1) makes them so in (N, C, H, W), x.permute(1, 2, 0) in (C, H, W)."
        )
        raise ConfigError(f"images of shape ({shape}) are not allowed. Allowed: {ALLOWED}. {advice}")
    if 0 in array.shape:
        raise ConfigError("there are no pixels in it.")
    return [Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image) for image in array]


def rows_given(rows: Any, num_features: int) -> Tensor:
    """Rows of numbers as (N, D) float64, one row for one example; of a model of one feature also (N,).

    Raises:
        ConfigError: they are no numbers, or not so many in a row.
    """
    try:
        # NumPy knows no bfloat16
        array = np.array(rows.detach().cpu().double().numpy() if isinstance(rows, Tensor) else rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{type(rows).__name__} is not rows of {num_features} numbers each.") from None
    if array.ndim == 1 and (num_features == 1 or len(array) == num_features):
        array = array.reshape(-1, num_features)
    if array.ndim != 2 or array.shape[1] != num_features or not len(array):
        shape = ", ".join(map(str, array.shape))
        raise ConfigError(
            f"numbers of shape ({shape}) are not allowed. Allowed: (N, {num_features}), a row for each example."
        )
    return torch.from_numpy(array)


def names_of(classes: Sequence[str], indices: Tensor) -> np.ndarray:
    """The class names (N,) of class indices (N,)."""
    return np.array(classes)[indices.cpu().numpy()]
