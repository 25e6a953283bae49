"""The predict command on tables: the rows of a file with what the model says of each, or those of the test split."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import build
from trainer.commands.evaluate import Trained, count_look, evaluate_data
from trainer.commands.outputs import further_columns, inputs_of, label_rows, place_of, write_beside
from trainer.config.schema import Config
from trainer.data.columns import Cells, Encoding, cells_of, encode, numbers_of
from trainer.data.given import columns_given
from trainer.data.table import few_names
from trainer.data.table_file import Table, read_table
from trainer.data.table_target import number_name
from trainer.run import directory
from trainer.run.tables import figures_of_numbers, own_outputs, said_of_numbers
from trainer.utils.errors import ConfigError
from trainer.utils.screen import Screen
from trainer.utils.text import number_of, one_line

SHOWN_ROWS = 8


@dataclass(frozen=True)
class Answers:
    """What a model says of N rows.

    Attributes:
        said: (N,) the class or the number, as text.
        chances: (N,) the probability of that class; none for numbers.
        values: (N,) float64, the numbers; the classes' places.
        rows: (N,) the number of each row in its file.
        further: columns that top_k= and probabilities= add.
    """

    said: Sequence[str]
    chances: Sequence[float]
    values: Tensor
    rows: Sequence[str]
    further: Mapping[str, Sequence[str]] = field(default_factory=dict)


def predict_table(config: Config, trained: Trained, table: Encoding, screen: Screen) -> None:
    """Write the rows of the files of input= with a prediction each, or the test split's, to a CSV file.

    Raises:
        ConfigError: a file cannot be read, or two of them have other columns.
    """
    directory.check_writable(Path(config.paths.outputs))
    path = place_of(config, trained)
    if targets := inputs_of(config):
        rows, answers, truth = predict_files_of(targets, config, trained, table, screen)
    else:
        rows, answers, truth = predict_test_rows(config, trained, table, screen)
    for i in range(min(len(answers.said), SHOWN_ROWS)):
        chance = f"  {answers.chances[i]:.0%}" if answers.chances else ""
        screen.say(f"row {answers.rows[i]}  {one_line(table.target, 60)}  {one_line(answers.said[i], 100)}{chance}")
    if len(answers.said) > SHOWN_ROWS:
        screen.say(f"and {len(answers.said) - SHOWN_ROWS:,} more in the CSV file")
    screen.say(*said_of_truth(table, answers, truth))
    path = write_beside(path, rows)
    screen.say(f"written  {path}")
    known = torch.from_numpy(numbers_of(truth)[0]).isfinite()
    if config.plots and not table.classes and known.any():
        from trainer.plots import table as plots  # matplotlib takes 0.4 s

        true = torch.from_numpy(numbers_of(truth)[0])[known]
        plots.predicted_over_true(answers.values[known], true, table.target, path.with_suffix(".png"))
        screen.say(f"plot     {path.with_suffix('.png')}")
    elif config.plots is True:
        screen.say("no plot: there is one where a number is predicted and the true one is known")


def predict_files_of(
    targets: Sequence[str], config: Config, trained: Trained, table: Encoding, screen: Screen
) -> tuple[list[dict[str, Any]], Answers, Cells]:
    """The rows of some files as they are to be written, what the model says of them, and their targets as far as known.

    Raises:
        ConfigError: as predict_table.
    """
    files = [read_table(Path(target), "input") for target in targets]
    for file in files[1:]:
        if list(file.columns) != list(files[0].columns):
            said = f"input={file.path} has other columns than {files[0].path}, or in another order"
            raise ConfigError(f"{said}: predict them one by one.")
    outputs = [label_file(trained, table, file, screen) for file in files]
    numbers = [str(i + 1) for file in files for i in range(len(file))]
    answers = answers_of(config, table, torch.cat(outputs), numbers)
    own: dict[str, Sequence[str]] = {"prediction": answers.said}
    if answers.chances:
        own["probability"] = [f"{p:.6f}" for p in answers.chances]
        own |= answers.further
    columns: dict[str, Sequence[str]] = {}
    if len(files) > 1:
        columns["input"] = [str(file.path) for file in files for _ in range(len(file))]
    taken = {*files[0].columns}
    columns = {free_name(name, taken): texts for name, texts in columns.items()}
    columns |= {name: [text for file in files for text in file.columns[name]] for name in files[0].columns}
    columns |= {free_name(name, taken): texts for name, texts in own.items()}
    truth = cells_of(columns[table.target]) if table.target in taken else [None] * len(answers.said)
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return rows, answers, truth


def label_file(trained: Trained, table: Encoding, file: Table, screen: Screen) -> Tensor:
    """The outputs (N, K) for the rows of a file; what is odd about its columns is said."""
    x, notes = inputs_of_rows(table, file.columns, len(file), f"input={file.path}")
    screen.say(*(f"warning: {file.path}: {note}" for note in notes))
    return label_rows(trained, x.double())


def inputs_of_rows(table: Encoding, texts: Mapping[str, Sequence[str]], n: int, what: str) -> tuple[Tensor, list[str]]:
    """The cells of n rows as inputs (n, D), and what is odd about their columns.

    Raises:
        ConfigError: none of the columns is one that the model was trained on.
    """
    known = {column.name for column in table.columns}
    columns = {name: cells_of(texts[name]) for name in texts if name in known}
    if not columns:
        wanted = few_names([column.name for column in table.columns])
        raise ConfigError(f"{what} has none of the columns that the model was trained on: {wanted}.")
    x, notes = encode(table, columns, range(1, n + 1))
    extra = [name for name in texts if name not in known and name != table.target]
    if extra:
        notes.append(f"not used, since the model was not trained on it: {few_names(extra)}")
    return x, notes


def label_given(trained: Trained, table: Encoding, rows: Any, screen: Screen) -> Tensor:
    """The outputs (N, K) for the path of a file, or columns in memory: a dict or a data frame.

    Raises:
        ConfigError: it is neither, or as read_table.
    """
    if isinstance(rows, (str, os.PathLike)):
        return label_file(trained, table, read_table(Path(rows), "input"), screen)
    columns = columns_given(rows)
    x, notes = inputs_of_rows(table, columns, len(next(iter(columns.values()))), "the table")
    screen.say(*(f"warning: {note}" for note in notes))
    return label_rows(trained, x.double())


def predict_test_rows(
    config: Config, trained: Trained, table: Encoding, screen: Screen
) -> tuple[list[dict[str, Any]], Answers, Cells]:
    """The test split: the number of each row in its file, what the model says of it, and its target."""
    splits, evaluation = evaluate_data(config, trained, "test")
    answers = answers_of(config, table, evaluation.outputs, splits.test.names)
    labels = evaluation.labels
    own = [] if table.classes else own_outputs(table, labels).flatten().tolist()
    truth = [table.classes[k] for k in labels.tolist()] if table.classes else [f"{value:.8g}" for value in own]
    count_look(trained, splits, screen)
    columns: Mapping[str, Sequence[str]] = {"row": splits.test.names, "prediction": answers.said, "true": truth}
    columns = {**columns, **answers.further}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)], answers, truth


def answers_of(config: Config, table: Encoding, outputs: Tensor, rows: Sequence[str]) -> Answers:
    """What the outputs (N, K) of a model say of the rows of these numbers."""
    if not table.classes:
        values = own_outputs(table, outputs)[:, 0]
        return Answers([f"{value:.8g}" for value in values.tolist()], [], values, rows)
    chances = build.probabilities(config.loss, outputs)
    best, further = chances.max(1), further_columns(config, table.classes, chances)
    said = [table.classes[k] for k in best.indices.tolist()]
    return Answers(said, best.values.tolist(), best.indices.cpu(), rows, further)


def free_name(name: str, taken: set[str]) -> str:
    """The name, or with _2, _3 ... where a column has it; it is taken from then on."""
    number, found = 2, name
    while found in taken:
        number, found = number + 1, f"{name}_{number}"
    taken.add(found)
    return found


def said_of_truth(table: Encoding, answers: Answers, truth: Cells) -> list[str]:
    """How good the predictions are, where the target of some rows is known; of cells that it cannot have nothing."""
    if table.classes:
        there = {name: k for k, name in enumerate(table.classes)}
        values, _ = numbers_of(truth)
        names = [
            cell if cell in there or value != value else number_name(value)
            for cell, value in zip(truth, values.tolist(), strict=True)
        ]
        pairs = [(k, there[name]) for k, name in zip(answers.values.tolist(), names, strict=True) if name in there]
        right = sum(k == true for k, true in pairs)
        return [f"accuracy {right / len(pairs):.4f} on {number_of(len(pairs), 'row')}"] if pairs else []
    values, _ = numbers_of(truth)
    known = torch.from_numpy(values).isfinite()
    if not known.any():
        return []
    figures = figures_of_numbers(answers.values[known], torch.from_numpy(values)[known])
    return [f"{said_of_numbers(figures).removesuffix(', ')} on {number_of(int(known.sum()), 'row')}"]
