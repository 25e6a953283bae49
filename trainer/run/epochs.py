"""The epochs of a run: train, validate, record, save, in this order, until the last one or until told to stop."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from trainer import engine
from trainer.config.schema import Config
from trainer.engine import Evaluation
from trainer.run import directory
from trainer.run.checkpoint import pack
from trainer.run.checkpoint_files import keep_as_best, path_of_step, steps_in, tidy, write_checkpoint
from trainer.run.directory import Run
from trainer.run.parts import Parts, floating
from trainer.run.progress import Progress, advance
from trainer.run.recorder import Recorder
from trainer.totals import Batch, Reading, Totals
from trainer.utils.errors import DivergedError, Interrupted, ResourceError
from trainer.utils.ranks import AgreedStop
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal

MAX_FAILED_SAVES = 3  # in a row; the disk may be full for a while
Reporter = Callable[[int, float], str]  # (epoch, value of the metric that decides) -> why training ends there, or ""
LONG_VALIDATION = 10.0  # seconds: from here on the epoch is saved before it is validated
STEPS_BETWEEN_TALKS = {"cpu": 1, "cuda": 10}  # of several processes: they stop and save on time at such a step


@dataclass
class Session:
    """A run while it trains: what it computes with, how far it is, and where it writes."""

    config: Config
    parts: Parts
    progress: Progress
    run: Run
    recorder: Recorder | None  # None: another rank records
    screen: Screen
    stop: StopSignal | AgreedStop
    started: str  # when, for status.json
    report: Reporter | None = None  # of the sweep that this run is a trial of
    failed_saves: int = 0  # since the last one that worked
    has_saved: bool = False


def train_epochs(s: Session) -> None:
    """The epochs that are left. On a signal: finishes the step, or drops the validation, saves, raises Interrupted.

    Raises:
        DivergedError, ResourceError, Interrupted: the last good checkpoint is whole.
    """
    was_long = 0  # the last validation
    try:
        while s.progress.epoch <= s.config.epochs and not s.progress.stopped:
            with s.stop.held():
                totals = train_one(s)
                if was_long:
                    save_or_warn(s)
            val, began = None, time.monotonic()
            if s.parts.val is not None:
                val = s.parts.measure(s.parts.val, s.stop)
                [was_long] = s.parts.ranks.highest(time.monotonic() - began > LONG_VALIDATION)
            with s.stop.held():
                end_epoch(s, totals, val)
    except Interrupted:
        with s.stop.held():  # a later signal must not end the save
            save_checkpoint(s)
        raise
    if s.failed_saves:
        save_checkpoint(s)
    if s.progress.stopped:
        s.screen.say(f"stopped: {s.progress.stopped}")


def end_epoch(s: Session, totals: Totals, val: Evaluation | None) -> None:
    """Record the epoch, note whether it is the best and whether training stops here, save."""
    if val is not None:
        check_finite(s, val.loss, s.progress.step, s.progress.step)
    row = row_of_epoch(s.parts, s.progress, totals, val)
    with s.parts.ranks.together():
        if s.recorder is not None:
            s.recorder.epoch(row)
            every = s.config.record.histograms_every
            if every and s.progress.epoch % every == 0:
                s.recorder.histograms(s.parts.model, s.progress.step)
            s.progress.waiting = s.recorder.waiting
    advance(s.config, s.progress, row)
    if s.report is not None and not s.progress.stopped:
        with s.parts.ranks.together():
            if s.parts.ranks.is_first:
                s.progress.stopped = s.report(row["epoch"], row[s.progress.best["metric"]])
        s.progress.stopped = s.parts.ranks.share(s.progress.stopped)
    save_or_warn(s)
    s.screen.row(row, s.config.epochs)


def train_one(s: Session) -> Totals:
    """Train the rest of the running epoch; keeps `progress` true at every save and when Interrupted is raised."""
    config, parts, progress = s.config, s.parts, s.progress
    totals = progress.give(parts.totals(), parts.ranks)
    several = parts.ranks.world > 1
    began = time.perf_counter() - progress.seconds
    step = checked = progress.step
    saved_at, saved_step = time.monotonic(), progress.step
    readings: list[Reading] = []  # for TensorBoard
    shown: Reading | None = None  # on the bar
    with closing(parts.train.epoch(progress.epoch, start=progress.samples)) as batches:
        for step in steps_of(config, parts, batches, progress.step, totals):
            if step % config.record.every_steps == 0:
                readings.append(parts.whole(totals).reading(step, time.perf_counter() - began))
                checked = check_readings(s, readings, checked)
            every, seconds = config.save.every_steps, config.save.every_seconds
            late = bool(seconds) and time.monotonic() - saved_at >= seconds
            signum, draw = s.stop.signum, s.screen.due()
            if several:
                signum, late, draw = agree(s, step, signum, late, draw)
            if draw:
                now = parts.whole(totals).reading(step, time.perf_counter() - began)
                draw_bar(s, now if now.has_arrived else shown or now)  # the one before: a GPU is done with it
                shown = now
            if signum or late or (every and step - saved_step >= every):
                checked = check_readings(s, readings, checked, wait=True)
                whole = parts.whole(totals)
                check_finite(s, whole.loss, checked, step)
                progress.take(whole, step, time.perf_counter() - began)
                if signum:
                    raise Interrupted(signum)
                save_or_warn(s)
                saved_at, saved_step, checked = time.monotonic(), step, step
    checked = check_readings(s, readings, checked, wait=True)
    whole = parts.whole(totals)
    check_finite(s, whole.loss, checked, step)
    progress.take(whole, step, time.perf_counter() - began)
    return whole


def agree(s: Session, step: int, signum: int, late: bool, draw: bool) -> tuple[int, bool, bool]:
    """What all ranks do after a step: stop for a signal that one of them got, save and draw the bar as rank 0 says."""
    if step % STEPS_BETWEEN_TALKS[s.parts.machine.device.type]:
        return 0, False, False
    ranks = s.parts.ranks
    signum, save_now, draw_now = ranks.highest(signum, late and ranks.is_first, draw)
    return signum, bool(save_now), bool(draw_now)


def steps_of(config: Config, parts: Parts, batches: Iterable[Batch], step: int, totals: Totals) -> Iterator[int]:
    """engine.train_epoch on a run's parts, as its config says; `step` counts the updates done before."""
    return engine.train_epoch(
        parts.model if parts.distributed is None else parts.distributed,
        parts.loss_fn,
        parts.optimizer,
        batches,
        lr_at=parts.lr_at,
        step=step,
        totals=totals,
        autocast=parts.machine.autocast,
        accumulate_steps=config.accumulate_steps,
        clip_norm=config.clip_norm,
        scaler=parts.scaler,
        ema=parts.ema,
        world=parts.ranks.world,
        sizes=None if parts.ranks.world == 1 else parts.train.sizes(totals.num_examples),
    )


