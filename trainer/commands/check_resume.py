"""The check-resume command: the same short run straight and interrupted, compared to the last bit.

What a user runs before a week-long job: it answers for this model, these settings, this machine.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.commands.train import train
from trainer.config.freeze import from_dict
from trainer.config.plugins import as_word, paths_recorded
from trainer.config.schema import Config, Save
from trainer.run import directory
from trainer.run.checkpoint_files import step_of, steps_in
from trainer.run.plugged import plugged
from trainer.run.pretrained import find_weights, for_fine_tuning
from trainer.run.safe_load import read_checkpoint
from trainer.utils.errors import Interrupted, TrainerError, failure
from trainer.utils.screen import Screen
from trainer.utils.signals import KILL, StopSignal, end_with_parent
from trainer.utils.text import emit

BATCHES, EPOCHS = 4, 3
INTERRUPTIONS = ((2, KILL), (5, signal.SIGTERM), (9, KILL))  # once so many steps are saved
MAY_DIFFER = ("seconds", "samples_per_second", "waiting")  # the clock, and what a full disk did not take at once


def run_check_resume(config: Config) -> None:
    """Train a few batches for a few epochs, once straight and once with interruptions, and compare what is left.

    Raises:
        TrainerError: the two differ; says in what, and whether two straight runs differ as well.
    """
    screen = Screen()
    with tempfile.TemporaryDirectory(prefix="check-resume-") as folder:
        if (path := find_weights(config)) is not None:  # a run's name means nothing elsewhere
            config = for_fine_tuning(config, screen)
            options = {key: "none" if key == "weights" else value for key, value in config.model.options.items()}
            config = replace(config, init_from=str(path), model=replace(config.model, options=options))
        short = shortened(config, folder)
        screen.say(f"{config.model.name} on {config.data.name}: {BATCHES} batches, {short.epochs} epochs, straight")
        straight = finished(short, "straight")
        screen.say("the same once more, interrupted")
        interrupted = finished(replace(short, save=Save(1, 0.0)), "interrupted", screen)
        differences = list(differences_between(straight, interrupted))
        if not differences:
            screen.say(f"bit-identical: {how_much(straight)} after {straight['progress']['step']} steps")
            return
        screen.say("they differ; a second straight run tells why")
        again = list(differences_between(straight, finished(short, "again")))
    raise TrainerError(*verdict(differences, again))


def shortened(config: Config, folder: str) -> Config:
    """The config of a run of few epochs whose files go to `folder`; everything else as it is."""
    warmup = int(config.schedule.options.get("warmup_epochs", 0))
    paths = replace(config.paths, outputs=f"{folder}/outputs", checkpoints=f"{folder}/checkpoints")
    epochs = min(config.epochs, max(EPOCHS, warmup + 2))
    return replace(config, epochs=epochs, budget=None, plots=False, paths=paths, save=Save(0, 0.0))


def finished(config: Config, name: str, screen: Screen | None = None) -> dict[str, Any]:
    """What a run of this name left: the content of its last checkpoint, and `metrics`.

    Args:
        screen: is told of the interruptions; None: there are none.
    Raises:
        TrainerError: a part of the run failed by itself.
    """
    run = directory.locate(name, outputs=config.paths.outputs, checkpoints=config.paths.checkpoints)
    log = Path(config.paths.outputs).parent / f"{name}.log"
    pending = list(INTERRUPTIONS) if screen is not None else []
    code: int | None = -1
    while code != 0:
        with training_process(replace(config, name=name, resume="auto"), log) as process:
            while pending and process.is_alive():
                if steps_saved(run.checkpoints) < pending[0][0]:
                    time.sleep(0.0005)
                    continue
                _, signum = pending.pop(0)
                assert screen is not None
                (process.kill if signum == KILL else process.terminate)()
                process.join()
                screen.say(f"  {signal.Signals(signum).name} after step {steps_saved(run.checkpoints)}")
            process.join()
            code = process.exitcode
        if code not in (0, -KILL, -signal.SIGTERM, 128 + signal.SIGTERM):  # by SIGTERM where it had not begun yet
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            raise failure(code or 1, f"the run that is checked failed:\n{said}")
    if len(pending) == len(INTERRUPTIONS):
        raise TrainerError("nothing was checked: the run was over before it could be interrupted. Raise epochs.")
    content = read_checkpoint(steps_in(run.checkpoints)[-1])
    return content | {"metrics": directory.read_metrics(run.outputs)}


@contextlib.contextmanager
def training_process(config: Config, log: Path) -> Iterator[SpawnProcess]:
    """A process that trains; it is ended with the block."""
    os.getcwd()  # where it was removed, the process would end with a traceback before it says anything
    process = multiprocessing.get_context("spawn").Process(target=train_child, args=(config.to_dict(), str(log)))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def train_child(plain: Mapping[str, Any], log: str) -> None:
    """What the process does: train on the first batches, with everything it says in a file."""
    end_with_parent()  # a killed check would leave it training for nothing
    sys.stdout = sys.stderr = open(log, "w", encoding="utf-8")  # noqa: SIM115  (to the end of the process)
    os.dup2(sys.stdout.fileno(), 1)  # what libraries in C print
    os.dup2(sys.stdout.fileno(), 2)
    code = 0
    try:
        with StopSignal() as stop, plugged([as_word(paths_recorded(plain["plugins"]))]):
            train(from_dict(plain), stop, batches=BATCHES)
    except (TrainerError, Interrupted) as error:
        emit(*str(error).split("\n"))
        code = error.exit_code
    sys.exit(code)


def steps_saved(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max(map(step_of, steps_in(folder)), default=0)


def leaves_of_run(content: Mapping[str, Any]) -> dict[str, Any]:
    """Everything by dotted name that has to be equal: tensors, numbers, texts; without the time that things took."""
    parts = ("model", "optimizer", "scaler", "ema", "rng", "progress", "early_stop", "best", "metrics")
    return {key: leaf for part in parts for key, leaf in leaves(content[part], part)}


def leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists, with their dotted names."""
    if isinstance(node, (Mapping, list)):
        pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in pairs:
            if key not in MAY_DIFFER:
                yield from leaves(value, f"{name}.{key}")
    else:
        yield name, node


