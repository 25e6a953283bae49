"""What a finished run leaves behind for people: result.json, plots, and the last lines on the screen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from trainer import build
from trainer.config.options import flatten
from trainer.config.schema import Config
from trainer.data.batches import Batches
from trainer.data.splits import Split, Splits
from trainer.data.stratify import mixed
from trainer.engine import Evaluation
from trainer.run import directory
from trainer.run.brief import REPORT
from trainer.run.directory import Run, command_for
from trainer.run.distributed import gathered
from trainer.run.loggers import where_to_look
from trainer.run.parts import Parts
from trainer.run.progress import Progress
from trainer.run.recorder import Recorder
from trainer.run.records import MAX_WEIGHTS
from trainer.run.session import Session
from trainer.run.tables import FIGURES_OF_NUMBERS, coefficients_of, draw_table, figures_of, formula_of, said_of_numbers
from trainer.utils.files import write_csv
from trainer.utils.metrics import classification_report
from trainer.utils.objective import OF_CLASSES, rating, said
from trainer.utils.program import tensorboard
from trainer.utils.screen import Screen, shown
from trainer.utils.text import number_of, one_line

NUM_IMAGES = 32  # in a grid
LONG_RUN = 20  # epochs


def result_of(config: Config, parts: Parts, progress: Progress, run: Run, test: Evaluation) -> dict[str, Any]:
    """The content of result.json; the model holds the best weights."""
    rows, of_numbers = directory.read_metrics(run.outputs), figures_of(parts.splits.table, test)
    result: dict[str, Any] = {
        "run": run.name,
        "status": "done",
        "epochs": progress.epoch - 1,  # not from metrics.jsonl, whose last lines a power cut may have taken
        "seconds": sum(row["seconds"] for row in rows),
        "num_parameters": sum(p.numel() for p in parts.model.parameters()),  # also those of a frozen backbone
        "best": without_none({key: progress.best[key] for key in ("epoch", "val_loss", "val_accuracy")}),
        "objective": {"metric": progress.best["metric"], "value": progress.best["value"]},
        "test": without_none({"loss": test.loss, "accuracy": test.accuracy, "n": len(test.labels)}) | of_numbers,
    }
    if progress.stopped:
        result["stopped"] = progress.stopped
    if config.fast_dev_run:
        result["fast_dev_run"] = True  # its figures are of one batch: nobody compares them
    if config.model.name == "linreg":
        result |= fitted(parts.measured)
        if (table := parts.splits.table) is not None:
            result |= coefficients_of(table, parts.measured) | {"target": table.target}
    if rows and (verdict := verdict_of(config, result, rows[-1])):
        result["reference"] = verdict
    return result


def fitted(model: torch.nn.Module) -> dict[str, Any]:
    """The numbers of a linear regression: `weight`, all of them, and `bias`, one or several."""
    weights = model.state_dict()
    bias = weights["linear.bias"].tolist()
    return {"weight": weights["linear.weight"].flatten().tolist(), "bias": bias[0] if len(bias) == 1 else bias}


def note_gradients(config: Config, model: torch.nn.Module, progress: Progress) -> None:
    """Note the length of each parameter's gradient as the last step left it, with record.gradients.

    In the checkpoint, since a run that continues after an epoch's last step does no step that makes gradients.
    """
    named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    if config.record.gradients and named:
        progress.gradient_norms = {name: torch.linalg.vector_norm(grad).item() for name, grad in named}


def monitored(config: Config, parts: Parts, val: Evaluation | None) -> dict[str, Any]:
    """What monitor= adds to the line of an epoch: its name, and what it needs beyond loss and accuracy."""
    if config.monitor == "auto" or val is None or parts.val is None:
        return {}
    found: dict[str, Any] = {"monitor": config.monitor}
    if config.monitor in OF_CLASSES:
        whole = gathered(parts, parts.val, val)
        report = classification_report(whole.outputs, whole.labels)
        found |= {"val_macro_f1": report.macro_f1, "val_balanced_accuracy": report.balanced_accuracy}
    return found


def looks_inside(config: Config, parts: Parts, progress: Progress, val: Evaluation | None) -> dict[str, Any]:
    """What settings add to the line of an epoch, and what plots are drawn from.

    These are the figures of monitor=, the gradients' lengths, and the numbers of a small linear model.
    """
    found = monitored(config, parts, val)
    if config.record.gradients:
        found["gradient_norms"] = progress.gradient_norms
    if config.model.name == "linreg" and build.parameter_count(parts.model) <= MAX_WEIGHTS + 1:
        line = fitted(parts.measured)
        if isinstance(line["bias"], float):  # else it has several outputs
            found |= {f"w{i + 1}": w for i, w in enumerate(line["weight"])} | {"b": line["bias"]}
    return found


def verdict_of(config: Config, result: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """What a run comes to beside the published figure; {} where there is none, or the run has no such figure.

    Args:
        config: names the figure.
        result: of result.json so far.
        last: the line of metrics.jsonl of the last epoch.
    """
    reference, test = config.reference, result["test"]
    figures = {"test_accuracy": test.get("accuracy"), "test_loss": test["loss"], "train_loss": last["train_loss"]}
    figures |= {f"test_{key}": test.get(key) for key in FIGURES_OF_NUMBERS}
    if has_known_law(config):
        figures["weight_error"] = weight_error(config, result)
    yours = figures.get(str(reference.metric))
    if yours is None or config.fast_dev_run:
        return {}
    assert reference.metric is not None
    assert reference.value is not None  # config/fit.py sees to it
    word = rating(reference.metric, yours, reference.value, reference.tolerance)
    return asdict(reference) | {"yours": yours, "n": 1, "verdict": word}


def without_none(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that there are: regression has no accuracy, a run without validation no val_loss."""
    return {key: value for key, value in figures.items() if value is not None}


