"""Files that lie on disk or at an address (https://, s3://, gs://, ...), which fsspec reads.

A file of an address is copied as a whole when it is asked for, and kept until the copies need too much room: then the
ones that were not used for longest go. So a set may be larger than the disk.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.data.decoded import name_in_cache
from trainer.utils.errors import ConfigError, ResourceError
from trainer.utils.files import replacing
from trainer.utils.locks import wait_for_lock

ADDRESS_START = re.compile(r"([a-z][a-z0-9+.-]*)://")
SIGNED = re.compile(r"[?&][^=&]*(?:sig|token|key|credential|password|secret)[^=&]*=", re.IGNORECASE)  # of a signed one
WAITS = (1.0, 4.0, 16.0)  # seconds before each further try to copy: a network may be away for a moment
ABANDONED = 3600.0  # seconds after which an unfinished copy is one of a process that was killed
SILENCE = 60  # seconds without a byte from a web server
# what changes with the content, in different file systems
MARKS = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "created", "md5Hash")
NEWEST = 16  # copies that are kept however large they are: twice as many as are read at the same time
PACKAGES_OF = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}


@dataclass(frozen=True)
class Stored:
    """A file on disk or at an address.

    Attributes:
        where: the path, or the address.
        size: bytes.
        state: another one when the content changes: the times of a path, what its server says of an address.
        copies: the folder for copies, for an address.
        most: bytes of all copies together.
    """

    where: str
    size: int
    state: str
    copies: Path | None = None
    most: int = 0

    @property
    def name(self) -> str:
        """Without its folder."""
        return self.where.rpartition("/")[2] if self.copies else Path(self.where).name

    def __str__(self) -> str:
        return self.where

    def path(self) -> Path:
        """Where it is on disk; of an address a copy, which is made now where there is none.

        Raises:
            ResourceError: it cannot be had, or there is no room for it.
        """
        if self.copies is None:
            return Path(self.where)
        state = hashlib.sha256(repr((self.where, self.size, self.state)).encode()).hexdigest()[:16]
        path = self.copies / f"{state}-{name_in_cache(Path(self.name))}"
        try:
            if not is_copied(path, self.size):
                self.copies.mkdir(parents=True, exist_ok=True)
                with open(self.copies / ".lock", "ab") as lock:
                    wait_for_lock(lock, int(state[:7], 16))  # each file has a byte of its own
                    if not is_copied(path, self.size):
                        copy(self, path)
                        remove_oldest(self.copies, self.most)
        except OSError as error:
            raise ResourceError(
                f"{path}, a copy of {self.where}, cannot be written: {error.strerror}. "
                "paths.cache=FOLDER names another folder, and a lower data.cache_gb= keeps fewer copies."
            ) from error
        with suppress(OSError):  # it is another user's, or the folder is read-only
            os.utime(path)  # used now: others are removed first
        return path

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The file, open for reading."""
        file = None
        while file is None:
            with suppress(*[FileNotFoundError] if self.copies else []):  # another run removed it just now
                file = open(self.path(), "rb")  # noqa: SIM115
        with file:
            yield file


def is_address(where: str) -> bool:
    """Whether it is an address and no path."""
    return ADDRESS_START.match(where) is not None


def is_copied(path: Path, size: int) -> bool:
    """Whether there is a whole copy."""
    return path.is_file() and path.stat().st_size == size


def stored(where: str, cache: Path, most: int) -> Stored | None:
    """A file, or None where there is none.

    Args:
        where: a path or an address.
        cache: folder for copies.
        most: bytes of them.
    Raises:
        ConfigError: the address cannot be asked.
    """
    if not is_address(where):
        path = Path(where).expanduser()
        if not path.is_file():
            return None
        info = path.stat()
        return Stored(str(path), info.st_size, repr((str(path.resolve()), info.st_mtime_ns, info.st_ctime_ns)))
    with asking(where) as system:
        try:
            info = system.info(where)
        except FileNotFoundError as error:  # also of a server that gives no answer, or another one
            if getattr(error.__cause__, "status", 404) == 404 and not isinstance(error.__cause__, OSError):
                return None
            raise error.__cause__ or error from None
    if info.get("size") is None:
        raise ConfigError(f"{where}: its server does not say how large it is, which is needed to copy it.")
    state = repr((where, [str(info[key]) for key in MARKS if key in info]))
    return Stored(where, info["size"], state, cache / "remote", most)


def names_at(where: str) -> list[str]:
    """The addresses of the files below an address, in the order of their names.

    Raises:
        ConfigError: it cannot be asked, or is no folder.
    """
    with asking(where) as system:
        return sorted(system.unstrip_protocol(name) for name in system.ls(where.rstrip("/") + "/", detail=False))


@contextmanager
def asking(where: str) -> Iterator[Any]:
    """Yield the file system of an address, and say in plain words what went wrong with it.

    Raises:
        ConfigError: with what to install, where a package is missing.
    """
    kind = ADDRESS_START.match(where)[1]  # type: ignore[index]
    if "@" in where.partition("://")[2].partition("/")[0]:
        raise ConfigError(f"{kind}://...: no user name or password in an address: it would be saved with the run.")
    if SIGNED.search(where):
        raise ConfigError(f"{where.partition('?')[0]}?...: no key in an address: it would be saved with the run.")
    try:
        import fsspec

        options: dict[str, Any] = {}
        if kind in ("http", "https"):
            import aiohttp  # its own limit is five minutes for a file

            options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(None, sock_connect=30, sock_read=SILENCE)}}
        yield fsspec.filesystem(kind, **options)
    except ImportError:
        package = PACKAGES_OF.get(kind, f"what fsspec needs for {kind}://")
        raise ConfigError(f"{where}: needs a package: pip install {package}") from None
    except ConfigError:
        raise
    except Exception as error:  # each file system has errors of its own
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # no room for the copy
        raise ConfigError(f"{where} cannot be read: {type(error).__name__}: {error}") from error


def copy(file: Stored, path: Path) -> None:
    """Copy the file of an address, with several tries.

    Raises:
        ResourceError: none of them gave all of it.
    """
    for wait in (*WAITS, None):
        try:
            with replacing(path) as temporary:
                with asking(file.where) as system:
                    system.get_file(file.where, str(temporary))
                if (found := temporary.stat().st_size) != file.size:
                    raise ConfigError(f"{file.where}: {found:,} of {file.size:,} bytes came, or it was changed.")
            return
        except ConfigError as error:
            if wait is None:
                raise ResourceError(str(error)) from error
            time.sleep(wait)


def remove_oldest(folder: Path, most: int) -> None:
    """Remove the copies that were not used for longest, while all together need more than `most` bytes."""
    entries, now = [], time.time()
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removes it
            if path.name.startswith(".tmp-") and path.stat().st_mtime < now - ABANDONED:
                path.unlink()
            elif not path.name.startswith("."):
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = 0
    for i, (_, size, path) in enumerate(sorted(entries, reverse=True)):
        total += size
        if i >= NEWEST and total > most:
            with suppress(OSError):  # on Windows, where another process has it open
                path.unlink()
