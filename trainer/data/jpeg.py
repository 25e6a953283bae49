"""Plain JPEG files read by torchvision's decoder: the pixels that Pillow gives, in less than half of its time.

Most of Pillow's time for a small file goes into Python. The decoder is loaded without torchvision, whose import takes a
second, and used only where it gives the pixels that Pillow gives.
"""

import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

START, END = b"\xff\xd8", b"\xff\xd9"
FRAMES, SCAN = (0xC0, 0xC2), 0xDA  # baseline and progressive; what follows a scan are pixels
HARMLESS = (0xC4, 0xDB, 0xDD, 0xFE)  # tables, restarts, comments: nothing that turns an image or changes its colours
JFIF = (0xE0, b"JFIF\0", 16)  # which Pillow wants with all its bytes
BYTES_BESIDE = 2**16  # beside 3 for each pixel: a longer file is not plain
ALL_CHANNELS = 0  # the decoder's way of saying which channels


@cache
def decoder() -> Callable[[bytes], Tensor] | None:
    """The content of a JPEG file -> (C, H, W) uint8; None where it is not there or rounds otherwise than Pillow."""

    def decode_jpeg(content: bytes) -> Tensor:
        in_bytes = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        pixels: Tensor = torch.ops.image.decode_jpeg(in_bytes, ALL_CHANNELS)
        return pixels

    try:
        package = importlib.util.find_spec("torchvision")
        folders = package.submodule_search_locations or [] if package is not None else []
        for file in (
            file for folder in folders for file in Path(folder).glob("image*") if file.suffix in (".so", ".pyd")
        ):
            torch.ops.load_library(str(file))
        agrees = all(torch.equal(decode_jpeg(content), pixels) for content, pixels in two_files())
    except (OSError, RuntimeError, AttributeError):  # there is none, or it is for another version of torch
        return None
    return decode_jpeg if agrees else None


def two_files() -> list[tuple[bytes, Tensor]]:
    """Small JPEG files and what Pillow makes of them, with colours in full and in a quarter of the resolution."""
    noise = torch.randint(256, (24, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = []
    for subsampling in (0, 2):
        file = io.BytesIO()
        Image.fromarray(noise.numpy()).save(file, "JPEG", subsampling=subsampling)
        found.append((file.getvalue(), torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)))
    return found


def plain_jpeg(source: Path | str | io.BytesIO | Image.Image, height: int, width: int) -> Tensor | None:
    """The pixels (3, H, W) uint8 of a JPEG file in colour that has this size already and nothing beside its pixels.

    None where it is something else or damaged: Pillow reads that.
    """
    if isinstance(source, Image.Image) or (decode_jpeg := decoder()) is None:
        return None
    most = 3 * height * width + BYTES_BESIDE
    try:
        if isinstance(source, io.BytesIO):
            content = source.getvalue()
        else:
            file = os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # half of the time of open()
            try:
                content = os.read(file, 2)
                content += os.read(file, most) if content == START else b""
            finally:
                os.close(file)
        if len(content) > most or size_of_plain(content) != (height, width):
            return None
        with standard_error_to(nowhere()):  # libjpeg's lines on damaged files have no names; Pillow keeps them too
            return decode_jpeg(content)
    except (OSError, RuntimeError):
        return None


@contextmanager
def standard_error_to(descriptor: int) -> Iterator[None]:
    """Let what libraries write to standard error go to another file descriptor, where there is a standard error."""
    try:
        before = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@cache
def nowhere() -> int:
    """A file descriptor that takes everything."""
    return os.open(os.devnull, os.O_WRONLY)


def size_of_plain(content: bytes) -> tuple[int, int] | None:
    """Height and width of a plain JPEG file of three channels of 8 bits, from its header; None: it is another."""
    if content[:2] != START or content[-2:] != END:
        return None
    found, at = None, 2
    while len(content) >= at + 10 and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == SCAN:
            return found
        if marker in FRAMES:
            precision, channels = content[at + 4], content[at + 9]
            height, width = (int.from_bytes(content[i : i + 2], "big") for i in (at + 5, at + 7))
            found = (height, width) if (precision, channels) == (8, 3) else None
        elif marker not in HARMLESS and not is_jfif(content, at):
            return None
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def is_jfif(content: bytes, at: int) -> bool:
    """Whether a whole JFIF segment begins there."""
    marker, name, least = JFIF
    length = int.from_bytes(content[at + 2 : at + 4], "big")
    return content[at + 1] == marker and content[at + 4 : at + 4 + len(name)] == name and length >= least
