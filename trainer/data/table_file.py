"""A table as its file has it: CSV and TSV by Python's own reader, Parquet by pyarrow. See columns.py for the cells."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.utils.errors import ConfigError, listed
from trainer.utils.files import open_regular
from trainer.utils.program import pip_install
from trainer.utils.text import number_of, one_line

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
MAX_CELL_TEXT = 255  # characters of a column's name or a category: a checkpoint holds them
LONGEST_CELL = 2**31 - 1  # characters that Python reads; what is too long for a category is said by its column
SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
ENCODINGS = {b"\xff\xfe": "UTF-16LE", b"\xfe\xff": "UTF-16BE"}  # by what such a file begins with


@dataclass(frozen=True)
class Table:
    """A table as its file has it.

    Attributes:
        path: of the file.
        columns: by name, in the order of the file; each cell as text, "" where a Parquet file has none.
        sha256: digest of the file.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    sha256: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def read_table(path: Path, key: str) -> Table:
    """Read a table.

    Args:
        path: a file of one of SUFFIXES.
        key: of the setting that names it, for messages.
    Raises:
        ConfigError: there is no such file, or it is no table; says where, and what to do.
    """
    what = one_line(f"{key}={path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{what} is no table by its name. Allowed: a file that ends in {listed(SUFFIXES)}.")
    if not path.is_file():
        raise ConfigError(f"{what}: {'that is no file' if path.exists() else 'there is no such file'}.")
    try:
        with open_regular(path, "rb") as file:
            content: bytes = file.read()
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}.") from None
    if path.suffix.lower() in (".parquet", ".pq"):
        names, columns = parquet_columns(content, what)
    else:
        names, columns = csv_columns(content, what, "\t" if path.suffix.lower() == ".tsv" else ",")
    check_names(names, what)
    if not columns[0]:
        raise ConfigError(f"{what} has a header and no rows.")
    return Table(path, dict(zip(names, columns, strict=True)), hashlib.sha256(content).hexdigest())


def csv_columns(content: bytes, what: str, usual: str) -> tuple[list[str], list[Sequence[str]]]:
    """The names and the cells of each column of a CSV or TSV file.

    Raises:
        ConfigError: it is not UTF-8, has unclosed quotes, or a row with more or fewer fields than the header.
    """
    text = decoded(content, what)
    if not text.strip():
        raise ConfigError(f"{what} is empty.")
    rows, read = list[list[str]](), 0  # lines of the file so far
    longest = csv.field_size_limit(LONGEST_CELL)  # of the whole process
    separator = separator_of(text, usual)
    reader = reader_of(text, separator, strict=True)
    try:
        header: list[str] = next(filter(has_text, reader), [])
        read = reader.line_num
        for row in reader:
            read = reader.line_num
            if len(row) == len(header):
                rows.append(row)
            elif has_text(row):  # an empty line is none
                fields = f"{number_of(len(row), 'field')}, and the header has {len(header)}"
                advice = f" A field with {SEPARATORS[separator]} in it needs quotes." if len(row) > len(header) else ""
                raise ConfigError(f"{what}, line {reader.line_num}: {fields}.{advice}")
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise ConfigError(f"{what}, line {read + 1}: a quote is opened there and never closed.") from None
        raise ConfigError(f"{what}, line {reader.line_num}: {error}.") from None
    finally:
        csv.field_size_limit(longest)
    return [name.strip() for name in header], list(zip(*rows, strict=True)) if rows else [()] * len(header)


def decoded(content: bytes, what: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        ConfigError: it is in another encoding; says what to type.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        probably = ENCODINGS.get(content[:2], "WINDOWS-1252")
        name = what.partition("=")[2]
        raise ConfigError(
            f"{what} is not in UTF-8 (line {line}). Save it so; from {probably}, for example: "
            f"iconv -f {probably} -t UTF-8 {name} > utf8-{Path(name).name}"
        ) from None


def reader_of(text: str, separator: str, *, strict: bool = False) -> Any:
    """The rows of a text. A space before a quote is no part of the cell."""
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict)


def has_text(row: Sequence[str]) -> bool:
    """Whether there is anything but spaces in a row."""
    return any(cell.strip() for cell in row)


def separator_of(text: str, usual: str) -> str:
    """What separates the fields: of comma, tab and semicolon the one that makes most of the header; or else `usual`."""
    found = {}
    for separator in (usual, *SEPARATORS):
        try:
            found[separator] = len(next(filter(has_text, reader_of(text, separator)), []))
        except csv.Error:
            found[separator] = 0
    return max(found, key=lambda separator: found[separator])  # the first of equals


def parquet_columns(content: bytes, what: str) -> tuple[list[str], list[Sequence[str]]]:
    """The names and the cells of each column of a Parquet file, as text.

    Raises:
        ConfigError: pyarrow is not installed, the file is no Parquet file, or a cell is a list or the like.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"{what}: Parquet files need pyarrow. Type: {pip_install('requirements-table.txt')}"
        ) from None
    try:
        read = parquet.read_table(pyarrow.BufferReader(content))
        read.validate(full=True)  # a damaged file may name cells that it does not have
        columns = [column.to_pylist() for column in read.columns]
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{what} is no Parquet file that can be read: {one_line(error, 200)}.") from None
    names: list[str] = read.column_names
    for name, cells in zip(names, columns, strict=True):
        if odd := next((cell for cell in cells if isinstance(cell, (list, dict, bytes))), None):
            kind = f"its cells are of type {type(odd).__name__}, not numbers or text"
            raise ConfigError(f"{what}: column {name}: {kind}. Write the table without it.")
    return names, [list(map(as_text_cell, cells)) for cells in columns]


def as_text_cell(cell: Any) -> str:
    """A cell of a Parquet file as a CSV file would have it; floats keep all their digits."""
    return "" if cell is None else str(cell)


def check_names(names: Sequence[str], what: str) -> None:
    """Refuse columns that cannot be told apart by name.

    Raises:
        ConfigError: a name is missing, there twice, or too long.
    """
    if not names:
        raise ConfigError(f"{what} has no columns.")
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not name:
            advice = "Give it one; row numbers of pandas are left out with to_csv(..., index=False)"
            raise ConfigError(f"{what}: column {i + 1} of {len(names)} has no name in the first line. {advice}.")
        if name in seen:
            raise ConfigError(f"{what}: there are two columns {name!r}. Rename one of them.")
        if len(name) > MAX_CELL_TEXT:
            raise ConfigError(f"{what}: a column's name has {len(name):,} characters. Allowed: {MAX_CELL_TEXT}.")
        seen.add(name)
