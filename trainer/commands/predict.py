"""The predict command: what a trained model says about images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer import build, engine
from trainer.commands.evaluate import Trained, evaluate_data, load_trained
from trainer.config.schema import Config
from trainer.data.batches import eval_batch_size, normalizer
from trainer.data.images import ImageError, read_image
from trainer.data.listing import walk
from trainer.run.parts import placement
from trainer.run.result import NUM_IMAGES, grid
from trainer.run.target import Target
from trainer.utils.errors import ConfigError
from trainer.utils.files import write_csv
from trainer.utils.screen import Screen


@dataclass(frozen=True)
class Labelled:
    """Image files after they went through the model."""

    names: list[str]  # of the files that could be read, printable
    images: list[Tensor]  # the first NUM_IMAGES of them, each (C, H, W) uint8
    outputs: Tensor  # (N, K), of all of them
    unreadable: list[str]  # the other files, each with the reason


def run_predict(config: Config, target: Target) -> None:
    """Label the images of input=, or the test split; writes predictions.csv and predictions.png.

    Raises:
        ConfigError: at the end, if some images could not be read; the others are labelled all the same.
    """
    screen = Screen()
    trained = load_trained(config, target, screen)
    if not trained.classes:
        raise ConfigError(f"{trained.path} predicts numbers, not classes: predict is for images; eval measures it.")
    unreadable = predict_split(config, trained) if config.input is None else predict_files(config, trained, screen)
    screen.say(f"written  {trained.folder / 'predictions.csv'}")
    if config.plots:
        screen.say(f"plot     {trained.folder / 'predictions.png'}")
    if unreadable:
        raise ConfigError(
            f"{len(unreadable)} files could not be read, the others are labelled:\n  " + "\n  ".join(unreadable)
        )


def predict_split(config: Config, trained: Trained) -> list[str]:
    """Label the test split; returns what could not be read, which is nothing."""
    splits, evaluation = evaluate_data(config, trained, "test")
    names = [str(i) for i in range(len(evaluation.labels))]
    write_predictions(trained, names, build.probabilities(config.loss, evaluation.outputs), evaluation.labels)
    if config.plots:
        grid(splits, splits.test, evaluation.outputs, trained.folder / "predictions.png")
    return []


def predict_files(config: Config, trained: Trained, screen: Screen) -> list[str]:
    """Label the file or the files below the folder input=; returns what could not be read, with the reasons."""
    target = Path(config.input or "")
    if not target.exists():
        raise ConfigError(f"input={target}: there is no such file or folder.")
    inside = walk(target) if target.is_dir() else None
    found = label_files(trained, [target / name for name, _ in inside.images] if inside is not None else [target])
    if not found.names:
        raise ConfigError(f"input={target}: no image could be read.\n  " + "\n  ".join(found.unreadable))
    probabilities = build.probabilities(config.loss, found.outputs)
    write_predictions(trained, found.names, probabilities, None)
    best = probabilities[:NUM_IMAGES].max(1)
    texts = [f"{trained.classes[k]}  {p:.0%}" for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    for name, text in zip(found.names, texts, strict=False):
        screen.say(f"{name}  {text}")
    if config.plots:
        from trainer.plots import run as plots  # matplotlib takes 0.4 s

        plots.prediction_grid(torch.stack(found.images), texts, None, trained.folder / "predictions.png")
    return found.unreadable


def label_files(trained: Trained, paths: Sequence[Path]) -> Labelled:
    """Put image files through the model, a batch at a time: a folder may hold more than memory does."""
    channels, height, width = trained.in_shape
    normalize = normalizer(trained.mean, trained.std, placement(trained.machine))
    size = eval_batch_size(trained.in_shape)
    names: list[str] = []
    images: list[Tensor] = []
    outputs: list[Tensor] = []
    unreadable: list[str] = []
    for start in range(0, len(paths), size):
        batch = []
        for path in paths[start : start + size]:
            name = os.fsencode(path).decode("utf-8", "backslashreplace")  # a name may be any bytes
            try:
                batch.append(read_image(path, channels=channels, height=height, width=width))
                names.append(name)
            except ImageError as error:
                unreadable.append(f"{name}: {error}")
        if batch:
            images += batch[: NUM_IMAGES - len(images)]
            inputs = normalize(torch.stack(batch).to(trained.machine.device))
            outputs.append(engine.predict(trained.model, [inputs], trained.machine.autocast))
    return Labelled(names, images, torch.cat(outputs) if outputs else torch.empty(0), unreadable)


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
