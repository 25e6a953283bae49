"""A bar for work beside the epochs that may take a while: decoding, downloading, measuring, labelling."""

import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

from trainer.utils.text import drawing, is_terminal

X = TypeVar("X")
Y = TypeVar("Y", bound=Sized)
QUICK = 1.0  # seconds: what is done by then gets no bar
DRAWN_EVERY = 0.2  # seconds


class Bar:
    """Shows on a terminal how much of something is done, from a second on; goes away with its block.

    Args:
        what: a word for the work.
        total: how much there is of it; 0: not known yet.
        unit: of the total.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.total = total
        self._what, self._unit = what, unit
        self._done, self._due = 0, time.monotonic() + QUICK
        self._bar: Any = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with drawing():
                self._bar.stop()

    def add(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        if time.monotonic() < self._due or not is_terminal():
            return
        self._due = time.monotonic() + DRAWN_EVERY
        with drawing():
            if self._bar is None:
                self._start()
            self._bar.update(self._task, completed=self._done, total=self.total or None)
            self._bar.refresh()

    def over(self, batches: Iterable[tuple[X, Y]]) -> Iterator[tuple[X, Y]]:
        """Yield batches (x, y), and count the examples of each when the next one is asked for."""
        for x, y in batches:
            yield x, y
            self.add(len(y))

    def _start(self) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        amount = DownloadColumn() if self._unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), amount, TextColumn(self._unit), TimeRemainingColumn())
        self._bar = Progress(*columns, auto_refresh=False, transient=True)
        self._task = self._bar.add_task(self._what, total=self.total or None)
        self._bar.start()
