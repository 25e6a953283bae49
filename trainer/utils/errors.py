"""The errors a user can cause or mend. main.py prints one as a single message and leaves with its exit code."""

import difflib
from collections.abc import Iterable, Sequence


class TrainerError(Exception):
    """Base of all errors that end in a message instead of a traceback; `exit_code` is what the shell sees."""

    exit_code = 1
    agreed = False  # where several processes train together: all of them have it, at the same place


class SweepError(TrainerError):
    """A job of a sweep failed; the others finished."""


class ConfigError(TrainerError):
    """Input that is refused before work starts; the message names the key or file, the value and what is allowed."""

    exit_code = 2


class DivergedError(TrainerError):
    """The loss or the weights are no longer finite."""

    exit_code = 3
    agreed = True  # the numbers it is seen in are the same in all processes


class ResourceError(TrainerError):
    """The disk is full or memory ran out."""

    exit_code = 4


class BusyError(TrainerError):
    """Another live process holds the run's directory."""

    exit_code = 5


class DamagedError(ConfigError):
    """A file of ours whose content is not what was written: going on from an older one may help."""


class WorkerError(TrainerError):
    """A process that decodes pictures was ended from outside."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. No Exception, so that nothing takes it for a failure of its own."""

    agreed = True  # see TrainerError

    def __init__(self, signum: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, str]]:
        """So that a launcher can bring it from another process."""
        return type(self), (self.signum, str(self))


class ProcessLost(Interrupted):
    """One of several processes ended or failed while the others went on: they cannot, and no next job can."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(0, message)
        self.exit_code = exit_code


def failure(exit_code: int, message: str) -> TrainerError:
    """The error of this exit code."""
    kinds = (DivergedError, ResourceError, BusyError, ConfigError)
    return next((kind for kind in kinds if kind.exit_code == exit_code), TrainerError)(message)


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint ` Did you mean X?` for the known word closest to `word`, or the empty string where none is close.

    A last component that fits exactly wins, so that `lr` finds `optimizer.lr`.
    """
    known = sorted(known)
    close = [k for k in known if k.rsplit(".", 1)[-1] == word] or difflib.get_close_matches(
        word, known, n=1, cutoff=0.6
    )
    if not close:
        by_end = {k.rsplit(".", 1)[-1]: k for k in known}
        close = [by_end[end] for end in difflib.get_close_matches(word.rsplit(".", 1)[-1], by_end, n=1, cutoff=0.7)]
    return f" Did you mean {' or '.join(close)}?" if close else ""


def listed(words: Sequence[str]) -> str:
    """`a, b, c`: the allowed values in a message."""
    return ", ".join(words)
