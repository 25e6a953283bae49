"""SIGINT and SIGTERM, from the first moment of a command to its last. Torch-free."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.utils.errors import Interrupted


class StopSignal:
    """Turns SIGINT and SIGTERM into Interrupted: at once, or, inside `held()`, at its end.

    A second SIGINT ends the process on the spot. A second SIGTERM changes nothing: some senders signal the process and
    then its group, and the save that the first one asked for is under way.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._held = False

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._arrived) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the work inside come to its end first; what takes long looks at `signum` now and then."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.signum:
            raise Interrupted(self.signum)

    def _arrived(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        if not self.signum:
            self.signum = signum
            if not self._held:
                raise Interrupted(signum)
