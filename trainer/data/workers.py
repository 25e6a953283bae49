"""The processes that decode pictures: how they start and end, so that no signal and no error leaves one behind."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def ignore_signals(worker: int) -> None:
    """Workers leave signals to the main process, which finishes its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def shutting_down(iterator: Any) -> Iterator[Any]:
    """The iterator of a DataLoader, whose workers are ended with the block.

    Left to itself it ends them when it is collected; the traceback of an error keeps it alive, and at its exit Python
    would wait for ever for processes that ignore SIGTERM.
    """
    try:
        yield iterator
    finally:
        if hasattr(iterator, "_shutdown_workers"):  # there are workers
            iterator._shutdown_workers()
