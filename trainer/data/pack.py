"""data pack: a folder of images as tar files of some hundred megabytes, which shards.py reads."""

import io
import tarfile
from pathlib import Path

import torch

from trainer.data.listing import Listing, scan
from trainer.data.shards import CLASS_NAMES
from trainer.utils.bar import Bar
from trainer.utils.errors import ConfigError

SHARD_BYTES = 300 * 10**6  # of images: a tar file is a little larger
PACK_SEED = 0  # of the order in which the images are packed


def pack_images(root: Path, to: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Pack the images of a folder, byte for byte, each beside its class; those of all classes come mixed.

    Args:
        root: the folder, as data=folder takes it.
        to: a folder that does not exist yet.
        shard_bytes: a file is closed when its images are as large as this.
    Returns:
        The names of the tar files.
    Raises:
        ConfigError: `to` exists already, or an image cannot be read.
    """
    listing = scan(root)
    if odd := [name for name in listing.classes if "\n" in name or "\r" in name]:
        raise ConfigError(f"{root}: the class {odd[0]!r} has a line break in its name. Rename the folder.")
    part = to.with_name(f"{to.name}.part")  # until all is there
    for path in (to, part):
        if path.exists():
            raise ConfigError(f"{path} is there already: move it away first.")
    try:
        part.mkdir(parents=True)
        text = "".join(f"{name}\n" for name in listing.classes)
        (part / CLASS_NAMES).write_text(text, encoding="utf-8", errors="surrogateescape")
        with Bar("packing", len(listing.names), "images") as bar:
            names = [name for each in listing.parts for name in pack_part(listing, each, part, shard_bytes, bar)]
        part.rename(to)
    except OSError as error:
        what = f"{error.filename or to}: {error.strerror}. What was packed is in {part}: remove it."
        raise ConfigError(what) from None
    return names


def pack_part(listing: Listing, name: str, to: Path, shard_bytes: int, bar: Bar) -> list[str]:
    """Write the tar files of one part; returns their names."""
    rows = listing.rows(name)
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(PACK_SEED))].tolist()
    names: list[str] = []
    while order:
        names.append(f"{name}-{len(names):06d}.tar")
        filled = 0
        with tarfile.open(to / names[-1], "w") as tar:
            while order and filled < shard_bytes:
                i = order.pop()
                content = (listing.root / listing.names[i]).read_bytes()
                add(tar, f"{i:08d}{Path(listing.names[i]).suffix.lower()}", content)
                add(tar, f"{i:08d}.cls", str(int(listing.labels[i])).encode())
                filled += len(content)
                bar.add(1)
    return names


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Write a member that depends on its name and content alone."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
