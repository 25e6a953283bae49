"""Training runs side by side in one process, as one stacked model on the batches that they share.

Each run keeps its own model, optimizer, progress and files, as if it were alone: at the end of each epoch its slice of
the stacked tensors is copied into them, and what records, saves and finishes a lone run does so with these.
Which runs can be stacked is in eligible.py.

An interrupted stack is resumed as the same stack, with the runs in the same places, so that it ends in the same bits.
The test split is measured after the last epoch of all runs is saved: if one run is finished, all have trained their
last epoch.
"""

import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer import build, data, engine
from trainer.config.schema import Config
from trainer.data.batches import Batches
from trainer.data.splits import Source
from trainer.engine import Evaluation, LossFn
from trainer.models import MODELS
from trainer.run.announce import announce
from trainer.run.begin import open_session, put_in, start_recording
from trainer.run.end import conclude, load_best
from trainer.run.epochs import end_epoch, save_checkpoint, save_or_warn
from trainer.run.failures import explain, note_failure
from trainer.run.machine import resolve_auto
from trainer.run.parts import ALONE, Parts, assemble, eval_batches
from trainer.run.progress import Progress
from trainer.run.result import note_gradients
from trainer.run.seeds import restore_rng, rng_state
from trainer.run.session import Session, check_finite
from trainer.run.watch import check_readings
from trainer.sweep.stack.layers import copy_into_stack, objective, stacked_layers
from trainer.sweep.stack.members import Found, Outcome, begin_members
from trainer.sweep.stack.optim import STACKED_OPTIMIZERS
from trainer.totals import HELD_AT_ONCE, Batch, Totals
from trainer.utils.errors import Interrupted
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal


def train_stack(
    configs: Sequence[Config],
    stop: StopSignal,
    *,
    sources: MutableMapping[str, Source] | None = None,
    screens: Sequence[Screen] | None = None,
) -> list[Outcome]:
    """Train runs of one of group_runs' stacks, from the beginning or from where they were interrupted.

    Args:
        configs: of all its runs, also of finished ones, each with its name; always in the same order.
        stop: the signals.
        sources: see data.load.
        screens: one for each run.
    Returns:
        For each run the best value of the deciding metric, or the error that ended it; the others continue without it.
    Raises:
        ApartError: these runs cannot be trained together, or not any more.
        Interrupted: a signal came; the same call continues.
    """
    screens = screens or [Screen() for _ in configs]
    with ExitStack() as held:
        found, outcomes = begin_members(configs, screens, held)
        if found:
            stack = Stack(found, outcomes, len(configs))
            try:
                stack.open(screens, {} if sources is None else sources, stop, held)
                stack.train(stop)
            except BaseException as error:  # it struck all runs
                for k in found:
                    stack.end(k, error)
                if not isinstance(error, Exception):
                    raise
    return [outcomes[k] for k in range(len(configs))]


