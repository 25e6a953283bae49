"""One image file to one (C, H, W) uint8 tensor, whatever a camera, a drawing program or a broken disk made of it.

Only decoding lives here: which files are images is in listing.py, and augmentation works on batches.
"""

import io
import os
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainer.config.schema import DEPTHS
from trainer.data.jpeg import plain_jpeg, standard_error_to
from trainer.utils.text import emit, number_of

# Pillow knows some forty more; EPS would start Ghostscript, and the rare decoders are less tested.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MEGAPIXELS = 52.0  # a 50-megapixel camera; decoding stays below 1 GB, and a PNG of 160 KB can ask for more
LARGE_PIXELS = 4_000_000  # from here on an image is shrunk before anything else; below, the copies do not matter
WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # convert() clips these to 255 instead of scaling them

Picture = Path | str | io.BytesIO | Image.Image  # a file, its content, or an image in memory

LOST = {  # what of a file is not used
    "colour": "16 bits per channel in several channels, of which the upper 8 are used, whatever data.depth says: "
    "where their values do not fill 16 bits, save them with 8",
    "range": "values below black or above white (of floats, white is 1, in files with values above 1 it is 255), "
    "which are cut off: save them with values in range, or as 16-bit integers for data.depth",
}
WHITE = {1.0: "up to 1", 255.0: "above 1"}  # floats of a file that tells its white: what its values are


@dataclass(frozen=True)
class Frame:
    """What an image is decoded to.

    Attributes:
        shape: (C, H, W): 1 (grey, ITU-R 601 luma) or 3 (RGB) channels, height and width in pixels.
        depth: bits of the values in 16-bit grey files: 2**depth - 1 is white.
        fit: crop (the shorter side is fitted and the middle cut out), pad (the longer side is fitted and the rest
            black) or squash (both sides are fitted, which changes the proportions).
        max_megapixels: larger images are not decoded.
        interpolation: bilinear or bicubic, both over all pixels that one of the result covers.
    """

    shape: tuple[int, ...]
    depth: int = 16
    fit: str = "crop"
    max_megapixels: float = MEGAPIXELS
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Values:
    """What is to be known of the values in a file.

    Attributes:
        peak: the largest one in a 16-bit grey file; 0 for other files.
        lost: a key of LOST, or "" where all of the file is used.
        floats: a value of WHITE, or "" where the file has no floats above 0.
    """

    peak: int = 0
    lost: str = ""
    floats: str = ""


@dataclass
class Seen:
    """Values of many files together.

    Attributes:
        peak: the largest one in a 16-bit grey file; 0 if there is none.
        lost: {key of LOST or value of WHITE: (number of such files, name of the first)}.
    """

    peak: int = 0
    lost: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, values: Values, name: str, count: int = 1) -> None:
        """Count a file, or some of the same kind."""
        self.peak = max(self.peak, values.peak)
        for key in filter(None, (values.lost, values.floats)):
            before, first = self.lost.get(key, (0, name))
            self.lost[key] = (before + count, first)

    def merge(self, other: "Seen") -> None:
        """Count the files of another one, which come after these."""
        self.peak = max(self.peak, other.peak)
        for key, (count, first) in other.lost.items():
            self.add(Values(lost=key), first, count)


class ImageError(Exception):
    """A file that is no usable image; the message is a short reason without the file's name."""


