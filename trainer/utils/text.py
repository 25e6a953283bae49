"""Text on its way to a person: what is printed, logged or drawn passes here. Torch-free.

Names of files and classes, and what stands in a file that somebody sent, may hold anything: sequences that clear the
screen, line ends that add a line of their own, ten million characters, bytes that are no text. Here they become one
line of printable characters that the stream can take.
"""

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

MAX_CHARS = 4000  # of a line: a path may have that many, and what to type next stands at the end


def one_line(text: object, most: int = MAX_CHARS) -> str:
    """A text as one line: what is not printable is escaped (\\x1b, \\n, \\u200d), what is too long loses its middle.

    A byte that is not UTF-8, as file names may have, becomes \\xff. What passed once passes again unchanged.

    Args:
        text: anything; str() of it is taken.
        most: characters.
    """
    said = _without_middle(str(text), most)  # first, since it may have millions
    if said.isprintable():
        return said
    return _without_middle("".join(c if c.isprintable() else _escaped(c) for c in said), most)


def number_of(number: int, noun: str) -> str:
    """A number with its noun: 1 image, 1,234 images."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_repr(value: object) -> str:
    """A value for a message; a nested one only by its type, since a small file can hold one without end."""
    if isinstance(value, int) and abs(value) > 10**100:
        return "a number of over 100 digits"  # str() of one may fail
    return repr(value) if isinstance(value, (str, int, float, bytes, type(None))) else type(value).__name__


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # how Python keeps a byte that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def _without_middle(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    gap = f" ...({len(text):,} characters)... "
    if most <= 3 * len(gap):
        return text[: max(0, most - 3)] + "..."
    tail = (most - len(gap)) // 3
    return text[: most - len(gap) - tail] + gap + text[-tail:]


def emit(*lines: object, file: IO[str] | None = None) -> None:
    """Print lines, each as one_line makes it, whatever the encoding of the stream; never fails.

    Args:
        lines: one argument each.
        file: the stream; None: stdout.
    """
    stream = sys.stdout if file is None else file
    if stream is None or not lines:  # closed before the program was started
        return
    text = "\n".join(map(one_line, lines))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError:  # the reader has closed the pipe, as `| head` does, or the disk is full
        silence(stream)


def emit_json(content: object) -> None:
    """Print plain data as JSON in ASCII, for scripts; never fails. What is not finite, which JSON has not, is null."""
    try:
        print(json.dumps(finite(content), indent=1, allow_nan=False), flush=True)
    except OSError:
        silence(sys.stdout)


def finite(data: Any) -> Any:
    """Plain data in which what is not a finite number is None."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def quiet_libraries() -> None:
    """Let what other packages log stay unsaid, errors apart; for processes that are this program's own."""
    import logging  # 10 ms

    logging.getLogger().setLevel(logging.ERROR)


def silence(stream: IO[str]) -> None:
    """Let what is written to a stream that nobody reads any more go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def drawing() -> Iterator[None]:
    """Draw on stdout, or nowhere from now on where the terminal was closed."""
    try:
        yield
    except OSError:
        silence(sys.stdout)


def in_brackets(text: str) -> list[str]:
    """The items of `[a,'b c']`; [] where that is the name of a file, or no list."""
    if not (text.startswith("[") and text.endswith("]")) or os.path.exists(text):
        return []
    return [item.strip() for item in re.findall(r"""'[^']*'|"[^"]*"|[^,]+""", text[1:-1]) if item.strip()]
