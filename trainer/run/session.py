"""A run while it trains: one object that epochs, watch and end share."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from trainer.config.schema import Config
from trainer.run.checkpoint_files import steps_in
from trainer.run.directory import Run
from trainer.run.parts import Parts
from trainer.run.progress import Progress
from trainer.run.recorder import Recorder
from trainer.utils.errors import DivergedError
from trainer.utils.ranks import AgreedStop
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal

Reporter = Callable[[int, float], str]  # (epoch, value of the metric that decides) -> why training ends there, or ""


@dataclass
class Session:
    """A run while it trains."""

    config: Config  # all its settings
    parts: Parts  # what it computes with
    progress: Progress  # how far it is
    run: Run  # its name and folders
    recorder: Recorder  # takes the metrics; a silent one on ranks that do not write
    screen: Screen  # where it is seen
    stop: StopSignal | AgreedStop  # the signals
    started: str  # when the run was started first, for status.json
    report: Reporter | None = None  # of the search that this run is a trial of; None: of none
    failed_saves: int = 0  # since the last one that worked
    has_saved: bool = False  # whether this process wrote a checkpoint

    @property
    def has_epochs_left(self) -> bool:
        """Whether there is something left to train."""
        p, last = self.progress, self.config.max_steps
        # an epoch whose last step was saved is still to be validated
        return p.epoch <= self.config.epochs and not p.stopped and (last is None or p.step < last or p.samples > 0)


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
    anew = (
        f", with name={s.run.name} overwrite=true"
        if {"name", "resume"} & set(s.config.typed) and not s.run.is_job
        else ""
    )
    return DivergedError(f"diverged in {what} is not finite. {last} Try a smaller optimizer.lr{anew}.")