def check_readings(s: Session, readings: list[Reading], checked: int, *, wait: bool = False) -> int:
    """Check and record the readings that have arrived, or all of them; returns the last step that was checked."""
    several = s.parts.ranks.world > 1
    while readings:
        # several ranks have to look at the same ones, whatever their GPUs are at: not at the newest
        arrived = len(readings) > 1 if several and readings[0].arrived is not None else readings[0].has_arrived
        if not (wait or arrived):
            break
        reading = readings.pop(0)
        looks = {
            "train/loss_so_far": check_finite(s, reading.loss, checked, reading.step),
            "lr_of_step": s.parts.lr_at(reading.step - 1),
            "samples_per_second_so_far": reading.num_examples / reading.seconds,
        }
        if s.recorder is not None:
            s.recorder.scalars(looks, reading.step)
        checked = reading.step
    return checked


def draw_bar(s: Session, reading: Reading) -> None:
    """Draw the bar of the running epoch, where there is one."""
    if not s.parts.ranks.is_first:
        return
    text = f"loss {reading.loss:.4f}  {reading.num_examples / reading.seconds:,.0f} examples/s"
    s.screen.progress(s.progress.epoch, s.config.epochs, reading.num_examples, len(s.parts.splits.train), text)


def check_finite(s: Session, loss: float, checked: int, step: int) -> float:
    """The loss; DivergedError where it is not finite, with the steps since it last was."""
    if not math.isfinite(loss):
        steps = f"steps {checked + 1} to {step}" if checked + 1 < step else f"step {step}"
        raise DivergedError(diverged(s, f"epoch {s.progress.epoch}, {steps}: the loss"))
    return loss


def diverged(s: Session, what: str) -> str:
    """What to say when numbers are no longer finite."""
    files = steps_in(s.run.checkpoints)
    last = f"The last good checkpoint is {files[-1]}." if files else "No checkpoint was written yet."
    return f"diverged in {what} is not finite. {last} Try a smaller optimizer.lr."


def save_checkpoint(s: Session) -> None:
    """Write checkpoints/<run>/step_*.pt, and best.pt where this is the best so far.

    Raises:
        DivergedError: the weights are not finite; nothing is written.
        ResourceError: the disk is full; the files before are untouched.
    """
    progress, folder = s.progress, s.run.checkpoints
    content = pack(s.parts, progress)
    with s.parts.ranks.together():
        if not s.parts.ranks.is_first:
            return
        norms = torch.stack(torch._foreach_norm(floating(s.parts.model)))
        if not torch.isfinite(norms).all():
            raise DivergedError(diverged(s, f"step {progress.step}: a weight"))
        path = path_of_step(folder, progress.step)
        write_checkpoint(path, content)
        if progress.best.get("step") == progress.step and progress.samples == 0:
            keep_as_best(path, folder)
        with contextlib.suppress(OSError):  # the next save tries again
            tidy(folder)
            if not s.has_saved:  # so that a run whose checkpoints are gone is not taken for one that had none
                directory.write_status(s.run, "running", s.started, checkpoint=path.name)
                s.has_saved = True


def save_or_warn(s: Session) -> None:
    """Save; where the disk is full, go on to the next save, until MAX_FAILED_SAVES failed one after the other."""
    try:
        save_checkpoint(s)
    except ResourceError as error:
        s.failed_saves += 1
        if s.failed_saves == MAX_FAILED_SAVES:
            raise
        s.screen.say(f"warning: {error} Training goes on; save {s.failed_saves} of {MAX_FAILED_SAVES} that may fail.")
    else:
        s.failed_saves = 0


def row_of_epoch(parts: Parts, progress: Progress, totals: Totals, val: Evaluation | None) -> dict[str, Any]:
    """A line of metrics.jsonl; regression has no accuracy fields, a run without validation no val fields."""
    row: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, "lr": parts.lr_at(progress.step - 1)}
    row["train_loss"] = totals.loss
    if parts.splits.task == "classification":
        row["train_accuracy"] = totals.accuracy
    if val is not None:
        row["val_loss"] = val.loss
        if val.accuracy is not None:
            row["val_accuracy"] = val.accuracy
    row["seconds"] = progress.seconds
    row["samples_per_second"] = totals.num_examples / progress.seconds
    return row
