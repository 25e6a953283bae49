"""SIGINT, SIGTERM and their like, throughout a command. Torch-free, so that it works before slow imports."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from trainer.utils.errors import Interrupted

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
RAISE_AGAIN_AFTER = 2.0  # seconds
# the third comes when a terminal is closed, the fourth from Ctrl-Break or a console that is closed, on Windows
STOPS = tuple(signal.Signals[s] for s in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, s))
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # for os.kill(), which ends a process at once on Windows


def end_with_parent(*, saving: bool = False) -> None:
    """End this process when its parent ends in any way: at once, or by SIGTERM, so that it can save.

    On Linux the kernel sees to it. A thread does, too: it is for other systems, and for a parent that has ended before.
    Where torchrun is the parent, which is no process of multiprocessing, nothing tells on Windows.
    """
    parent, kernel = multiprocessing.parent_process(), True
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM if saving else KILL)
    except (AttributeError, TypeError, OSError):  # macOS; Windows
        kernel = False
    sentinel = getattr(parent, "_sentinel", None)  # torchrun's processes have none, nor joblib's but on Windows
    if sentinel is None and not hasattr(os, "getppid"):
        return
    its_id = os.getppid() if parent is None else parent.pid

    def has_ended(seconds: float) -> bool:
        if sentinel is not None:
            from multiprocessing.connection import wait

            return bool(wait([sentinel], seconds))
        time.sleep(seconds)
        return os.getppid() != its_id

    def end() -> None:
        if saving:
            signal.raise_signal(signal.SIGTERM)
        else:
            os._exit(1)  # no signal: start_worker has the one that Windows has ignored

    def watch() -> None:
        while not has_ended(1.0):
            pass
        end()

    if has_ended(0):
        end()
    if parent is not None or not kernel:
        threading.Thread(target=watch, daemon=True).start()


def in_main_thread() -> bool:
    """Whether this thread may set handlers of signals: Python allows it to one."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of all signals that this program uses back at the end of the block."""
    of_children = [signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else []
    before = {signum: signal.getsignal(signum) for signum in (*STOPS, *of_children)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if in_main_thread() and handler is not None:  # None: it was not set by Python
                signal.signal(signum, handler)


def end_workers() -> None:
    """End the worker processes that a signal left behind; Python would wait for them for ever on exit."""
    if processes := multiprocessing.active_children():
        if hasattr(signal, "SIGCHLD") and in_main_thread():  # torch would report each killed worker as an error
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in processes:
            with suppress(OSError):  # it has ended
                os.kill(process.pid or 0, KILL)  # some kinds of process have no kill()


class StopSignal:
    """Turns the signals of STOPS into Interrupted: at once, or, inside `held()`, at its end.

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
        ignored = {s for s in STOPS[2:] if signal.getsignal(s) == signal.SIG_IGN}  # nohup's SIGHUP
        mine = STOPS if in_main_thread() else ()  # in another thread signals do what they did before
        self._before: dict[signal.Signals, Any] = {s: signal.signal(s, self._arrived) for s in mine if s not in ignored}
        return self

    def __exit__(self, *_: object) -> None:
        if self.signum:  # the process is on its way out: a second SIGTERM must not change its exit code
            self._before |= {s: lambda *_: None for s in self._before if s != signal.SIGINT}
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
                if sys.platform != "win32":  # where the console tells all of them
                    os.kill(process.pid or 0, signal.SIGTERM)
            return
        swallowed = self.signum and time.monotonic() - self._raised_at > RAISE_AGAIN_AFTER
        if (not self.signum or swallowed) and not self._held:
            self._raised_at = time.monotonic()
            self.signum = signum
            raise Interrupted(signum)
        self.signum = self.signum or signum
