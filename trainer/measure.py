"""The eval and predict commands: what a trained model is worth, and what it says about pictures."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import build, commands, data, device, engine, report, state
from trainer.config import GROUPS, Config
from trainer.data.batches import eval_batch_size, normalizer
from trainer.data.pictures import PictureError, list_pictures, read_picture
from trainer.data.splits import Splits
from trainer.utils import checkpoint, runs
from trainer.utils.errors import ConfigError
from trainer.utils.runtime import Machine
from trainer.utils.screen import Screen, shown, table

OF_THE_CUT = ("data.val_fraction", "data.split_seed", "data.limit")
HAS_EFFECT = ("checkpoint", "input", "split", "plots", "data", "device", "paths.", "impl", "model.impl", "loss.impl")


@dataclass(frozen=True)
class Trained:
    """A model as a checkpoint holds it, ready to be used."""

    model: nn.Module
    machine: Machine
    classes: tuple[str, ...]
    in_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    content: Mapping[str, Any]
    path: Path
    folder: Path  # where results go


def load(config: Config, command: str, screen: Screen) -> Trained:
    """The model of checkpoint=, on the device that the config asks for.

    Raises:
        ConfigError: the file is missing or damaged, or a setting was typed that this command does not know.
    """
    for key in ("resume", "resume_allow", "init_from", "input" if command == "eval" else "split"):
        if key in config.typed:
            raise ConfigError(f"{key}= is not for {command}.")
    for key in config.typed:
        if key in GROUPS and not key.startswith(HAS_EFFECT):
            raise ConfigError(f"{key}=: the {key} comes from the checkpoint. What may change: data=, device=.")
        if key in OF_THE_CUT and config.split != "test":
            raise ConfigError(f"{key}=: which examples are in split={config.split} comes from the checkpoint.")
        if not key.startswith(HAS_EFFECT) or key in (*OF_THE_CUT, "data.normalize", "data.augment"):
            screen.say(f"warning: {key} has no effect on {command}")
    assert config.checkpoint is not None
    path = commands.file_of(config, config.checkpoint)
    content = checkpoint.read(path)
    state.check_architecture(config, content, path)
    config, machine = device.settle(config)
    arch, preprocess = content["arch"], content["preprocess"]
    in_shape = tuple(arch["in_shape"])
    model = build.build_model(config.model, config.impl, in_shape, arch["num_outputs"])
    model = state.place(model, machine)  # first, so that fp64 weights are not rounded on the way
    checkpoint.load_model(model, checkpoint.weights_to_use(content), path)
    by = config.impls()["model"]
    screen.say(f"{config.model.name} from {path} on {machine.device}{f', impl={by}' if by != 'concise' else ''}")
    name = content["config"]["name"]
    runs.check_writable(Path(config.paths.outputs))
    own = path.parent.resolve() == (Path(config.paths.checkpoints) / name).resolve()
    return Trained(
        model,
        machine,
        tuple(content["classes"]),
        in_shape,
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
        content,
        path,
        Path(config.paths.outputs) / (name if own else f"eval-{path.stem}"),
    )


def measure(config: Config, trained: Trained, split_name: str) -> tuple[Splits, engine.Evaluation]:
    """Read the data and evaluate one of its splits, normalised as in training."""
    splits = replace(data.load(config.data, config.paths), mean=trained.mean, std=trained.std)
    state.check_fits(dict(trained.content), splits, trained.path)
    split = getattr(splits, split_name)
    if not len(split):
        raise ConfigError(
            f"split={split_name}: data={config.data.name} has no such examples. Allowed: split=test, train."
        )
    batches = state.eval_batches(config, splits, split, trained.machine)
    loss_fn = build.build_loss(config.loss, config.impl)
    totals = engine.Totals(trained.machine.device, is_sum=build.is_sum(config.loss))
    return splits, state.measure(trained.model, loss_fn, batches, totals, trained.machine)


def evaluate(config: Config) -> None:
    """Print loss, accuracy and per-class figures of a split, and write them to eval-<data>-<split>.json."""
    screen = Screen()
    trained = load(config, "eval", screen)
    splits, evaluation = measure(config, trained, config.split)
    trained.folder.mkdir(parents=True, exist_ok=True)
    stem = f"eval-{config.data.name}-{config.split}"
    figures: dict[str, Any] = {
        "checkpoint": str(trained.path),
        "data": config.data.name,
        "split": config.split,
        "n": len(evaluation.labels),
        "loss": evaluation.loss,
        "accuracy": evaluation.accuracy,
    }
    accuracy = f"accuracy {evaluation.accuracy:.4f}, " if evaluation.accuracy is not None else ""
    screen.say(f"{config.split}: {accuracy}loss {shown(evaluation.loss)} on {len(evaluation.labels):,} examples")
    if splits.task == "classification":
        figures |= classify(splits, evaluation, build.has_sigmoids(config.loss), screen)
        if config.plots:
            from trainer.utils import plots  # matplotlib takes 0.4 s

            picture = trained.folder / "plots" / f"{stem}-confusion.png"
            plots.confusion(torch.tensor(figures["confusion"]), splits.classes, picture)
            screen.say(f"picture  {picture}")
    runs.write_json(trained.folder / f"{stem}.json", report.without_none(figures))
    screen.say(f"written  {trained.folder / f'{stem}.json'}")


def classify(splits: Splits, evaluation: engine.Evaluation, sigmoids: bool, screen: Screen) -> dict[str, Any]:
    """Per-class precision, recall and F1, confusion matrix, top-5 and calibration error, printed and as plain data."""
    from trainer.utils import metrics

    found = metrics.classification_report(evaluation.outputs, evaluation.labels, sigmoids=sigmoids)
    columns = zip(splits.classes, found.precision, found.recall, found.f1, found.confusion.sum(1).tolist(), strict=True)
    rows = [dict(zip(("class", "precision", "recall", "f1", "n"), values, strict=True)) for values in columns]
    screen.say(table(rows))
    top5 = f"top-5 accuracy {found.top5_accuracy:.4f}, " if found.top5_accuracy is not None else ""
    screen.say(f"{top5}macro F1 {found.macro_f1:.4f}, calibration error {found.calibration_error:.4f} (ECE, 15 bins)")
    return {
        "top5_accuracy": found.top5_accuracy,
        "macro_f1": found.macro_f1,
        "calibration_error": found.calibration_error,
        "classes": rows,
        "confusion": found.confusion.tolist(),
    }


def predict(config: Config) -> None:
    """Label the pictures of input=, or the test split; writes predictions.csv and predictions.png.

    Raises:
        ConfigError: at the end, if some pictures could not be read; the others are labelled all the same.
    """
    screen = Screen()
    trained = load(config, "predict", screen)
    if not trained.classes:
        raise ConfigError(f"{trained.path} predicts numbers, not classes: predict is for pictures; eval measures it.")
    if config.input is None:
        splits, evaluation = measure(config, trained, "test")
        names = [str(i) for i in range(len(evaluation.labels))]
        write_predictions(trained, names, build.probabilities(config.loss, evaluation.outputs), evaluation.labels)
        if config.plots:
            report.grid(splits, splits.test, evaluation.outputs, trained.folder / "predictions.png")
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
    best = probabilities[: report.NUM_PICTURES].max(1)
    texts = [f"{trained.classes[k]}  {p:.0%}" for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    for name, text in zip(names, texts, strict=False):
        screen.say(f"{name}  {text}")
    if config.plots:
        from trainer.utils import plots  # matplotlib takes 0.4 s

        plots.prediction_grid(torch.stack(shown), texts, None, trained.folder / "predictions.png")
    return unreadable


def read_pictures(target: Path, in_shape: Sequence[int], read: list[Path], unreadable: list[str]) -> Iterator[Tensor]:
    """The pictures of a file or folder as (C, H, W) uint8; notes which were read, and which not and why."""
    channels, height, width = in_shape
    for path in list_pictures(target) if target.is_dir() else [target]:
        try:
            picture = read_picture(path, channels=channels, height=height, width=width)
        except PictureError as error:
            unreadable.append(f"{os.fsencode(path).decode('utf-8', 'backslashreplace')}: {error}")
        else:
            read.append(path)
            yield picture


def inputs(trained: Trained, pictures: Iterator[Tensor], shown: list[Tensor]) -> Iterator[Tensor]:
    """Batches of normalised pictures on the device; keeps the first ones in `shown`."""
    normalize = normalizer(trained.mean, trained.std, state.placement(trained.machine))
    while batch := list(itertools.islice(pictures, eval_batch_size(trained.in_shape))):
        shown += batch[: report.NUM_PICTURES - len(shown)]
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
    runs.write_csv(trained.folder / "predictions.csv", rows)
