"""Training runs side by side in one process, as one stacked model (stacked.py) on the batches that they share.

Each run keeps its own model, optimizer, progress and files, as if it were alone: at the end of each epoch its slice of
the stacked tensors is copied into them, and what records, saves and finishes a lone run does so with these. Which runs
can be stacked is in groups.py.

A stack that was interrupted goes on as the same stack, with the runs in the same places, so that it ends in the same
bits: from the newest step of which every unfinished run has a checkpoint. The test split is measured after the last
epoch of all runs is saved, so whoever finds a finished run among the others has no epoch left to train.
"""

import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer import build, data, engine
from trainer.commands.train import train
from trainer.config.schema import Config
from trainer.data.batches import Batches
from trainer.data.splits import Source
from trainer.engine import Evaluation, LossFn
from trainer.models import MODELS
from trainer.run import directory, failures
from trainer.run.checkpoint import unpack
from trainer.run.checkpoint_files import remove_temporary
from trainer.run.end import conclude, load_best
from trainer.run.epochs import Reporter, Session, check_finite, check_readings, end_epoch, save_checkpoint, save_or_warn
from trainer.run.machine import resolve_auto
from trainer.run.parts import Parts, assemble, eval_batches
from trainer.run.progress import Progress
from trainer.run.resume import Start
from trainer.run.seeds import restore_rng, rng_state
from trainer.sweep.stack.layers import copy_into_stack, objective, stacked_layers
from trainer.sweep.stack.members import ApartError, Member, Outcome, end_member, find_starts, look_up, open_member
from trainer.sweep.stack.optim import STACKED_OPTIMIZERS, StackedOptimizer
from trainer.totals import HELD_AT_ONCE, Batch, Totals
from trainer.utils.errors import ConfigError, Interrupted
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal


@dataclass
class Stack:
    """What the runs are computed with together. `members` has all of them; a slice's place is the run's."""

    members: list[Member]
    parts: list[Parts]
    model: nn.Module
    optimizer: StackedOptimizer
    loss_fn: LossFn  # the sum over the runs
    rates: Tensor  # (steps, K): learning rates of the running epoch


def train_stack(
    configs: Sequence[Config],
    stop: StopSignal,
    *,
    sources: MutableMapping[str, Source] | None = None,
    screens: Sequence[Screen] | None = None,
    reports: Sequence[Reporter | None] | None = None,
) -> list[Outcome]:
    """Train runs of one of groups.groups' stacks, from the beginning or from where they were interrupted.

    Args:
        configs: of all runs of the stack, also of finished ones, each with its name; always in the same order.
        sources: see data.load.  screens, reports: one for each run, see commands.train.
    Returns:
        For each run the best validation metric, or the error that ended it; the other runs go on without it.
    Raises:
        Interrupted: a signal came; the same call goes on.
    """
    screens = screens or [Screen() for _ in configs]
    reports = reports or [None] * len(configs)
    sources = {} if sources is None else sources
    try:
        members = look_up(configs, screens, reports)
    except (ApartError, ConfigError) as error:
        return alone(configs, screens, reports, stop, sources, str(error))
    left = [member for member in members if member.outcome is None]
    if left:
        with ExitStack() as held:
            try:
                for member in left:
                    if member.found is not None:
                        held.enter_context(directory.hold(member.run))
                        remove_temporary(member.run.checkpoints)
                starts = find_starts(members)
                train_members(prepare_stack(members, starts, stop, sources, held), stop)
            except ApartError as error:
                held.close()
                return alone(configs, screens, reports, stop, sources, str(error))
            except BaseException as error:  # it struck all runs
                for member in members:
                    end_member(member, error)
                if not isinstance(error, Exception):
                    raise
    return [outcome for member in members if (outcome := member.outcome) is not None]


def alone(
    configs: Sequence[Config],
    screens: Sequence[Screen],
    reports: Sequence[Reporter | None],
    stop: StopSignal,
    sources: MutableMapping[str, Source],
    reason: str,
) -> list[Outcome]:
    """Train the runs one after the other."""
    outcomes: list[Outcome] = []
    for config, screen, report in zip(configs, screens, reports, strict=True):
        screen.say(f"warning: trained alone, not as one of {len(configs)} together: {reason}")
        config = replace(config, resume="auto")
        try:
            outcomes.append(train(config, stop, report=report, screen=screen, sources=sources))
        except Exception as error:
            outcomes.append(failures.explain(error, config))  # type: ignore[arg-type]  # of one it makes one
    return outcomes


