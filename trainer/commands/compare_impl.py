"""The compare-impl command: one run in every library that has its parts, from one seed, through the one loop.

They take turns, a few steps each, so that what else the machine does falls on all of them alike.
"""

import itertools
import math
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer import data
from trainer.config.fit import check_impl
from trainer.config.ranges import IMPLS
from trainer.config.schema import Choice, Config
from trainer.data.splits import Splits
from trainer.run import directory
from trainer.run.environment import provenance
from trainer.run.machine import resolve_auto
from trainer.run.parts import Parts, assemble, eval_batches, steps_of_run
from trainer.run.seeds import restore_rng, rng_state
from trainer.totals import Totals
from trainer.utils.errors import ConfigError, DivergedError
from trainer.utils.files import write_json
from trainer.utils.screen import Screen, table
from trainer.utils.text import number_of

TURN = 20  # steps of one library before the next one takes over
POINTS = 500  # of a curve, about
ADVICE = "Try a smaller optimizer.lr."


@dataclass
class Contender:
    """The run with the parts of one library, and what was seen of it."""

    impl: str
    config: Config
    parts: Parts
    rng: dict[str, Any]  # the state of the generators between its turns
    totals: Totals  # of the running epoch
    step: int = 0
    points: list[tuple[int, float]] = field(default_factory=list)  # (steps done, mean loss since the point before)
    turns: list[float] = field(default_factory=list)  # seconds per step of each turn

    def steps(self) -> Generator[int, None, None]:
        """Train from the first step to the last, and hand control back after each."""
        config, train = self.config, self.parts.train
        total = steps_of_run(config, train)
        every = max(1, total // POINTS)
        left, left_examples = 0.0, 0  # of the epoch before, after its last point
        for epoch in range(1, config.epochs + 1):
            self.totals, loss_sum, examples = self.parts.totals(), -left, -left_examples
            with closing(train.epoch(epoch)) as batches:
                for step in self.parts.steps(batches, self.step, self.totals):
                    self.step = step
                    if step % every == 0 or step == total:
                        now = float(self.totals.loss_sum)
                        loss = (now - loss_sum) / (self.totals.num_examples - examples)
                        self.points.append((step, loss))
                        loss_sum, examples = now, self.totals.num_examples
                        if not math.isfinite(loss):
                            raise DivergedError(f"impl={self.impl}, step {step}: the loss is not finite. {ADVICE}")
                    yield step
                    if step == total:
                        return
            left, left_examples = float(self.totals.loss_sum) - loss_sum, self.totals.num_examples - examples


def run_compare_impl(config: Config) -> None:
    """Train the run in every library, print the table, and write comparison.json and the plot.

    Raises:
        ConfigError: fewer than two libraries have the parts.
        DivergedError: a loss is not finite.
    """
    screen = Screen()
    name = f"compare-impl-{config.data.name}-{config.model.name}"
    folder = Path(config.paths.outputs) / name
    directory.check_writable(folder)
    if directory.exists(name, config.paths.outputs):
        raise ConfigError(f"{folder} is a run. The comparison goes there: choose another folder with paths.outputs.")
    chosen = having_the_parts(config, screen)
    splits = data.load(config.data, config.paths)
    contenders = [make_contender(impl, each, splits) for impl, each in reversed(chosen.items())]
    contenders.reverse()  # concise was settled last: what concerns the whole process is as it wants it
    first = contenders[0]
    screen.say(
        f"{config.model.name} on {config.data.name}: {', '.join(chosen)}; {number_of(first.config.epochs, 'epoch')}"
    )
    how = first.config.device["precision"]
    screen.say(f"device={first.parts.machine.device} device.precision={how} seed={config.seed}")
    train_by_turns(contenders, screen)
    rows = [row_of_library(c, first) for c in contenders]
    screen.say(*table([{key: as_text(value) for key, value in row.items()} for row in rows]))
    write_comparison(config, contenders, rows, folder, screen)


def having_the_parts(config: Config, screen: Screen) -> dict[str, Config]:
    """For each library that has all parts of the run, its config; the others are named with the reason.

    All compute in fp32, unless something else was typed: `auto` may give the library of torch another type.
    """
    options = dict(config.device.options)
    if options["precision"] == "auto":
        options["precision"] = "fp32"
    epochs = 1 if config.fast_dev_run else config.epochs
    config = replace(config, device=Choice(config.device.name, options), epochs=epochs)
    chosen: dict[str, Config] = {}
    reasons = []
    for impl in IMPLS:
        one = replace(config, impl=impl)
        try:
            check_impl(one)
        except ConfigError as error:
            reasons.append(f"without {impl}: {str(error).partition(' Allowed:')[0]}")
        else:
            chosen[impl] = one
    if len(chosen) < 2:
        raise ConfigError("there is nothing to compare.", *(f"  {reason}" for reason in reasons))
    for reason in reasons:
        screen.say(reason)
    return chosen


def make_contender(impl: str, config: Config, splits: Splits) -> Contender:
    """Build the run's parts from one library; each starts from the seed."""
    config, machine = resolve_auto(config)
    parts = assemble(config, splits, machine)
    return Contender(impl, config, parts, rng_state(machine.device), parts.totals())


def train_by_turns(contenders: Sequence[Contender], screen: Screen) -> None:
    """Train all of them by turns, to the end."""
    first = contenders[0]
    total = steps_of_run(first.config, first.parts.train)
    shown = 0
    with ExitStack() as opened:
        running = [opened.enter_context(closing(c.steps())) for c in contenders]
        while first.step < total:
            for c, steps in zip(contenders, running, strict=True):
                take_turn(c, steps)
            if 10 * first.step // total > shown:  # ten lines in all
                shown = 10 * first.step // total
                losses = "  ".join(f"{c.impl} {c.totals.loss:.6g}" for c in contenders)
                screen.say(f"step {first.step:,} of {total:,}  loss  {losses}")


def take_turn(c: Contender, steps: Iterator[int]) -> None:
    """Up to TURN steps of one library, with the random numbers where it left them."""
    machine = c.parts.machine.device
    restore_rng(c.rng, machine)
    began, before = time.perf_counter(), c.step
    for _ in itertools.islice(steps, TURN):
        pass
    float(c.totals.loss_sum)  # waits for a GPU
    c.turns.append((time.perf_counter() - began) / (c.step - before))
    c.rng = rng_state(machine)


def row_of_library(c: Contender, first: Contender) -> dict[str, Any]:
    """What is known of one library, against the first."""
    test = c.parts.measure(eval_batches(c.config, c.parts.splits, c.parts.splits.test, c.parts.machine))
    pairs = zip(c.parts.model.parameters(), first.parts.model.parameters(), strict=True)
    difference = max((a.detach().double() - b.detach().double()).abs().max().item() for a, b in pairs)
    ms, of_first = (1000 * statistics.median(one.turns[1:] or one.turns) for one in (c, first))  # the first warms up
    accuracy = {} if test.accuracy is None else {"test_accuracy": test.accuracy}
    return {
        "impl": c.impl,
        "ms_per_step": ms,
        f"times_{first.impl}": ms / of_first,
        "final_loss": c.totals.loss,
        "test_loss": test.loss,
        **accuracy,
        "largest_difference": difference,
    }


def as_text(value: Any) -> str:
    """A cell of the table."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_comparison(
    config: Config, contenders: Sequence[Contender], rows: Sequence[dict[str, Any]], folder: Path, screen: Screen
) -> None:
    """comparison.json and the plot; those of an earlier comparison are written over."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = {c.impl: c.points for c in contenders}
    content = {"config": config.to_dict(), "libraries": rows, "curves": curves}
    write_json(folder / "comparison.json", content | provenance(contenders[0].parts.machine))
    screen.say(f"written  {folder / 'comparison.json'}")
    if config.plots:
        from trainer.plots import run as plots  # matplotlib takes 0.4 s

        plots.comparison(curves, {row["impl"]: row["ms_per_step"] for row in rows}, folder / "comparison.png")
        screen.say(f"plot     {folder / 'comparison.png'}")
