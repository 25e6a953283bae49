"""SIGINT and SIGTERM, throughout a command. Torch-free, so that it works before slow imports."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from trainer.utils.errors import Interrupted

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
RAISE_AGAIN_AFTER = 2.0  # seconds


def end_with_parent(signum: int) -> None:
    """Let the kernel send this process a signal when its parent ends in any way; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it ended before, while this process was importing
        signal.raise_signal(signum)


class StopSignal:
    """Turns SIGINT and SIGTERM into Interrupted: at once, or, inside `held()`, at its end.

    A SIGINT after any signal ends the process at once. A second SIGTERM changes nothing: some senders signal the
    process and then its group, and the save that the first one asked for is running. Only outside held(), and when the
    first one had no effect (C code can swallow what a handler raises), a later one raises again.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._held = False
        self._deferred = False
        self._forwards = False
        self._raised_at = 0.0

    def __enter__(self) -> "StopSignal":
        self._before: dict[signal.Signals, Any] = {
            s: signal.signal(s, self._arrived) for s in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        if self.signum:  # the process is on its way out: a second SIGTERM must not change its exit code
            self._before[signal.SIGTERM] = lambda *_: None
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the work inside finish first; long work checks `signum` from time to time.

        OmegaConf needs it: raised in its middle, Interrupted leaves half-made settings, which fail with another error.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.signum:
            self._raised_at = time.monotonic()
            raise Interrupted(self.signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only set `signum`, whatever arrives: for one of several processes, which stop together.

        A second SIGINT changes nothing here, since torchrun sends one after the terminal's and kills after a time.
        """
        self._held = self._deferred = True
        try:
            yield
        finally:
            self._held = self._deferred = False

    @contextmanager
    def forwarded(self) -> Iterator[None]:
        """Pass the first signal to the processes that this one started, and wait for their outcome."""
        self._forwards = True
        try:
            yield
        finally:
            self._forwards = False

    def watched(self, items: Iterable[T]) -> Iterable[T]:
        """Return the items unchanged: outside held() a signal ends the loop over them by itself."""
        return items

    def _arrived(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT and not self._deferred:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        if self._forwards and not self.signum:
            self.signum = signum
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGTERM)
            return
        swallowed = self.signum and time.monotonic() - self._raised_at > RAISE_AGAIN_AFTER
        if (not self.signum or swallowed) and not self._held:
            self._raised_at = time.monotonic()
            self.signum = signum
            raise Interrupted(signum)
        self.signum = self.signum or signum
