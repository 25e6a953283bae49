"""How the columns of a table become numbers: what a cell is, the figures of the training, and new rows by them.

What is needed for that is an Encoding, of plain types, which a checkpoint holds.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.table_file import MAX_CELL_TEXT
from trainer.utils.errors import ConfigError
from trainer.utils.quotes import typed_list
from trainer.utils.text import number_of, one_line

MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "?"}  # in any case
# no zeros in front: 007 is the name of something. inf is one, so that it is found where it has no business.
IS_NUMBER = re.compile(
    r"[+-]?(?:(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.ASCII | re.IGNORECASE
).fullmatch
WITH_COMMA = re.compile(r"[+-]?\d+(?:,\d+)+(?:\.\d+)?|[+-]?\d+(?:\.\d{3})*,\d+", re.ASCII).fullmatch
MAX_CATEGORIES = 100  # of a column
FEW = 20  # different whole numbers that may be codes or classes
NO_CELL = -1

Cells = Sequence[str | None]  # of a column: without the spaces round them; None where one is missing


@dataclass(frozen=True)
class Column:
    """How a column becomes inputs: a number minus its mean, over its deviation; or a 0 or 1 for each category.

    Attributes:
        name: of the column.
        categories: in the order of their inputs; none for numbers.
        mean: of the numbers of the training part, a missing one counted as their median.
        std: likewise; 1 where they are all the same.
        median: what a missing number counts as. A missing category is none of them: all its inputs are 0.
        flag: whether one more input is 1 where the cell is missing: some were in the training part.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    median: float = 0.0
    flag: bool = False

    @property
    def width(self) -> int:
        """The number of its inputs."""
        return (len(self.categories) or 1) + self.flag


@dataclass(frozen=True)
class Encoding:
    """How the rows of a table become inputs and outputs become what the target is.

    Attributes:
        target: the column that is predicted.
        columns: those that it is predicted from.
        mean: of the target of a regression in the training part; 0 for classes.
        std: likewise; 1 for classes.
        classes: their names, in the order of the labels; none for a regression. A checkpoint has them elsewhere.
    """

    target: str
    columns: tuple[Column, ...]
    mean: float = 0.0
    std: float = 1.0
    classes: tuple[str, ...] = field(default=())

    @property
    def width(self) -> int:
        """The number of inputs."""
        return sum(column.width for column in self.columns)

    @property
    def said(self) -> str:
        """What a refusal calls it."""
        return f"data.target={self.target} (data.task= can say otherwise)"

    def to_plain(self) -> dict[str, Any]:
        """Dicts, lists, text and numbers, for a checkpoint."""
        columns = [asdict(column) | {"categories": list(column.categories)} for column in self.columns]
        return {"target": self.target, "mean": self.mean, "std": self.std, "columns": columns}


