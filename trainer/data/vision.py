"""The published image sets MNIST, Fashion-MNIST and CIFAR-10: our own readers, digests checked before parsing.

A file that is not byte for byte the published one is refused: a damaged MNIST file would load as other images.
torchvision only provides addresses, and only when something has to be downloaded: importing it takes a second.
"""

import gzip
import hashlib
import io
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.decoded import mean_std, pixel_sums
from trainer.data.files import checker, download, folder_address, read, require, save
from trainer.data.folder import class_folders
from trainer.data.splits import Source, Split
from trainer.utils.errors import ConfigError
from trainer.utils.text import emit

# SHA-256 of the unpacked files that the sets' authors published.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# For the single batches only MD5 was published (in torchvision); the archive has a SHA-256 (in keras).
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR10_ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

# Mean and standard deviation of all pixels of the training images, scaled to [0, 1].
MNIST_MOMENTS = (0.130660, 0.308108)
FASHION_MOMENTS = (0.286041, 0.353024)

DIGITS = tuple("0123456789")
CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MAX_IDX_BYTES = 64 * 2**20  # the largest has 45 MiB
MAX_BATCH_BYTES = 32 * 2**20  # the largest has 30 MiB


def mnist(root: Path, _cache: Path, *, mirror: str | None = None, digests: Mapping[str, str] = MNIST_SHA256) -> Source:
    """MNIST: 60,000 + 10,000 grey images of digits, (1, 28, 28), from `<root>/MNIST/raw/*-ubyte` or `*-ubyte.gz`.

    Args:
        root: data folder; missing files are downloaded into it.
        mirror: address of a folder with the four `.gz` files, instead of the official servers.
        digests: SHA-256 of each unpacked file.
    Raises:
        ConfigError: a file is not the published one, or is missing and cannot be downloaded.
    Source: LeCun et al. 1998; mean and std are computed from the training images.
    """
    return _idx_source(root, "MNIST", DIGITS, MNIST_MOMENTS, mirror, digests)


def fashion_mnist(
    root: Path, _cache: Path, *, mirror: str | None = None, digests: Mapping[str, str] = FASHION_SHA256
) -> Source:
    """Fashion-MNIST: 60,000 + 10,000 grey images of clothes, from `<root>/FashionMNIST/raw`; otherwise as mnist().

    Source: Xiao et al. 2017, arXiv 1708.07747.
    """
    return _idx_source(root, "FashionMNIST", CLOTHES, FASHION_MOMENTS, mirror, digests)


