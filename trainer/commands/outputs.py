"""Where predict writes, and how: what images and tables share."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer import engine
from trainer.commands.evaluate import Trained
from trainer.config.schema import Config
from trainer.data.batches import eval_batch_size, normalizer
from trainer.run import directory
from trainer.run.parts import placement
from trainer.utils.errors import ConfigError
from trainer.utils.files import csv_bytes, replacing


def inputs_of(config: Config) -> list[str]:
    """What input= names, each once."""
    return list(dict.fromkeys([config.input] if isinstance(config.input, str) else config.input or []))


def place_of(config: Config, trained: Trained) -> Path:
    """The CSV file to write: output=, or one that is named after the input, in the run's folder.

    Raises:
        ConfigError: output= exists, is no name of a CSV file, or none that Windows allows.
    """
    if config.output is None:
        stem = "predictions"
        if targets := inputs_of(config):
            name = os.path.basename(os.path.abspath(targets[0]))
            name = os.path.splitext(name)[0] if trained.table else name
            stem += "-" + re.sub(r"[^\w.-]+", "_", name)[:59]
            stem += f"-and-{len(targets) - 1}-more" if len(targets) > 1 else ""
        stem += f"-mean-of-{len(trained.others) + 1}" if trained.others else ""
        return trained.folder / f"{stem}.csv"
    path = Path(config.output)
    check_output(path, ".csv", path.with_suffix(".png"), "name")
    return path


def check_output(path: Path, suffix: str, beside: Path, what: str) -> None:
    """Refuse a file of output= that cannot be written, or would take the place of another.

    Args:
        path: the file.
        suffix: how its name has to end.
        beside: a further file that is written with it.
        what: of the two names the user can choose another: a name, or a folder.
    Raises:
        ConfigError: names what is wrong.
    """
    if path.suffix != suffix:
        raise ConfigError(f"output={path}: the name has to end in {suffix}.")
    if directory.OF_WINDOWS.fullmatch(path.name):
        raise ConfigError(f"output={path} is not allowed: no file on Windows has such a name. Choose another one.")
    for place in (path, beside):
        if place.exists():
            raise ConfigError(f"output={path}: {place} exists already. Choose another {what}, or delete it first.")
    directory.check_writable(path.parent, key="output")


def label_rows(trained: Trained, rows: Tensor) -> Tensor:
    """Put rows of numbers (N, D) through the model, in the batches of eval; returns its outputs (N, K)."""
    normalize = normalizer(trained.mean, trained.std, placement(trained.machine))
    batches = (normalize(part).to(trained.machine.device) for part in rows.split(eval_batch_size(trained.in_shape)))
    return engine.predict(trained.model, batches, trained.machine.autocast)


def further_columns(config: Config, classes: Sequence[str], chances: Tensor) -> dict[str, list[str]]:
    """The columns that top_k= and probabilities= add, by their names: N texts each.

    Args:
        config: has the two settings.
        classes: K names.
        chances: (N, K) probabilities.
    """
    found: dict[str, list[str]] = {}
    best = chances.sort(dim=1, descending=True, stable=True)  # of equals the first class first, as in `class`
    for place in range(1, min(config.top_k, len(classes))):  # the first column is there anyway
        found[f"class_{place + 1}"] = [classes[k] for k in best.indices[:, place].tolist()]
        found[f"probability_{place + 1}"] = [f"{p:.6f}" for p in best.values[:, place].tolist()]
    if config.probabilities:
        columns = zip(classes, chances.T.tolist(), strict=True)
        found |= {f"p({name})": [f"{p:.6f}" for p in column] for name, column in columns}
    return found


def write_beside(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows with the same keys as CSV.

    Returns:
        The file: `path`, or with -2, -3 ... where there are other predictions of this name, which stay.
    """
    content, first = csv_bytes(rows), path
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        if not path.exists() or (path.is_file() and path.read_bytes() == content):
            break
        path = first.with_name(f"{first.stem}-{number}.csv")
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path
