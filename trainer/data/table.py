"""Tables as data sets: a row for each example, one column of which is predicted from the others."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.columns import (
    IS_NUMBER,
    NO_CELL,
    Cells,
    Column,
    Encoding,
    cells_of,
    check_finite_cells,
    encode,
    fit_column,
    from_plain,
    moments_of,
    numbers_of,
    odd_number,
)
from trainer.data.folder import TEST_SEED
from trainer.data.splits import Source, Split
from trainer.data.stratify import stratified
from trainer.data.table_file import Table, read_table
from trainer.data.table_target import MOST_NAMES, classes_of, labels_of
from trainer.utils.errors import ConfigError, listed, nearest
from trainer.utils.quotes import typed_list
from trainer.utils.text import emit, number_of, one_line


@dataclass(frozen=True)
class Rows:
    """The rows of a file whose target is known.

    Attributes:
        columns: by name, all but the target.
        target: its cells.
        numbers: (N,) int64, which rows of the file these are, counted from 1.
        sha256: digest of the file.
    """

    columns: Mapping[str, Cells]
    target: Cells
    numbers: np.ndarray
    sha256: str

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: np.ndarray) -> "Rows":
        """Some of them, (M,) int64, in that order."""
        columns = {name: [cells[i] for i in rows] for name, cells in self.columns.items()}
        return Rows(columns, [self.target[i] for i in rows], self.numbers[rows], self.sha256)

    def whole(self) -> set[tuple[str | None, ...]]:
        """All cells of each row."""
        return set(zip(self.target, *self.columns.values(), strict=True))


def table_rows(
    _root: Path,
    _cache: Path,
    *,
    path: str | None,
    target: str | None,
    task: str = "auto",
    features: Sequence[str] = (),
    drop: Sequence[str] = (),
    test_path: str | None = None,
    test_fraction: float = 0.2,
    known: Mapping[str, Any] | None = None,
) -> Source:
    """A CSV, TSV or Parquet file. What a row's cells become as numbers follows from the training part alone.

    Args:
        path: the file.
        target: the column to predict.
        task: regression, classification, or auto, which looks at the target.
        features: the columns to predict it from; none: all others.
        drop: columns to leave out.
        test_path: another file with the test part.
        test_fraction: share of the rows that becomes the test part, where there is no such file.
        known: `columns` and `classes` of a checkpoint, by which the rows are encoded instead of by their own figures.
    Returns:
        A Source with (N, D) float32 rows, and its Encoding; the target of a regression is standardised.
    Raises:
        ConfigError: a file cannot be read, a column is not there or cannot be made into numbers, or rows are missing.
    """
    if path is None or target is None:
        raise ConfigError("data=table needs data.path=<a CSV, TSV or Parquet file> and data.target=<a column>.")
    if known is not None and known["columns"] is None:
        raise ConfigError("data=table: this model was not trained on a table, so that no row can be made into inputs.")
    file = Path(path).expanduser()
    rows = rows_with_target(read_table(file, "data.path"), target)
    separate = None
    if test_path is not None:
        separate = rows_with_target(read_table(Path(test_path).expanduser(), "data.test_path"), target)
    encoding = from_plain(known["columns"], known["classes"]) if known is not None else None
    numbers = rows.numbers.tolist()
    classes = encoding.classes if encoding else classes_of(rows.target, numbers, target, task)
    labels = labels_of(rows.target, numbers, classes, target) if classes else None
    if separate is None:
        chosen, rest = (part.numpy() for part in cut_test(labels, len(rows), test_fraction, file))
        test = rows.take(chosen)
    else:
        rest, test = np.arange(len(rows)), separate
    if encoding is None:
        columns = columns_of(rows, rest, chosen_features(rows, target, features, drop, file), file)
        mean, std = (0.0, 1.0) if classes else target_moments(rows, rest, target)
        encoding = Encoding(target, columns, mean, std, classes)
    train = rows.take(rest)
    say_table(encoding, rows, train, test, file, is_new=known is None)
    splits = encoded(encoding, train, ""), encoded(encoding, test, "the test part: ")
    digest = rows.sha256 if separate is None else hashlib.sha256(f"{rows.sha256}{test.sha256}".encode()).hexdigest()
    ignores = () if separate is None else ("test_fraction",)
    return Source(*splits, (encoding.width,), digest, classes, ignores=ignores, table=encoding)


def rows_with_target(file: Table, target: str) -> Rows:
    """The rows whose target is known; how many others there are is said.

    Raises:
        ConfigError: there is no such column, or no row with it.
    """
    if target not in file.columns:
        names = [one_line(name, 60) for name in list(file.columns)[:40]]
        raise ConfigError(
            f"data.target={target}: {file.path} has no such column.{nearest(target, file.columns)} "
            f"Its columns: {listed(names)}{', ...' if len(file.columns) > 40 else ''}."
        )
    columns = {name: cells_of(texts) for name, texts in file.columns.items()}
    cells = columns.pop(target)
    there = np.array([i for i, cell in enumerate(cells) if cell is not None], dtype=np.int64)
    if not len(there):
        raise ConfigError(f"data.target={target}: {file.path} has no row with a value in this column.")
    if not columns:
        raise ConfigError(f"{file.path} has no column but {target}: there is nothing to predict it from.")
    every = Rows(columns, cells, np.arange(1, len(cells) + 1), file.sha256)
    if len(there) == len(cells):
        return every
    emit(f"table: {number_of(len(cells) - len(there), 'row')} of {file.path} without {target}, left out")
    return every.take(there)


def cut_test(labels: Tensor | None, n: int, test_fraction: float, file: Path) -> tuple[Tensor, Tensor]:
    """The rows of the test part and the others, (M,) and (N - M,) int64; each class in its share.

    Raises:
        ConfigError: there would be none.
    """
    size = round(n * test_fraction)
    if not 0 < size < n:
        raise ConfigError(
            f"{file} has {number_of(n, 'row')}, of which data.test_fraction={test_fraction:g} makes {size} the test "
            "part. Needed: rows for both parts, or data.test_path=<another file>."
        )
    return stratified(labels, n, size, TEST_SEED, spare=True)


def chosen_features(
    rows: Rows, target: str, features: Sequence[str], drop: Sequence[str], file: Path
) -> Mapping[str, Cells]:
    """The columns to predict from, in the order of the file.

    Raises:
        ConfigError: one that was named is not there, or none is left.
    """
    for key, names in (("data.features", features), ("data.drop", drop)):
        for name in names:
            if name == target:
                raise ConfigError(f"{typed_list(key, name)}: this is the column to predict. Leave it out of the list.")
            if name not in rows.columns:
                hint = nearest(name, rows.columns) or f" Its columns: {few_names(list(rows.columns))}."
                raise ConfigError(f"{typed_list(key, name)}: {file} has no such column.{hint}")
    wanted = set(features or rows.columns) - set(drop)
    if not wanted:
        raise ConfigError("data.features and data.drop leave no column to predict from.")
    return {name: cells for name, cells in rows.columns.items() if name in wanted}


def columns_of(rows: Rows, train: np.ndarray, chosen: Mapping[str, Cells], file: Path) -> tuple[Column, ...]:
    """How each column becomes inputs; those that say nothing are left out and named.

    Raises:
        ConfigError: none is left, or one cannot be made into inputs.
    """
    found: dict[str, Column | str] = {}
    refused: dict[str, ConfigError] = {}
    for name, cells in chosen.items():
        try:
            found[name] = fit_column(name, cells, train, rows.numbers.tolist(), str(file))
        except ConfigError as error:
            refused[name] = error
    if len(refused) > 1:
        drop = typed_list("data.drop", *refused)
        raise ConfigError(*map(str, refused.values()), f"All of these {len(refused)} columns are left out by {drop}.")
    if refused:
        raise next(iter(refused.values()))
    left_out = {name: why for name, why in found.items() if isinstance(why, str)}
    if left_out:
        emit(f"table: left out: {few_names([f'{name} ({why})' for name, why in left_out.items()])}")
    columns = tuple(column for column in found.values() if isinstance(column, Column))
    if not columns:
        raise ConfigError(f"{file}: no column is left to predict from: all are empty or constant in the training part.")
    for column in columns:
        if not column.categories:
            continue
        leave_out = f"{typed_list('data.drop', column.name)} leaves it out"
        if why := odd_number(chosen[column.name], rows.numbers.tolist()):
            emit(f"warning: {column.name}: {why}, or each text is a category, as now; {leave_out}.")
        elif len(column.categories) == len(train) > 2:
            what = "is different in each row, as an ID is. Nothing can be learnt from it"
            emit(f"warning: {column.name} {what}: {leave_out}.")
    return columns


def target_moments(rows: Rows, train: np.ndarray, target: str) -> tuple[float, float]:
    """Mean and standard deviation of the target of a regression in the training part.

    Raises:
        ConfigError: it is the same in all rows.
    """
    values = numbers_of(rows.target)[0][train]
    if values.min() == values.max():
        raise ConfigError(f"data.target={target}: all training rows have the value {values[0]:g}: nothing to learn.")
    return moments_of(values)


def encoded(encoding: Encoding, rows: Rows, what: str) -> Split:
    """The rows as a Split; what is odd about their cells is said.

    Raises:
        ConfigError: a target is no number, or none of the classes.
    """
    x, notes = encode(encoding, rows.columns, rows.numbers.tolist())
    emit(*(f"table: {what}{note}" for note in notes))
    names = [str(number) for number in rows.numbers]
    if encoding.classes:
        return Split(x, labels_of(rows.target, rows.numbers.tolist(), encoding.classes, encoding.target), names)
    values, odd = numbers_of(rows.target)
    if odd != NO_CELL:
        cell = one_line(rows.target[odd], 40)
        raise ConfigError(f"row {rows.numbers[odd]}: {encoding.target} is {cell!r}; in the training it is a number.")
    check_finite_cells(values, rows.target, rows.numbers.tolist(), f"data.target={encoding.target}")
    return Split(x, torch.from_numpy((values - encoding.mean) / encoding.std).float()[:, None], names)


def say_table(encoding: Encoding, rows: Rows, train: Rows, test: Rows, file: Path, *, is_new: bool) -> None:
    """Say what was taken as what."""
    numbers = [column.name for column in encoding.columns if not column.categories]
    categories = [f"{c.name} {len(c.categories)}" for c in encoding.columns if c.categories]
    parts = [f"{number_of(len(numbers), 'number')}"] if numbers else []
    if categories:
        kind = "category" if len(categories) == 1 else "categories"
        parts.append(f"{len(categories)} {kind} ({few_names(categories)})")
    gaps = [(c.name, sum(cell is None for cell in rows.columns.get(c.name, ()))) for c in encoding.columns]
    if missing := [f"{name} {count}" for name, count in gaps if count]:
        parts.append(f"missing: {few_names(missing)}")
    by = "" if is_new else "; encoded as in the training"
    emit(f"table: {number_of(len(rows), 'row')} of {file}; {'; '.join(parts)}{by}")
    if encoding.classes:
        said = f"classification: {few_names([f'{name}' for name in encoding.classes])}"
        if is_new and all(map(IS_NUMBER, encoding.classes)):
            said += " (data.task=regression predicts the number)"
    else:
        center = f"{'-' if encoding.mean >= 0 else '+'} {abs(encoding.mean):.6g}"
        said = f"regression; the loss is of ({encoding.target} {center}) / {encoding.std:.6g}"
    emit(f"target: {encoding.target}, {said}")
    if both := len(train.whole() & test.whole()):
        emit(f"note: {number_of(both, 'row')} of the test part stand in the training part too, cell by cell")


def few_names(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return listed([one_line(name, 60) for name in names[:MOST_NAMES]]) + more
