"""How many steps fit in a time: measured on parts that are thrown away, before the run's own are made."""

import time
from collections.abc import Callable, MutableMapping
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

from torch import nn

from trainer import engine
from trainer.config.duration import in_seconds
from trainer.config.fit import check_fit
from trainer.config.schema import Config
from trainer.data.batches import Batches
from trainer.data.splits import Source
from trainer.run.begin import Begun, make_parts
from trainer.run.checkpoint import pack
from trainer.run.checkpoint_files import write_checkpoint
from trainer.run.machine import Machine
from trainer.run.parts import Parts, eval_batches
from trainer.run.progress import Progress
from trainer.run.target import Target
from trainer.totals import Totals
from trainer.utils.errors import ConfigError, listed
from trainer.utils.ranks import Ranks
from trainer.utils.screen import Screen, SilentScreen

MEASURED, LEAST, MOST = 0.02, 0.5, 30.0  # of the budget is spent on measuring, but at least and at most so many seconds
MOST_EPOCHS = 100_000  # as config/ranges.py allows
SAVES, RECORDS = 2, 1.5  # checkpoints that are written to measure; the end of an epoch takes 1.5 times as long as one
SPARE, ENDS = 0.02, 5.0  # of the budget is left for whatever else happens, and so many seconds for start, plots, report


def without_void(config: Config, target: Target | None, screen: Screen) -> Config:
    """The config of a new run without the budget of an experiment, where epochs or max_steps were typed.

    Before the run is looked up, so that the same command continues it.
    """
    typed = sorted({"epochs", "max_steps"} & set(config.typed))
    if target is not None or config.budget is None or not typed:
        return config
    screen.say(f"{typed[0]} was typed, so that budget={config.budget} is left out")
    config = replace(config, budget=None)
    check_fit(config)  # warmup_epochs: now it is known how many there are
    return config


def lay_out(
    config: Config,
    begun: Begun,
    machine: Machine,
    ranks: Ranks,
    screen: Screen,
    sources: MutableMapping[str, Source] | None,
) -> Config:
    """The config with the epochs and max_steps that its budget allows here; as it is where there is nothing to choose.

    A run that is resumed keeps what was chosen at its first start, see begin.

    Raises:
        ConfigError: the time is too short.
    """
    if config.budget is None or config.max_steps is not None or config.fast_dev_run or begun.path:
        return config
    began, budget = time.monotonic(), float(in_seconds(config.budget))
    read = {} if sources is None else sources
    parts, progress = make_parts(config, begun, machine, ranks, SilentScreen(), sources=read)
    sizes, per_epoch = tuple(config.data.options.get("first_sizes", ())), len(parts.train)
    first = {size: epoch for epoch, size in reversed([*enumerate((*sizes, 0), 1)])}  # 0 stands for the full size
    of_step = {size: seconds_of_step(parts, epoch, budget / len(first)) for size, epoch in first.items()}
    of_val, of_others = seconds_of_measuring(config, parts, budget)
    of_end = of_val + seconds_of_saving(parts, progress, Path(config.paths.checkpoints, begun.name))
    left = budget * (1 - SPARE) - ENDS - (time.monotonic() - began) - of_others
    steps = 0
    for epoch in range(MOST_EPOCHS):
        now = of_step[sizes[epoch] if epoch < len(sizes) else 0]
        fitting = max(0, int((left - of_end) / now))
        steps += min(fitting, per_epoch)
        left -= per_epoch * now + of_end
        if fitting < per_epoch:
            break
    else:
        screen.say(f"budget={config.budget} has time for more than {MOST_EPOCHS:,} epochs, the most there may be")
        budget -= left
    steps, full = ranks.share(steps), per_epoch * of_step[0] + of_end
    if steps < 1:
        beside = f"start and end take {ENDS:g} s, measuring {time.monotonic() - began:,.1f} s"
        raise ConfigError(f"budget={config.budget} is too short: {beside}, an epoch {full:,.1f} s here.")
    today = datetime.now().astimezone()
    done = today + timedelta(seconds=budget - (time.monotonic() - began))
    day = "" if done.date() == today.date() else f" on {done:%Y-%m-%d}"
    smaller = f", and less of smaller images: {listed([str(size) for size in sizes])} pixels" if sizes else ""
    screen.say(
        f"budget={config.budget}: {steps:,} steps, which are {steps / per_epoch:.2f} epochs of {full:,.1f} s{smaller}; "
        f"done at about {done:%H:%M:%S}{day}"
    )
    config = replace(config, epochs=-(-steps // per_epoch), max_steps=steps)
    check_fit(config)
    if (config.finetune.unfreeze_epoch or 0) > config.epochs:
        screen.say(f"warning: finetune.unfreeze_epoch has no effect: training ends with epoch {config.epochs}")
    return config


def seconds_of_step(parts: Parts, epoch: int, budget: float) -> float:
    """The time of a training step, reading and augmenting included, on images of the size that an epoch has."""

    def train(count: int) -> Totals:
        done = 0
        while True:
            totals = parts.totals()
            with closing(parts.train.epoch(epoch)) as batches:
                for done in parts.steps(batches, done, totals):  # noqa: B020
                    if done == count:
                        return totals

    return seconds_of_each(train, parts.ranks, budget)


def seconds_of_measuring(config: Config, parts: Parts, budget: float) -> tuple[float, float]:
    """The time of a validation, and of what is done once: the test, and the features of a frozen backbone."""

    def of_example(model: nn.Module, batches: Batches) -> float:
        def measure(count: int) -> Totals:
            totals = parts.totals()
            with closing(batches.epoch(0)) as examples:
                engine.evaluate(model, parts.loss_fn, islice(examples, count), totals, parts.machine.autocast)
            return totals

        of_batch = len(batches.y) / len(batches)  # examples; a small split is no full batch
        return seconds_of_each(measure, parts.ranks, budget, most=len(batches)) / of_batch

    splits, num_val = parts.splits, len(parts.splits.val)
    images = eval_batches(config, splits, splits.val if num_val else splits.train, parts.machine, parts.ranks)
    whole = of_example(parts.model, images)
    if parts.last is None:
        return num_val * whole, len(splits.test) * whole
    of_val = num_val * of_example(parts.last, parts.val) if parts.val is not None else 0.0
    return of_val, (len(splits.train) + num_val + len(splits.test)) * whole


def seconds_of_saving(parts: Parts, progress: Progress, folder: Path) -> float:
    """The time that the end of an epoch takes beside validation: a checkpoint is written, then records and screen."""
    path = folder / ".tmp-budget"  # such a name is removed where a killed process left it

    def save() -> None:
        content = pack(parts, progress)
        with parts.ranks.together():
            if parts.ranks.is_first:
                write_checkpoint(path, content)

    try:
        save()  # not counted: it makes the folder
        began = time.monotonic()
        for _ in range(SAVES):
            save()
        return RECORDS * (time.monotonic() - began) / SAVES
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # of a new run, which may be refused yet


def seconds_of_each(work: Callable[[int], Totals], ranks: Ranks, budget: float, most: int = 1 << 20) -> float:
    """The time of one of the steps that work(count) does, from counts that double until it is long enough to tell."""
    enough = min(MOST, max(LEAST, MEASURED * budget)) / 2
    float(work(1).loss_sum)  # not counted: it compiles, starts workers, reserves memory
    count = 1
    while True:
        began = time.perf_counter()
        float(work(count).loss_sum)  # waits for a GPU
        taken = time.perf_counter() - began
        if any(ranks.highest(taken > enough or 2 * count > most)):  # of several processes the slowest decides
            return taken / count
        count *= 2
