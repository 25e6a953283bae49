"""A tar file of images with their classes: where each one lies in it.

An example is some neighbouring members of one key: `KEY.jpg` (or another image) and `KEY.cls` with its class, or
`KEY.json` with a field `label`, `cls` or `class`. This is WebDataset's convention.
"""

import hashlib
import json
import pickle
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from trainer.data.decoded import name_in_cache
from trainer.data.listing import IMAGE_SUFFIXES
from trainer.data.remote import Stored
from trainer.utils.bar import Bar
from trainer.utils.errors import ConfigError
from trainer.utils.files import replacing
from trainer.utils.text import emit, one_line, short_repr

INDEX_FORMAT = 2  # of the cached indices
LABEL_FIELDS = ("label", "cls", "class")  # of KEY.json
LABEL_BYTES = 2**20  # a file with a class is no larger
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Index:
    """What one tar file holds.

    Attributes:
        places: (n, 2) int64: offset and length in bytes of each image.
        codes: (n,) int64, of each example the number of its class in `words`.
        words: classes as they stand in the file.
        num_others: members that belong to no image.
        sha256: of the file.
    """

    places: Tensor
    codes: Tensor
    words: tuple[str, ...]
    num_others: int
    sha256: str


def index_of(file: Stored, cache: Path) -> Index:
    """The index of a tar file, from the cache or made now, for which all of the file is read."""
    what = repr((INDEX_FORMAT, file.where, file.size, file.state))
    kept = cache / "shards" / f"{name_in_cache(Path(file.name))}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.pt"
    with suppress(*UNREADABLE):
        index = Index(**torch.load(kept, weights_only=True))
        if is_whole(index, file.size):
            return index
    index = indexed(file)
    keep(kept, vars(index))
    return index


def is_whole(index: Index, size: int) -> bool:
    """Whether an index can be one of a file of so many bytes: what was kept may be damaged."""
    places, codes = index.places, index.codes
    return (
        (places.dtype, codes.dtype) == (torch.int64, torch.int64)
        and places.shape == (len(codes), 2)
        and len(codes) > 0
        and all(type(word) is str for word in (*index.words, index.sha256))
        and bool((places >= 0).all() and (places.sum(1) <= size).all())
        and bool((codes >= 0).all() and (codes < len(index.words)).all())
    )


def indexed(stored: Stored) -> Index:
    """Read a tar file through.

    Raises:
        ConfigError: it is no tar file that can be read where it lies, or an example lacks its image or its class.
    """
    places, codes, keys, others = [], [], set[str](), 0
    words: dict[str, int] = {}
    try:
        with stored.opened() as file, Bar(f"indexing {stored.name}", stored.size, "bytes") as bar:
            sha256 = hashlib.sha256()
            while block := file.read(2**20):
                sha256.update(block)
                bar.add(len(block))
        # not compressed: else nothing could be read from its middle
        with stored.opened() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in examples(tar):
                image = chosen_member(members, IMAGE_SUFFIXES)
                label = chosen_member(members, (".cls",)) or chosen_member(members, (".json",))
                if image is None or label is None:
                    if image is not None or label is not None:
                        lacks = "an image" if image is None else "KEY.cls or KEY.json with its class"
                        raise ConfigError(f"{stored}: {one_line(key, 80)} lacks {lacks} beside it.")
                    others += len(members)
                    continue
                if odd := [member for member in (image, label) if not has_content(member)]:
                    raise ConfigError(
                        f"{stored}: {one_line(odd[0].name, 80)} is a link or sparse, not the content itself. Pack it "
                        "again, with tar --dereference --hard-dereference."
                    )
                if image.size == 0:
                    raise ConfigError(f"{stored}: {one_line(image.name, 80)} is empty: make the tar file anew.")
                if key in keys or len({member.name for member in members}) < len(members):
                    raise ConfigError(
                        f"{stored}: {one_line(key, 80)} is there twice. Each image needs its own name; tar -r adds a "
                        "file once more: make the tar file anew."
                    )
                keys.add(key)
                others += len(members) - 2
                word = word_of(tar, label, str(stored))
                places.append((image.offset_data, image.size))
                codes.append(words.setdefault(word, len(words)))
            check_end(file, tar.offset, str(stored))
    except tarfile.TarError as error:
        raise ConfigError(
            f"{stored}: not a plain tar file, or a damaged one: {error}. Compressed ones are not read."
        ) from None
    except OSError as error:
        raise ConfigError(f"{stored} cannot be read: {error.strerror}.") from error
    if not places:
        raise ConfigError(f"{stored}: it holds no images with a class (KEY.jpg and KEY.cls).")
    return Index(torch.tensor(places), torch.tensor(codes), tuple(words), others, sha256.hexdigest())


