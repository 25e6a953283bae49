"""Images as addresses that hold their own bytes."""

import base64
import struct
import zlib

import torch
from torch import Tensor
from torch.nn import functional as F


def png_of(pixels: Tensor) -> bytes:
    """An image (C, H, W) uint8 as a PNG file, C = 1 (grey) or 3 (RGB). Without a library: for small ones it is faster.

    Source: W3C, Portable Network Graphics, third edition, section 5.
    """
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).reshape(height, width * channels)
    filtered = torch.cat([rows.new_zeros(height, 1), rows], 1)  # in front of each row: it is as it is
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.cpu().numpy().tobytes(), 6)), (b"IEND", b"")]
    written = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


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
