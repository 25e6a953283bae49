"""What the user sees: a line per epoch, of very many each N-th, and on a terminal a progress bar within the epoch."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from trainer.utils.files import open_regular
from trainer.utils.objective import OF_CLASSES
from trainer.utils.text import drawing, emit, is_terminal, one_line

MANY_EPOCHS = 200  # of more about 50 lines are shown
MAX_CELL = 1000  # characters in a column of a table
REDRAW_SECONDS = 0.2  # a redraw costs as much as a step of a small model


class Screen:
    """Prints lines, keeps them in train.log, and draws the bar of the running epoch where there is a terminal.

    Args:
        job: `<sweep>/<number>` of a sweep's job, of which only epochs and warnings are printed; on a terminal only
            the warnings, since the board of the sweep shows the rest.
    """

    def __init__(self, job: str = "") -> None:
        self._job = job
        self._log: Path | None = None
        self._draws = False
        self._bar: Any = None
        self._drawn = 0.0
        self._early: list[str] = []
        self._headed = False

    def log_to(self, path: Path) -> None:
        """Append every line to this file, including those said before."""
        self._log = path
        early, self._early = self._early, []
        for line in early:
            self.note(line)

    def say(self, *lines: str) -> None:
        """Print lines, each of them as utils.text makes it."""
        self._remove_bar()
        for line in lines:
            if not self._job:
                emit(line)
            elif line.startswith("warning"):
                emit(f"[{self._job}] {line}")
            self.note(line)

    def note(self, line: str) -> None:
        """Write a line to train.log only."""
        if self._log is None:
            self._early.append(line)
            return
        try:
            with open_regular(self._log, "a", encoding="utf-8") as file:
                file.write(one_line(line) + "\n")
        except OSError as error:  # a full disk does not end a run
            emit(f"warning: {self._log} cannot be written any more: {error.strerror}")
            self._log = Path(os.devnull)

    def __enter__(self) -> "Screen":
        self._draws = is_terminal() and not self._job
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_bar()
        self._draws = False

    def due(self) -> bool:
        """Whether it is time to draw the bar again; ask before computing what it shows."""
        return self._draws and time.monotonic() - self._drawn > REDRAW_SECONDS

    def progress(self, epoch: int, epochs: int, done: int, total: int, text: str) -> None:
        """Draw the bar: `done` of `total` examples of this epoch."""
        self._drawn = time.monotonic()
        with drawing():
            if self._bar is None:
                self._bar = _started_bar(total)
            self._bar.update(0, description=f"epoch {epoch}/{epochs}", completed=done, total=total, text=text)
            self._bar.refresh()

    def _remove_bar(self) -> None:
        """Before a line is printed: with the bar below it, its end would be wrapped into a line of its own."""
        if self._bar is not None:
            with drawing():
                self._bar.stop()
            self._bar = None

    def row(self, row: Mapping[str, Any], epochs: int) -> None:
        """Print a line for an epoch, with the metrics that the row has."""
        columns = [(name, row[name]) for name in METRICS if row.get(name) is not None]
        heads = [f" {name.replace('accuracy', 'acc'):>11}" for name, _ in columns]
        every = 1 if epochs <= MANY_EPOCHS else epochs // 50
        if not self._headed:
            note = f"   (each {every}th epoch; all are in train.log)" if every > 1 else ""
            self.say(f"{'epoch':>9}{''.join(heads)}   examples/s{note}")
            self._headed = True
        values = "".join(shown(value).rjust(len(head)) for (_, value), head in zip(columns, heads, strict=True))
        line = f"{row['epoch']:>4}/{epochs:<4}{values}{row['samples_per_second']:13,.0f}"
        (self.note if row["epoch"] % every and row["epoch"] not in (1, epochs) else self.say)(line)
        if self._job and not is_terminal():
            said = "  ".join(f"{name} {shown(value)}" for name, value in columns)
            emit(f"[{self._job}] epoch {row['epoch']}/{epochs}  {said}")


class SilentScreen(Screen):
    """Says nothing: for what is done twice."""

    def say(self, *lines: str) -> None:
        """Do nothing."""


def _started_bar(total: int) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.fields[text]}")
    columns = (TextColumn("{task.description}"), BarColumn(), text, TimeRemainingColumn())
    bar = Progress(*columns, auto_refresh=False, transient=True)
    bar.add_task("", total=total, text="")
    bar.start()
    return bar


METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", *OF_CLASSES)


def shown(value: float) -> str:
    """Return a number with four decimals; small ones, like the noise floor of a regression, in powers of ten.

    Large ones too, like the loss of a run before it diverges.
    """
    if abs(value) >= 1e9:
        return f"{value:.4e}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows with the same keys as aligned columns under a header, line by line."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    return shown(value) if isinstance(value, float) else "" if value is None else one_line(value, MAX_CELL)