def check_end(file: IO[bytes], offset: int, path: str) -> None:
    """Refuse a tar file of which tarfile reads the first members only, as if there were no more.

    Args:
        file: it.
        offset: where its last member ends.
        path: its name.
    Raises:
        ConfigError: zeros, which mark the end, do not follow there up to the end of the file.
    """
    file.seek(offset)
    blocks = 0
    while block := file.read(2**20):
        blocks += 1
        if block.strip(b"\0"):
            raise ConfigError(
                f"{path}: what follows byte {offset:,} is no member of it: it is damaged, or several tar files were "
                "joined into one. Make it again, or take it apart."
            )
    if not blocks:
        raise ConfigError(f"{path} has no end: it was cut off, or it is still being written. Copy it again.")


def chosen_member(members: Sequence[tarfile.TarInfo], suffixes: Collection[str]) -> tarfile.TarInfo | None:
    """The member with one of these suffixes: KEY.png rather than KEY.depth.png."""
    some = [member for member in members if suffix_of(member.name) in suffixes]
    return min(some, key=lambda member: member.name.rpartition("/")[2].count("."), default=None)


def examples(tar: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Yield the neighbouring files of one key; the key is the path up to the first dot of the file's name."""
    key = ""
    members: list[tarfile.TarInfo] = []
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        is_of_image = not member.isdir() and suffix_of(member.name) in (*IMAGE_SUFFIXES, ".cls", ".json")
        if not has_content(member) and not is_of_image:
            continue
        folder, slash, name = member.name.rpartition("/")
        if name.startswith("._"):  # macOS puts one beside each file
            continue
        own = f"{folder}{slash}{name.partition('.')[0]}"
        if own != key and members:
            yield key, members
            members = []
        key = own
        members.append(member)
    if members:
        yield key, members


def has_content(member: tarfile.TarInfo) -> bool:
    """Whether its content lies in the tar file, in one piece."""
    return member.isreg() and member.sparse is None


def suffix_of(name: str) -> str:
    """The last suffix of a member's name, in small letters."""
    return name[name.rfind(".") :].lower() if "." in name.rpartition("/")[2] else ""


def word_of(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> str:
    """The class that a member says, as text.

    Raises:
        ConfigError: it says none.
    """
    where = f"{path}: {one_line(member.name, 80)}"
    file = tar.extractfile(member)
    assert file is not None
    try:
        text = file.read(LABEL_BYTES).decode("utf-8-sig")
        if suffix_of(member.name) == ".cls":
            word: Any = text.strip()
        else:
            content = json.loads(text)
            word = next((content[field] for field in LABEL_FIELDS if field in content), None)
    except (ValueError, TypeError, RecursionError):
        raise ConfigError(f"{where} is no {'text' if member.name.endswith('.cls') else 'JSON object'}.") from None
    if type(word) not in (str, int) or re.fullmatch(r"(-\d+)?", str(word)):  # -1 often means: not known
        raise ConfigError(f"{where} says no class: {short_repr(word)}. Allowed: a number from 0 or a word.")
    return str(word)


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write what is found again by itself; a folder that cannot be written is a warning."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(dict(content), file)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        emit(f"warning: {path} cannot be written ({error}); the next start does the work again")


def name_at(stored: Stored, offset: int) -> str:
    """The name of the member whose content begins there: it is looked for when it has to be said."""
    with suppress(OSError, tarfile.TarError), stored.opened() as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.offset_data == offset:
                return one_line(member.name, 80)
    return f"the image at byte {offset:,}"
