"""Decoding of single images: the odd ones that cameras, drawing programs and broken disks make."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer.data import images
from trainer.data.images import Frame, ImageError, Seen, Values, losses, read_image
from trainer.data.listing import IMAGE_SUFFIXES, walk


def read(path: Path, channels: int = 3, size: int = 8) -> Tensor:
    return read_image(path, Frame((channels, size, size)))


def colour_of(path: Path) -> list[int]:
    """The one colour of a plain image."""
    x = read(path)
    assert x.shape == (3, 8, 8)
    assert x.dtype == torch.uint8
    assert bool((x == x[:, :1, :1]).all())
    return [int(v) for v in x[:, 0, 0]]


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey PNG whose header says what it likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint16))


def palette_with_hole() -> Image.Image:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.info["transparency"] = 0
    return image


COLOURS = {
    "rgb.png": (Image.new("RGB", (8, 8), (1, 2, 3)), [1, 2, 3]),
    "rgb.bmp": (Image.new("RGB", (8, 8), (1, 2, 3)), [1, 2, 3]),
    "rgb.tiff": (Image.new("RGB", (8, 8), (1, 2, 3)), [1, 2, 3]),
    "rgb.ppm": (Image.new("RGB", (8, 8), (1, 2, 3)), [1, 2, 3]),
    "grey.png": (Image.new("L", (8, 8), 77), [77, 77, 77]),
    "one_bit.png": (Image.new("1", (8, 8), 1), [255, 255, 255]),
    "grey16.png": (grey16(40000), [156, 156, 156]),
    "grey16.tiff": (grey16(40000), [156, 156, 156]),
    "grey16.pgm": (grey16(40000), [156, 156, 156]),
    "white16.png": (grey16(65535), [255, 255, 255]),
    "int32.tiff": (Image.fromarray(np.full((8, 8), 40000, np.int32)), [156, 156, 156]),
    "share.tiff": (Image.fromarray(np.full((8, 8), 0.5, np.float32)), [128, 128, 128]),
    "float.tiff": (Image.fromarray(np.full((8, 8), 200.0, np.float32)), [200, 200, 200]),
    "cmyk.tiff": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), [255, 0, 0]),
    "clear.png": (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), [255, 255, 255]),
    "half.png": (Image.new("RGBA", (8, 8), (0, 0, 0, 128)), [127, 127, 127]),
    "grey_alpha.png": (Image.new("LA", (8, 8), (9, 255)), [9, 9, 9]),
    "hole.png": (palette_with_hole(), [255, 255, 255]),
    "lossless.webp": (Image.new("RGB", (8, 8), (1, 2, 3)), [1, 2, 3]),
}


@pytest.mark.parametrize("name", COLOURS)
def test_each_kind_of_image_has_its_colour(tmp_path: Path, name: str) -> None:
    image, expected = COLOURS[name]
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert colour_of(tmp_path / name) == expected


@pytest.mark.parametrize("name", COLOURS)
def test_each_kind_of_large_image_has_its_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(images, "LARGE_PIXELS", 64)
    image, expected = COLOURS[name]
    large = image.resize((67, 50), Image.Resampling.NEAREST)
    large.info.update(image.info)
    large.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert colour_of(tmp_path / name) == expected


def test_cmyk_jpeg_has_its_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.allclose(colour_of(tmp_path / "a.jpg"), [255, 0, 0], atol=3)  # JPEG rounds


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert colour_of(tmp_path / "a.gif") == [255, 0, 0]


def test_colour_becomes_grey_by_luma(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.png")
    x = read(tmp_path / "a.png", channels=1)
    assert x.shape == (1, 8, 8)
    assert int(x[0, 0, 0]) == 76  # 0.299 * 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(64, dtype=np.uint8).reshape(8, 8)
    stored = {  # EXIF 2.32, table of orientation: where row 0 and column 0 of the file are in the image
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read(tmp_path / "a.png", channels=1)[0], torch.from_numpy(upright))


def test_the_middle_of_a_long_image_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48), np.uint8)
    pixels[:, 16:32] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = read(tmp_path / "a.png", channels=1)[0]
    assert x[:, 1:-1].unique().tolist() == [200]
    assert x[:, [0, -1]].unique().tolist() == [175]  # 7/8: a pixel of half the size looks a quarter pixel beyond


def test_shrinking_averages_instead_of_dropping_pixels(tmp_path: Path) -> None:
    Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).save(tmp_path / "a.png")
    inner = read(tmp_path / "a.png", channels=1)[0, 1:-1, 1:-1].float()
    assert bool((inner - 127.5).abs().max() < 3)


def test_pixels_of_the_right_size_are_untouched(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png"), torch.from_numpy(pixels).permute(2, 0, 1))


def bad_files(folder: Path) -> dict[str, str]:
    """Write images that cannot be read; returns a part of the expected reason for each."""
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "PNG")
    contents = {
        "empty.png": (b"", "empty file"),
        "text.png": (b"hello, this is text", "not an image"),
        "cut.jpg": (whole.getvalue()[: len(whole.getvalue()) // 2], "damaged: "),
        "cut.png": (noise.getvalue()[: len(noise.getvalue()) // 2], "damaged: "),
        "cut_header.jpg": (whole.getvalue()[:40], ""),
        "zero.gif": (b"GIF89a" + struct.pack("<HH", 0, 0) + b"\x00\x00\x00;", ""),
        "zero.png": (png(0, 8), ""),
        "bomb.png": (png(13_000, 13_000), "too large"),
        "giant.png": (png(100_000, 100_000), "too large"),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image"),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    (folder / "dead.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    others = {
        "folder.png": "a folder",
        "dead.png": "dead link",
        "pipe.png": "not a regular",
        "none.png": "no such file",
    }
    return {name: reason for name, (_, reason) in contents.items()} | others


def test_bad_images_are_refused_with_a_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(ImageError) as caught:
            read(tmp_path / name)
        assert reason in str(caught.value), name
        assert 0 < len(str(caught.value)) < 200, name


def test_a_large_image_below_the_cap_gives_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (15, 8), 5).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert read(tmp_path / "a.png", channels=1).unique().tolist() == [5]
    assert seen == []


def test_the_cap_is_looked_at_before_decoding_and_can_be_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit refuses twice as many
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"8 x 8 is more than 6\.3e-05 megapixels.*data\.max_megapixels"):
        read_image(tmp_path / "a.png", Frame((1, 8, 8), max_megapixels=63e-6))
    assert read_image(tmp_path / "a.png", Frame((1, 8, 8), max_megapixels=64e-6)).shape == (1, 8, 8)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_interpolation_is_pillows(fit: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", Frame((3, 12, 12), fit=fit, interpolation="bicubic"))
    wanted = np.asarray(image.resize((12, 12), Image.Resampling.BICUBIC))
    assert np.array_equal(got.permute(1, 2, 0).numpy(), wanted)
    assert not torch.equal(got, read_image(tmp_path / "a.png", Frame((3, 12, 12), fit=fit)))


def test_fit_says_what_becomes_of_the_longer_side(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.array([0, 0, 100, 100, 200, 200, 255, 255], np.uint8), (4, 1))).save(tmp_path / "a.png")
    Image.new("L", (1000, 1), 255).save(tmp_path / "line.png")
    crop, pad, squash = (
        [read_image(tmp_path / name, Frame((1, 4, 4), fit=fit))[0].tolist() for name in ("a.png", "line.png")]
        for fit in ("crop", "pad", "squash")
    )
    assert crop[0] == [[100, 100, 200, 200]] * 4  # the middle
    assert squash[0] == [squash[0][0]] * 4
    assert squash[0][0] == pytest.approx([0, 100, 200, 255], abs=20)
    assert pad[0] == [[0] * 4, squash[0][0], squash[0][0], [0] * 4]
    assert pad[1].count([255] * 4) == 1  # a line of pixels stays one


def test_every_suffix_of_the_formats_that_are_read_is_an_image() -> None:
    Image.init()
    ours = {suffix for suffix, name in Image.registered_extensions().items() if name in images.FORMATS}
    assert ours == IMAGE_SUFFIXES


def test_walk_finds_the_images_at_any_depth_and_through_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in ("root/b/deep", "root/.hidden", "other"):
        (tmp_path / folder).mkdir(parents=True)
    others = ("a.txt", ".DS_Store", "Thumbs.db", "b/README", ".png")
    for name in ("c.png", "b/x.JPG", "b/deep/y.jfif", ".hidden/y.png", *others):
        (root / name).write_bytes(b"1")
    (tmp_path / "other" / "z.jpe").write_bytes(b"1")
    (root / "dead.png").symlink_to("nowhere")
    (root / "linked").symlink_to(tmp_path / "other")
    (root / "b" / "deep" / "loop").symlink_to(root)
    (root / "to itself").symlink_to("to itself")
    found = walk(root)
    assert [name for name, _ in found.images] == ["b/deep/y.jfif", "b/x.JPG", "c.png", "dead.png", "linked/z.jpe"]
    assert found.num_others == len(others) + 1


@pytest.mark.parametrize(("depth", "levels"), [(12, [0, 128, 255]), (16, [0, 8, 16]), (8, [0, 255, 255])])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_depth_says_which_value_is_white(tmp_path: Path, suffix: str, depth: int, levels: list[int]) -> None:
    values = np.array([0, 2048, 4095], dtype=np.uint16).repeat(24).reshape(3, 24).T  # 24 x 3 pixels
    Image.fromarray(np.ascontiguousarray(values)).save(tmp_path / f"a.{suffix}")
    pixels = read_image(tmp_path / f"a.{suffix}", Frame((1, 24, 3), depth))
    assert pixels[0, 0].tolist() == levels
    with images.quiet_pillow():
        found = images.decode(tmp_path / f"a.{suffix}", Frame((1, 24, 3), depth))[1]
    assert found == Values(peak=4095)


@pytest.mark.parametrize("channels", [1, 3])
def test_lab_is_read(tmp_path: Path, channels: int) -> None:
    Image.new("LAB", (8, 8), (255, 128, 128)).save(tmp_path / "a.tif")  # L* = 100, a* = b* = 0: white
    pixels = read(tmp_path / "a.tif", channels=channels)
    assert pixels.shape == (channels, 8, 8)
    assert int(pixels.min()) >= 253


def test_lines_of_libtiff_name_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[100:3000] = bytes(2900)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        read(tmp_path / "a.tif")
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith(f"warning: {tmp_path / 'a.tif'}: libtiff: ") for line in lines)


def colour16(path: Path, value: int, channels: int = 3) -> Path:
    """An 8 x 8 file of one colour with 16 bits in each channel, which Pillow cannot write."""
    pixels = np.full((8, 8, channels), value, ">u2")
    if path.suffix == ".ppm":
        path.write_bytes(b"P6 8 8 65535\n" + pixels.tobytes())
    elif path.suffix == ".tif":
        entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
        entries += [(273, 4, 1, 140), (277, 3, 1, channels), (278, 3, 1, 8), (279, 4, 1, pixels.nbytes)]
        short = {256, 257, 259, 262, 277, 278}  # the others have offsets or long numbers
        tags = b"".join(
            struct.pack(">HHI", tag, kind, n) + struct.pack(*((">HH", v, 0) if tag in short else (">I", v)))
            for tag, kind, n, v in entries
        )
        head = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + tags + struct.pack(">I", 0)
        path.write_bytes(head.ljust(134, b"\0") + struct.pack(">HHH", 16, 16, 16) + pixels.tobytes())
    else:
        rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
        head = struct.pack(">IIBBBBB", 8, 8, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
        parts = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
        )
    return path


def values_of(path: Path, depth: int = 16) -> Values:
    with images.quiet_pillow():
        return images.decode(path, Frame((3, 8, 8), depth))[1]


@pytest.mark.parametrize(("name", "channels"), [("a.png", 3), ("a.png", 2), ("a.png", 4), ("a.tif", 3), ("a.ppm", 3)])
def test_colour_of_16_bits_is_known_for_the_half_that_is_read(tmp_path: Path, name: str, channels: int) -> None:
    path = colour16(tmp_path / name, 40000, channels)
    with Image.open(path) as image:
        assert np.array(image).max() <= 255
    assert values_of(path) == Values(lost="colour")


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm", "bmp", "jpg", "webp"])
def test_colour_of_8_bits_is_read_whole(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / f"a.{suffix}")
    assert values_of(tmp_path / f"a.{suffix}") == Values()


@pytest.mark.parametrize(
    ("values", "lost", "levels"),
    [
        ([0.0, 0.5, 1.0], "", [0, 128, 255]),
        ([0.0, 100.0, 255.0], "", [0, 100, 255]),
        ([0.0, 100.0, 4095.0], "range", [0, 100, 255]),
        ([-1.0, 0.5, 1.0], "range", [0, 128, 255]),
        ([0.0, 0.5, np.inf], "range", [0, 128, 255]),
        ([0.0, 0.5, np.nan], "range", [0, 128, 0]),
        ([np.nan, np.nan, np.nan], "range", [0, 0, 0]),
    ],
)
def test_floats_that_are_cut_off_are_known(tmp_path: Path, values: list[float], lost: str, levels: list[int]) -> None:
    pixels = np.array(values, np.float32).repeat(24).reshape(3, 24).T
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", Frame((1, 24, 3)))[0, 0].tolist() == levels
    with images.quiet_pillow():
        found = images.decode(tmp_path / "a.tif", Frame((1, 24, 3)))[1]
    assert found.lost == lost


def test_negative_integers_are_known(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), -5, np.int32)).save(tmp_path / "a.tif")
    assert values_of(tmp_path / "a.tif") == Values(lost="range")


def test_what_is_lost_of_many_files_is_said_once_with_the_first(tmp_path: Path) -> None:
    one, other = Seen(), Seen()
    one.add(Values(lost="colour"), "a.png")
    other.add(Values(lost="colour"), "b.png")
    other.add(Values(lost="range"), "c.png")
    other.add(Values(peak=70000), "d.png")
    one.merge(other)
    said = list(losses(one, 16))
    assert said[0] == "warning: data.depth=16 makes all above 65,535 white: 16-bit images hold up to 70,000"
    assert said[1].startswith("warning: 2 images, such as a.png, with 16 bits per channel")
    assert said[2].startswith("warning: 1 image, such as c.png, with values below black or above white")
    assert list(losses(Seen(), 16)) == []
