"""The published sets: damaged, forged, swapped and missing files, and downloads that go wrong."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import Cli, Server
from PIL import Image

from trainer.data import files, vision
from trainer.data.files import fetch
from trainer.data.vision import THINGS, cifar10, fashion_mnist, mnist
from trainer.utils.errors import ConfigError
from trainer.utils.files import replacing

REAL_DATA = os.environ.get("REAL_DATA", "")
needs_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="set REAL_DATA to a folder with MNIST/raw and FashionMNIST/raw"
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def md5s(batches: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.md5(data).hexdigest() for name, data in batches.items()}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10
IDX = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(IMAGES[:5]),
    "t10k-labels-idx1-ubyte": idx(LABELS[:5]),
}
DIGESTS = {name: sha256(data) for name, data in IDX.items()}


def write_idx(root: Path, contents: dict[str, bytes] | None = None, name: str = "MNIST") -> Path:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for file, data in (contents or IDX).items():
        (folder / file).write_bytes(data)
    return folder


@pytest.mark.parametrize(("reader", "name"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_idx_files_are_read(tmp_path: Path, reader: Any, name: str) -> None:
    write_idx(tmp_path, name=name)
    source = reader(tmp_path, tmp_path, digests=DIGESTS)
    assert np.array_equal(source.train.x.squeeze(1).numpy(), IMAGES)
    assert source.train.y.tolist() == LABELS.tolist()
    assert source.test.x.shape == (5, 1, 28, 28)
    assert source.train.y.dtype == torch.int64
    assert len(source.classes) == 10


def test_packed_idx_files_are_read(tmp_path: Path) -> None:
    write_idx(tmp_path, {f"{name}.gz": gzip.compress(data) for name, data in IDX.items()})
    assert np.array_equal(mnist(tmp_path, tmp_path, digests=DIGESTS).train.x.squeeze(1).numpy(), IMAGES)


@pytest.mark.parametrize("damage", ["bit", "cut", "swapped", "zeros"])
def test_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    data = IDX["t10k-images-idx3-ubyte"]
    bad = {
        "bit": data[:100] + bytes([data[100] ^ 1]) + data[101:],
        "cut": data[:-7],
        "swapped": IDX["train-images-idx3-ubyte"],
        "zeros": bytes(len(data)),
    }[damage]
    write_idx(tmp_path, IDX | {"t10k-images-idx3-ubyte": bad})
    with pytest.raises(
        ConfigError, match=rf"t10k-images-idx3-ubyte: its SHA-256 is {sha256(bad)}, expected .*Delete it"
    ):
        mnist(tmp_path, tmp_path, digests=DIGESTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train-labels-idx1-ubyte": idx(LABELS + 200)}, "label 209"),
        ({"train-labels-idx1-ubyte": idx(LABELS[:10])}, "20 images and 10 labels"),
        ({"train-images-idx3-ubyte": IDX["train-labels-idx1-ubyte"]}, "Were files swapped"),
        ({"train-images-idx3-ubyte": idx(IMAGES)[:-1]}, "does not fit"),
        ({"train-images-idx3-ubyte": idx(IMAGES.reshape(20, 14, 56))}, "does not fit"),
        ({"train-images-idx3-ubyte": b"\0\0\x08"}, "too few"),
    ],
)
def test_contents_are_checked_even_where_the_digest_fits(
    tmp_path: Path, change: dict[str, bytes], message: str
) -> None:
    contents = IDX | change
    write_idx(tmp_path, contents)
    with pytest.raises(ConfigError, match=message):
        mnist(tmp_path, tmp_path, digests={name: sha256(data) for name, data in contents.items()})


@pytest.mark.parametrize("packed", [b"", b"no gzip at all", gzip.compress(IDX["train-images-idx3-ubyte"])[:-20]])
def test_a_damaged_packed_file_is_refused(tmp_path: Path, packed: bytes) -> None:
    folder = write_idx(tmp_path)
    (folder / "train-images-idx3-ubyte").unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(packed)
    with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte(\.gz: not a whole gzip file|: its SHA-256)"):
        mnist(tmp_path, tmp_path, digests=DIGESTS)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes and text as Python 2 did in 2009, as in the official batches."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_old_str(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[bytes] = save_old_str
    dispatch[str] = save_old_str


def batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump({"data": pixels, "labels": labels, "batch_label": "b"})
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


PIXELS = RNG.integers(0, 256, (70, 3072), dtype=np.uint8)
BATCHES = {
    name: batch(PIXELS[10 * k : 10 * k + 10], list(range(10)))
    for k, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"])
}


def write_batches(root: Path, batches: dict[str, bytes]) -> None:
    (root / "cifar-10-batches-py").mkdir()
    for name, data in batches.items():
        (root / "cifar-10-batches-py" / name).write_bytes(data)


def archive(batches: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member in extra or []:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
        for name, data in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def test_cifar_batches_are_read(tmp_path: Path) -> None:
    write_batches(tmp_path, BATCHES)
    source = cifar10(tmp_path, tmp_path, digests=md5s(BATCHES))
    assert np.array_equal(source.train.x.numpy(), PIXELS[:50].reshape(50, 3, 32, 32))
    assert np.array_equal(source.test.x.numpy(), PIXELS[50:60].reshape(10, 3, 32, 32))
    assert source.train.y.tolist() == list(range(10)) * 5
    shares = PIXELS[:50].reshape(50, 3, 1024) / 255.0
    assert np.allclose(source.mean, shares.mean((0, 2)), rtol=1e-12)
    assert np.allclose(source.std, shares.std((0, 2)), rtol=1e-9)


def test_a_changed_batch_is_refused_by_name(tmp_path: Path) -> None:
    write_batches(tmp_path, BATCHES | {"data_batch_3": BATCHES["data_batch_4"]})
    with pytest.raises(ConfigError, match="data_batch_3: its MD5 is"):
        cifar10(tmp_path, tmp_path, digests=md5s(BATCHES))


class Evil:
    """Runs a shell command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_batch_runs_nothing(tmp_path: Path, known: bool, protocol: int) -> None:
    evil = pickle.dumps({"data": Evil(tmp_path / "marker"), "labels": []}, protocol=protocol)
    batches = BATCHES | {"data_batch_1": evil}
    write_batches(tmp_path, batches)
    message = "system, which no CIFAR-10 batch needs" if known else "its MD5 is"
    with pytest.raises(ConfigError, match=f"data_batch_1: .*{message}"):
        cifar10(tmp_path, tmp_path, digests=md5s(batches if known else BATCHES))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (batch(PIXELS[:10], [0] * 9 + [200]), "labels from 0 to 200"),
        (batch(PIXELS[:10], [0] * 9 + [-1]), "labels from -1 to 0"),
        (batch(PIXELS[:10], [0] * 9), "9 rows"),
        (batch(PIXELS[:10].astype(np.float32), [0] * 10), "10 rows"),
        (pickle.dumps([1, 2]), "not a CIFAR-10 batch"),
        (b"", "not a CIFAR-10 batch"),
    ],
)
def test_batch_contents_are_checked_even_where_the_digest_fits(tmp_path: Path, bad: bytes, message: str) -> None:
    batches = BATCHES | {"data_batch_1": bad}
    write_batches(tmp_path, batches)
    with pytest.raises(ConfigError, match=f"data_batch_1: .*{message}"):
        cifar10(tmp_path, tmp_path, digests=md5s(batches))


