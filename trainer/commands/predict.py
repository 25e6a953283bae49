"""The predict command: what a trained model says about images."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainer import build, engine
from trainer.commands.evaluate import Trained, evaluate_data, load_trained
from trainer.config.schema import Config
from trainer.data.batches import eval_batch_size, normalizer
from trainer.data.images import ImageError, list_images, read_image
from trainer.run.parts import placement
from trainer.run.result import NUM_PICTURES, grid
from trainer.run.target import Target
from trainer.utils.errors import ConfigError
from trainer.utils.files import write_csv
from trainer.utils.screen import Screen


def run_predict(config: Config, target: Target) -> None:
    """Label the pictures of input=, or the test split; writes predictions.csv and predictions.png.

    Raises:
        ConfigError: at the end, if some pictures could not be read; the others are labelled all the same.
    """
    screen = Screen()
    trained = load_trained(config, target, screen)
    if not trained.classes:
        raise ConfigError(f"{trained.path} predicts numbers, not classes: predict is for pictures; eval measures it.")
    if config.input is None:
        splits, evaluation = evaluate_data(config, trained, "test")
        names = [str(i) for i in range(len(evaluation.labels))]
        write_predictions(trained, names, build.probabilities(config.loss, evaluation.outputs), evaluation.labels)
        if config.plots:
            grid(splits, splits.test, evaluation.outputs, trained.folder / "predictions.png")
        unreadable: list[str] = []
    else:
        unreadable = predict_files(config, trained, screen)
    screen.say(f"written  {trained.folder / 'predictions.csv'}")
    if config.plots:
        screen.say(f"picture  {trained.folder / 'predictions.png'}")
    if unreadable:
        raise ConfigError(
            f"{len(unreadable)} files could not be read, the others are labelled:\n  " + "\n  ".join(unreadable)
        )


def predict_files(config: Config, trained: Trained, screen: Screen) -> list[str]:
    """Label the file or the files below the folder input=; returns what could not be read, with the reasons."""
    assert config.input is not None
    target = Path(config.input)
    if not target.exists():
        raise ConfigError(f"input={target}: there is no such file or folder.")
    read: list[Path] = []
    unreadable: list[str] = []
    shown: list[Tensor] = []  # the first pictures, for the grid
    pictures = read_pictures(target, trained.in_shape, read, unreadable)
    outputs = engine.predict(trained.model, inputs(trained, pictures, shown), trained.machine.autocast)
    if not read:
        raise ConfigError(f"input={target}: no picture could be read.\n  " + "\n  ".join(unreadable))
    names = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in read]  # a name may be any bytes
    probabilities = build.probabilities(config.loss, outputs)
    write_predictions(trained, names, probabilities, None)
    best = probabilities[:NUM_PICTURES].max(1)
    texts = [f"{trained.classes[k]}  {p:.0%}" for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    for name, text in zip(names, texts, strict=False):
        screen.say(f"{name}  {text}")
    if config.plots:
        from trainer.plots import run as plots  # matplotlib takes 0.4 s

        plots.prediction_grid(torch.stack(shown), texts, None, trained.folder / "predictions.png")
    return unreadable


def read_pictures(target: Path, in_shape: Sequence[int], read: list[Path], unreadable: list[str]) -> Iterator[Tensor]:
    """The pictures of a file or folder as (C, H, W) uint8; notes which were read, and which not and why."""
    channels, height, width = in_shape
    for path in list_images(target) if target.is_dir() else [target]:
        try:
            picture = read_image(path, channels=channels, height=height, width=width)
        except ImageError as error:
            unreadable.append(f"{os.fsencode(path).decode('utf-8', 'backslashreplace')}: {error}")
        else:
            read.append(path)
            yield picture


def inputs(trained: Trained, pictures: Iterator[Tensor], shown: list[Tensor]) -> Iterator[Tensor]:
    """Batches of normalised pictures on the device; keeps the first ones in `shown`."""
    normalize = normalizer(trained.mean, trained.std, placement(trained.machine))
    while batch := list(itertools.islice(pictures, eval_batch_size(trained.in_shape))):
        shown += batch[: NUM_PICTURES - len(shown)]
        yield normalize(torch.stack(batch).to(trained.machine.device))


def write_predictions(trained: Trained, names: list[str], probabilities: Tensor, labels: Tensor | None) -> None:
    """predictions.csv: input, label, class, probability, and the true label where it is known."""
    trained.folder.mkdir(parents=True, exist_ok=True)
    best = probabilities.max(1)
    true = labels.tolist() if labels is not None else [""] * len(names)
    rows = [
        {"input": name, "label": k, "class": trained.classes[k], "probability": f"{p:.6f}", "true_label": t}
        for name, k, p, t in zip(names, best.indices.tolist(), best.values.tolist(), true, strict=True)
    ]
    write_csv(trained.folder / "predictions.csv", rows)
