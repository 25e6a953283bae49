"""Files that are replaced in one step, so that a reader sees either the old or the new content. Torch-free."""

import csv
import errno
import io
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def open_regular(path: Path | str, mode: str = "r", **options: Any) -> IO[Any]:
    """open() for the program's own files, which never waits.

    Raises:
        OSError: what is there is a pipe, a device or a socket: opening one may wait for ever; or as open().
    """
    return open(path, mode, opener=_at_once, **options)


def _at_once(path: str, flags: int) -> int:
    odd = OSError(errno.EINVAL, "it is a pipe, a device or a socket where a file belongs; move it away", path)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)  # Windows opens everything at once
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, or a socket
            raise odd from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode) or path == os.devnull:
        return descriptor
    os.close(descriptor)
    raise odd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it when the block ends well and is removed otherwise."""
    # A unique name, since several processes may write the same file; the prefix tells what a killed process left.
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        yield temporary
        until = time.monotonic() + 1
        while True:
            try:
                os.replace(temporary, path)
                break
            except PermissionError as error:  # on Windows, while a reader or a virus scanner has it open
                if getattr(error, "winerror", None) is None or time.monotonic() > until:
                    raise
                time.sleep(0.01)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove files that a killed process left half written; only for a folder that no other process writes to."""
    for path in folder.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())  # otherwise a power cut could leave the new name with no content


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with one of these in front a spreadsheet runs a cell


def quote_cell(value: Any) -> Any:
    """A text that a spreadsheet would run gets a ' in front, which it does not show; numbers stay as they are."""
    if not isinstance(value, str) or not value.startswith((*FORMULA, "'")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def unquote_cell(text: str) -> str:
    """The text that quote_cell got."""
    return text[1:] if text.startswith("'") and text[1:].startswith((*FORMULA, "'")) else text


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file that write_csv wrote, as text."""
    with open_regular(path, newline="", encoding="utf-8") as file:
        return [{unquote_cell(k): unquote_cell(v) for k, v in row.items()} for row in csv.DictReader(file)]


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows with the same keys as CSV under a header, see quote_cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(quote_cell, rows[0]))
    writer.writerows(map(quote_cell, row.values()) for row in rows)
    return text.getvalue().encode("utf-8", errors="backslashreplace")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Replace a CSV file by rows with the same keys under a header; return whether that changed it."""
    content = csv_bytes(rows)
    if path.is_file() and path.read_bytes() == content:
        return False
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True