def test_the_archive_is_read_and_unpacked_for_the_next_start(tmp_path: Path) -> None:
    data = archive(BATCHES)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(data)
    first = cifar10(tmp_path, tmp_path, digests=md5s(BATCHES), archive_sha256=sha256(data))
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    second = cifar10(tmp_path, tmp_path, digests=md5s(BATCHES))
    assert torch.equal(first.train.x, second.train.x)
    assert first.sha256 == second.sha256
    assert sorted(p.name for p in (tmp_path / "cifar-10-batches-py").iterdir()) == sorted(BATCHES)


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive(BATCHES))
    with pytest.raises(ConfigError, match=r"cifar-10-python\.tar\.gz: its SHA-256 is"):
        cifar10(tmp_path, tmp_path, digests=md5s(BATCHES))
    assert not (tmp_path / "cifar-10-batches-py").exists()


def evil_members(marker: Path) -> list[tarfile.TarInfo]:
    """Members that want to be written elsewhere, and links in the place of batches."""
    members = [tarfile.TarInfo(name) for name in (f"../{marker.name}", str(marker), "cifar-10-batches-py/../../up")]
    for member in members:
        member.size = 3
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = kind, "/etc/passwd"
        members.append(link)
    return members


def test_an_archive_writes_nothing_but_the_batches(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    data = archive(BATCHES, evil_members(tmp_path / "deep" / "marker"))
    (root / "cifar-10-python.tar.gz").write_bytes(data)
    assert len(cifar10(root, tmp_path, digests=md5s(BATCHES), archive_sha256=sha256(data)).train) == 50
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    batches = {f"deep/root/cifar-10-batches-py/{name}" for name in BATCHES}
    assert written == batches | {"deep/root/cifar-10-python.tar.gz"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("spoil", ["links only", "cut", "huge"])
def test_an_archive_without_its_batches_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    some = {name: data for name, data in BATCHES.items() if name != "data_batch_1"}
    data = {
        "links only": archive(some, evil_members(tmp_path / "m")),
        "cut": archive(BATCHES)[:5000],
        "huge": archive(BATCHES),
    }[spoil]
    if spoil == "huge":
        monkeypatch.setattr(vision, "MAX_BATCH_BYTES", 1000)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(data)
    with pytest.raises(ConfigError, match=r"cifar-10-python\.tar\.gz: (the files .*data_batch_1|not a whole archive)"):
        cifar10(tmp_path, tmp_path, digests=md5s(BATCHES), archive_sha256=sha256(data))


def plant_tree(root: Path, classes: tuple[str, ...]) -> None:
    for part in ("train", "test"):
        for k, name in enumerate(classes):
            (root / "cifar10" / part / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (k, 2 * k, 3 * k)).save(root / "cifar10" / part / name / "0001.png")


def test_the_cifar_tree_is_read(tmp_path: Path) -> None:
    plant_tree(tmp_path, THINGS)
    source = cifar10(tmp_path, tmp_path / "cache")
    assert source.classes == THINGS
    assert source.train.x[:, :, 5, 5].tolist() == [[k, 2 * k, 3 * k] for k in range(10)]
    assert source.test.y.tolist() == list(range(10))


def test_a_cifar_tree_of_other_classes_is_refused(tmp_path: Path) -> None:
    plant_tree(tmp_path, ("cat", "dog"))
    with pytest.raises(ConfigError, match="its classes are cat, dog; expected: airplane"):
        cifar10(tmp_path, tmp_path / "cache")


def packed() -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data) for name, data in IDX.items()}


