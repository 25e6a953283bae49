"""Plain JPEG files go another way than the rest, to the same pixels."""

import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, write_class_folders
from PIL import Image
from torch import Tensor

from trainer import engine
from trainer.commands import predict
from trainer.data import images, jpeg, pictures, workers
from trainer.data.images import Frame, ImageError, decode, quiet_pillow

FRAME = Frame((3, 24, 40))


def jpeg_of(size: tuple[int, int] = (40, 24), mode: str = "RGB", seed: int = 0, **options: object) -> bytes:
    draw = torch.Generator().manual_seed(seed)
    small = torch.randint(256, (size[1] // 4, size[0] // 4, 3), dtype=torch.uint8, generator=draw)
    file = io.BytesIO()
    picture = Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC).convert(mode)
    picture.save(file, "JPEG", **options)  # type: ignore[arg-type]
    return file.getvalue()


def by_pillow(content: bytes, monkeypatch: pytest.MonkeyPatch, frame: Frame = FRAME) -> Tensor | str:
    with monkeypatch.context() as patch:
        patch.setattr(images, "plain_jpeg", lambda *_: None)
        return read(content, frame)


def read(content: bytes, frame: Frame = FRAME) -> Tensor | str:
    try:
        with quiet_pillow():
            return decode(io.BytesIO(content), frame)[0]
    except ImageError as error:
        return str(error)


def test_the_decoder_is_there_and_agrees() -> None:
    assert jpeg.decoder() is not None


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"quality": 30}, {"quality": 100}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}),
        *({"optimize": True}, {"comment": "by hand"}, {"restart_marker_rows": 1}),
    ],
)
def test_plain_files_give_pillows_pixels(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        content = jpeg_of(seed=seed, **options)
        found = jpeg.plain_jpeg(io.BytesIO(content), 24, 40)
        assert found is not None
        expected = by_pillow(content, monkeypatch)
        assert isinstance(expected, Tensor)
        assert torch.equal(found, expected)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg_of((24, 40), exif=exif)


@pytest.mark.parametrize(
    "content",
    [
        *(jpeg_of((41, 24)), jpeg_of(mode="L"), jpeg_of(mode="CMYK"), turned(), jpeg_of()[:-2], jpeg_of()[:60], b""),
        jpeg_of().replace(b"\x00\x10JFIF\0\x01\x01\x00\x00\x01\x00\x01\x00\x00", b"\x00\x06JFIF"),
        *(jpeg_of() + b"more", jpeg_of(icc_profile=b"x" * 200), jpeg_of()[:2] + b"\xff\xd9"),
    ],
    ids=["wide", "grey", "cmyk", "turned", "cut", "header", "empty", "short", "longer", "profile", "nothing"],
)
def test_other_files_are_left_to_pillow(content: bytes) -> None:
    assert jpeg.plain_jpeg(io.BytesIO(content), 24, 40) is None


def test_a_turned_file_is_still_turned() -> None:
    assert isinstance(found := read(turned()), Tensor)
    assert found.shape == (3, 24, 40)


def test_a_small_limit_of_megapixels_still_refuses() -> None:
    assert "too large" in str(read(jpeg_of(), Frame((3, 24, 40), max_megapixels=0.0005)))


def test_damaged_files_end_as_with_pillow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, whole, ends = random.Random(0), jpeg_of(quality=60), set()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(2, len(content) - 2)] = draw.randrange(256)
        if draw.random() < 0.2:
            content = content[: draw.randrange(2, len(content))] + jpeg.END
        found, expected = read(bytes(content)), by_pillow(bytes(content), monkeypatch)
        if isinstance(found, Tensor) and isinstance(expected, Tensor):
            assert torch.equal(found, expected)
        else:
            assert found == expected
        ends.add(type(found))
    assert ends == {Tensor, str}


def test_what_libjpeg_says_of_a_damaged_file_does_not_reach_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    content = jpeg_of()[:-40] + jpeg.END
    assert jpeg.plain_jpeg(io.BytesIO(content), 24, 40) is not None
    assert capfd.readouterr().err == ""
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_without_torchvisions_decoder_all_goes_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg.decoder.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "two_files", lambda: [(jpeg_of(), torch.zeros(3, 24, 40, dtype=torch.uint8))])
            assert jpeg.decoder() is None
            assert jpeg.plain_jpeg(io.BytesIO(jpeg_of()), 24, 40) is None
            assert isinstance(read(jpeg_of()), Tensor)
    finally:
        jpeg.decoder.cache_clear()


def test_many_files_are_decoded_by_processes_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SECONDS_FOR_PROCESSES", 0.0)
    monkeypatch.setattr(workers, "num_cores", lambda: 2)
    monkeypatch.setattr(workers, "MESSAGE_BYTES", 3 * 3 * 24 * 40)  # three images a message
    files = [tmp_path / f"{i}.jpg" for i in range(20)]
    for i, file in enumerate(files):
        file.write_bytes(jpeg_of(seed=i) if i % 6 else b"no image")
    found = list(pictures.each_decoded(files, FRAME))
    assert [i for i, each in enumerate(found) if isinstance(each, str)] == [0, 6, 12, 18]
    for i, each in enumerate(found):
        if not isinstance(each, str):
            assert torch.equal(each[0], read(jpeg_of(seed=i)))  # type: ignore[arg-type]


def test_predict_by_processes_is_predict_by_one(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_class_folders(tmp_path / "p", {"train": 40, "test": 30})
    (tmp_path / "p" / "test" / "class0" / "bad.jpg").write_bytes(b"no image")
    words = ("data=folder", "data.root=p", "data.size=16", "data.on_error=skip", "model=lenet", "epochs=1")
    assert cli(*words, "plots=false", "name=a").code == 0
    for output, least in (("one.csv", 1000.0), ("many.csv", 0.0)):
        monkeypatch.setattr(pictures, "SECONDS_FOR_PROCESSES", least)
        outcome = cli("predict", "checkpoint=a", "input=p/test", f"output={output}", "plots=false")
        assert outcome.code == 2
        assert "bad.jpg" in outcome.err
    assert Path("one.csv").read_bytes() == Path("many.csv").read_bytes()
    assert len(Path("one.csv").read_text().splitlines()) == 31


def test_the_next_images_are_decoded_while_the_model_labels_a_batch(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "p", {"train": 40, "test": 30})
    assert (
        cli("data=folder", "data.root=p", "data.size=16", "model=lenet", "epochs=1", "plots=false", "name=a").code == 0
    )
    decoded, label, waited = threading.Event(), engine.predict, list[bool]()

    def each_decoded(*words: Any) -> Iterator[Any]:
        for i, result in enumerate(pictures.each_decoded(*words)):
            if i == 10:  # of the second batch
                decoded.set()
            yield result

    def labelled(*words: Any) -> Tensor:
        waited.append(decoded.wait(timeout=20))
        return label(*words)

    monkeypatch.setattr(predict, "eval_batch_size", lambda _: 10)
    monkeypatch.setattr(predict, "each_decoded", each_decoded)
    monkeypatch.setattr(engine, "predict", labelled)
    assert cli("predict", "checkpoint=a", "input=p/test", "output=p.csv", "plots=false").code == 0
    assert waited == [True, True, True]
    assert len(Path("p.csv").read_text().splitlines()) == 31