class Stack:
    """Runs that are computed together. A run's place is that of its slice in all stacked tensors.

    Args:
        found: the runs that have something left to do; the slices of the others are zeros.
        outcomes: how the others ended; gets those of all.
        num_runs: of all.
    """

    def __init__(self, found: Found, outcomes: dict[int, Outcome], num_runs: int) -> None:
        self.found, self.outcomes, self.num_runs = found, outcomes, num_runs
        self.own: Parts  # of any run: what is the same in all
        self.sessions: dict[int, Session] = {}
        self.rng: dict[int, dict[str, Any]] = {}  # the generators as each run's initial weights left them

    def open(
        self, screens: Sequence[Screen], sources: MutableMapping[str, Source], stop: StopSignal, held: ExitStack
    ) -> None:
        """Read the data, build each run's parts, put its checkpoint into them, open its files; then stack them."""
        first = next(iter(self.found.values()))[0]
        like = next((begun.content for _, begun in self.found.values() if begun.path), None)
        splits = data.load(first.data, first.paths, sources, like=like)
        machine = replace(resolve_auto(first)[1], stack=self.num_runs)
        for k, (config, begun) in self.found.items():
            announce(config, machine, screens[k])
            own = assemble(config, splits, machine)
            self.own = replace(own, train=self.own.train, val=self.own.val) if self.sessions else own  # one copy of x
            start = begun.start
            progress = put_in(start, config, self.own, screens[k]) if start is not None else Progress()
            self.rng[k] = rng_state(machine.device)
            self.sessions[k] = open_session(config, begun, self.own, progress, stop, screens[k], held)
            start_recording(self.sessions[k], begun, held)
            screens[k].say(f"trained together with {self.num_runs - 1} other runs (sweep.stack)")
        self.stack_members(first)

    def stack_members(self, config: Config) -> None:
        """Make the stacked model and optimizer with the weights and buffers of all runs that have epochs left."""
        options = {**config.model.options, "init_std": "torch"}  # draws nothing: each run has drawn its own
        splits, parts = self.own.splits, {k: s.parts for k, s in self.sessions.items()}
        layers = stacked_layers(self.num_runs)
        self.model = MODELS[config.model.name](layers, splits.in_shape, splits.num_outputs, **options)
        copy_into_stack(self.model, [parts.get(k, self.own).model for k in range(self.num_runs)])
        of_runs = [self.sessions.get(k, self.first).config.optimizer.options for k in range(self.num_runs)]
        self.optimizer = STACKED_OPTIMIZERS[config.optimizer.name](self.model, of_runs)
        self.lr = torch.tensor([options["lr"] for options in of_runs], dtype=torch.float64)
        for k in range(self.num_runs):
            if k in self.training():
                self.optimizer.restore(k, parts[k].optimizer, list(parts[k].model.parameters()))
            else:
                self.take_out(k)
        how: dict[str, Any] = {"is_sum": self.own.is_sum, "classes_second": config.loss.name == "cross_entropy"}
        self.loss_fn: LossFn = partial(objective, self.own.loss_fn, **how)

    @property
    def first(self) -> Session:
        """A session: for what is the same in all runs."""
        return next(iter(self.sessions.values()))

    def unfinished(self) -> list[int]:
        """The places of the runs that have something left to do."""
        return [k for k in self.sessions if k not in self.outcomes]

    def training(self) -> list[int]:
        """The places of the runs that have epochs left; they are all at the same step."""
        return [k for k in self.unfinished() if self.sessions[k].has_epochs_left]

    def train(self, stop: StopSignal) -> None:
        """The epochs that are left, and the end: as train_epochs and finish_run for a lone run."""
        try:
            while training := self.training():
                with stop.held():
                    totals = self.train_epoch()
                batches = self.own.val
                val = self.evaluate(batches) if batches is not None else dict.fromkeys(range(self.num_runs))
                with stop.held():
                    for k in self.training():
                        self.each(k, end_epoch, totals[k], val[k])
                    for k in set(training) - set(self.training()):
                        self.take_out(k)
        except Interrupted:
            with stop.held():  # a later signal must not end the saves
                for k in self.unfinished():
                    if self.sessions[k].has_epochs_left or self.sessions[k].failed_saves:
                        self.each(k, save_checkpoint)
            raise
        for k in self.unfinished():
            if self.sessions[k].failed_saves:
                self.each(k, save_checkpoint)
        self.finish()

    def finish(self) -> None:
        """Measure the best weights of all runs on the test split, and write what a finished run leaves behind."""
        for k in self.unfinished():
            self.each(k, load_best, updated=False)
        of_runs = {k: s.parts.model for k, s in self.sessions.items()}
        copy_into_stack(self.model, [of_runs.get(k, self.own.model) for k in range(self.num_runs)])
        own = self.own
        test = self.evaluate(eval_batches(self.first.config, own.splits, own.splits.test, own.machine))
        for k in self.unfinished():
            self.each(k, conclude, test[k], updated=False)
            self.outcomes.setdefault(k, float(self.sessions[k].progress.best["value"]))

    def train_epoch(self) -> dict[int, Totals]:
        """Train the rest of the running epoch; the totals of each run that has epochs left, by its place."""
        s = self.sessions[self.training()[0]]
        config, progress = s.config, s.progress
        of = {k: self.sessions[k].progress.restore(self.own.totals(), ALONE) for k in self.training()}
        sums = Sums(of, self.own.loss_fn, self.own.totals())
        began = time.perf_counter() - progress.seconds * self.num_runs
        saved_at, saved_step, checked, step = time.monotonic(), progress.step, progress.step, progress.step
        every, seconds = config.save.every_steps, config.save.every_seconds
        per_epoch = len(self.own.train)
        factor = build.build_schedule(config.schedule, 1.0, per_epoch, per_epoch * config.epochs)
        with closing(self.own.train.epoch(progress.epoch, start=progress.samples)) as batches:
            for step in engine.train_epoch(
                self.model,
                self.loss_fn,
                self.optimizer,  # type: ignore[arg-type]  # it has what the loop asks for
                engine.whole(batches),
                lr_at=lambda step: (self.lr * factor(step)).to(self.own.machine.device, self.own.machine.dtype),  # type: ignore
                step=progress.step,
                totals=sums,
                autocast=self.own.machine.autocast,
            ):
                if step % config.record.every_steps == 0:
                    checked = self.check(sums, checked, step, began, record=True)
                    if not self.training():
                        break
                due = (every and step - saved_step >= every) or (seconds and time.monotonic() - saved_at >= seconds)
                if due or s.stop.signum:
                    checked = self.check(sums, checked, step, began)
                    if s.stop.signum:
                        raise Interrupted(s.stop.signum)
                    for k in self.training():
                        self.each(k, save_or_warn)
                    saved_at, saved_step = time.monotonic(), step
        self.check(sums, checked, step, began)
        return of

    def check(self, sums: "Sums", checked: int, step: int, began: float, *, record: bool = False) -> int:
        """Bring progress up to date, check and perhaps record the loss so far of each run; returns the step.

        Of the seconds since `began` each run counts its share, so that those of all runs add up to what passed.
        """
        sums.count()
        seconds = (time.perf_counter() - began) / self.num_runs

        def check_one(s: Session, totals: Totals) -> None:
            if record:
                check_readings(s, [totals.reading(step, seconds)], checked, wait=True)
            check_finite(s, totals.loss, checked, step)
            s.progress.store(totals, step, seconds)

        for k in self.training():
            self.each(k, check_one, sums.of[k], updated=False)
        return step

    @torch.inference_mode()
    def evaluate(self, batches: Batches) -> dict[int, Evaluation]:
        """Evaluate all runs on a split, in one pass: K passes would cost a quarter more for small models."""
        self.model.eval()
        outputs, labels = list[Tensor](), list[Tensor]()
        with closing(batches.epoch(0)) as examples:
            for x, y in examples:
                outputs.append(self.model(x))
                labels.append(y)
        y, by_run = torch.cat(labels), torch.cat(outputs).transpose(0, 1).contiguous()  # (K, N, M)
        found = {}
        for k, y_hat in enumerate(by_run):
            totals = self.own.totals()
            totals.add(self.own.loss_fn(y_hat, y), y_hat, y)
            found[k] = Evaluation(totals.loss, totals.accuracy if y.dtype == torch.int64 else None, y_hat, y)
        return found

    def each(self, k: int, what: Callable[..., None], *args: Any, updated: bool = True) -> None:
        """Call what(session, *args) for the k-th run; where that fails, the run ends there and the others continue.

        Args:
            k: the place of the run.
            what: is called.
            args: for it.
            updated: bring the run's own model, optimizer and generators up to date before.
        """
        try:
            if updated:
                if self.sessions[k].has_epochs_left:
                    self.write_back(k)
                restore_rng(self.rng[k], self.own.machine.device)
            what(self.sessions[k], *args)
        except Exception as error:
            self.end(k, error)
            self.take_out(k)

    @torch.no_grad()
    def write_back(self, k: int) -> None:
        """Copy a run's slice of the weights, and of what the optimizer keeps, into its own model and optimizer."""
        session, own = self.sessions[k], self.sessions[k].parts
        parameters = list(own.model.parameters())
        for mine, p in zip(parameters, self.model.parameters(), strict=True):
            mine.copy_(p[k])
            mine.grad = None if p.grad is None else p.grad[k].clone()  # for the histograms
        note_gradients(session.config, own.model, session.progress)
        if self.optimizer.num_steps:
            self.optimizer.store(k, own.optimizer, parameters)

    def take_out(self, k: int) -> None:
        """Let the numbers of a run be zeros from now on."""
        self.optimizer.stop(k)
        self.lr[k] = 0.0

    def end(self, k: int, error: BaseException) -> None:
        """Note what ended a run, if it had not ended before."""
        if k in self.outcomes:
            return
        s = self.sessions.get(k)
        told = explain(error, self.found[k][0], s.run if s is not None else None)
        if isinstance(told, Exception):
            self.outcomes[k] = told
        if s is not None:
            note_failure(s.run, s.started, told, s.screen)
            if isinstance(told, Exception):
                s.screen.say(f"warning: it ends here, the others continue: {told}")


class Sums(Totals):
    """The totals of each run, from the outputs of all: these are collected, and counted many batches at a time."""

    def __init__(self, of: dict[int, Totals], loss_fn: LossFn, fresh: Totals) -> None:
        super().__init__(fresh.device, is_sum=fresh.is_sum)
        self.of, self.loss_fn, self.waiting = of, loss_fn, list[Batch]()

    def add(self, loss: Tensor, y_hat: Tensor, y: Tensor) -> None:
        """Take the outputs (N, K, M) of a batch and its labels or targets; the loss is measured later, by run."""
        self.waiting.append((y_hat.detach(), y))
        if y_hat.numel() * len(self.waiting) > HELD_AT_ONCE:
            self.count()

    def count(self) -> None:
        """Bring the totals of all runs up to date."""
        if not self.waiting:
            return
        y_hat, y = map(torch.cat, zip(*self.waiting, strict=True))
        self.waiting.clear()
        by_run = y_hat.transpose(0, 1).contiguous()  # (K, N, M)
        for k, totals in self.of.items():
            totals.add(self.loss_fn(by_run[k], y), by_run[k], y)
