"""The live board of a sweep: what every job is doing, read from the files of the jobs, whatever process they run in."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from trainer.run import directory
from trainer.sweep.job import as_words, told_in
from trainer.utils.objective import deciding_metric, score
from trainer.utils.screen import MAX_CELL, shown
from trainer.utils.text import drawing, is_terminal, one_line

LOOKS_PER_SECOND = 2
LINES_BESIDE = 8  # of the terminal: heading, frame, and what is printed above the board


class Board:
    """A table that is drawn anew while the jobs run; nothing where there is no terminal.

    Args:
        folder: outputs/<sweep>.
        overrides: of each job that is known to come, by its number.
    """

    def __init__(self, folder: Path, overrides: Mapping[int, str]) -> None:
        self.folder = folder
        self.overrides = dict(overrides)
        self._ended: dict[int, dict[str, str]] = {}  # lines that no longer change
        self._live: Any = None

    def __enter__(self) -> "Board":
        if is_terminal():
            from rich.live import Live

            self._live = Live(get_renderable=self.table, refresh_per_second=LOOKS_PER_SECOND, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            with drawing():
                self._live.stop()

    def table(self) -> Any:
        """The board as rich draws it: as many jobs as there is room for, what runs and what failed before the rest."""
        from rich.table import Table
        from rich.text import Text  # a plain str could hold markup

        lines = self.lines()
        counts = {state: sum(line["state"] == state for line in lines) for state in ("done", "failed", "running")}
        said = ", ".join(f"{count} {state}" for state, count in counts.items())
        board = Table(title=f"{self.folder.name}: {said}, {len(lines)} in all", title_justify="left")
        for name in COLUMNS:
            board.add_column(name, overflow="fold")
        room = max(4, self._live.console.height - LINES_BESIDE) if self._live is not None else len(lines)
        for line in chosen(lines, room):
            cells = (Text(one_line(line[name], MAX_CELL)) for name in COLUMNS)
            board.add_row(*cells, style=STYLES.get(line["state"]))
        return board

    def lines(self) -> list[dict[str, str]]:
        """What is known of each job, by number."""
        told = told_in(self.folder)
        for number in told:  # those that a launcher made up
            self.overrides.setdefault(number, as_words(told[number]["overrides"]))
        return [
            self._ended.get(number) or self._look(number, told.get(number, {})) for number in sorted(self.overrides)
        ]

    def _look(self, number: int, told: Mapping[str, Any]) -> dict[str, str]:
        line = line_of(self.folder / str(number), told.get("error", "")) | {"job": str(number)}
        line["overrides"] = self.overrides[number]
        if line["state"] == "done":
            self._ended[number] = line
        return line


COLUMNS = ("job", "overrides", "state", "epoch", "best metric", "time")
STYLES = {"running": "bold", "failed": "red", "waiting": "dim"}
ORDER = ("running", "failed", "waiting", "done")  # who gets a line where there are not enough


def line_of(own: Path, error: str) -> dict[str, str]:
    """What the files of one job say: state, epoch, best metric so far, time; of a failed one the reason."""
    line = dict.fromkeys(COLUMNS, "") | {"state": "waiting"}
    status = directory.read_status(own)
    if error:
        return line | {"state": "failed", "best metric": error}
    if status:
        state = status.get("state", "waiting")
        line["state"] = {"diverged": "failed", "interrupted": "waiting"}.get(state, state)
        began = datetime.fromisoformat(status["started"])
        line["time"] = f"{(datetime.now(UTC) - began).total_seconds():.0f} s"
    rows = directory.read_metrics(own)
    if rows:
        line["epoch"] = str(rows[-1]["epoch"])
        metric = deciding_metric(rows[-1])
        best = max((row[metric] for row in rows if metric in row), key=lambda value: score(metric, value))
        line["best metric"] = f"{metric} {shown(best)}"
    if line["state"] == "done":
        line["time"] = f"{sum(row['seconds'] for row in rows):.1f} s"
    return line


def chosen(lines: Sequence[dict[str, str]], room: int) -> list[dict[str, str]]:
    """At most `room` of the lines, in their order: first those that run or failed, then the next and the last ones."""
    ranked = sorted(lines, key=lambda line: ORDER.index(line["state"]))
    kept = {line["job"] for line in ranked[:room]}
    return [line for line in lines if line["job"] in kept]