def read_image(path: Path | str, frame: Frame) -> Tensor:
    """Decode an image and fit it to the frame.

    The image is turned upright by its EXIF orientation; of an animation the first frame counts; transparent pixels
    become white, as viewers show them; grey with more than 8 bits is scaled to 8. Not for several threads at once.

    Args:
        path: the file.
        frame: what it is decoded to.
    Returns:
        (C, H, W) uint8.
    Raises:
        ImageError: the file is missing, not a regular file, empty, not an image of a known format, too large or
            damaged.
    """
    with quiet_pillow():
        return decode(path, frame)[0]


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hide Pillow's warnings (odd EXIF, odd palette) and its own limit; this changes state of the whole process."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def decode(source: Picture, frame: Frame) -> tuple[Tensor, Values]:
    """read_image() inside the caller's quiet_pillow(), and what is to be known of the values in the file.

    Of an image that Pillow has read already a copy is taken.
    """
    if isinstance(source, (Path, str)):
        source = str(source)  # once: that takes a Path as long as opening it
        check_regular(source)
    channels, height, width = frame.shape
    fits = channels == 3 and height * width <= frame.max_megapixels * 1e6
    if fits and (pixels := plain_jpeg(source, height, width)) is not None:
        return pixels, Values()
    try:
        with _opened(source) as image:
            if image.width * image.height == 0:
                raise ImageError(f"no pixels: {image.width} x {image.height}")
            if image.width * image.height > frame.max_megapixels * 1e6:
                size = f"{image.width} x {image.height} is more than {frame.max_megapixels:g} megapixels"
                raise ImageError(f"too large: {size}, the limit of data=folder's data.max_megapixels")
            # A large JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves twice the pixels that are needed.
            image.draft(image.mode, (2 * max(height, width),) * 2)
            halved = _is_halved(image)
            ImageOps.exif_transpose(image, in_place=True)
            plain, values = _plain(_shrunk(image, height, width), frame.depth)
            plain = plain.convert("L" if channels == 1 else "RGB")
        if plain.size != (width, height):
            plain = FITS[frame.fit](plain, width, height, RESAMPLING[frame.interpolation])
        pixels = torch.from_numpy(np.array(plain))  # (H, W) or (H, W, C)
    except (ImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # damaged files make the decoders raise nearly everything
        raise ImageError(f"damaged: {str(error) or type(error).__name__}") from error
    values = Values(lost="colour") if halved else values
    return (pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()), values


def _cropped(image: Image.Image, width: int, height: int, by: Image.Resampling) -> Image.Image:
    return ImageOps.fit(image, (width, height), by)


def _padded(image: Image.Image, width: int, height: int, by: Image.Resampling) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    inner = [max(1, round(scale * side)) for side in image.size]  # a line of pixels stays one
    whole = Image.new(image.mode, (width, height))
    whole.paste(image.resize((inner[0], inner[1]), by), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return whole


def squashed(
    image: Image.Image, width: int, height: int, by: Image.Resampling = Image.Resampling.BILINEAR
) -> Image.Image:
    """The image in another size, whatever its proportions were; each pixel is a mean over those that it covers."""
    return image.resize((width, height), by)


RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FITS = {"crop": _cropped, "pad": _padded, "squash": squashed}


@contextmanager
def _opened(source: Picture) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source.copy()  # what follows changes it
        return
    with Image.open(source, formats=FORMATS) as image:
        name = source if isinstance(source, (Path, str)) else "a member of a tar file"
        with _named_lines(name, is_tiff=image.format == "TIFF"):
            yield image


@contextmanager
def _named_lines(path: Path | str, *, is_tiff: bool) -> Iterator[None]:
    """Print what libtiff writes to standard error with the name of the file, which it does not know."""
    with ExitStack() as stack:
        try:
            lines = stack.enter_context(tempfile.TemporaryFile()) if is_tiff else None
        except OSError:  # no folder for temporary files: then its lines go where they went
            lines = None
        if lines is None:
            yield
            return
        sys.stderr.flush()
        try:
            with standard_error_to(lines.fileno()):
                yield
        finally:
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


def _is_halved(image: Image.Image) -> bool:
    """Whether Pillow reads only the upper 8 of 16 bits, as it does where there are several channels."""
    # how the bytes lie in the file is "RGB;16B" or the like; a PPM file has its largest value there
    layouts = [tile[3] for tile in getattr(image, "tile", ())]
    words = [word for layout in layouts for word in (layout if isinstance(layout, tuple) else (layout,))]
    return len(image.getbands()) > 1 and any(word == 65535 or ";16" in str(word) for word in words)


def _plain(image: Image.Image, depth: int) -> tuple[Image.Image, Values]:
    """Return the image with 8 bits per channel and without transparency, and what its values were."""
    if image.mode in WIDE_GREY:
        pixels = np.array(image).astype(np.float32)
        finite = pixels[np.isfinite(pixels)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        if image.mode == "F":  # up to 1 as shares of white
            white = 1.0 if high <= 1.0 else 255.0
            lost = "range" if low < 0 or high > white or finite.size < pixels.size else ""
            found = Values(lost=lost, floats=WHITE[white] if high > 0 else "")
        else:
            white = 2.0**depth - 1
            found = Values(max(0, int(high)), "range" if low < 0 else "")
        scaled = np.nan_to_num(pixels) * (255.0 / white)
        return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8)), found
    if image.mode == "LAB":  # Pillow converts it to RGB only
        image = image.convert("RGB")
    if not image.has_transparency_data:
        return image, Values()
    layer = image.convert("RGBA")
    opaque = Image.new("RGB", layer.size, "white")
    opaque.paste(layer, mask=layer.getchannel("A"))
    return opaque, Values()


def fitting_depth(peak: int) -> int:
    """The smallest of DEPTHS that holds a value; 16 where none does."""
    return next((bits for bits in DEPTHS if peak < 2**bits), DEPTHS[-1])


def losses(seen: Seen, depth: int) -> Iterator[str]:
    """Yield a warning for each way in which the values of these files are not what the model sees.

    Args:
        seen: the files.
        depth: bits that the values of 16-bit grey files are taken to have.
    """
    peak = seen.peak
    if peak >= 2**depth:
        yield f"warning: data.depth={depth} makes all above {2**depth - 1:,} white: 16-bit images hold up to {peak:,}"
    if peak > 0 and (fitting := fitting_depth(peak)) < depth:
        yield (
            f"warning: the 16-bit images hold values up to {peak:,} of the {2**depth:,} levels of data.depth={depth}; "
            f"data.depth={fitting} makes {2**fitting - 1:,} white instead, data.depth=auto finds it"
        )
    for key, (count, first) in seen.lost.items():
        if key in LOST:
            yield f"warning: {number_of(count, 'image')}, such as {first}, with {LOST[key]}"


def mixed_floats(seen: Seen) -> str:
    """What is wrong with files of floats some of which have 1 as white and some 255; "" where all have the same."""
    if any(key not in seen.lost for key in WHITE.values()):
        return ""
    (shares, first), (bytes_, other) = (seen.lost[key] for key in WHITE.values())
    return (
        f"{number_of(shares, 'image')}, such as {first}, with floats up to 1, which makes 1 white in them, and "
        f"{bytes_:,}, such as {other}, with floats above 1, which makes 255 white. Save all of them in one range, or "
        "with 8 bits."
    )
