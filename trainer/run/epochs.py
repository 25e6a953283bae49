"""The epochs of a run: train, validate, record, save, in this order, until the last one or until told to stop."""

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.config.schema import Config
from trainer.engine import Evaluation
from trainer.run import directory
from trainer.run.checkpoint import pack
from trainer.run.checkpoint_files import keep_as_best, path_of_step, steps_in, tidy, write_checkpoint
from trainer.run.directory import Run
from trainer.run.distributed import STEPS_BETWEEN_TALKS
from trainer.run.parts import Parts, floating
from trainer.run.progress import Progress
from trainer.run.recorder import Recorder
from trainer.totals import Reading, Totals
from trainer.utils.errors import DivergedError, Interrupted, ResourceError
from trainer.utils.ranks import AgreedStop
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal

MAX_FAILED_SAVES = 3  # in a row; the disk may be full for a while
Reporter = Callable[[int, float], str]  # (epoch, value of the metric that decides) -> why training ends there, or ""
LONG_VALIDATION = 10.0  # seconds: from here on the epoch is saved before it is validated


@dataclass
class Session:
    """A run while it trains.

    Attributes:
        config: all its settings.
        parts: what it computes with.
        progress: how far it is.
        run: its name and folders.
        recorder: takes the metrics; a silent one on ranks that do not write.
        screen: where it is seen.
        stop: the signals.
        started: when the run was started first, for status.json.
        report: of the search that this run is a trial of; None: of none.
        failed_saves: since the last one that worked.
        has_saved: whether this process wrote a checkpoint.
    """

    config: Config
    parts: Parts
    progress: Progress
    run: Run
    recorder: Recorder
    screen: Screen
    stop: StopSignal | AgreedStop
    started: str
    report: Reporter | None = None
    failed_saves: int = 0
    has_saved: bool = False


def train_epochs(s: Session) -> None:
    """The epochs that are left. On a signal: finishes the step, or drops the validation, saves, raises Interrupted.

    Raises:
        DivergedError, ResourceError, Interrupted: the last good checkpoint is whole.
    """
    was_long = 0  # the last validation
    try:
        while s.progress.epoch <= s.config.epochs and not s.progress.stopped:
            with s.stop.held():  # a signal waits for the end of the step, which looks for it
                totals = train_one(s)
                if was_long:
                    save_or_warn(s)
            val, began = None, time.monotonic()
            if s.parts.val is not None:  # outside held(): it changes nothing, so that a signal may drop it
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


def train_one(s: Session) -> Totals:
    """Train the rest of the running epoch; keeps `progress` true at every save and when Interrupted is raised."""
    progress = s.progress
    totals = progress.restore(s.parts.totals(), s.parts.ranks)
    watch, step = Watch(s, totals), progress.step
    with closing(s.parts.train.epoch(progress.epoch, start=progress.samples)) as batches:
        for step in s.parts.steps(batches, progress.step, totals):
            signum, saves = watch.look(step)
            if signum or saves:
                watch.settle(step)
                if signum:
                    raise Interrupted(signum)
                save_or_warn(s)
                watch.saved_at, watch.saved_step = time.monotonic(), step
    return watch.settle(step)


@dataclass
class Watch:
    """What is looked at between the steps of an epoch: the loss, for TensorBoard and the bar, and when to save.

    Nothing here waits for a GPU before `settle`: the sums are read when they have arrived in main memory.
    """

    s: Session
    totals: Totals
    readings: list[Reading] = field(default_factory=list)  # for TensorBoard, on their way
    drawn: Reading | None = None  # on the bar

    def __post_init__(self) -> None:
        self.began = time.perf_counter() - self.s.progress.seconds
        self.checked = self.saved_step = self.s.progress.step  # the last step whose loss was checked, and saved
        self.saved_at = time.monotonic()

    def look(self, step: int) -> tuple[int, bool]:
        """Read and draw what is due after a step; returns the signal that ends training here, and whether to save."""
        s = self.s
        if step % s.config.record.every_steps == 0:
            self.readings.append(self.reading(step))
            self.checked = check_readings(s, self.readings, self.checked)
        every, seconds = s.config.save.every_steps, s.config.save.every_seconds
        late = bool(seconds) and time.monotonic() - self.saved_at >= seconds
        signum, draw = s.stop.signum, s.screen.due()
        if s.parts.ranks.world > 1:
            signum, late, draw = agree(s, step, signum, late, draw)
        if draw:
            now = self.reading(step)
            draw_bar(s, now if now.has_arrived else self.drawn or now)  # the one before: a GPU is done with it
            self.drawn = now
        return signum, late or bool(every and step - self.saved_step >= every)

    def reading(self, step: int) -> Reading:
        """The sums of all ranks after a step, on their way to main memory."""
        return self.s.parts.whole(self.totals).reading(step, time.perf_counter() - self.began)

    def settle(self, step: int) -> Totals:
        """Check the loss up to a step and bring `progress` up to date; returns the sums of all ranks."""
        self.checked = check_readings(self.s, self.readings, self.checked, wait=True)
        whole = self.s.parts.whole(self.totals)
        check_finite(self.s, whole.loss, self.checked, step)
        self.s.progress.store(whole, step, time.perf_counter() - self.began)
        self.checked = step
        return whole