def from_plain(plain: Any, classes: Sequence[str]) -> Encoding:
    """What to_plain() returned, which may come from an untrusted file.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(plain, dict) or set(plain) != {"target", "mean", "std", "columns"}:
        raise ValueError("its fields are others")
    columns = plain["columns"]
    if not isinstance(columns, list) or not columns or not is_name(plain["target"]):
        raise ValueError("it has no columns or no target")
    found = tuple(column_from_plain(column) for column in columns)
    if len({plain["target"], *(column.name for column in found)}) != len(found) + 1:
        raise ValueError("two columns have one name")
    check_figures(plain["mean"], plain["std"])
    return Encoding(plain["target"], found, plain["mean"], plain["std"], tuple(classes))


def column_from_plain(plain: Any) -> Column:
    """As from_plain, for one column."""
    if not isinstance(plain, dict) or set(plain) != {each.name for each in fields(Column)}:
        raise ValueError("the fields of a column are others")
    categories = plain["categories"]
    if not isinstance(categories, list) or len(categories) > MAX_CATEGORIES or not all(map(is_name, categories)):
        raise ValueError("its categories are none")
    if len(set(categories)) != len(categories) or not is_name(plain["name"]) or type(plain["flag"]) is not bool:
        raise ValueError("a column has no name, no flag, or a category twice")
    check_figures(plain["mean"], plain["std"], plain["median"])
    return Column(**plain | {"categories": tuple(categories)})


def is_name(value: Any) -> bool:
    """Whether this can be the name of a column or a category."""
    return isinstance(value, str) and 0 < len(value) <= MAX_CELL_TEXT


def check_figures(mean: Any, std: Any, median: Any = 0.0) -> None:
    """ValueError where these are no finite numbers, or the deviation is not above 0."""
    if not all(type(value) is float and math.isfinite(value) for value in (mean, std, median)) or std <= 0:
        raise ValueError("a mean, a deviation or a median is none")


def cells_of(texts: Sequence[str]) -> Cells:
    """The cells of a column as its file has them, without the spaces round them; None where one is missing."""
    bare = [text.strip() for text in texts]
    return [None if len(text) <= 4 and text.lower() in MISSING else text for text in bare]


def numbers_of(cells: Cells) -> tuple[np.ndarray, int]:
    """The cells as (N,) float64, nan where one is missing or no number; and the first that is no number, or NO_CELL."""
    values, odd = np.full(len(cells), np.nan), NO_CELL
    for i, cell in enumerate(cells):
        if cell is None:
            continue
        if IS_NUMBER(cell):
            values[i] = float(cell)
        elif odd == NO_CELL:
            odd = i
    return values, odd


def are_many(values: np.ndarray) -> bool:
    """Whether (N,) numbers are too many different ones, or too fine, for codes or classes; nan and inf are none."""
    known = values[np.isfinite(values)]
    return len(np.unique(known)) > FEW or bool((known % 1).any())


def odd_number(cells: Cells, rows: Sequence[int]) -> str:
    """What is to be mended in a column that is one of numbers but for some cells; "" where it is none.

    Args:
        cells: (N,) of the column.
        rows: (N,) which rows of the file these are.
    """
    values, odd = numbers_of(cells)
    if odd == NO_CELL:
        return ""
    if all(cell is None or IS_NUMBER(cell) or WITH_COMMA(cell) for cell in cells):
        return f"{cells[odd]} is no number: write 1.5 for 1,5 and 1234 for 1,234"
    known = sum(cell is not None for cell in cells)
    if 2 * int(np.isfinite(values).sum()) <= known or not are_many(values):
        return ""
    return f"most cells are numbers, but not {one_line(cells[odd], 40)!r} in row {rows[odd]}: empty such cells"


def moments_of(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of (N,) finite float64, also of numbers whose squares are no floats any more."""
    largest = float(np.abs(values).max()) or 1.0
    with np.errstate(under="ignore"):
        mean = float((values / largest).mean()) * largest
        std = float((values / largest).std()) * largest
    return mean, std if std > 0 and values.min() < values.max() else 1.0


def fit_column(name: str, cells: Cells, train: np.ndarray, numbers: Sequence[int], what: str) -> Column | str:
    """How a column becomes inputs, or why it is none: "empty" or "constant".

    It is one of numbers if all its cells are, in all of the file; the figures are of the training part alone.

    Args:
        name: of the column.
        cells: (N,) of all rows.
        train: (M,) int64, those of the training part.
        numbers: of all rows in their file, for messages.
        what: the file, for messages.
    Raises:
        ConfigError: it has infinite numbers, numbers with commas in them, or too many categories.
    """
    own = [cells[i] for i in train.tolist()]
    different = sorted({cell for cell in own if cell is not None})
    flag = None in own
    if not different:
        return "empty"
    if len(different) == 1 and not flag:
        return "constant"
    values, odd = numbers_of(cells)
    column = one_line(f"{what}, column {name}")
    if odd == NO_CELL:
        check_finite_cells(values, cells, numbers, column)
        known = values[train][~np.isnan(values[train])]
        with np.errstate(under="ignore"):
            median = float(np.median(known / 2) * 2)  # the sum of two large numbers would not be finite
        mean, std = moments_of(np.where(np.isnan(values[train]), median, values[train]))
        return Column(name, (), mean, std, median, flag)
    leave_out = f"Leave it out: {typed_list('data.drop', name)}"
    why = odd_number(cells, numbers)
    if why and any(cell is not None and WITH_COMMA(cell) for cell in cells):
        raise ConfigError(f"{column}: {why}. {leave_out}.")
    if len(different) > MAX_CATEGORIES:
        said = f"{len(different):,} different texts, each of which would be an input; allowed: {MAX_CATEGORIES}"
        raise ConfigError(f"{column}: {why or said}. {leave_out}.")
    if any(len(category) > MAX_CELL_TEXT for category in different):
        raise ConfigError(f"{column}: a category of more than {MAX_CELL_TEXT} characters. {leave_out}.")
    return Column(name, tuple(different), flag=flag)