def prepare_stack(
    members: list[Member],
    starts: dict[str, Start],
    stop: StopSignal,
    sources: MutableMapping[str, Source],
    held: ExitStack,
) -> Stack:
    """Read the data, build each run's parts, put its checkpoint into them, open its files; then stack them."""
    first = members[0].config
    splits = data.load(first.data, first.paths, sources)
    machine = replace(resolve_auto(first)[1], stack=len(members))
    parts: list[Parts] = []
    progresses: list[Progress] = []
    for member in members:
        own = assemble(member.config, splits, machine)
        parts.append(own if not parts else replace(own, train=parts[0].train, val=parts[0].val))
        start = starts.get(member.run.name)
        progresses.append(unpack(start.content, member.config, parts[-1], start.path) if start else Progress())
        member.rng = rng_state(machine.device)
    for member, own, progress in zip(members, parts, progresses, strict=True):
        if member.outcome is None:
            open_member(member, own, progress, machine, starts.get(member.run.name), held, stop)
            member.screen.say(f"trained together with {len(members) - 1} other runs (sweep.stack)")
    return build_stack(members, parts)


def build_stack(members: list[Member], parts: list[Parts]) -> Stack:
    """The stacked model and optimizer with the weights and buffers of all runs; those without epochs left are zeros."""
    config, splits = members[0].config, parts[0].splits
    options = {**config.model.options, "init_std": "torch"}  # draws nothing: each run has drawn its own
    model = MODELS[config.model.name](stacked_layers(len(members)), splits.in_shape, splits.num_outputs, **options)
    copy_into_stack(model, [own.model for own in parts])
    optimizer = STACKED_OPTIMIZERS[config.optimizer.name](
        model, [member.config.optimizer.options for member in members]
    )
    for k, (member, own) in enumerate(zip(members, parts, strict=True)):
        if member.is_training:
            optimizer.take(k, own.optimizer, list(own.model.parameters()))
        else:
            optimizer.stop(k)
    loss_fn = partial(
        objective,
        parts[0].loss_fn,
        is_sum=parts[0].is_sum,
        classes_second=config.loss.name == "cross_entropy",
    )
    return Stack(members, parts, model, optimizer, loss_fn, torch.empty(0))


def train_members(stack: Stack, stop: StopSignal) -> None:
    """The epochs that are left, then what comes after the last one, as training.train_epochs and commands.train."""
    try:
        while places(stack):
            with stop.held():
                totals = train_stacked_epoch(stack)
            own = stack.parts[0]
            val = evaluate_members(stack, own.val) if own.val is not None else [None] * len(stack.members)
            with stop.held():
                for k in places(stack):
                    for_member(stack, k, end_epoch, totals[k], val[k], saves=True)
    except Interrupted:
        with stop.held():  # a later signal must not end the saves
            for k in unfinished(stack):
                if stack.members[k].is_training or stack.members[k].s.failed_saves:
                    for_member(stack, k, save_checkpoint, saves=True)
        raise
    for k in unfinished(stack):
        if stack.members[k].s.failed_saves:
            for_member(stack, k, save_checkpoint, saves=True)
    finish_stack(stack)


def unfinished(stack: Stack) -> list[int]:
    """The places of the runs that have something left to do."""
    return [k for k, member in enumerate(stack.members) if member.session is not None and member.outcome is None]


def places(stack: Stack) -> list[int]:
    """The places of the runs that have epochs left; they are all at the same step."""
    return [k for k, member in enumerate(stack.members) if member.is_training]


def for_member(stack: Stack, k: int, what: Callable[..., None], *args: Any, saves: bool = False) -> None:
    """Call what(session, *args) for the k-th run; where that fails, the run ends there and the others go on.

    Args:
        saves: it looks at the run's own model, optimizer and generators, which are brought up to date before.
    """
    try:
        if saves:
            write_back(stack, k)
            restore_rng(stack.members[k].rng, stack.parts[k].machine.device)
        what(stack.members[k].s, *args)
    except Exception as error:
        end_member(stack.members[k], error)
        stack.optimizer.stop(k)
        if len(stack.rates):
            stack.rates[:, k] = 0.0


class Sums(Totals):
    """The totals of each run, fed with the outputs of all: they wait until there are enough to be worth a round."""

    def __init__(self, stack: Stack, of: dict[int, Totals]) -> None:
        super().__init__(stack.parts[0].machine.device, is_sum=stack.parts[0].is_sum)
        self.of, self.loss_fn, self.waiting = of, stack.parts[0].loss_fn, list[Batch]()

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


