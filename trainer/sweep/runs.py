"""The runs command: all runs as a table, or as JSON for scripts."""

import re
from pathlib import Path
from typing import Any

from trainer.config.command_line import Command
from trainer.run.brief import (
    OF_A_BRIEF,
    Brief,
    ago,
    all_briefs,
    is_number,
    named_in,
    select,
    setting_text,
    sort_runs,
)
from trainer.utils.errors import ConfigError
from trainer.utils.program import main_py
from trainer.utils.screen import shown, table
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit, emit_json, number_of

MOST = 30  # runs on the screen


def run_runs(command: Command, _stop: StopSignal) -> None:
    """Print the runs that where= selects, in the order of sort=, at most limit= of them.

    Raises:
        ConfigError: a condition, column or number that cannot be read.
    """
    text, outputs = command.value("limit"), Path(command.folders["outputs"])
    if text is not None and not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ConfigError(f"limit={text} is not allowed. Allowed: whole numbers from 1.")
    every = all_briefs(outputs)
    where, sort = command.value("where"), command.value("sort")
    found = select(every, where) if where else every
    found = sort_runs(found, sort) if sort else found
    named = [*named_in(where or ""), (sort or "").removeprefix("-")]  # they get a column each
    extra = [key for key in dict.fromkeys(named) if key and key not in OF_A_BRIEF]
    as_json = "--json" in command.flags
    shown_runs = found[: int(text)] if text else found if as_json else found[:MOST]
    if as_json:
        emit_json([plain(run, extra) for run in shown_runs])
        return
    if not every:
        emit(f"There are no runs in {outputs}/ yet. Start one: {main_py()}")
    elif not found:
        emit(f"None of {number_of(len(every), 'run')} in {outputs}/ is so.")
    else:
        emit(*table([line(run, extra) for run in shown_runs]))
    if left := len(found) - len(shown_runs):
        emit(f"and {number_of(left, 'run')} more: limit={len(found)} shows all of them")


def plain(run: Brief, extra: list[str]) -> dict[str, Any]:
    """A run as plain data."""
    figures = {"best": run.best, "test": run.test}
    told = {key: {"metric": f[0], "value": f[1]} if (f := figures[key]) else None for key in figures}
    own = {key: run.cell(key) for key in OF_A_BRIEF} | {"started": run.started, "folder": str(run.folder)}
    return own | told | {key: run.cell(key) for key in extra}


def line(run: Brief, extra: list[str]) -> dict[str, Any]:
    """A run as a line of the table."""
    figures = {
        key: f"{f[0].removeprefix('val_')} {shown(f[1])}" for key in ("best", "test") if (f := getattr(run, key))
    }
    of = run.settings.get("epochs")
    return {
        "name": run.name,
        "data": run.settings.get("data", "?"),
        "model": run.settings.get("model", "?"),
        "state": run.state,
        "epochs": str(run.epochs) if run.state == "done" else f"{run.epochs}/{of}",
        **{key: figures.get(key) for key in ("best", "test")},
        "seconds": f"{run.seconds:.0f}",
        "age": ago(run.cell("age")),
        **{
            key: value if (value := run.cell(key)) is None or is_number(value) else setting_text(value) for key in extra
        },
    }
