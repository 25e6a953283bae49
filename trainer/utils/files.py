"""Files that are replaced in one step, so that a reader sees the old one or the new one. Torch-free."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.utils.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file as a dict; ConfigError names the file where it cannot be read."""
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} cannot be read: it holds no settings.")
    return loaded


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step, so that a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Replace a CSV file by rows with the same keys under a header, in one step; returns whether that changed it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode("utf-8", errors="backslashreplace")
    if path.is_file() and path.read_bytes() == content:
        return False
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return True
