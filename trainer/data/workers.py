"""The processes that decode images: how they start and end, so that no signal and no error leaves one behind."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainer.utils.signals import end_with_parent


def start_worker(worker: int) -> None:
    """Leave signals to the main process, which finishes its step first, and end when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_with_parent(signal.SIGKILL)  # torch's own check takes five seconds, and misses a kill before it began
    if sys.platform == "linux" and os.getppid() != parent.pid:
        os._exit(1)


@contextmanager
def shutting_down(iterator: Any) -> Iterator[Any]:
    """Yield the iterator of a DataLoader, and end its workers with the block.

    Without this they end when the iterator is collected. The traceback of an error keeps it alive, and at exit Python
    would wait for ever for processes that ignore SIGTERM.
    """
    try:
        yield iterator
    finally:
        if hasattr(iterator, "_shutdown_workers"):  # there are workers
            iterator._shutdown_workers()