def has_known_law(config: Config) -> bool:
    """Whether the true weights are known."""
    return config.model.name == "linreg" and config.data.name == "synthetic"


def weight_error(config: Config, result: Mapping[str, Any]) -> float:
    """The largest distance of a recovered weight or bias from the true one; linreg on synthetic data only."""
    true = [*config.data["w"], config.data["b"]]
    found = [*result["weight"], result["bias"]]
    return max(abs(a - b) for a, b in zip(true, found, strict=True))


def say_result(screen: Screen, config: Config, run: Run, result: Mapping[str, Any]) -> None:
    """The test figures, the published figure where there is one, and what to type next."""
    test = result["test"]
    accuracy = f"accuracy {test['accuracy']:.4f}, " if "accuracy" in test else said_of_numbers(test)
    epoch = f"the weights of epoch {result['best']['epoch']}"
    screen.say(f"test: {accuracy}loss {shown(test['loss'])} on {number_of(test['n'], 'example')}, with {epoch}")
    if "coefficients" in result:
        screen.say(formula_of(result["target"], result))
    if has_known_law(config):
        found = ", ".join(f"{w:.4f}" for w in result["weight"])
        true = ", ".join(f"{w:g}" for w in config.data["w"])
        screen.say(f"w = [{found}], b = {result['bias']:.4f} (true: [{true}], {config.data['b']:g})")
    if config.fast_dev_run:
        screen.say("fast_dev_run: everything runs. The figures are of one batch, and no result.")
    elif "reference" in result:
        screen.say(said(result["reference"]))
    screen.say(f"checkpoint   {run.checkpoints / 'best.pt'}")
    screen.say(f"eval         {command_for(config, 'eval checkpoint')}")
    if "accuracy" in test or config.data.name == "table":
        screen.say(f"predict      {command_for(config, 'predict checkpoint')}")
    if (report := run.outputs / REPORT).is_file():
        screen.say(f"report       {report}")
    if "tensorboard" in config.logger:
        screen.say(f"tensorboard  {tensorboard(run.outputs)}")
    for line in where_to_look(config.logger, config.paths.outputs, run.outputs):
        screen.say(line)


