"""Files that are replaced in one step, so that a reader sees either the old or the new content. Torch-free."""

import csv
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it when the block ends well and is removed otherwise."""
    # A unique name, since several processes may write the same file; the prefix tells what a killed process left.
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove files that a killed process left half written; only for a folder that no other process writes to."""
    for path in folder.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step."""
    with replacing(path) as temporary, open(temporary, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())  # otherwise a power cut could leave the new name with no content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Replace a CSV file by rows with the same keys under a header; return whether that changed it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode("utf-8", errors="backslashreplace")
    if path.is_file() and path.read_bytes() == content:
        return False
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True
