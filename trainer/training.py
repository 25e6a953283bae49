"""The epochs of a run: train, validate, record, save, in this order, until the last one or until told to stop."""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

from trainer import engine, state
from trainer.config import Config
from trainer.state import Parts, Progress
from trainer.utils import runs, runtime
from trainer.utils.errors import DivergedError, Interrupted
from trainer.utils.recorder import Recorder
from trainer.utils.screen import Screen


def train_epochs(
    config: Config,
    parts: Parts,
    progress: Progress,
    run: runs.Run,
    recorder: Recorder,
    screen: Screen,
    stop: runtime.StopSignal,
) -> None:
    """The epochs that are left: train, validate, record, save. Once `stop` got a signal: saves, raises Interrupted."""
    while progress.epoch <= config.epochs and not progress.stopped:
        val = None
        try:
            totals = train_one(config, parts, progress, run, recorder, screen, stop)
            if parts.val is not None:
                val = parts.measure(parts.val, stop)
                finite(val.loss, progress.epoch, progress.step, run)
        except Interrupted:
            state.save(config, parts, progress, run)
            raise
        row = row_of(parts, progress, totals, val)
        recorder.epoch(row)
        if config.record.histograms_every and progress.epoch % config.record.histograms_every == 0:
            recorder.histograms(parts.model, progress.step)
        end_epoch(config, progress, row)
        state.save(config, parts, progress, run)
        screen.row(row, config.epochs)
    if progress.stopped:
        screen.say(f"stopped: {progress.stopped}")


def train_one(
    config: Config,
    parts: Parts,
    progress: Progress,
    run: runs.Run,
    recorder: Recorder,
    screen: Screen,
    stop: runtime.StopSignal,
) -> engine.Totals:
    """Train the rest of the running epoch; keeps `progress` true at every save and when Interrupted is raised."""
    totals = progress.give(parts.totals())
    began = time.perf_counter() - progress.seconds
    step, saved_at, saved_step = progress.step, time.monotonic(), progress.step
    with closing(parts.train.epoch(progress.epoch, start=progress.samples)) as batches:
        steps = engine.train_epoch(
            parts.model,
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
        )
        for step in steps:
            if step % config.record.every_steps == 0:
                loss = finite(totals.loss, progress.epoch, step, run)
                speed = totals.num_examples / (time.perf_counter() - began)
                looks = {
                    "train/loss_so_far": loss,
                    "lr_of_step": parts.lr_at(step - 1),
                    "samples_per_second_so_far": speed,
                }
                recorder.scalars(looks, step)
            if screen.due():
                speed = totals.num_examples / (time.perf_counter() - began)
                text = f"loss {totals.loss:.4f}  {speed:,.0f} examples/s"
                screen.progress(progress.epoch, config.epochs, totals.num_examples, len(parts.splits.train), text)
            every, seconds = config.save.every_steps, config.save.every_seconds
            due = (every and step - saved_step >= every) or (seconds and time.monotonic() - saved_at >= seconds)
            if due or stop.signum:
                progress.take(totals, step, time.perf_counter() - began)
                if stop.signum:
                    raise Interrupted(stop.signum, "")
                state.save(config, parts, progress, run)
                saved_at, saved_step = time.monotonic(), step
    finite(totals.loss, progress.epoch, step, run)
    progress.take(totals, step, time.perf_counter() - began)
    return totals


def finite(loss: float, epoch: int, step: int, run: runs.Run) -> float:
    """The loss; DivergedError where it is not finite."""
    if not math.isfinite(loss):
        raise DivergedError(state.diverged(epoch, step, run))
    return loss


def row_of(parts: Parts, progress: Progress, totals: engine.Totals, val: engine.Evaluation | None) -> dict[str, Any]:
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


def end_epoch(config: Config, progress: Progress, row: Mapping[str, Any]) -> None:
    """Move progress to the start of the next epoch, note the best epoch, and decide whether training stops here."""
    metric = next(m for m in ("val_accuracy", "val_loss", "train_accuracy", "train_loss") if m in row)
    sign = 1 if metric.endswith("accuracy") else -1
    best = progress.best.get("value", -sign * math.inf)
    gain = sign * (row[metric] - best)
    progress.bad_epochs = 0 if gain > config.early_stopping.min_delta else progress.bad_epochs + 1
    if gain > 0 or metric.startswith("train"):  # without validation the last epoch counts
        progress.best = {"metric": metric, "value": row[metric], "epoch": row["epoch"], "step": row["step"]}
        progress.best |= {key: row.get(key) for key in ("val_loss", "val_accuracy")}
    progress.epoch, progress.samples, progress.seconds = progress.epoch + 1, 0, 0.0
    progress.loss_sum, progress.num_correct = 0.0, 0
    if config.early_stopping.patience and progress.bad_epochs >= config.early_stopping.patience:
        progress.stopped = f"no better {metric} for {progress.bad_epochs} epochs (early_stopping.patience)"
    for key, value in asdict(config.stop_at).items():
        if value is not None and (row[key] >= value if key.endswith("accuracy") else row[key] <= value):
            progress.stopped = f"{key} {row[key]:.4f} reached stop_at.{key}={value:g}"