def agree(s: Session, step: int, signum: int, late: bool, draw: bool) -> tuple[int, bool, bool]:
    """What all ranks do after a step: stop for a signal that one of them got, save and draw the bar as rank 0 says."""
    if step % STEPS_BETWEEN_TALKS[s.parts.machine.device.type]:
        return 0, False, False
    ranks = s.parts.ranks
    signum, save_now, draw_now = ranks.highest(signum, late and ranks.is_first, draw)
    return signum, bool(save_now), bool(draw_now)


def check_readings(s: Session, readings: list[Reading], checked: int, *, wait: bool = False) -> int:
    """Check and record the readings that have arrived, or all of them; returns the last step that was checked."""
    while readings:
        # What a diverged loss raises has to be raised by all ranks after the same step. So ranks may not ask whether a
        # reading has arrived, which each GPU answers in its own time: they take all but the newest one.
        several = s.parts.ranks.world > 1 and readings[0].arrived is not None
        arrived = len(readings) > 1 if several else readings[0].has_arrived
        if not (wait or arrived):
            break
        reading = readings.pop(0)
        looks = {
            "train/loss_so_far": check_finite(s, reading.loss, checked, reading.step),
            "lr_of_step": s.parts.lr_at(reading.step - 1),
            "samples_per_second_so_far": reading.num_examples / reading.seconds,
        }
        s.recorder.scalars(looks, reading.step)
        checked = reading.step
    return checked


def draw_bar(s: Session, reading: Reading) -> None:
    """Draw the bar of the running epoch, where there is one."""
    if s.parts.ranks.is_first:
        text = f"loss {reading.loss:.4f}  {reading.num_examples / reading.seconds:,.0f} examples/s"
        s.screen.progress(s.progress.epoch, s.config.epochs, reading.num_examples, len(s.parts.splits.train), text)


def check_finite(s: Session, loss: float, checked: int, step: int) -> float:
    """The loss; DivergedError where it is not finite, with the steps since it last was."""
    if not math.isfinite(loss):
        steps = f"steps {checked + 1} to {step}" if checked + 1 < step else f"step {step}"
        raise diverged(s, f"epoch {s.progress.epoch}, {steps}: the loss")
    return loss


def diverged(s: Session, what: str) -> DivergedError:
    """The error of numbers that are no longer finite; names the checkpoint before them."""
    files = steps_in(s.run.checkpoints)
    last = f"The last good checkpoint is {files[-1]}." if files else "No checkpoint was written yet."
    return DivergedError(f"diverged in {what} is not finite. {last} Try a smaller optimizer.lr.")


def end_epoch(s: Session, totals: Totals, val: Evaluation | None) -> None:
    """Record the epoch, note whether it is the best and whether training stops here, save."""
    if val is not None:
        check_finite(s, val.loss, s.progress.step, s.progress.step)
    row = row_of_epoch(s.parts, s.progress, totals, val)
    with s.parts.ranks.together():
        s.recorder.epoch(row)
        every = s.config.record.histograms_every
        if every and s.progress.epoch % every == 0:
            s.recorder.histograms(s.parts.model, s.progress.step)
        s.progress.waiting = s.recorder.waiting
    s.progress.end_epoch(s.config, row)
    if s.report is not None and not s.progress.stopped:
        with s.parts.ranks.together():
            if s.parts.ranks.is_first:
                s.progress.stopped = s.report(row["epoch"], row[s.progress.best["metric"]])
        s.progress.stopped = s.parts.ranks.share(s.progress.stopped)
    save_or_warn(s)
    s.screen.row(row, s.config.epochs)


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


def save_or_warn(s: Session) -> None:
    """Save; where the disk is full, train on to the next save, until MAX_FAILED_SAVES failed one after the other."""
    try:
        save_checkpoint(s)
    except ResourceError as error:
        s.failed_saves += 1
        if s.failed_saves == MAX_FAILED_SAVES:
            raise
        s.screen.say(f"warning: {error} Training goes on; save {s.failed_saves} of {MAX_FAILED_SAVES} that may fail.")
    else:
        s.failed_saves = 0


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
        if not torch.isfinite(norms).all():  # the loss may still be: it was measured before the last update
            raise diverged(s, f"step {progress.step}: a weight")
        path = path_of_step(folder, progress.step)
        write_checkpoint(path, content)
        if progress.best.get("step") == progress.step and progress.samples == 0:
            keep_as_best(path, folder)
        with contextlib.suppress(OSError):  # the next save tries again
            tidy(folder)
            if not s.has_saved:  # so that a run whose checkpoints are gone is not taken for one that had none
                directory.write_status(s.run, "running", s.started, checkpoint=path.name)
                s.has_saved = True
