"""Folders that are moved, removed or replaced while the program uses them: what is said, and what is saved where.

Torch-free: main.py speaks of folders before it knows whether there is anything to train.
"""

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainer.utils.errors import ResourceError

# what a disk, a share or a limit of the system says without naming a file
OF_DISKS = {getattr(errno, name) for name in ("EIO", "EROFS", "ESTALE", "ENXIO", "EREMOTEIO") if hasattr(errno, name)}

STEP_FILE = re.compile(r"step_\d{8,}\.pt", re.ASCII)
MAX_SHOWN = 300  # characters of a path
TOO_LONG = 248 if sys.platform == "win32" else None  # characters of a folder; Windows says that it is not there


def trouble(error: BaseException, folders: Iterable[str | Path]) -> str | None:
    """What an error of the system says about folders, in plain words; None: it is about something else.

    Args:
        error: what was raised.
        folders: those that the settings name; a path is known by lying in one of them.
    """
    if not isinstance(error, OSError):
        return None
    if not has_working_folder():
        return "the working directory of this command was removed: go to one that exists with cd."
    name = error.filename2 or error.filename  # the second one where a file was to take the place of another
    if not isinstance(name, (str, bytes)):
        return f"{error.strerror or error}." if error.errno in OF_DISKS else None
    path = Path(os.fsdecode(name))
    if not any(is_within(path, Path(folder)) for folder in folders):
        return None
    return why(path, error)


def has_working_folder() -> bool:
    """Whether the working directory of this process is still there."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, or is the folder or one that it lies in; by name, since it may be gone."""
    inner, outer = (os.path.abspath(p) for p in (path, folder))
    if os.path.splitdrive(inner)[0] != os.path.splitdrive(outer)[0]:  # on Windows
        return False
    return os.path.commonpath([inner, outer]) in (inner, outer) and inner != os.path.dirname(inner)


def why(path: Path, error: OSError) -> str:
    """Why a path cannot be used: its length, the folder above it that is gone or no folder, or what the system said."""
    if TOO_LONG and error.errno == errno.ENOENT and len(os.path.abspath(path)) >= TOO_LONG:
        return f"{in_brief(path)} is too long for Windows. Choose shorter folders, or turn its long paths on."
    for folder in reversed(path.parents):
        if is_broken_link(folder):
            return f"{folder} is a link that leads nowhere. Mend or remove it."
        if os.path.lexists(folder) and not folder.is_dir():
            return f"{folder} is no folder. Move it away."
        if error.errno == errno.ENOENT and not os.path.lexists(folder):
            return f"{folder} is gone: it was moved or removed while it was in use."
    if is_broken_link(path):
        return f"{path} is a link that leads nowhere. Mend or remove it."
    if error.errno == errno.EISDIR or (error.errno == errno.EEXIST and path.is_dir()):
        return f"{path} is a folder where a file belongs. Move it away."
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{path} is no folder. Move it away."
    if error.errno == errno.ENOENT:
        return f"{path} is gone: it was moved or removed while it was in use."
    return f"{in_brief(path)}: {error.strerror}."


def is_broken_link(path: Path) -> bool:
    """Whether it is a link to something that is not there, or to itself."""
    return os.path.islink(path) and not os.path.exists(path)


def in_brief(path: Path) -> str:
    """A path as a message shows it: the beginning of one that is too long for the system."""
    return str(path) if len(str(path)) <= MAX_SHOWN else f"{str(path)[:MAX_SHOWN]}..."


def newest_file(checkpoints: Path) -> Path | None:
    """The newest step file in checkpoints/<run>, whether it is whole or not; None: there is none."""
    files = [path for path in checkpoints.glob("*.pt") if STEP_FILE.fullmatch(path.name) and path.is_file()]
    return max(files, key=lambda path: (len(path.name), path.name), default=None)


@contextmanager
def explained(folders: Mapping[str, str]) -> Iterator[None]:
    """Turn what the system says of these folders into a ResourceError.

    Args:
        folders: by the last part of their setting: {"outputs": ..., "checkpoints": ...}.
    """
    try:
        yield
    except OSError as error:
        told = trouble(error, folders.values())
        if told is None:
            raise
        raise ResourceError(f"{told} Then give the same command again; what was saved before is kept.") from error