def train_stacked_epoch(stack: Stack) -> dict[int, Totals]:
    """Train the rest of the running epoch; the totals of each run that has epochs left, by its place."""
    own, first = stack.parts[0], stack.members[places(stack)[0]].s
    config, progress = first.config, first.progress
    totals = {k: stack.members[k].s.progress.give(stack.parts[k].totals()) for k in places(stack)}
    sums, rates = Sums(stack, totals), learning_rates(stack, progress)
    began = time.perf_counter() - progress.seconds * len(stack.members)
    saved_at, saved_step, checked = time.monotonic(), progress.step, progress.step
    step = progress.step
    with closing(own.train.epoch(progress.epoch, start=progress.samples)) as batches:
        for step in engine.train_epoch(
            stack.model,
            stack.loss_fn,
            stack.optimizer,  # type: ignore[arg-type]  # it has what the loop asks for
            batches,
            lr_at=rates,  # type: ignore[arg-type]  # (K,), one for each run
            step=progress.step,
            totals=sums,
            autocast=own.machine.autocast,
        ):
            if step % config.record.every_steps == 0:
                checked = check_members(stack, sums, checked, step, began, record=True)
                if not places(stack):
                    break
            every, seconds = config.save.every_steps, config.save.every_seconds
            due = (every and step - saved_step >= every) or (seconds and time.monotonic() - saved_at >= seconds)
            if due or first.stop.signum:
                checked = check_members(stack, sums, checked, step, began)
                if first.stop.signum:
                    raise Interrupted(first.stop.signum)
                for k in places(stack):
                    for_member(stack, k, save_or_warn, saves=True)
                saved_at, saved_step = time.monotonic(), step
    check_members(stack, sums, checked, step, began)
    return totals


def learning_rates(stack: Stack, progress: Progress) -> Callable[[int], Tensor]:
    """lr_at(step) of all runs, (K,), for the rest of the epoch; 0 for those that have no epochs left."""
    config, own = stack.members[0].config, stack.parts[0]
    num_batches = len(own.train)
    factor = build.build_schedule(config.schedule, 1.0, num_batches, config.epochs)
    steps = range(progress.step, progress.epoch * num_batches)
    factors = torch.tensor([factor(step) for step in steps], dtype=torch.float64)
    base = [m.config.optimizer["lr"] if m.is_training else 0.0 for m in stack.members]
    table = torch.outer(factors, torch.tensor(base, dtype=torch.float64)).to(own.machine.device, own.machine.dtype)
    stack.rates = table
    rows = table.unbind()
    return lambda step: rows[step - steps.start]  # progress.step moves on


def check_members(stack: Stack, sums: Sums, checked: int, step: int, began: float, *, record: bool = False) -> int:
    """Bring progress up to date, check and perhaps record the loss so far of each run; returns the step.

    Of the seconds since `began` each run counts its share, so that those of all runs add up to what passed.
    """
    sums.count()
    seconds = (time.perf_counter() - began) / len(stack.members)

    def check(s: Session, totals: Totals) -> None:
        if record:
            check_readings(s, [totals.reading(step, seconds)], checked, wait=True)
        check_finite(s, totals.loss, checked, step)
        s.progress.take(totals, step, seconds)

    for k in places(stack):
        for_member(stack, k, check, sums.of[k])
    return step


@torch.no_grad()
def write_back(stack: Stack, k: int) -> None:
    """Copy a run's slice of the weights, and of what the optimizer keeps, into its own model and optimizer."""
    own = stack.parts[k]
    parameters = list(own.model.parameters())
    for mine, p in zip(parameters, stack.model.parameters(), strict=True):
        mine.copy_(p[k])
        mine.grad = None if p.grad is None else p.grad[k].clone()  # for the histograms
    if stack.optimizer.num_steps:
        stack.optimizer.give(k, own.optimizer, parameters)


@torch.inference_mode()
def evaluate_members(stack: Stack, batches: Batches) -> list[Evaluation]:
    """Evaluate all runs on a split."""
    stack.model.eval()
    parts, outputs, labels = stack.parts, list[Tensor](), list[Tensor]()
    with closing(batches.epoch(0)) as examples:
        for x, y in examples:
            outputs.append(stack.model(x))
            labels.append(y)
    y, by_run = torch.cat(labels), torch.cat(outputs).transpose(0, 1).contiguous()  # (K, N, M)
    measured = []
    for own, y_hat in zip(parts, by_run, strict=True):
        totals = own.totals()
        totals.add(own.loss_fn(y_hat, y), y_hat, y)
        accuracy = totals.accuracy if y.dtype == torch.int64 else None
        measured.append(Evaluation(totals.loss, accuracy, y_hat, y))
    return measured


def finish_stack(stack: Stack) -> None:
    """Measure the best weights of all runs on the test split, and write what a finished run leaves behind."""

    def best(s: Session) -> None:
        assert s.recorder is not None
        s.recorder.flush()
        load_best(s)

    def write_results(s: Session, k: int) -> None:
        assert s.recorder is not None
        conclude(s, s.recorder, test[k])
        stack.members[k].outcome = float(s.progress.best["value"])

    for k in unfinished(stack):
        for_member(stack, k, best)
    own = stack.parts[0]
    copy_into_stack(stack.model, [parts.model for parts in stack.parts])
    test = evaluate_members(stack, eval_batches(stack.members[0].config, own.splits, own.splits.test, own.machine))
    for k in unfinished(stack):
        for_member(stack, k, write_results, k)
