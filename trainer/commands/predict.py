"""The predict command: what a trained model says about images."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer import build, engine
from trainer.commands.evaluate import Trained, count_look, evaluate_data, load_trained
from trainer.commands.outputs import further_columns, inputs_of, place_of, write_beside
from trainer.commands.predict_table import predict_table
from trainer.config.schema import Config
from trainer.data.augment import centered
from trainer.data.batches import eval_batch_size, normalizer
from trainer.data.images import (
    MEGAPIXELS,
    Frame,
    ImageError,
    Picture,
    Seen,
    losses,
    mixed_floats,
    read_image,
)
from trainer.data.listing import IMAGE_SUFFIXES, walk
from trainer.data.pictures import each_decoded
from trainer.data.stratify import mixed
from trainer.run import directory
from trainer.run.parts import placement
from trainer.run.ready import option_of, stored_of
from trainer.run.result import NUM_IMAGES, grid
from trainer.run.target import Target
from trainer.utils.bar import Bar
from trainer.utils.errors import ConfigError, listed
from trainer.utils.metrics import classification_report
from trainer.utils.screen import Screen, shown
from trainer.utils.text import number_of, one_line


@dataclass(frozen=True)
class Labelled:
    """Image files, or images in memory, after they went through the model."""

    pictures: list[Picture]  # those that could be read
    outputs: Tensor  # (N, K), of all of them
    unreadable: list[str]  # the others, each with the reason


def run_predict(config: Config, target: Target) -> None:
    """Label the images of input=, or the test split; writes a CSV file and a plot beside it.

    Raises:
        ConfigError: at the end, if some images could not be read; the others are labelled all the same.
    """
    screen = Screen()
    trained = load_trained(config, target, screen)
    if trained.table is not None:
        predict_table(config, trained, trained.table, screen)
        return
    if not trained.classes:
        raise ConfigError(f"{trained.path} predicts numbers, not classes, and of no table: eval measures it.")
    if (has_rows := len(trained.in_shape) == 1) and config.input is not None:
        advice = "Leave it out to label the test split, or label rows from Python: trainer.load(RUN).predict(rows)."
        raise ConfigError(f"input= is for images, and {trained.path} takes rows of numbers. {advice}")
    directory.check_writable(Path(config.paths.outputs))
    label = predict_split if config.input is None else predict_files
    path, unreadable = label(config, trained, place_of(config, trained), screen)
    screen.say(f"written  {path}")
    if config.plots and not has_rows:
        screen.say(f"plot     {path.with_suffix('.png')}")
    if unreadable:
        said = f"{number_of(len(unreadable), 'file')} could not be read, the others are labelled:"
        raise ConfigError(said, *(f"  {reason}" for reason in unreadable))


def predict_split(config: Config, trained: Trained, path: Path, screen: Screen) -> tuple[Path, list[str]]:
    """Label the test split; returns the file that was written and what could not be read, which is nothing."""
    splits, evaluation = evaluate_data(config, trained, "test")
    root = config.data.options.get("root") or ""
    names = [one_line(os.path.join(root, name)) for name in splits.test.names]
    names = names or [str(i) for i in range(len(evaluation.labels))]  # rows of a set that is not made of files
    chances = build.probabilities(config.loss, evaluation.outputs)
    path = write_predictions(path, config, trained.classes, names, chances, evaluation.labels.tolist())
    rows = mixed(splits.test.y, NUM_IMAGES)
    say_predictions(trained, names, chances, evaluation.labels.tolist(), rows.tolist(), screen)
    figures = f"accuracy {evaluation.accuracy:.4f}, loss {shown(evaluation.loss)}"
    screen.say(f"test: {figures} on {number_of(len(names), 'example')}")
    count_look(trained, splits, screen)
    if config.plots and len(splits.in_shape) == 3:
        grid(splits, splits.test, chances, rows, path.with_suffix(".png"))
    return path, []


def predict_files(config: Config, trained: Trained, path: Path, screen: Screen) -> tuple[Path, list[str]]:
    """Label the file or the files below input=; returns the file that was written and what could not be read.

    Where all files lie in folders named after classes, as in a data set, the true classes are known.
    """
    below = files_of(targets := inputs_of(config), screen)
    frame = frame_of(config, trained)
    found = label_pictures(trained, list(below), frame, screen)
    paths = [path for path in found.pictures if isinstance(path, Path)]
    if not paths:
        raise ConfigError(
            f"input={listed(targets)}: no image could be read.", *(f"  {reason}" for reason in found.unreadable)
        )
    names = [one_line(path) for path in paths]
    chances = build.probabilities(config.loss, found.outputs)
    labels = labels_of_folders([below[path] for path in paths], trained.classes)
    path = write_predictions(path, config, trained.classes, names, chances, labels or [""] * len(names))
    rows = list(range(len(names)))
    if len(rows) > NUM_IMAGES:  # evenly over the classes
        rows = sorted(mixed(torch.tensor(labels) if labels else chances.argmax(1).cpu(), NUM_IMAGES).tolist())
    say_predictions(trained, names, chances, labels, rows, screen)
    if labels:
        right = sum(k == t for k, t in zip(chances.argmax(1).tolist(), labels, strict=True))
        screen.say(
            f"accuracy {right / len(labels):.4f} on {number_of(len(labels), 'image')}: their folders name the classes"
        )
    if config.plots:
        draw_files(trained, paths, chances, labels, rows, frame, path.with_suffix(".png"))
        if labels:
            draw_confusion(trained, chances, labels, path.with_name(f"{path.stem}-confusion.png"), screen)
    return path, found.unreadable


def files_of(targets: Sequence[str], screen: Screen) -> dict[Path, Path]:
    """{image: its way from the folder that was named} of files and folders.

    Raises:
        ConfigError: one of them is not there, or a folder without an image.
    """
    below: dict[Path, Path] = {}
    for target in targets:
        if not os.path.exists(target):
            quotes = " A name with spaces needs quotes." if len(targets) > 1 else ""
            raise ConfigError(f"input={target}: there is no such file or folder.{quotes}")
        below |= images_of(Path(target), screen)
    return below


def frame_of(config: Config, trained: Trained) -> Frame:
    """What an image is decoded to: as in the training, but for what was typed."""
    depth = config.data.options.get("depth", 16)
    depth = trained.content["preprocess"].get("depth", 16) if depth == "auto" else depth
    limit = config.data.options.get("max_megapixels", MEGAPIXELS)
    size = stored_of(trained.content)
    return Frame(
        (trained.in_shape[0], size, size),
        depth,
        option_of(trained.content, "fit"),
        limit,
        option_of(trained.content, "interpolation"),
    )


def images_of(target: Path, screen: Screen) -> dict[Path, Path]:
    """{image: its way from the folder that was named} of a file or folder.

    Raises:
        ConfigError: there is no image in it.
    """
    if not target.is_dir():
        return {target: Path()}
    inside = walk(target)
    ignored = f" ({number_of(inside.num_others, 'other file')} ignored)" if inside.num_others else ""
    if not inside.images:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(f"input={target}: no images below this folder{ignored}. Allowed: {suffixes}.")
    screen.say(f"{number_of(len(inside.images), 'image')} below {target}{ignored}")
    return {target / name: Path(name) for name, _ in inside.images}


def labels_of_folders(names: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """Return the label of each file by the first folder on its way that is named after a class; [] if one has none."""
    numbers = {name: k for k, name in enumerate(classes)}
    labels = [next((numbers[part] for part in name.parts[:-1] if part in numbers), -1) for name in names]
    return [] if -1 in labels else labels


def say_predictions(
    trained: Trained, names: list[str], chances: Tensor, labels: list[int], rows: list[int], screen: Screen
) -> None:
    """Print the predictions of some rows, and how many more there are."""
    best = chances.max(1)
    for i in rows:
        k, wrong = int(best.indices[i]), ""
        if labels and labels[i] != k:
            wrong = f"  wrong: {trained.classes[labels[i]]}"
        screen.say(f"{names[i]}  {trained.classes[k]}  {float(best.values[i]):.0%}{wrong}")
    if len(rows) < len(names):
        screen.say(f"and {len(names) - len(rows):,} more in the CSV file")


def draw_files(
    trained: Trained, paths: list[Path], chances: Tensor, labels: list[int], rows: list[int], frame: Frame, path: Path
) -> None:
    """Draw some files, which are read once more: all of them may need more memory than there is."""
    from trainer.plots import run as plots  # matplotlib takes 0.4 s

    best = chances.max(1)
    images, titles, wrong = [], [], []
    for i in rows:
        try:
            images.append(read_image(paths[i], frame))
        except ImageError:  # gone since it was labelled
            continue
        k = int(best.indices[i])
        true = trained.classes[labels[i]] if labels else None
        name = one_line(paths[i].name)
        titles.append(plots.caption(trained.classes[k], float(best.values[i]), true=true, name=name))
        wrong.append(bool(labels) and labels[i] != k)
    heading = "predicted class and its probability"
    if labels:
        heading = f"true class / {heading}, red where they differ"
    if images:
        plots.prediction_grid(torch.stack(images), titles, wrong, path, heading=f"file, {heading}")


def draw_confusion(trained: Trained, chances: Tensor, labels: list[int], path: Path, screen: Screen) -> None:
    """Draw which class was taken for which, where folders name the true ones."""
    from trainer.plots import run as plots  # matplotlib takes 0.4 s

    report = classification_report(chances.log(), torch.tensor(labels))
    plots.confusion(report.confusion, trained.classes, path)
    screen.say(f"macro F1 {report.macro_f1:.4f}, balanced accuracy {report.balanced_accuracy:.4f}; {path}")


def label_pictures(trained: Trained, pictures: Sequence[Picture], frame: Frame, screen: Screen) -> Labelled:
    """Put images through the model, a batch at a time: a folder may hold more than memory does.

    Args:
        trained: the model, with the preprocessing of its training.
        pictures: image files, and images in memory.
        frame: what they are decoded to.
        screen: is told where the values of the files are not what the model sees.
    """
    normalize = normalizer(trained.mean, trained.std, placement(trained.machine))
    size = eval_batch_size(trained.in_shape)
    found: list[Picture] = []
    outputs: list[Future[Tensor]] = []
    unreadable: list[str] = []
    seen = Seen()

    def outputs_of(batch: list[Tensor]) -> Tensor:
        images = centered(torch.stack(batch), trained.in_shape[1:])
        return engine.predict(trained.model, [normalize(images.to(trained.machine.device))], trained.machine.autocast)

    with (
        Bar("labelling", len(pictures), "images") as bar,
        closing(each_decoded(pictures, frame)) as decoded,
        ThreadPoolExecutor(1) as beside,  # the model labels a batch while the next one is decoded
    ):
        for start in range(0, len(pictures), size):
            batch = []
            # in this order: zip() takes nothing of `decoded` where the part of `pictures` has ended
            for picture, result in zip(pictures[start : start + size], decoded, strict=False):
                bar.add(1)
                if isinstance(result, str):
                    unreadable.append(f"{one_line(picture)}: {result}")
                    continue
                pixels, values = result
                batch.append(pixels)
                found.append(picture)
                seen.add(values, str(picture))
            if batch:
                if outputs:
                    outputs[-1].result()  # two batches are in memory at most
                outputs.append(beside.submit(outputs_of, batch))
    screen.say(*losses(seen, frame.depth))
    if told := mixed_floats(seen):
        screen.say(f"warning: {told}")
    return Labelled(found, torch.cat([batch.result() for batch in outputs]) if outputs else torch.empty(0), unreadable)


def write_predictions(
    path: Path, config: Config, classes: Sequence[str], names: list[str], chances: Tensor, labels: Sequence[int | str]
) -> Path:
    """Write input, label, class, probability, the true label, empty where it is not known, and what was asked for.

    Returns:
        The file: `path`, or with -2, -3 ... where there are other predictions of this name, which stay.
    """
    best = chances.max(1)
    rows = [
        {"input": name, "label": k, "class": classes[k], "probability": f"{p:.6f}", "true_label": t}
        for name, k, p, t in zip(names, best.indices.tolist(), best.values.tolist(), labels, strict=True)
    ]
    further = further_columns(config, classes, chances)
    return write_beside(path, [row | {key: further[key][i] for key in further} for i, row in enumerate(rows)])
