"""The eval command: how good a trained model is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import build, data
from trainer.commands.ensemble import Ensemble, Mirrored, others_of
from trainer.config.fit import shape_of
from trainer.config.options import origin_of
from trainer.config.ranges import as_yaml
from trainer.config.schema import FITTED, Choice, Config
from trainer.data.columns import Encoding, from_plain
from trainer.data.splits import Splits
from trainer.engine import Evaluation
from trainer.run import directory
from trainer.run.checkpoint import check_architecture, check_fits, check_shape, load_model
from trainer.run.looks import looks_of, note_look
from trainer.run.machine import Machine, resolve_auto
from trainer.run.parts import eval_batches, evaluate_split, place
from trainer.run.ready import option_of
from trainer.run.result import without_none
from trainer.run.safe_load import weights_to_use
from trainer.run.shapes import check_outputs, check_targets
from trainer.run.tables import draw_table, figures_of, said_of_numbers
from trainer.run.target import Target
from trainer.totals import Totals
from trainer.utils.errors import ConfigError, listed
from trainer.utils.files import write_json
from trainer.utils.screen import Screen, shown, table
from trainer.utils.text import emit, number_of

CUT_OF_TRAINING = ("val_fraction", "split_seed", "limit")  # options that decide what is in train and val


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
    others: Mapping[Path, Mapping[str, Any]]  # further files whose models are in it too, and their contents
    other_folders: Sequence[Path]  # where results of these go
    table: Encoding | None = None  # how the rows of a table become inputs


def load_trained(config: Config, target: Target, screen: Screen) -> Trained:
    """The model of checkpoint=, on the device that the config asks for.

    Raises:
        ConfigError: the file is missing or damaged, or does not fit the model.
    """
    path, content = target.read()
    check_architecture(config, content, path)
    config, machine = resolve_auto(config)
    arch, preprocess = content["arch"], content["preprocess"]
    in_shape = tuple(arch["in_shape"])
    model = build.build_model(config.model, config.impl, in_shape, arch["num_outputs"])
    model = place(model, machine)  # first, so that fp64 weights are not rounded on the way
    load_model(model, weights_to_use(content), path)
    if origin_of("model", config.model.name):  # it may have changed since
        with torch.inference_mode(), machine.autocast():
            x = torch.zeros(2, *in_shape, device=machine.device, dtype=machine.dtype)
            check_outputs(config, model.eval(), x, arch["num_outputs"])
    if config.tta == "flip" and len(in_shape) != 3:
        raise ConfigError(f"tta=flip is for images, and {path} takes rows of {in_shape[0]} numbers.")
    others = others_of(config, path, content, machine)
    models = [model, *(other for other, _, _ in others.values())]
    models = [Mirrored(each) for each in models] if config.tta == "flip" else models
    if others:
        classes = bool(content["classes"])
        models = [Ensemble(models, sigmoids=build.has_sigmoids(config.loss), classes=classes)]
        screen.say(f"the mean of {len(others) + 1} models: {listed([str(each) for each in (path, *others)])}")
    by = config.impls()["model"]
    screen.say(f"{config.model.name} from {path} on {machine.device}{f', impl={by}' if by != 'concise' else ''}")
    return Trained(
        models[0],
        machine,
        tuple(content["classes"]),
        in_shape,
        tuple(preprocess["mean"]),
        tuple(preprocess["std"]),
        content,
        path,
        target.results(path, config.paths.outputs),
        {path: content for path, (_, content, _) in others.items()},
        [folder for _, _, folder in others.values()],
        from_plain(content["table"], content["classes"]) if "table" in content else None,
    )


def evaluate_data(config: Config, trained: Trained, split_name: str) -> tuple[Splits, Evaluation]:
    """Read the data and evaluate one of its splits, normalised as in training."""
    choice = prepared_as_trained(config, trained)
    splits = replace(data.load(choice, config.paths, like=trained.content), mean=trained.mean, std=trained.std)
    check_fits(dict(trained.content), splits, trained.path)
    for content in (trained.content, *trained.others.values()):
        check_cut(config, content, splits, split_name)
    check_targets(config, splits, "The model was trained with this loss: name data with such targets.")
    split = getattr(splits, split_name)
    if not len(split):
        raise ConfigError(
            f"split={split_name}: data={config.data.name} has no such examples. Allowed: split=test, train."
        )
    batches = eval_batches(config, splits, split, trained.machine)
    loss_fn = build.build_loss(config.loss, config.impl)
    totals = Totals(trained.machine.device, is_sum=build.is_sum(config.loss))
    return splits, evaluate_split(trained.model, loss_fn, batches, totals, trained.machine)


def prepared_as_trained(config: Config, trained: Trained) -> Choice:
    """The data set to measure on, with its images fitted and, where no size was typed, scaled as in the training.

    Raises:
        ConfigError: its images cannot have the shape of the model's; said before any of them is decoded.
    """
    options = dict(config.data.options)
    if "fit" in options:
        options |= {key: option_of(trained.content, key) for key in ("fit", "interpolation", "augment")}
    if options.get("size", 0) is None:
        options["size"] = trained.in_shape[-1]
    choice = replace(config.data, options=options)
    if (shape := shape_of(choice)) is not None:
        check_shape(trained.content, shape, trained.path, is_folder=choice.name in FITTED)
    return choice


def check_cut(config: Config, content: Mapping[str, Any], splits: Splits, split_name: str) -> None:
    """Refuse to measure images that were trained on as those of another split.

    Args:
        config: what is measured on.
        content: of the checkpoint, whose own data set may have been cut otherwise.
        splits: the data as cut now.
        split_name: which of them is measured.
    Raises:
        ConfigError: it is the data of the training in another cut, or changed so that its cut is no longer known.
    """
    now, before = config.data.options, content["config"].get("data", {})
    test_is_cut = "test_fraction" in now and "test_fraction" not in splits.ignores
    keys = [*(["test_fraction"] if test_is_cut else []), *(CUT_OF_TRAINING if split_name != "test" else [])]
    if content["data"]["sha256"] in (splits.sha256, splits.earlier_sha256):
        odd = [key for key in keys if key in before and now.get(key) != before[key]]
        if odd:
            was = f"data.{odd[0]}={as_yaml(now.get(odd[0]))}: the model was trained with {as_yaml(before[odd[0]])}"
            what = "images" if "root" in now else "examples"
            raise ConfigError(f"{was} on the same {what}. Another cut would measure {what} that it has seen as others.")
    elif keys and now.get("root") and now["root"] == before.get("root"):
        raise ConfigError(
            f"{now['root']} is not what it was in the training, so that nobody knows any more which of its images are "
            f"{split_name}. Name a folder with other images: data.root=FOLDER."
        )
    elif keys and now.get("path") and now["path"] == before.get("path"):
        raise ConfigError(
            f"{now['path']} is not what it was in the training, so that nobody knows any more which of its rows are "
            f"{split_name}. Name a file with other rows: data.test_path=FILE."
        )
    elif origin_of("data", config.data.name) and content["config"].get("choices", {}).get("data") == config.data.name:
        may_be = f"examples of its {split_name} part may be some that were trained on"
        emit(f"warning: data={config.data.name} returns other examples than in the training: {may_be}.")


def run_eval(config: Config, target: Target) -> None:
    """Print loss, accuracy and per-class figures of a split, and write them to eval-<data>-<split>.json."""
    screen = Screen()
    trained = load_trained(config, target, screen)
    directory.check_writable(Path(config.paths.outputs))
    splits, evaluation = evaluate_data(config, trained, config.split)
    trained.folder.mkdir(parents=True, exist_ok=True)
    views = {} if config.tta == "none" else {"tta": config.tta}
    together = [f"mean-of-{len(trained.others) + 1}"] if trained.others else []
    stem = "-".join(["eval", config.data.name, config.split, *views.values(), *together])
    figures: dict[str, Any] = {
        "checkpoint": str(trained.path if trained.folder == target.run.outputs else trained.path.absolute()),
        "ensemble": [str(path) for path in trained.others] or None,
        "data": config.data.name,
        "split": config.split,
        **views,
        "n": len(evaluation.labels),
        "loss": evaluation.loss,
        "accuracy": evaluation.accuracy,
    }
    figures |= figures_of(splits.table, evaluation)
    accuracy = f"accuracy {evaluation.accuracy:.4f}, " if evaluation.accuracy is not None else said_of_numbers(figures)
    screen.say(
        f"{config.split}: {accuracy}loss {shown(evaluation.loss)} on {number_of(len(evaluation.labels), 'example')}"
    )
    if splits.task == "classification":
        figures |= classify(splits, evaluation, build.has_sigmoids(config.loss), screen)
        if config.plots:
            from trainer.plots import run as plots  # matplotlib takes 0.4 s

            plot = trained.folder / "plots" / f"{stem}-confusion.png"
            plots.confusion(torch.tensor(figures["confusion"]), splits.classes, plot)
            screen.say(f"plot     {plot}")
    elif splits.table is not None and config.plots:
        plots_folder = trained.folder / "plots" / stem
        draw_table(splits.table, evaluation, None, plots_folder)
        screen.say(f"plots    {plots_folder}")
    if config.split == "test":
        count_look(trained, splits, screen)
    write_json(trained.folder / f"{stem}.json", without_none(figures))
    screen.say(f"written  {trained.folder / f'{stem}.json'}")


def count_look(trained: Trained, splits: Splits, screen: Screen) -> None:
    """Count that a run's own test split was measured once more, of each run that took part, and say so."""
    runs = dict.fromkeys([trained.folder, *trained.other_folders])
    counts = [note_look(run, splits.sha256) for run in runs if looks_of(run)["sha256"] == splits.sha256]
    if counts:
        count = max(counts)
        screen.say(f"look {count} at this run's test split: choose between runs by their validation figures")


def classify(splits: Splits, evaluation: Evaluation, sigmoids: bool, screen: Screen) -> dict[str, Any]:
    """Per-class precision, recall and F1, confusion matrix, top-5 and calibration error, printed and as plain data."""
    from trainer.utils import metrics

    found = metrics.classification_report(evaluation.outputs, evaluation.labels, sigmoids=sigmoids)
    columns = zip(splits.classes, found.precision, found.recall, found.f1, found.confusion.sum(1).tolist(), strict=True)
    rows = [dict(zip(("class", "precision", "recall", "f1", "n"), values, strict=True)) for values in columns]
    screen.say(*table(rows))
    top5 = f"top-5 accuracy {found.top5_accuracy:.4f}, " if found.top5_accuracy is not None else ""
    screen.say(
        f"{top5}macro F1 {found.macro_f1:.4f}, balanced accuracy {found.balanced_accuracy:.4f}, "
        f"calibration error {found.calibration_error:.4f} (ECE, 15 bins)"
    )
    return {
        "top5_accuracy": found.top5_accuracy,
        "macro_f1": found.macro_f1,
        "balanced_accuracy": found.balanced_accuracy,
        "calibration_error": found.calibration_error,
        "classes": rows,
        "confusion": found.confusion.tolist(),
    }