def differences_between(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """A line for each leaf that is not equal to the last bit."""
    a, b = leaves_of_run(one), leaves_of_run(other)
    for name in a | b:
        x, y = a.get(name), b.get(name)
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.dtype == y.dtype:
            if x.numpy().tobytes() != y.numpy().tobytes():  # equal() would take -0.0 for 0.0
                yield f"{name}: by up to {(x.double() - y.double()).abs().max():.3g}"
        elif isinstance(x, Tensor) or isinstance(y, Tensor) or repr(x) != repr(y):
            yield f"{name}: {x!r} and {y!r}"


def how_much(content: Mapping[str, Any]) -> str:
    """How much was compared."""
    found = list(leaves_of_run(content).values())
    tensors = sum(isinstance(leaf, Tensor) for leaf in found)
    return f"{tensors} tensors and {len(found) - tensors} other figures are equal"


def verdict(differences: list[str], again: list[str]) -> list[str]:
    """What differs and why, line by line."""
    shown = [f"  {line}" for line in differences[:5]]
    rest = [f"  and {len(differences) - 5} more"] if len(differences) > 5 else []
    if again:
        why = (
            "Two straight runs differ as well, so it is not the interruption: something here does not repeat to the "
            f"bit (first {again[0]}). device.deterministic=true allows only kernels that do."
        )
    else:
        why = "Two straight runs are equal, so something that the run depends on is not in its checkpoints."
    return [f"not bit-identical. {len(differences)} differ:", *shown, *rest, why]