def test_missing_files_are_downloaded_once(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.contents = packed()
    first = mnist(tmp_path, tmp_path, mirror=server.address, digests=DIGESTS)
    assert np.array_equal(first.train.x.squeeze(1).numpy(), IMAGES)
    assert f"downloading MNIST from {server.address} to {tmp_path}/MNIST/raw" in capsys.readouterr().out
    server.contents = {}
    mnist(tmp_path, tmp_path, mirror=server.address, digests=DIGESTS)
    assert sorted(p.name for p in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(IDX)
    assert capsys.readouterr().out == ""


def test_cifar_is_downloaded_and_unpacked(tmp_path: Path, server: Server) -> None:
    data = archive(BATCHES)
    server.contents = {"cifar-10-python.tar.gz": data}
    mirror = server.address.rstrip("/")
    source = cifar10(tmp_path, tmp_path, mirror=mirror, digests=md5s(BATCHES), archive_sha256=sha256(data))
    assert len(source.train) == 50
    server.contents = {}
    assert len(cifar10(tmp_path, tmp_path, digests=md5s(BATCHES)).train) == 50


NAME = "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wrong", "sends something else: SHA-256"),
        ("text", "not a whole gzip file"),
        ("missing", "404"),
        ("broken", "broke off after"),
        ("stalled", "no answer within 1 s"),
    ],
)
def test_a_failed_download_says_what_and_leaves_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    server.contents = packed()
    if fault in ("wrong", "text"):
        server.contents[NAME] = gzip.compress(b"wrong") if fault == "wrong" else b"<html>log in first</html>"
    elif fault == "missing":
        del server.contents[NAME]
    else:
        getattr(server, fault).add(NAME)
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        mnist(tmp_path, tmp_path, mirror=server.address, digests=DIGESTS)
    assert time.monotonic() - start < 5
    folder = tmp_path / "MNIST" / "raw"
    for part in (f"{folder}/train-labels-idx1-ubyte is missing", server.address + NAME, reason, "paths.data="):
        assert part in str(caught.value)
    assert sorted(p.name for p in folder.iterdir()) == ["train-images-idx3-ubyte"]


