"""The processes that decode images: how they start and end, so that no signal and no error leaves one behind."""

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _remove_worker_pids, _set_SIGCHLD_handler

from trainer.utils.signals import STOPS, end_with_parent, in_main_thread

T = TypeVar("T")
MESSAGE_BYTES = 2**20  # of pixels from a process; in containers /dev/shm may have only 64 MB


def start_worker(worker: int) -> None:
    """Leave signals to the main process, which finishes its step first, and end when it is killed."""
    for signum in STOPS:
        signal.signal(signum, signal.SIG_IGN)
    end_with_parent()  # torch's own check takes five seconds, and misses a kill before it began


@contextmanager
def in_processes(chunks: Dataset[T], *, many: bool) -> Iterator[Iterator[T]]:
    """The items of a data set of decoded files, in order, from several processes where there are many."""
    # Processes, since threads would be slower than none: with small images most of the time is spent in Python.
    workers = min(num_cores(), 16) if many else 0
    # DataLoader would draw from the global generator, and training would then depend on whether there was a cache.
    loader = DataLoader(
        chunks, batch_size=None, num_workers=workers, worker_init_fn=start_worker, generator=torch.Generator()
    )
    with shutting_down(loader) as decoded:
        yield decoded


def images_per_message(shape: tuple[int, ...], most: int) -> int:
    """How many images (C, H, W) of bytes a process sends together."""
    return max(1, min(most, MESSAGE_BYTES // math.prod(shape)))


def num_cores() -> int:
    """Return the number of cores that this process may use; on a cluster these are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def shutting_down(loader: Any) -> Iterator[Any]:
    """Yield an iterator of a DataLoader, and kill its workers with the block: they have nothing to lose.

    Torch would ask them to end. They may not hear it where one of them was killed, or a signal was raised here, while
    it held a lock that they share; and at exit Python would wait for ever for processes that ignore SIGTERM.
    """
    _set_SIGCHLD_handler()  # before signals_waiting(), whose handler torch would take for the program's own
    iterator = None
    try:
        with signals_waiting():
            iterator = iter(loader)
        yield iterator
    finally:
        with signals_waiting():
            if hasattr(iterator, "_workers"):  # there are some
                kill_workers(iterator)


@contextmanager
def signals_waiting() -> Iterator[None]:
    """Let signals wait until torch has started its workers, or until they have ended.

    Raised in the middle, they would leave workers that nobody tells to end. So would the error that torch raises when
    a worker dies; where that matters, torch sees it again with the next batch.
    """
    # Handlers, not pthread_sigmask(): that holds for one thread, and a signal then reaches Python through another one.
    child = [signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else []
    mine = (*STOPS, *child) if in_main_thread() else ()
    before = {signum: signal.getsignal(signum) for signum in mine}
    arrived: list[int] = []
    try:
        for signum in before:
            signal.signal(signum, lambda signum, _: arrived.append(signum))
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    stops = [signum for signum in arrived if signum in STOPS]
    if stops:
        signal.raise_signal(stops[0])


def kill_workers(iterator: Any) -> None:
    """End the workers of a DataLoader without asking them."""
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
        iterator._worker_result_queue.put((None, None))  # wakes it, which would else look in five seconds
        iterator._worker_result_queue.cancel_join_thread()
        iterator._worker_result_queue.close()
