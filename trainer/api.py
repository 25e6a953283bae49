"""What a Python program or a notebook uses: train() and load().

A call becomes the words of a command line and runs what main.py runs for them, so that the numbers are the same to the
last bit. It leaves the process as it found it.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.start import prepare, run_one
from trainer.config.command_line import Command, parse_command
from trainer.config.options import CONFIGS
from trainer.config.plugins import as_word, typed_in
from trainer.config.schema import Config
from trainer.run import directory, folders
from trainer.run.plugged import plugged
from trainer.utils.errors import ConfigError
from trainer.utils.quotes import is_odd, quote
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal, handlers_kept
from trainer.utils.text import number_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from trainer.commands.evaluate import Trained
    from trainer.data.images import Picture

OF_FILES = ("input", "output", "plots")  # settings of the predict command that say what it reads and writes
Overrides = Mapping[str, Any] | Sequence[str]
ONE_AT_A_TIME = (
    threading.RLock()
)  # threads, generators and the command line are the process's: calls wait for each other


@dataclass(frozen=True)
class Prediction:
    """What a model says of N images or rows; arrays of NumPy.

    Attributes:
        names: the path of each file; for what was in memory its number.
        outputs: (N, K) float64, as the module gives them: a score for each class, or the values of a regression.
        labels: (N,) names of the most probable classes; None for a regression, as the next two.
        indices: (N,) int64, their places in `Model.classes`.
        probabilities: (N, K) float64, of each class; with a loss on sigmoids each by itself, so that no row adds to 1.
    """

    names: list[str] = field(repr=False)
    outputs: "np.ndarray"
    labels: "np.ndarray | None" = None
    indices: "np.ndarray | None" = None
    probabilities: "np.ndarray | None" = None


@dataclass(frozen=True, repr=False)
class Model:
    """A trained model with the preprocessing of its training; load() makes one.

    Attributes:
        module: the torch module in eval mode; its inputs are normalised: (x / 255 - mean) / std for images.
        classes: names of the classes; empty for a regression.
        in_shape: (C, H, W) of the images that the module takes, or (D,) for rows of D numbers.
    """

    config: Config
    trained: "Trained"

    def __repr__(self) -> str:
        return f"<{self.config.model.name} of {self.trained.path}: {self.in_shape} -> {self.classes or 'numbers'}>"

    @property
    def module(self) -> "nn.Module":
        """The torch module."""
        return self.trained.model

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.trained.classes

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.trained.in_shape

    def predict(self, inputs: Any) -> Prediction:
        """Classes and probabilities of images, as `python main.py predict` gives them, or the values of a regression.

        Args:
            inputs: the path of an image or a folder, a PIL image, a uint8 array or tensor (H, W) or (H, W, C), a batch
                (N, H, W, C), or a list of these; for a model of rows, numbers (N, D); for one of a table, the path of
                a file, {column: cells} or a data frame.
        Raises:
            ConfigError: it is none of these, or an image cannot be read.
        """
        from trainer import build
        from trainer.data.given import names_of
        from trainer.run.failures import explaining
        from trainer.run.machine import resolve_auto

        with folders.explained({}), as_the_program(["predict"]), explaining(self.config):
            resolve_auto(self.config)  # sets threads and the like as they were for load()
            outputs, names = self.outputs_of(inputs)
            plain = outputs.cpu().double().numpy()
            if not self.classes:
                return Prediction(names, plain)
            chances = build.probabilities(self.config.loss, outputs)
            best = chances.max(1).indices
            return Prediction(names, plain, names_of(self.classes, best), best.cpu().numpy(), chances.cpu().numpy())

    def outputs_of(self, inputs: Any) -> "tuple[Tensor, list[str]]":
        """What the module gives for what predict() was given (N, K), and what each of it is called."""
        from trainer.commands.outputs import label_rows
        from trainer.commands.predict import frame_of, label_pictures
        from trainer.commands.predict_table import label_given
        from trainer.data.given import rows_given
        from trainer.run.tables import own_outputs

        if self.trained.table is not None:
            found = label_given(self.trained, self.trained.table, inputs, Screen())
            return own_outputs(self.trained.table, found), [str(i) for i in range(len(found))]
        if len(self.in_shape) == 1:
            rows = rows_given(inputs, *self.in_shape)
            return label_rows(self.trained, rows), [str(i) for i in range(len(rows))]
        pictures = self.pictures(inputs)
        labelled = label_pictures(self.trained, pictures, frame_of(self.config, self.trained), Screen())
        if not pictures:
            raise ConfigError("there is no image in what predict() was given.")
        if labelled.unreadable:
            number = f"{len(labelled.unreadable)} of {number_of(len(pictures), 'image')} could not be read"
            raise ConfigError(number, *(f"  {reason}" for reason in labelled.unreadable))
        return labelled.outputs, [str(one) if isinstance(one, Path) else str(i) for i, one in enumerate(pictures)]

    def pictures(self, images: Any) -> "list[Picture]":
        """What predict() was given, one by one: files below a folder, images of a batch."""
        from trainer.commands.predict import files_of
        from trainer.data.given import images_given

        if isinstance(images, (list, tuple)):
            return [picture for image in images for picture in self.pictures(image)]
        if isinstance(images, (str, os.PathLike)):
            return list(files_of([os.fspath(images)], Screen()))
        return images_given(images, self.in_shape[0])


@dataclass(frozen=True)
class TrainedRun:
    """A run that train() trained.

    Attributes:
        name: of the run, as in `python main.py eval NAME`.
        outputs: the folder that has outputs/<run>, and likewise checkpoints.
        result: the content of result.json.
        metrics: the lines of metrics.jsonl, one for each epoch.
    """

    name: str
    outputs: str
    checkpoints: str
    result: dict[str, Any]
    metrics: list[dict[str, Any]] = field(repr=False)
    plugins: Sequence[str] = field(default=(), repr=False)  # files that brought choices

    def load(self, overrides: Overrides = ()) -> Model:
        """The model with the weights of its best epoch."""
        words = words_of(overrides)
        words += [as_word(self.plugins)] if self.plugins and not typed_in(words) else []
        return load(self.name, words, outputs=self.outputs, checkpoints=self.checkpoints)


def train(overrides: Overrides = (), **more: Any) -> TrainedRun:
    """Train a model, as `python main.py` does with the same words: the same files, the same weights to the last bit.

    Args:
        overrides: settings, as {"model": "lenet", "optimizer.lr": 0.1} or ["model=lenet", "optimizer.lr=0.1"].
        more: settings without a dot in their names: epochs=2.
    Raises:
        TrainerError: what the command line would print; ConfigError for what it would refuse.
        Interrupted: a KeyboardInterrupt: the run is saved, and resume=NAME continues it.
    """
    words = [*words_of(overrides), *words_of(more)]
    with folders.explained({}), as_the_program(words) as stop:
        command = command_of("train", words)
        with folders.explained(command.folders):
            name = run_one(command, stop)
    assert name is not None, "train has a run"
    outputs, checkpoints = (os.path.abspath(command.folders[kind]) for kind in ("outputs", "checkpoints"))
    run = directory.locate(name, outputs=outputs, checkpoints=checkpoints)
    result, metrics = directory.read_result(run.outputs) or {}, directory.read_metrics(run.outputs)
    return TrainedRun(name, outputs, checkpoints, result, metrics, typed_in(words))


def load(
    run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    overrides: Overrides = (),
    *,
    outputs: str | os.PathLike[str] | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
) -> Model:
    """The model of a run or a checkpoint file, as `python main.py predict` loads it.

    Args:
        run: a run's name, `name:best`, `name:last`, `last`, `SWEEP:best`, or the path of a file; of a
            list of them: the mean of their probabilities.
        overrides: settings of predict, such as {"device": "cpu"}.
        outputs: the folder of the runs' files, where it is not `outputs`.
        checkpoints: the folder of their checkpoints, where it is not `checkpoints`.
    Raises:
        ConfigError: there is no such run or file, or it cannot be used.
    """
    from trainer.commands.evaluate import load_trained
    from trainer.run.failures import explaining

    paths = {"paths.outputs": outputs, "paths.checkpoints": checkpoints}
    words = words_of({"checkpoint": run} | {key: path for key, path in paths.items() if path is not None})
    words += words_of(overrides)
    with folders.explained({}), as_the_program(["predict", *words]) as stop:
        command = command_of("predict", words)
        if odd := [key for key in OF_FILES if key in command.values]:
            raise ConfigError(f"{odd[0]}= is for the command line: predict() of what load() returns takes the images.")
        with folders.explained(command.folders):
            prepared, screen = prepare(command, stop), Screen()
        assert prepared is not None
        assert prepared.target is not None
        screen.say(*prepared.lines)
        with folders.explained(command.folders), explaining(prepared.config):
            return Model(prepared.config, load_trained(prepared.config, prepared.target, screen))


def command_of(verb: str, words: Sequence[str]) -> Command:
    """The command of these words.

    Raises:
        ConfigError: they are refused, or are several runs.
    """
    command = parse_command([verb, *words])
    if command.multirun or command.flags:
        what = "Sweeps and --cfg are for the command line: call train() once for each value"
        raise ConfigError(f"{' '.join(words)}: train() trains one run, and load() opens one. {what}.")
    return command


def words_of(overrides: Overrides) -> list[str]:
    """Settings as the words of a command line.

    Raises:
        ConfigError: a value is a dict.
    """
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Mapping):
        return list(map(str, overrides))
    return [f"{key}={as_typed(value, key)}" for key, value in overrides.items()]


def as_typed(value: Any, key: str) -> str:
    """A value as it is typed."""
    if isinstance(value, Mapping):
        raise ConfigError(f'{key}={value} is not allowed. Write each setting in it with a dot: "{key}.NAME": VALUE.')
    if isinstance(value, (list, tuple)):
        items = (quote(item) if isinstance(item, str) and is_odd(item) else as_typed(item, key) for item in value)
        return f"[{','.join(items)}]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value)


@contextmanager
def as_the_program(words: Sequence[str]) -> Iterator[StopSignal]:
    """Let what is inside run as `python main.py <words>` does, and leave the process as it was found."""
    from trainer.run.machine import as_in_a_new_process, settings_kept
    from trainer.run.seeds import generators_kept

    with ONE_AT_A_TIME, handlers_kept(), settings_kept(), as_in_a_new_process(), generators_kept():
        before, hook = (sys.argv, sys.orig_argv), threading.excepthook
        script = CONFIGS.parent / "main.py"
        typed = [script.name if Path.cwd() == script.parent else str(script), *words]
        # there is none where Python runs inside another program
        sys.argv, sys.orig_argv = typed, [*(sys.orig_argv[:1] or [sys.executable]), *typed]
        try:
            with StopSignal() as stop, plugged(words):
                yield stop
        finally:
            (sys.argv, sys.orig_argv), threading.excepthook = before, hook