def test_a_slow_download_that_goes_on_is_not_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.6)
    server.contents = {"a": bytes(1000)}
    server.slow = {"a"}
    start = time.monotonic()
    assert len(fetch([server.address + "a"], bytes)) == 1000
    assert time.monotonic() - start > 0.6


def test_the_next_mirror_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    server.contents = {"a": b"yes"}
    server.stalled = {"stalled"}
    addresses = ["http://127.0.0.1:1/a", server.address + "stalled", server.address + "a"]
    assert fetch(addresses, bytes) == b"yes"


def test_a_silent_name_server_ends_within_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    silence = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: silence.wait(30))
    monkeypatch.setattr(files, "PATIENCE", 0.5)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="no answer within"):
        fetch(["http://example.invalid/a", "http://example.invalid/b"], bytes)
    assert time.monotonic() - start < 2
    silence.set()


def test_the_patience_keeps_the_promise_of_ten_seconds() -> None:
    assert files.PATIENCE < 9


@pytest.mark.parametrize("mirror", ["file:///etc", "example.org/mnist", "ftp://example.org"])
def test_a_mirror_must_be_a_web_address(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.mirror=.* is not an address"):
        mnist(tmp_path, tmp_path, mirror=mirror)


def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with suppress(KeyboardInterrupt), replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_temporary_file_of_a_killed_download_is_not_taken(tmp_path: Path, server: Server) -> None:
    folder = write_idx(tmp_path)
    (folder / "train-images-idx3-ubyte").rename(folder / ".tmp-0123456789abcdef")
    with pytest.raises(ConfigError, match="train-images-idx3-ubyte is missing"):
        mnist(tmp_path, tmp_path, mirror=server.address, digests=DIGESTS)


def test_a_folder_that_cannot_be_written_only_warns(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "MNIST").write_text("a file, not a folder")
    server.contents = packed()
    assert len(mnist(tmp_path, tmp_path, mirror=server.address, digests=DIGESTS).train) == 20
    assert "cannot be written" in capsys.readouterr().out


@needs_real_data
@pytest.mark.realdata
@pytest.mark.parametrize("reader", [mnist, fashion_mnist])
def test_the_published_files_have_the_stated_moments_and_counts(tmp_path: Path, reader: Any) -> None:
    source = reader(Path(REAL_DATA), tmp_path)
    assert (len(source.train), len(source.test)) == (60_000, 10_000)
    assert torch.bincount(source.test.y).tolist() == ([1000] * 10 if reader is fashion_mnist else MNIST_TEST_COUNTS)
    shares = source.train.x.numpy().astype(np.float64) / 255
    assert abs(shares.mean() - source.mean[0]) < 1e-6
    assert abs(shares.std() - source.std[0]) < 1e-6


MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_the_digests_are_those_that_torchvision_publishes() -> None:
    from torchvision.datasets import CIFAR10

    assert dict(CIFAR10.train_list + CIFAR10.test_list) == vision.CIFAR10_MD5


@pytest.mark.parametrize("deeper", ["", "MNIST", "MNIST/raw"])
def test_a_folder_named_a_level_or_two_too_deep_is_understood(deeper: str, cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", "plots=false", "epochs=1", "batch_size=50")
    assert cli(*words, f"paths.data={tiny_mnist / deeper}").code == 0
