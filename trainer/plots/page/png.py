"""Images as addresses that hold their own bytes."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def png_of(pixels: Tensor) -> bytes:
    """An image (C, H, W) uint8 as a PNG file, C = 1 (grey) or 3 (RGB)."""
    rows = pixels.permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(rows[:, :, 0] if rows.shape[2] == 1 else rows).save(file, "PNG")
    return file.getvalue()


def address_of(pixels: Tensor) -> str:
    """An image (C, H, W) uint8 as data:image/png;base64,..."""
    return f"data:image/png;base64,{base64.b64encode(png_of(pixels)).decode()}"


def shrunk(pixels: Tensor, side: int) -> Tensor:
    """An image (C, H, W) uint8 whose longer side is at most `side`; of more than three channels the first is shown."""
    pixels = pixels if pixels.shape[0] in (1, 3) else pixels[:1]
    longer = max(pixels.shape[1:])
    if longer <= side:
        return pixels
    size = [max(1, round(length * side / longer)) for length in pixels.shape[1:]]
    small = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
    return small[0].round().clamp(0, 255).to(torch.uint8)