def cifar10(
    root: Path,
    cache: Path,
    *,
    mirror: str | None = None,
    size: int | None = None,
    digests: Mapping[str, str] = CIFAR10_MD5,
    archive_sha256: str = CIFAR10_ARCHIVE_SHA256,
) -> Source:
    """CIFAR-10: 50,000 + 10,000 colour images of ten classes, (3, 32, 32).

    The reader looks below root, in this order, for `cifar-10-batches-py/`, for the folder tree
    `cifar10/{train,test}/<class>/*` (its decoded images are kept in `cache`) and for the archive
    `cifar-10-python.tar.gz`. If there is none of them it downloads the archive.

    Args:
        root: data folder.
        cache: folder for decoded images.
        mirror: address of a folder with the archive, instead of the official server.
        size: pixels to which the images of the folder tree are decoded; None: 32, as the official ones have.
        digests: MD5 of each batch file; their names decide which are read.
        archive_sha256: SHA-256 of the archive.
    Raises:
        ConfigError: a file is not the published one, or is missing and cannot be downloaded.
    Source: Krizhevsky 2009; mean and std are computed from the training images that are read.
    """
    folder, tree, archive = (
        inside(root, "cifar-10-batches-py"),
        inside(root, "cifar10"),
        root / "cifar-10-python.tar.gz",
    )
    if all((folder / name).is_file() for name in digests):
        batches = {name: read(folder / name) for name in digests}
    elif (tree / "train").is_dir():
        emit(f"CIFAR-10 from the images in {tree}, which are not the official files")
        source = class_folders(root, cache, root=str(tree), size=size or 32, channels=3)
        if source.classes != THINGS:
            raise ConfigError(f"{tree}: its classes are {', '.join(source.classes)}; expected: {', '.join(THINGS)}.")
        return source
    else:
        if archive.is_file():
            data = read(archive)
        else:
            address = f"{folder_address(mirror)}{archive.name}" if mirror else _torchvision("CIFAR10").url
            emit(f"downloading CIFAR-10 from {address} to {root}")
            data = download(archive, [address], checker(archive_sha256, bytes), archive.name)
        require(archive, data, "SHA-256", archive_sha256)
        batches = _members(archive, data, digests)
    for name, data in batches.items():  # check all before the first is parsed
        require(folder / name, data, "MD5", digests[name])
    for name, data in batches.items():
        if not (folder / name).is_file():
            save(folder / name, data)
    parsed = {name: _batch(folder / name, data) for name, data in batches.items()}
    train = _joined([batch for name, batch in parsed.items() if not name.startswith("test")])
    test = _joined([batch for name, batch in parsed.items() if name.startswith("test")])
    # Part by part, since the sums are taken of an int32 copy: 4 times the memory of the images.
    sums = torch.cat([pixel_sums(part) for part in torch.as_tensor(train.x).split(5000)])
    mean, std = mean_std(sums, 32 * 32)
    return Source(train, test, (3, 32, 32), _digest(digests), THINGS, mean, std)


def inside(root: Path, *parts: str) -> Path:
    """The folder of a set: root/a/b; where root is root/a or root/a/b already, that one."""
    here = root.absolute().parts
    deep = next((n for n in range(len(parts), 0, -1) if here[-n:] == parts[:n] and root.is_dir()), 0)
    return root.joinpath(*parts[deep:])


def _idx_source(
    root: Path,
    name: str,
    classes: tuple[str, ...],
    moments: tuple[float, float],
    mirror: str | None,
    digests: Mapping[str, str],
) -> Source:
    """Read a set of four IDX files in torchvision's layout."""
    folder = inside(root, name, "raw")
    missing = [file for file in digests if not (folder / file).is_file() and not (folder / f"{file}.gz").is_file()]
    data = _download_idx(name, folder, missing, mirror, digests)
    for file, digest in digests.items():
        if file not in data:
            data[file] = _read_idx(folder / file)
        require(folder / file, data[file], "SHA-256", digest)
    parts = {}
    for part in ("train", "t10k"):
        images = _parse_idx(folder / f"{part}-images-idx3-ubyte", data, 3)
        labels = _parse_idx(folder / f"{part}-labels-idx1-ubyte", data, 1)
        if len(images) != len(labels):
            raise ConfigError(f"{folder}: {part} has {len(images):,} images and {len(labels):,} labels.")
        if len(labels) and int(labels.max()) >= len(classes):
            raise ConfigError(f"{folder}: {part} has the label {int(labels.max())}. Allowed: 0 to {len(classes) - 1}.")
        parts[part] = Split(images.unsqueeze(1), labels.long())
    return Source(parts["train"], parts["t10k"], (1, 28, 28), _digest(digests), classes, moments[:1], moments[1:])


def _read_idx(path: Path) -> bytes:
    """Return the content of the unpacked file, or of the packed one beside it."""
    if path.is_file():
        return read(path)
    packed = path.with_name(f"{path.name}.gz")
    try:
        return _unpacked(read(packed))
    except ValueError as error:
        raise ConfigError(f"{packed}: {error}. Delete it and start again to download it.") from error


def _unpacked(data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(MAX_IDX_BYTES + 1)  # memory stays bounded, and a longer file fails its digest
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"not a whole gzip file: {error}") from error


