"""The processes that decode images: how they start and end, so that no signal and no error leaves one behind."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data._utils.signal_handling import _remove_worker_pids

from trainer.utils.signals import STOPS, end_with_parent


def start_worker(worker: int) -> None:
    """Leave signals to the main process, which finishes its step first, and end when it is killed."""
    for signum in STOPS:
        signal.signal(signum, signal.SIG_IGN)
    end_with_parent()  # torch's own check takes five seconds, and misses a kill before it began


@contextmanager
def shutting_down(loader: Any) -> Iterator[Any]:
    """Yield an iterator of a DataLoader, and end its workers with the block.

    Without this they end when the iterator is collected. The traceback of an error keeps it alive, and at exit Python
    would wait for ever for processes that ignore SIGTERM.
    """
    iterator = None
    try:
        with signals_waiting():
            iterator = iter(loader)
        yield iterator
    except BaseException:
        if hasattr(iterator, "_shutdown_workers"):  # there are workers
            kill_workers(iterator)
        raise
    if hasattr(iterator, "_shutdown_workers"):
        with signals_waiting():
            iterator._shutdown_workers()


@contextmanager
def signals_waiting() -> Iterator[None]:
    """Let signals wait until torch has started or ended its workers.

    Raised in the middle, they would leave workers that nobody tells to end, and torch waits five seconds for each.
    """
    # Handlers, not pthread_sigmask(): that holds for one thread, and a signal then reaches Python through another one.
    before = {signum: signal.getsignal(signum) for signum in STOPS}
    arrived: list[int] = []
    try:
        for signum in before:
            signal.signal(signum, lambda signum, _: arrived.append(signum))
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def kill_workers(iterator: Any) -> None:
    """End the workers of a DataLoader without asking them, after an error or a signal.

    Where a signal was raised inside one of the queues, the queue may wake nobody any more: the workers would not hear
    that they should end, and torch would wait five to ten seconds for each of them.
    """
    iterator._shutdown = True  # torch has nothing left to do
    if iterator._worker_pids_set:  # else torch would report each killed worker as an error
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join()
    for queue in iterator._index_queues:
        queue.cancel_join_thread()
        queue.close()
    if hasattr(iterator, "_pin_memory_thread"):
        iterator._pin_memory_thread_done_event.set()
