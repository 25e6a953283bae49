"""What is looked at between the steps of an epoch: the loss, for TensorBoard and the bar, and when to save."""

import time
from dataclasses import dataclass, field

from trainer.run.brief import ago
from trainer.run.distributed import STEPS_BETWEEN_TALKS
from trainer.run.parts import steps_of_run
from trainer.run.result import note_gradients
from trainer.run.session import Session, check_finite
from trainer.totals import Reading, Totals


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
            draw_bar(s, now if now.has_arrived else self.drawn or now)  # else the one before, which has arrived
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
        note_gradients(self.s.config, self.s.parts.model, self.s.progress)
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
            "loss/train_so_far": check_finite(s, reading.loss, checked, reading.step),
            "lr_of_step": s.parts.lr_at(reading.step - 1),
            "samples_per_second_so_far": reading.num_examples / reading.seconds,
        }
        s.recorder.scalars(looks, reading.step)
        checked = reading.step
    return checked


def draw_bar(s: Session, reading: Reading) -> None:
    """Draw the bar of the running epoch, where there is one."""
    if s.parts.ranks.is_first:
        epoch, n, done = s.progress.epoch, len(s.parts.splits.train), reading.num_examples
        rate = done / reading.seconds
        of_run = n * steps_of_run(s.config, s.parts.train) // len(s.parts.train)
        of_epoch = min(n, of_run - (epoch - 1) * n)  # max_steps may end the last one early
        text = f"loss {reading.loss:.4f}  {rate:,.0f} examples/s{to_go(of_run - epoch * n, of_epoch - done, rate)}"
        s.screen.progress(epoch, -(-of_run // n), done, of_epoch, text)


def to_go(after: int, left: int, rate: float) -> str:
    """How long the run will take from here, without validation; "" in its last epoch, whose own time stands beside it.

    Args:
        after: examples of the epochs after the running one.
        left: examples of the running one.
        rate: examples per second.
    """
    return f"  to go: run {ago((after + left) / rate)}, epoch" if after > 0 and rate > 0 else ""