def _parse_idx(path: Path, data: Mapping[str, bytes], ndim: int) -> Tensor:
    """(N, 28, 28) or (N,) uint8: a big-endian header of magic number and sizes, then the bytes."""
    content = data[path.name]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ConfigError(f"{path}: {len(content)} bytes are too few for an IDX file.")
    magic, *shape = struct.unpack(f">{1 + ndim}I", content[:start])
    if magic != 0x800 + ndim:
        raise ConfigError(f"{path}: it begins with {magic:#010x}, expected {0x800 + ndim:#010x}. Were files swapped?")
    if math.prod(shape) != len(content) - start or shape[1:] not in ([], [28, 28]):
        raise ConfigError(f"{path}: its header says {shape}, which does not fit its {len(content):,} bytes of 28 x 28.")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _download_idx(
    name: str, folder: Path, missing: Sequence[str], mirror: str | None, digests: Mapping[str, str]
) -> dict[str, bytes]:
    """Download and save the missing files, and return them unpacked, by name."""
    if not missing:
        return {}
    bases = [folder_address(mirror)] if mirror else list(_torchvision(name).mirrors)
    emit(f"downloading {name} from {bases[0]} to {folder}")
    files = ", ".join(f"{file}.gz" for file in missing)
    data = {}
    for file in missing:
        check = checker(digests[file], _unpacked)
        data[file] = download(folder / file, [f"{base}{file}.gz" for base in bases], check, files)
        save(folder / file, data[file])
    return data


def _torchvision(name: str) -> Any:
    """Return torchvision's class for a set, which has the official addresses."""
    import torchvision.datasets  # type: ignore[import-untyped]  # takes a second

    return getattr(torchvision.datasets, name)


def _digest(digests: Mapping[str, str]) -> str:
    """Return a digest of the files' names and digests, which were checked."""
    return hashlib.sha256("\n".join(f"{name} {digests[name]}" for name in sorted(digests)).encode()).hexdigest()


def _members(archive: Path, data: bytes, names: Mapping[str, str]) -> dict[str, bytes]:
    """Read the batch files from the archive into memory. Nothing is unpacked to disk, so its paths cannot do harm."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for member in tar:
                folder, _, name = member.name.partition("/")
                wanted = folder == "cifar-10-batches-py" and name in names and member.isreg()
                if wanted and member.size <= MAX_BATCH_BYTES and (file := tar.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{archive}: not a whole archive: {error}.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ConfigError(f"{archive}: the files {', '.join(missing)} are missing.")
    return {name: found[name] for name in names}


class _BatchUnpickler(pickle.Unpickler):
    """Knows the three names that a pickled NumPy array needs, under the module names of 2009 and of today."""

    def find_class(self, module: str, name: str) -> object:
        """Return the object for a known name, or raise UnpicklingError; nothing is imported or called."""
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.empty(0).__reduce__()[0]  # its import path depends on NumPy's version
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")


def _batch(path: Path, data: bytes) -> Split:
    """Parse a batch file into images (N, 3, 32, 32) uint8 and labels (N,) int64."""
    try:
        content = _BatchUnpickler(io.BytesIO(data), encoding="latin1").load()
        pixels, labels = content["data"], torch.tensor(content["labels"], dtype=torch.int64)
    except Exception as error:  # a pickle can raise anything
        raise ConfigError(f"{path}: not a CIFAR-10 batch: {error}.") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
        raise ConfigError(f"{path}: expected {len(labels):,} rows of 3,072 bytes, one row per label.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(THINGS):
        raise ConfigError(f"{path}: labels from {int(labels.min())} to {int(labels.max())}. Allowed: 0 to 9.")
    return Split(torch.from_numpy(pixels).reshape(-1, 3, 32, 32), labels)


def _joined(batches: Sequence[Split]) -> Split:
    return Split(torch.cat([torch.as_tensor(b.x) for b in batches]), torch.cat([b.y for b in batches]))
