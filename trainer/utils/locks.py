"""Locks on bytes of a file, which go with the process that holds them, however it ends. Torch-free.

Not of a library: filelock and portalocker take flock(), which a forked worker of a data loader would keep when the run
is killed, and on Windows portalocker locks the first bytes, in which nobody could then read who holds the run.
"""

import os
import time
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

PAST_CONTENT = 2**30  # on Windows nobody else can read a locked byte, so it is one that is never written


def try_lock(file: IO[Any], byte: int = 0) -> bool:
    """Lock a byte of a file that is open for writing, until it is closed; whether that was possible."""
    try:
        _change(file, byte, lock=True)
    except OSError:  # another process has it, or a file system without locks
        return False
    return True


def wait_for_lock(file: IO[Any], byte: int = 0) -> None:
    """Lock a byte once no other process has it."""
    while True:
        try:
            return _change(file, byte, lock=True)
        except (BlockingIOError, PermissionError):
            time.sleep(0.01)


def unlock(file: IO[Any], byte: int = 0) -> None:
    """Give up the lock on a byte."""
    _change(file, byte, lock=False)


def _change(file: IO[Any], byte: int, *, lock: bool) -> None:
    if "fcntl" in globals():
        return fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB if lock else fcntl.LOCK_UN, 1, byte)
    before = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    os.lseek(file.fileno(), PAST_CONTENT + byte, os.SEEK_SET)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK if lock else msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
    finally:
        os.lseek(file.fileno(), before, os.SEEK_SET)
