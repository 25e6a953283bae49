"""The epochs of a run: train, validate, record, save, in this order, until the last one or until told to stop."""

import contextlib
import math
import time
from contextlib import closing
from typing import Any

import torch

from trainer.engine import Evaluation
from trainer.run import directory
from trainer.run.backbone import hold_backbone
from trainer.run.checkpoint import pack
from trainer.run.checkpoint_files import keep_as_best, path_of_step, tidy, write_checkpoint
from trainer.run.parts import Parts
from trainer.run.progress import Progress
from trainer.run.result import looks_inside, record_state
from trainer.run.session import Session, check_finite, diverged
from trainer.run.watch import Watch
from trainer.totals import Totals
from trainer.utils.errors import Interrupted, ResourceError

MAX_FAILED_SAVES = 3  # in a row; the disk may be full for a while
LONG_VALIDATION = 10.0  # seconds: from here on the epoch is saved before it is validated


def train_epochs(s: Session) -> None:
    """The epochs that are left. On a signal: finishes the step, or drops the validation, saves, raises Interrupted.

    Raises:
        DivergedError, ResourceError, Interrupted: the last good checkpoint is whole.
    """
    was_long = 0  # the last validation
    try:
        while s.has_epochs_left:
            with s.stop.held():  # a signal is held back here; Watch.look checks for it after each step
                totals = train_one(s)
                if was_long:  # a crash in it would cost the epoch
                    save_or_warn(s)
            val, began = None, time.monotonic()
            if s.parts.val is not None:  # outside held(): it changes nothing, so that a signal may drop it
                val = s.parts.measure(s.parts.val, s.stop)
                # the slowest rank decides for all: they have to save at the same places
                [was_long] = s.parts.ranks.highest(time.monotonic() - began > LONG_VALIDATION)
            with s.stop.held():
                end_epoch(s, totals, val)
    except Interrupted:
        with s.stop.held():  # a later signal must not end the save
            save_checkpoint(s)
        raise
    if s.failed_saves:  # the last one has to work, or the run did not end
        save_checkpoint(s)
    if s.progress.stopped:
        s.screen.say(f"stopped: {s.progress.stopped}")


def train_one(s: Session) -> Totals:
    """Train the rest of the running epoch; keeps `progress` true at every save and when Interrupted is raised."""
    progress = s.progress
    hold_backbone(s.config, s.parts.model, s.parts.splits.num_outputs, progress.epoch)
    totals = progress.restore(s.parts.totals(), s.parts.ranks)
    watch, step, last = Watch(s, totals), progress.step, s.config.max_steps or math.inf
    with closing(s.parts.train.epoch(progress.epoch, start=progress.samples)) as batches:
        for step in s.parts.steps(batches, progress.step, totals) if progress.step < last else ():
            signum, saves = watch.look(step)
            if signum or saves:
                watch.settle(step)
                if signum:
                    raise Interrupted(signum)
                save_or_warn(s)
                watch.saved_at, watch.saved_step = time.monotonic(), step
            if step == last:
                break
    return watch.settle(step)


def end_epoch(s: Session, totals: Totals, val: Evaluation | None) -> None:
    """Record the epoch, note whether it is the best and whether training stops here, save."""
    if val is not None:
        check_finite(s, val.loss, s.progress.step, s.progress.step)
    row = row_of_epoch(s.parts, s.progress, totals, val) | looks_inside(s.config, s.parts, s.progress, val)
    with s.parts.ranks.together():
        s.recorder.epoch(row)
        s.progress.waiting = s.recorder.waiting
    s.progress.end_epoch(s.config, row)  # before the save: the checkpoint has the decision in it
    if s.report is not None and not s.progress.stopped:
        with s.parts.ranks.together():
            if s.parts.ranks.is_first:  # one of them tells the study, and all stop where it says
                s.progress.stopped = s.report(row["epoch"], row[s.progress.best["metric"]])
        s.progress.stopped = s.parts.ranks.share(s.progress.stopped)
    with s.parts.ranks.together():  # as the row above: what fails on one rank ends all
        record_state(s, val, row["epoch"])
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
    # of the whole epoch, also where it was interrupted: both are counted on
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
    content = pack(s.parts, progress)  # on all ranks: each has generators of its own
    with s.parts.ranks.together():
        if not s.parts.ranks.is_first:
            return
        floating = [tensor for tensor in s.parts.model.state_dict().values() if tensor.is_floating_point()]
        norms = torch.stack(torch._foreach_norm(floating))
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
