"""The column that is predicted from the others: which classes it has, or that it is a number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.data.columns import (
    FEW,
    IS_NUMBER,
    NO_CELL,
    Cells,
    are_many,
    check_finite_cells,
    numbers_of,
    odd_number,
)
from trainer.data.table_file import MAX_CELL_TEXT
from trainer.utils.errors import ConfigError, listed
from trainer.utils.text import number_of, one_line

MAX_LABELS = 1000  # classes
MOST_NAMES = 8  # names in a line


def classes_of(cells: Cells, rows: Sequence[int], target: str, task: str) -> tuple[str, ...]:
    """The classes that a target has, in their order; none where it is predicted as a number.

    Args:
        cells: (N,) all of them known.
        rows: (N,) which rows of the file they are in, for messages.
        target: the name of the column.
        task: regression, classification or auto.
    Raises:
        ConfigError: it cannot be of this task, or has too few or too many classes.
    """
    key = f"data.target={target}"
    values, odd = numbers_of(cells)
    check_finite_cells(values, cells, rows, key)
    is_number = odd == NO_CELL
    why = odd_number(cells, rows) if task != "classification" else ""
    if task == "regression" and not is_number:
        why = why or f"row {rows[odd]} has {one_line(cells[odd], 40)!r}, which is no number"
    if why:
        raise ConfigError(f"{key}: {why}. data.task=classification takes each text as a class.")
    if is_number and (task == "regression" or (task == "auto" and are_many(values))):
        return ()
    names = (
        [number_name(value) for value in sorted({*values.tolist()})] if is_number else sorted({*filter(None, cells)})
    )
    if len(names) < 2:
        raise ConfigError(f"{key}: all rows have the value {one_line(names[0], 40)}: nothing to learn.")
    if len(names) > MAX_LABELS or (len(names) > FEW and 2 * len(names) > len(cells)):
        advice = " Allowed: data.task=regression." if is_number else " Is it the right column?"
        raise ConfigError(f"{key}: {len(names):,} classes in {number_of(len(cells), 'row')}.{advice}")
    if long := next((name for name in names if len(name) > MAX_CELL_TEXT), None):
        raise ConfigError(f"{key}: a class has {len(long):,} characters. Allowed: {MAX_CELL_TEXT}.")
    return tuple(names)


def number_name(value: float) -> str:
    """A number as the name of a class: 1 for 1.0."""
    return str(int(value)) if value % 1 == 0 else str(value)


def labels_of(cells: Cells, rows: Sequence[int], classes: Sequence[str], target: str) -> Tensor:
    """The class of each row, (N,) int64.

    Raises:
        ConfigError: a row has none of the classes.
    """
    numbers = {name: k for k, name in enumerate(classes)}
    found = []
    for cell, row in zip(cells, rows, strict=True):
        assert cell is not None
        name = cell if cell in numbers or not IS_NUMBER(cell) else number_name(float(cell))
        if name not in numbers:
            known = listed([one_line(each, 40) for each in classes[:MOST_NAMES]])
            raise ConfigError(f"row {row}: {target} is {one_line(cell, 60)!r}. The classes of the training: {known}.")
        found.append(numbers[name])
    return torch.tensor(found)
