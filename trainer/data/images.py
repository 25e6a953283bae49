"""One image file to one (C, H, W) uint8 tensor, whatever a camera, a drawing program or a broken disk made of it.

Only decoding lives here: which files are images is in listing.py, and augmentation works on batches.
"""

import os
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainer.utils.text import emit

# Pillow knows some forty more; EPS would start Ghostscript, and the rare decoders are less tested.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 52_000_000  # a 50-megapixel camera; decoding stays below 1 GB, and a PNG of 160 KB can ask for more
LARGE_PIXELS = 4_000_000  # from here on an image is shrunk before anything else; below, the copies do not matter
WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # convert() clips these to 255 instead of scaling them


class ImageError(Exception):
    """A file that is no usable image; the message is a short reason without the file's name."""


def read_image(path: Path | str, *, channels: int, height: int, width: int, depth: int = 16) -> Tensor:
    """Decode an image, fit its shorter side to the frame and cut the middle out (antialiased bilinear).

    The image is turned upright by its EXIF orientation; of an animation the first frame counts; transparent pixels
    become white, as viewers show them; grey with more than 8 bits is scaled to 8. Not for several threads at once.

    Args:
        path: the file.
        channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
        height: pixels.
        width: pixels.
        depth: bits of the values in 16-bit grey files: 2**depth - 1 is white.
    Returns:
        (channels, height, width) uint8.
    Raises:
        ImageError: the file is missing, not a regular file, empty, not an image of a known format, too large or
            damaged.
    """
    with quiet_pillow():
        return decode(path, channels=channels, height=height, width=width, depth=depth)[0]


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hide Pillow's warnings (large image, odd EXIF, odd palette); this changes state of the whole process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(path: Path | str, *, channels: int, height: int, width: int, depth: int) -> tuple[Tensor, int]:
    """read_image() inside the caller's quiet_pillow(); returns the largest value of a 16-bit grey file too, else 0."""
    check_regular(path)
    try:
        with Image.open(path, formats=FORMATS) as image, _named_lines(path, is_tiff=image.format == "TIFF"):
            if image.width * image.height == 0:
                raise ImageError(f"no pixels: {image.width} x {image.height}")
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"too large: {image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
            # A large JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves twice the pixels that are needed.
            image.draft(image.mode, (2 * max(height, width),) * 2)
            ImageOps.exif_transpose(image, in_place=True)
            plain, peak = _plain(_shrunk(image, height, width), depth)
            plain = plain.convert("L" if channels == 1 else "RGB")
        if plain.size != (width, height):
            plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(plain))  # (H, W) or (H, W, C)
    except (ImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"too large: more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # damaged files make the decoders raise nearly everything
        raise ImageError(f"damaged: {str(error) or type(error).__name__}") from error
    return (pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()), peak


@contextmanager
def _named_lines(path: Path | str, *, is_tiff: bool) -> Iterator[None]:
    """Print what libtiff writes to standard error with the name of the file, which it does not know."""
    with ExitStack() as stack:
        try:
            lines = stack.enter_context(tempfile.TemporaryFile()) if is_tiff else None
            before = os.dup(2) if lines is not None else -1
        except OSError:  # no folder for temporary files, or no standard error: then its lines go where they went
            lines = None
        if lines is None:
            yield
            return
        sys.stderr.flush()
        os.dup2(lines.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            lines.seek(0)
            for line in lines.read().decode("utf-8", "backslashreplace").splitlines():
                emit(f"warning: {path}: libtiff: {line}", file=sys.stderr)


def check_regular(path: Path | str) -> None:
    """Raise ImageError unless there is a regular file with something in it: opening a named pipe waits for ever."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise ImageError("dead link" if os.path.islink(path) else "no such file") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(info.st_mode):
        raise ImageError("a folder, not a file")
    if not stat.S_ISREG(info.st_mode):
        raise ImageError("not a regular file")
    if info.st_size == 0:
        raise ImageError("empty file")


def _shrunk(image: Image.Image, height: int, width: int) -> Image.Image:
    """Average blocks of a large image, to no less than twice the frame, so that later steps need little memory."""
    factor = min(image.width // (2 * width), image.height // (2 * height))
    if image.width * image.height < LARGE_PIXELS or factor < 2:
        return image
    if image.mode.startswith("I;16"):
        image = image.convert("I")
    elif image.mode in ("1", "P", "PA") or "transparency" in image.info:  # palettes and key colours have no averages
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.reduce(factor)


def _plain(image: Image.Image, depth: int) -> tuple[Image.Image, int]:
    """Return the image with 8 bits per channel and without transparency, and the largest value if it had 16 bits."""
    if image.mode in WIDE_GREY:
        values = np.array(image).astype(np.float32)
        if image.mode == "F":  # up to 1 as shares of white
            values, peak = np.nan_to_num(values), 0
            scale = 255.0 if values.max() <= 1.0 else 1.0
        else:
            peak = max(0, int(values.max()))
            scale = 255.0 / (2**depth - 1)
        return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8)), peak
    if image.mode == "LAB":  # Pillow converts it to RGB only
        image = image.convert("RGB")
    if not image.has_transparency_data:
        return image, 0
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white, 0
