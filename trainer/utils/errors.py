"""The errors that a user can cause or mend. main.py prints one as a single message and exits with its code."""

import difflib
from collections.abc import Iterable, Sequence

from trainer.utils.text import one_line


class TrainerError(Exception):
    """Base of all errors that end in a message instead of a traceback; `exit_code` is what the shell sees.

    Each argument is a line of the message: a line end inside one came with a name or value, and is escaped.
    """

    exit_code = 1
    agreed = False  # when several processes train together: whether all of them have it, at the same place

    def __str__(self) -> str:
        return "\n".join(map(one_line, self.args))


class SweepError(TrainerError):
    """A job of a sweep failed; the others finished."""


class ConfigError(TrainerError):
    """Input that is refused before work starts; the message names the key or file, the value and what is allowed."""

    exit_code = 2
    meant: tuple[str, str, str] | None = None  # key, value and what probably was meant: a value, or `key=` for a key

    def instead(self, key: str, value: str, meant: str) -> "ConfigError":
        """The same error, which knows what to type in place of a value, or of a key."""
        self.meant = (key, value, meant) if meant else None
        return self


class DivergedError(TrainerError):
    """The loss or the weights are no longer finite."""

    exit_code = 3
    agreed = True  # all processes see the same numbers


class ResourceError(TrainerError):
    """The disk is full or memory ran out."""

    exit_code = 4


class BusyError(TrainerError):
    """Another live process holds the run's directory."""

    exit_code = 5


class DamagedError(ConfigError):
    """A file of this program whose content is not what was written: resuming from an older one may help."""


class PluginError(ConfigError):
    """A file of plugins= that cannot be used."""


class MissingPluginError(DamagedError):
    """A run whose settings name what a file of plugins= brought, which was not typed or is another now."""


class WorkerError(TrainerError):
    """A process that decodes images was ended from outside."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. It is no Exception, so that no `except Exception` takes it for a failure."""

    agreed = True  # see TrainerError

    def __init__(self, signum: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, str]]:
        """Let a launcher pickle it in another process."""
        return type(self), (self.signum, str(self))


class ProcessLost(Interrupted):
    """One of several processes ended or failed alone: the others cannot continue, nor can the next job of a sweep."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(0, message)
        self.exit_code = exit_code


def failure(exit_code: int, message: str) -> TrainerError:
    """Return the error that has this exit code."""
    kinds = (DivergedError, ResourceError, BusyError, ConfigError)
    return next((kind for kind in kinds if kind.exit_code == exit_code), TrainerError)(*message.split("\n"))


def close_to(word: str, known: Iterable[str]) -> list[str]:
    """The known words closest to `word`, in whatever case; usually one or none.

    A last component that matches exactly comes first, so that `lr` finds `optimizer.lr`.
    """
    ends: dict[str, list[str]] = {}
    for each in sorted(known):
        ends.setdefault(each.lower().rsplit(".", 1)[-1], []).append(each)
    whole = {each.lower(): each for several in ends.values() for each in several}
    word = word.lower()
    if word in whole or word in ends:
        return [whole[word]] if word in whole else ends[word]
    if close := difflib.get_close_matches(word, whole, n=1, cutoff=0.6):
        return [whole[close[0]]]
    close = difflib.get_close_matches(word.rsplit(".", 1)[-1], ends, n=1, cutoff=0.7)
    return [ends[end][-1] for end in close]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the hint ` Did you mean X?` for the known word closest to `word`, or "" where none is close."""
    return did_you_mean(close_to(word, known))


def did_you_mean(close: Sequence[str]) -> str:
    """The hint ` Did you mean X?`, or "" where there is nothing to name."""
    return f" Did you mean {' or '.join(close)}?" if close else ""


def listed(words: Sequence[str]) -> str:
    """Return `a, b, c`: the allowed values in a message."""
    return ", ".join(words)