def check_finite_cells(values: np.ndarray, cells: Cells, numbers: Sequence[int], column: str) -> None:
    """ConfigError where a number is infinite, or too large for a float; names the row."""
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        said = f"row {numbers[row]} has {one_line(cells[row], 40)}, which is no finite number"
        raise ConfigError(f"{column}: {said}. Empty the cell.")


def encode(encoding: Encoding, columns: Mapping[str, Cells], numbers: Sequence[int]) -> tuple[Tensor, list[str]]:
    """The rows of a table as inputs (N, D) float32, by the figures of the training; and what is odd about them.

    Args:
        encoding: of the training.
        columns: by name; one that is missing counts as one without a cell.
        numbers: of the rows in their file, for what is said.
    Returns:
        The inputs, and a line for each column that is missing or has cells such as the training had none of.
    """
    n = len(numbers)
    x, notes, start = np.zeros((n, encoding.width), dtype=np.float32), list[str](), 0
    for column in encoding.columns:
        cells = columns.get(column.name)
        if cells is None:
            notes.append(f"there is no column {column.name}: each row counts as one where it is missing")
            cells = [None] * n
        part = x[:, start : start + column.width]
        odd = fill_categories(column, cells, part) if column.categories else fill_numbers(column, cells, part)
        if len(odd):
            counted = f"counted as {'none of the others' if column.categories else 'missing'}"
            kind = "a category that the training had not" if column.categories else "no finite number"
            first = f"row {numbers[odd[0]]}: {one_line(cells[odd[0]], 40)}"
            notes.append(f"{column.name}: {number_of(len(odd), 'cell')} with {kind} ({first}), {counted}")
        if not column.flag and column.name in columns and None in cells:
            count = number_of(sum(cell is None for cell in cells), "cell")
            as_what = "none of the categories" if column.categories else f"the median {column.median:g}"
            notes.append(f"{column.name}: {count} missing, as none was in the training, counted as {as_what}")
        start += column.width
    return torch.from_numpy(x), notes


def fill_numbers(column: Column, cells: Cells, part: np.ndarray) -> Sequence[int]:
    """Write the standardised numbers into part (N, width); returns the rows whose cell is no finite number."""
    values, _ = numbers_of(cells)
    with np.errstate(all="ignore"):
        scaled = ((values - column.mean) / column.std).astype(np.float32)
        absent = np.float64((column.median - column.mean) / column.std).astype(np.float32)
    if column.flag:  # what is no number is missing
        part[:, -1] = ~np.isfinite(scaled)
    part[:, 0] = np.where(np.isfinite(scaled), scaled, absent)
    return [i for i in np.flatnonzero(~np.isfinite(scaled)).tolist() if cells[i] is not None]


def fill_categories(column: Column, cells: Cells, part: np.ndarray) -> Sequence[int]:
    """Write a 1 for the category of each row into part (N, width); returns the rows whose category is not known."""
    numbers = {category: k for k, category in enumerate(column.categories)}
    places = np.array([NO_CELL if cell is None else numbers.get(cell, NO_CELL) for cell in cells])
    if column.flag:
        part[:, -1] = [cell is None for cell in cells]
    rows = np.flatnonzero(places != NO_CELL)
    part[rows, places[rows]] = 1
    return [i for i in np.flatnonzero(places == NO_CELL).tolist() if cells[i] is not None]
