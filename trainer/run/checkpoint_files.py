"""The checkpoint files of a run: their names, how one is written whole or not at all, and which of them stay."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.run.folders import STEP_FILE, newest_file, trouble
from trainer.utils.errors import ResourceError
from trainer.utils.files import remove_temporary, replacing

FORMAT = 1
KEPT = 2  # step files besides the best one: the newest may be damaged by a failing disk
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def path_of_step(folder: Path, step: int) -> Path:
    """checkpoints/<run>/step_00001234.pt."""
    return folder / f"step_{step:08d}.pt"


def step_of(path: Path) -> int:
    """The step that a file is named after; names of more than eight digits do not sort as text."""
    return int(path.stem.removeprefix("step_"))


def steps_in(folder: Path) -> list[Path]:
    """The step files of a run, oldest first."""
    return [path for path in named_like_steps(folder) if path.is_file()]


def named_like_steps(folder: Path) -> list[Path]:
    """As steps_in, with what is called like a step file and is none: a folder, a pipe, a link that leads nowhere."""
    names = os.listdir(folder) if folder.is_dir() else ()
    return sorted((folder / name for name in names if STEP_FILE.fullmatch(name)), key=step_of)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` is either the old file or the complete new one, even after a power cut.

    Raises:
        ResourceError: the disk is full or cannot be written; the old file is untouched.
    """
    with writable(path, size_of(content)), replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the new name without its bytes
    sync_folder(path.parent)


def size_of(content: Any) -> int:
    """The bytes of all tensors in nested dicts and lists."""
    if isinstance(content, Tensor):
        return content.untyped_storage().nbytes()
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return sum(map(size_of, values))


@contextmanager
def writable(path: Path, size: int) -> Iterator[None]:
    """Make the folder of `path`, and turn what keeps `size` bytes from being written there into a ResourceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {free:,} bytes are free")
        yield
    except (OSError, RuntimeError) as error:  # torch.save hides a full disk in a RuntimeError
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        told = f"{path} could not be written"
        if isinstance(cause, OSError) and cause.errno not in FULL:
            newest = newest_file(path.parent)
            saved = f"The newest file there is {newest}." if newest is not None else "No file is saved there."
            raise ResourceError(f"{told}: {trouble(cause, [path.parent]) or f'{cause}.'} {saved}") from error
        needs = f"it needs {size:,} bytes. The files before it are untouched."
        raise ResourceError(f"{told} ({cause or error}); {needs}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: from then on they survive a power cut. Windows cannot open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_name(file: Path, path: Path) -> None:
    """Make `path` a second name of a checkpoint file, in one step; a copy where the file system has no such names.

    Raises:
        ResourceError: the disk is full or cannot be written; the old file is untouched.
    """
    with writable(path, 0), replacing(path) as temporary:
        try:
            os.link(file, temporary)
        except (OSError, AttributeError):  # a file system or a Python without hard links, or another file system
            shutil.copyfile(file, temporary)


def keep_as_best(step_file: Path, folder: Path) -> None:
    """Make best.pt in `folder` a hard link to a step file; resume.rewind repairs it after a power cut."""
    give_name(step_file, folder / "best.pt")


def tidy(folder: Path) -> None:
    """Remove all but the newest step files, and what a killed process left half written."""
    remove_temporary(folder)
    for path in steps_in(folder)[:-KEPT]:
        path.unlink(missing_ok=True)
