"""Images and rows of numbers as a caller has them in memory, made into what the rest of the program takes."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.decoded import mean_std, pixel_sums
from trainer.data.images import Picture
from trainer.data.splits import Source, Split
from trainer.data.table_file import as_text_cell
from trainer.utils.errors import ConfigError
from trainer.utils.text import number_of

GIVEN_PARTS = ("train", "test", "val")  # of a data set, in the order in which they are given
OF_PANDAS = ("<NA>", "NaT")  # what it shows where a cell is missing
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
ALLOWED = "a path, a PIL image, a uint8 array or tensor (H, W) or (H, W, C), a batch (N, H, W, C), or a list of these"


def images_given(images: Any, channels: int) -> list[Picture]:
    """An image in memory, or each of a batch.

    Three axes are a batch of grey images where the model is for such and the last axis cannot be one of colours.

    Args:
        images: a PIL image, or a uint8 array or tensor.
        channels: of the images that the model takes.
    Raises:
        ConfigError: it is none of these, or not of such a shape or type.
    """
    if isinstance(images, Image.Image):
        return [images]
    if not isinstance(images, (np.ndarray, Tensor)):
        raise ConfigError(f"{type(images).__name__} is no image. Allowed: {ALLOWED}.")
    if images.dtype not in (np.uint8, torch.uint8):
        advice = "Values from 0 to 1 become such by (x * 255).round() and a change of type."
        kind = str(images.dtype).removeprefix("torch.")
        raise ConfigError(f"images of type {kind} are not allowed. Allowed: uint8, 0 to 255. {advice}")
    array = images.cpu().numpy() if isinstance(images, Tensor) else images
    has_colours = array.ndim > 2 and array.shape[-1] in CHANNELS
    if array.ndim == 2 or (array.ndim == 3 and has_colours):
        array = array[None]
    elif not (array.ndim == 4 and has_colours) and not (array.ndim == 3 and channels == 1):
        shape = ", ".join(map(str, array.shape))
        advice = (
            "Channels come last: x.permute(0, 2, 3, 1) makes them so in (N, C, H, W), x.permute(1, 2, 0) in (C, H, W)."
        )
        raise ConfigError(f"images of shape ({shape}) are not allowed. Allowed: {ALLOWED}. {advice}")
    if 0 in array.shape:
        raise ConfigError("there are no pixels in it.")
    return [Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image) for image in array]


def rows_given(rows: Any, num_features: int) -> Tensor:
    """Rows of numbers as (N, D) float64, one row for one example; of a model of one feature also (N,).

    Raises:
        ConfigError: they are no numbers, or not so many in a row.
    """
    try:
        # NumPy knows no bfloat16
        array = np.array(rows.detach().cpu().double().numpy() if isinstance(rows, Tensor) else rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{type(rows).__name__} is not rows of {num_features} numbers each.") from None
    if array.ndim == 1 and (num_features == 1 or len(array) == num_features):
        array = array.reshape(-1, num_features)
    if array.ndim != 2 or array.shape[1] != num_features or not len(array):
        shape = ", ".join(map(str, array.shape))
        raise ConfigError(
            f"numbers of shape ({shape}) are not allowed. Allowed: (N, {num_features}), a row for each example."
        )
    return torch.from_numpy(array)


def columns_given(rows: Any) -> dict[str, list[str]]:
    """The columns of a table in memory, each cell as text: of {name: cells}, or of a data frame.

    Raises:
        ConfigError: it is no such thing, has no column or no row, two of one name, or columns of different lengths.
    """
    names = list(rows) if isinstance(rows, Mapping) else list(getattr(rows, "columns", ()))
    if not names:
        what = "{'area': [50, 70], 'city': ['Paris', 'Roma']} or a data frame"
        raise ConfigError(f"{type(rows).__name__} is no table. Allowed: the path of a file, {what}.")
    columns = {str(name): cells_given(rows[name], str(name)) for name in names if names.count(name) == 1}
    if len(columns) < len(names):
        raise ConfigError("two columns of the table have one name. Rename one of them.")
    if len({len(cells) for cells in columns.values()}) != 1 or not columns[str(names[0])]:
        raise ConfigError("the columns of the table are empty, or not equally long.")
    return columns


def cells_given(cells: Any, name: str) -> list[str]:
    """The cells of a column in memory as text; ConfigError where they are no list of single values."""
    values = cells.tolist() if isinstance(cells, Tensor) else cells
    no_list = isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__")
    is_one = no_list or getattr(values, "ndim", 1) == 0
    found = [] if is_one else [cell.tolist() if isinstance(cell, Tensor) else cell for cell in values]
    if is_one or any(isinstance(cell, (list, tuple, dict)) or getattr(cell, "ndim", 0) for cell in found):
        allowed = f"a list with a value for each row, such as {{{name!r}: [50, 70]}}"
        raise ConfigError(f"column {name} is no list of single values. Allowed: {allowed}.")
    return ["" if str(cell) in OF_PANDAS else as_text_cell(cell) for cell in found]


def names_of(classes: Sequence[str], indices: Tensor) -> np.ndarray:
    """The class names (N,) of class indices (N,)."""
    return np.array(classes)[indices.cpu().numpy()]


def numbers_given(values: Any, where: str) -> Tensor:
    """An array, a tensor or a list of numbers as a tensor on the CPU, which the caller has no other hold of.

    Raises:
        ConfigError: it is none, or has numbers that are not finite; `where` begins the message.
    """
    try:
        found = values.detach().cpu().clone() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        kind = getattr(values, "dtype", type(values).__name__)
        raise ConfigError(f"{where} is not numbers ({kind}). Allowed: an array of NumPy or a tensor.") from None
    if found.is_complex():
        raise ConfigError(f"{where} is complex. Allowed: real numbers.")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        bad = int((~found.isfinite()).sum())
        row = int((~found.isfinite()).nonzero()[0, 0]) if found.ndim else 0
        raise ConfigError(
            f"{where} has {number_of(bad, 'value')} that are NaN or infinite, the first in example {row}."
        )
    return found


def inputs_given(values: Any, where: str) -> Tensor:
    """Inputs as Split has them: (N, C, H, W) uint8 images, or (N, D) float32 rows.

    Args:
        values: (N, D) numbers, or uint8 images (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels C.
        where: the beginning of a message.
    Raises:
        ConfigError: they are something else.
    """
    x = numbers_given(values, where)
    if x.ndim == 2 and x.shape[1]:
        return x.to(torch.float32).contiguous()
    is_image = x.dtype == torch.uint8 and (x.ndim == 3 or (x.ndim == 4 and {x.shape[1], x.shape[3]} & {1, 3}))
    if not is_image or 0 in x.shape:
        kind = f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
        advice = "rows of numbers (N, D), or uint8 images (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels"
        how = " Values from 0 to 1 become such by (x * 255).round() and a change of type." if x.ndim > 2 else ""
        raise ConfigError(f"{where} is {kind}. Allowed: {advice}.{how}")
    if x.ndim == 3:
        x = x[:, None]
    return (x if x.shape[1] in (1, 3) else x.permute(0, 3, 1, 2)).contiguous()


def targets_given(values: Any, where: str, *, classes: bool) -> Tensor:
    """Targets as Split has them: (N,) int64 classes, or (N, M) float32 targets of a regression.

    Raises:
        ConfigError: they are something else.
    """
    y = numbers_given(values, where)
    kind = f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}"
    if not classes:
        if y.ndim not in (1, 2) or 0 in y.shape:
            raise ConfigError(f"{where} is {kind}. Allowed: the targets of a regression, (N,) or (N, M).")
        return y.reshape(len(y), -1).to(torch.float32)
    if y.is_floating_point() or y.ndim != 1:
        line = 'TASKS = {"NAME": "regression"}'.replace("NAME", where.partition("data=")[2].partition(":")[0])
        raise ConfigError(
            f"{where} is {kind}. Allowed: class numbers 0, 1, ... of shape (N,); for a regression write {line}."
        )
    if len(y) and int(y.min()) < 0:
        raise ConfigError(f"{where} has the class {int(y.min())}. Allowed: 0, 1, ...")
    return y.to(torch.int64)


def source_given(returned: Any, where: str, *, classes: bool) -> Source:
    """A data set as a caller has it in memory, checked.

    Args:
        returned: ((x_train, y_train), (x_test, y_test)), perhaps with (x_val, y_val) after these; arrays or tensors.
        where: the beginning of a message.
        classes: y are class numbers (N,); else the targets of a regression, (N,) or (N, M).
    Raises:
        ConfigError: it is none of these, or the parts do not go together.
    """
    form = "Return ((x_train, y_train), (x_test, y_test)), or a third pair for validation."
    parts = returned if isinstance(returned, (tuple, list)) else ()
    if len(parts) not in (2, 3) or not all(isinstance(part, (tuple, list)) and len(part) == 2 for part in parts):
        found = f"a {type(returned).__name__}" + (f" of {len(returned)}" if parts else "")
        raise ConfigError(f"{where}: it returns {found}. {form}")
    xs, ys = [], []
    for part, (x, y) in zip(GIVEN_PARTS, parts, strict=False):
        xs.append(inputs_given(x, f"{where}: x of {part}"))
        ys.append(targets_given(y, f"{where}: y of {part}", classes=classes))
        if len(xs[-1]) != len(ys[-1]) or not len(ys[-1]):
            said = f"{part} has {len(xs[-1]):,} x and {len(ys[-1]):,} y"
            raise ConfigError(f"{where}: {said}. Allowed: as many of both, 1 or more.")
    if len({(x.shape[1:], x.dtype, y.shape[1:]) for x, y in zip(xs, ys, strict=True)}) > 1:
        shapes = [
            f"{part} {tuple(x.shape)} and {tuple(y.shape)}" for part, x, y in zip(GIVEN_PARTS, xs, ys, strict=False)
        ]
        raise ConfigError(f"{where}: its parts have examples of different shapes: {', '.join(shapes)}.")
    num_classes, highest = (int(ys[0].max()) + 1, max(int(y.max()) for y in ys)) if classes else (0, 0)
    if classes and not 1 <= highest < num_classes:
        found = f"the classes of train go to {num_classes - 1}, those of all parts to {highest}"
        raise ConfigError(f"{where}: {found}. Allowed: 0 to K - 1 with K of 2 or more, and the highest one in train.")
    digest = hashlib.sha256()
    for tensor in (*xs, *ys):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    has_pixels = xs[0].dtype == torch.uint8
    mean, std = mean_std(pixel_sums(xs[0]), xs[0][0, 0].numel()) if has_pixels else ((), ())
    splits = [Split(x, y) for x, y in zip(xs, ys, strict=True)]
    val = splits[2] if len(splits) > 2 else None
    names = tuple(map(str, range(num_classes)))
    shape, ignores = tuple(xs[0].shape[1:]), () if has_pixels else ("normalize",)
    return Source(splits[0], splits[1], shape, digest.hexdigest(), names, mean, std, val, ignores)