def leave_pictures(
    config: Config, parts: Parts, progress: Progress, run: Run, test: Evaluation, recorder: Recorder, screen: Screen
) -> None:
    """The plots and the report that the settings ask for; without a report a run is as good."""
    if config.plots:
        few = config.plots == "auto" and run.is_job
        draw_run(config, parts, progress, run, test, recorder, few=few)
    report = run.outputs / REPORT
    is_there = report.is_file()  # of before the run was continued: it would tell old figures
    if config.report is True or (config.report and (is_there or (config.plots and not run.is_job))):
        try:
            from trainer.run.report.of_run import Made, write_report

            write_report(run, Made(config, parts, progress, test))
        except Exception as error:
            screen.say(f"warning: without {REPORT}: {str(error) or type(error).__name__}")
    elif is_there:
        report.unlink()


def draw_run(
    config: Config,
    parts: Parts,
    progress: Progress,
    run: Run,
    test: Evaluation,
    recorder: Recorder,
    *,
    few: bool = False,
) -> None:
    """The plots of a run, as PNG files and in TensorBoard; the model holds the best weights.

    Args:
        few: only the curves, which take a tenth of the time of all.
    """
    from trainer.plots import line  # matplotlib takes 0.4 s
    from trainer.plots import run as plots

    folder, splits = run.outputs / "plots", parts.splits
    rows = directory.read_metrics(run.outputs)
    names = ["lr"]
    if rows:  # a power cut may have taken them
        plots.curves(rows, folder / "curves.png", best_epoch=progress.best["epoch"])
        names.insert(0, "curves")
        if lengths := [row for row in rows if "gradient_norms" in row]:
            plots.gradients(lengths, folder / "gradients.png")
            names.append("gradients")
    steps = range(0, progress.step, max(1, progress.step // 1000))
    rates = [(step, parts.lr_at(step)) for step in steps]
    plots.learning_rate(rates, folder / "lr.png")
    write_csv(folder / "lr.csv", [{"step": step, "lr": lr} for step, lr in rates])
    if splits.task == "classification" and not few:
        confusion = classification_report(test.outputs, test.labels).confusion
        plots.confusion(confusion, splits.classes, folder / "confusion.png")
        names.append("confusion")
    if splits.task == "classification" and len(splits.in_shape) == 3 and not few:  # images
        chances = build.probabilities(config.loss, test.outputs)
        grid(splits, splits.test, chances, mixed(splits.test.y, NUM_IMAGES), folder / "predictions.png")
        names.append("predictions")
        if len(wrong := most_confident_mistakes(chances, test.labels)):
            grid(splits, splits.test, chances, wrong, folder / "wrong.png", "the most confident mistakes: ")
            names.append("wrong")
        if parts.last is None:  # else it sees no images
            first_batch(splits, parts.train, folder / "batch.png")
            names.append("batch")
    if splits.table is not None and splits.task == "regression" and not few:
        found = coefficients_of(splits.table, parts.measured) if config.model.name == "linreg" else None
        names += draw_table(splits.table, test, found, folder)
    is_line = config.model.name == "linreg" and isinstance(splits.test.x, Tensor) and splits.num_outputs == 1
    if is_line and splits.table is None and not few:
        weights = parts.measured.state_dict()
        weight, bias = weights["linear.weight"].flatten().tolist(), weights["linear.bias"].tolist()[0]
        assert isinstance(splits.test.x, Tensor)
        earlier = [(row["w1"], row["b"]) for row in rows if len(weight) == 1 and "b" in row]
        line.fit(splits.test.x, splits.test.y, weight, bias, folder / "fit.png", earlier)
        names.append("fit")
    for name in names:
        recorder.image(name, folder / f"{name}.png", progress.step)


def most_confident_mistakes(chances: Tensor, labels: Tensor) -> Tensor:
    """The wrong predictions with the highest probability, highest first: up to NUM_IMAGES int64 indices."""
    best = chances.max(1)
    wrong = (best.indices != labels).nonzero().squeeze(1)
    return wrong[best.values[wrong].argsort(descending=True, stable=True)][:NUM_IMAGES].cpu()


def grid(splits: Splits, split: Split, chances: Tensor, rows: Tensor, path: Path, what: str = "") -> None:
    """Some images of a split with the true class, the predicted one and its probability."""
    from trainer.plots import run as plots

    shown, best = split.take(rows), chances[rows.to(chances.device)].max(1)
    predicted, true = best.indices.tolist(), shown.y.tolist()
    titles = [
        plots.caption(splits.classes[k], p, true=splits.classes[t], name=PurePath(name).name)
        for k, p, t, name in zip(predicted, best.values.tolist(), true, shown.names or [""] * len(true), strict=True)
    ]
    wrong = [t != k for t, k in zip(true, predicted, strict=True)]
    file = "file, " if shown.names else ""
    heading = f"{what}{file}true class / predicted class and its probability, red where they differ"
    plots.prediction_grid(first(shown), titles, wrong, path, heading=heading)


def first_batch(splits: Splits, batches: Batches, path: Path) -> None:
    """The first images of the first epoch as the model sees them, with their classes."""
    from trainer.plots import run as plots

    x, y = next(iter(batches.epoch(1, whole=True)))
    shown = x[:NUM_IMAGES].float().cpu()
    mean, std = (torch.tensor(values)[:, None, None] for values in (splits.mean, splits.std))
    pixels = ((shown * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    titles = [title_of(splits.classes, label) for label in y[:NUM_IMAGES].cpu()]
    plots.prediction_grid(pixels, titles, None, path, heading="the first batch as the model sees it: true class")


def title_of(classes: Sequence[str], label: Tensor) -> str:
    """The class of a label, 0-d int64, or the shares of classes (K,) that a mixed image is of."""
    if not label.ndim:
        return one_line(classes[int(label)])
    best = label.topk(min(2, len(label)))
    shares = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ", ".join(f"{one_line(classes[k])} {share:.0%}" for k, share in shares if share > 0)


def first(split: Split) -> Tensor:
    """The first images of a split as (M, C, H, W) uint8."""
    n = min(NUM_IMAGES, len(split))
    return split.x[:n].cpu() if isinstance(split.x, Tensor) else torch.stack([split.x[i] for i in range(n)])


def hyperparameters(config: Config) -> dict[str, Any]:
    """The settings that TensorBoard lists: group choices and options, seed, epochs, batch size."""
    plain = config.to_dict()
    chosen = flatten({group: plain[group] for group in ("data", "model", "loss", "optimizer", "schedule")})
    return plain["choices"] | {k: plain[k] for k in ("seed", "epochs", "batch_size", "impl")} | chosen


def record_state(s: Session, val: Evaluation | None, epoch: int) -> None:
    """What TensorBoard shows of the weights, after the last epoch, and in a long run after each quarter.

    Histograms, where record.histograms_every does not say otherwise, and precision over recall of each class. These
    not of several processes, each of which has a part of the examples; for 6,000 of 10 classes they take 8 ms.
    """
    quarters = {s.config.epochs * k // 4 for k in (1, 2, 3)} if s.config.epochs >= LONG_RUN else set()
    due, every = epoch in quarters or not s.has_epochs_left, s.config.record.histograms_every
    if s.recorder.writer is None:
        return
    if due if every is None else every and epoch % every == 0:
        s.recorder.histograms(s.parts.model, s.progress.step)
    if due and val is not None and val.accuracy is not None and s.parts.ranks.world == 1:
        chances = build.probabilities(s.config.loss, val.outputs)
        s.recorder.curves(s.parts.splits.classes, chances, val.labels, s.progress.step)
