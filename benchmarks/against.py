"""The tasks that compare main.py with other ways to train the same model: books, Lightning, floats, a bare loop."""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from benchmarks.processes import Measured, folders, in_turn, loop, options, product_of, run
from benchmarks.report import Section, at_least, number, spread, verdict
from benchmarks.tasks import TASKS

SAME = ("device.precision=fp32", "device.channels_last=false", "device.matmul=torch")  # what the bare loop uses
STEP_BUDGET, EPOCH_BUDGET = 20e-6, 5e-3  # seconds that main.py may add to the bare loop


def compare(name: str, args: argparse.Namespace) -> Section:
    """Compare main.py with the books, Lightning, a loader over floats and the bare loop."""
    task, words = TASKS[name], options(args)
    variants: dict[str, Callable[[], Measured]] = {
        "main.py": partial(product_of, task, folders(args, task)),
        "books w0": partial(loop, "benchmarks.loops books", name, task.slow_epochs, *words),
        "books w2": partial(loop, "benchmarks.loops books", name, task.slow_epochs, "--workers=2", *words),
        "Lightning w0": partial(loop, "benchmarks.lightning_way", name, task.slow_epochs, *words),
        "loader": partial(loop, "benchmarks.loops loader", name, task.fast_epochs, *words),
        "bare": partial(loop, "benchmarks.loops bare", name, task.fast_epochs, *words),
    }
    if args.lightning_w2:
        variants["Lightning w2"] = partial(
            loop, "benchmarks.lightning_way", name, task.slow_epochs, "--workers=2", *words
        )
    found = in_turn(variants, args.rounds or task.rounds)
    own = statistics.median(m.seconds for m in found["main.py"])
    rows = []
    for variant, measured in found.items():
        ratio = statistics.median(m.seconds for m in measured) / own
        judged = at_least(ratio, task.goals.get(variant))
        accuracy = f"{measured[-1].accuracy:.3f} ({measured[-1].epochs})"
        rows.append([variant, *spread([m.seconds for m in measured]), number(ratio), *judged, accuracy])
    header = ("variant", "s per epoch", "all", "/ main.py", "goal", "", "test accuracy (epochs)")
    sizes = f"An epoch trains on {task.num_train:,} images and evaluates {task.num_eval:,}."
    remarks = [f"{sizes} Lightning {version('lightning')}."]
    if task.augment != "none":
        remarks.append("loader and bare do not augment.")
    return Section(name, task.title, header, rows, remarks)


def template(name: str, args: argparse.Namespace) -> Section:
    """Compare on lightning-hydra-template's default experiment, per epoch and as a whole command."""
    task = TASKS[name]
    few, many = task.product_epochs
    script = ["-m", "benchmarks.lightning_way", f"--task={name}", *options(args)]

    def by_lightning() -> Measured:
        short, long = (run([*script, f"--epochs={epochs}"]) for epochs in (few, many))
        return Measured((long.seconds - short.seconds) / (many - few), long.result["accuracy"], many, long)

    variants: dict[str, Callable[[], Measured]] = {
        "main.py": partial(product_of, task, folders(args, task)),
        "Lightning w0": by_lightning,
    }
    found = in_turn(variants, args.rounds or task.rounds)
    rows = []
    for what, seconds in (("per epoch", lambda m: m.seconds), ("whole command", lambda m: m.whole.seconds)):
        own, other = ([seconds(m) for m in found[variant]] for variant in variants)
        ratio = statistics.median(other) / statistics.median(own)
        judged = (number(ratio), *at_least(ratio, task.goals[what]))
        rows.append([f"main.py, {what}", *spread(own), "", "", "", f"{found['main.py'][-1].accuracy:.3f}"])
        rows.append([f"Lightning, {what}", *spread(other), *judged, f"{found['Lightning w0'][-1].accuracy:.3f}"])
    header = ("variant", "s", "all", "/ main.py", "goal", "", "test accuracy")
    return Section(name, f"{task.title}, {many} epochs", header, rows, [f"Lightning {version('lightning')}."])


def overhead(name: str, args: argparse.Namespace) -> Section:
    """Measure what main.py adds to the bare loop."""
    rows = []
    for model in ("softmax", "mlp", "lenet"):
        task = TASKS[model]
        words = folders(args, task)
        variants: dict[str, Callable[[], Measured]] = {
            "bare": partial(loop, "benchmarks.loops bare", model, task.fast_epochs, *options(args)),
            "main.py, same arithmetic": partial(product_of, task, [*words, *SAME]),
            "main.py, defaults": partial(product_of, task, words),
        }
        found = in_turn(variants, args.rounds or 2)
        medians = {variant: statistics.median(m.seconds for m in measured) for variant, measured in found.items()}
        budget = STEP_BUDGET * task.steps + EPOCH_BUDGET
        for variant, measured in found.items():
            more, judged = medians[variant] - medians["bare"], ["", "", "", ""]
            if variant != "bare":
                judged[:2] = [number(more * 1000), number(more / task.steps * 1e6)]
            if variant == "main.py, same arithmetic":
                judged[2:] = [f"<= {number(budget * 1000)}", verdict(more <= budget)]
            rows.append([f"{model}: {variant}", *spread([m.seconds for m in measured]), *judged])
    header = ("variant", "s per epoch", "all", "over bare, ms", "us a step", "budget, ms", "")
    title = "Over the bare loop per epoch, training and evaluation; the budget is 20 us a step and 5 ms an epoch"
    return Section(name, title, header, rows)


def resnet34(name: str, args: argparse.Namespace) -> Section:
    """Compare images per second of a large model, whose time is all arithmetic."""
    task = TASKS[name]
    program = ["-m", "benchmarks.probes", "train", f"--train={task.num_train}", "--test=128", "cifar10"]
    words = folders(args, task)
    words += ["device.channels_last=true"]
    variants: dict[str, Callable[[], Measured]] = {
        "main.py, bf16, channels last": partial(product_of, task, [*words, "device.precision=bf16"], program),
        "main.py, fp32, channels last": partial(product_of, task, [*words, "device.precision=fp32"], program),
        "books w0": partial(loop, "benchmarks.loops books", name, task.slow_epochs, *options(args)),
    }
    found = in_turn(variants, args.rounds or task.rounds)
    rates = {variant: [task.num_train / m.seconds for m in measured] for variant, measured in found.items()}
    best = statistics.median(rates["main.py, bf16, channels last"])
    rows = []
    for variant, values in rates.items():
        ratio = best / statistics.median(values)
        rows.append([variant, *spread(values), number(ratio), *at_least(ratio, task.goals.get(variant))])
    header = ("variant", "images/s", "all", "bf16 main.py is faster by", "goal", "")
    return Section(name, task.title, header, rows, [f"An epoch of {task.num_train:,} images."])
