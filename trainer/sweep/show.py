"""The show command: what is known of one run, or of a sweep."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config.command_line import Command
from trainer.config.origins import DEFAULT, origins
from trainer.run import directory
from trainer.run.brief import REPORT, Brief, ago, brief_of, setting_text
from trainer.run.looks import looks_of
from trainer.run.target import find_run
from trainer.sweep.table import FIGURES, best_first, rows_of_sweep, without_empty
from trainer.utils.objective import said
from trainer.utils.program import main_py
from trainer.utils.screen import METRICS, shown, table
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit, emit_json, number_of

LAST = 5  # epochs
UNSAID = ("name", "paths.outputs", "paths.checkpoints")  # settings that stand in other lines


def run_show(command: Command, _stop: StopSignal) -> None:
    """Print what a run is and came to, or the table of a sweep.

    Raises:
        ConfigError: there is no such run.
    """
    name, folders = command.names[0], command.folders
    found = find_run(name, **folders)
    if found is not None:
        run = brief_of(found.run.name, found.run.outputs)
        checkpoints = found.run.checkpoints
        if "--json" in command.flags:
            emit_json(plainly(run, checkpoints))
        else:
            emit(*lines_of(run, checkpoints, command.overrides))
        return
    folder, rows = rows_of_sweep(name, **folders)
    if "--json" in command.flags:
        emit_json(best_first(rows))
        return
    columns = ("job", "overrides", "status", *FIGURES, "stopped", "error")
    emit(*table(without_empty([{key: row[key] for key in columns} for row in best_first(rows)])))
    started = (
        name for row in best_first(rows) if directory.exists(name := f"{folder.name}/{row['job']}", folders["outputs"])
    )
    emit(*(["", f"{main_py()} show {first} tells more of one."] if (first := next(started, None)) else []))


def plainly(run: Brief, checkpoints: Path) -> dict[str, Any]:
    """A run as plain data."""
    return {
        "name": run.name,
        "state": run.state,
        "started": run.started,
        "epochs": run.epochs,
        "seconds": run.seconds,
        "best": run.best,
        "result": run.result,
        "settings": {key: {"value": run.settings[key], "from": of} for key, of in origins_of(run).items()},
        "record": run.record,
        "outputs": str(run.folder),
        "checkpoints": str(checkpoints),
        "looks_at_test": looks_of(run.folder)["looks"],
    }


def origins_of(run: Brief) -> dict[str, str]:
    """Where each setting of a run came from."""
    return origins(run.settings, run.record.get("command", [])) if run.settings else {}


def lines_of(run: Brief, checkpoints: Path, folders: Sequence[str]) -> list[str]:
    """What is printed of a run, and what to type next."""
    status, result = directory.read_status(run.folder), run.result or {}
    told = f"{run.state}, started {ago(run.cell('age'))} ago, {number_of(run.epochs, 'epoch')} in {run.seconds:.0f} s"
    lines = [f"{run.name}: {told}"]
    lines += [f"reason       {reason}"] if (reason := status.get("reason")) else []
    lines += [f"command      {shlex.join(run.record['command'])}"] if "command" in run.record else []
    lines += of_settings(run)
    if "num_parameters" in result:
        lines.append(f"parameters   {result['num_parameters']:,}")
    lines += of_figures(run, result)
    lines += of_machine(run.record)
    if rows := directory.read_metrics(run.folder)[-LAST:]:
        keys = [key for key in METRICS if any(key in row for row in rows)]
        lines += ["", *table([{"epoch": row["epoch"], **{key: row.get(key) for key in keys}} for row in rows]), ""]
    plots = sorted(path.name for path in (run.folder / "plots").glob("*.png"))
    lines.append(f"files        {run.folder}, {checkpoints}")
    lines += [f"plots        {', '.join(plots)} in {run.folder / 'plots'}"] if plots else []
    lines += [f"report       {run.folder / REPORT}"] if (run.folder / REPORT).is_file() else []
    words = " ".join([run.name, *folders])
    verb = "eval " if run.state in ("done", "trial") else "resume="
    return [*lines, f"{verb.strip(' ='):13}{main_py()} {verb}{words}"]


def of_settings(run: Brief) -> list[str]:
    """The settings that have not their default, by where they came from."""
    found: dict[str, list[str]] = {}
    for key, of in origins_of(run).items():
        if of != DEFAULT and key not in UNSAID:
            found.setdefault(of, []).append(f"{key}={setting_text(run.settings[key])}")
    heads = ["settings", *[""] * len(found)]
    return [f"{head:13}{' '.join(words)} ({of})" for head, (of, words) in zip(heads, found.items(), strict=False)]


def of_figures(run: Brief, result: Mapping[str, Any]) -> list[str]:
    """The lines on the best epoch, the test split and a published figure."""
    lines = []
    if run.best is not None:
        at = f"epoch {result['best']['epoch']}: " if result else ""
        lines.append(f"best         {at}{run.best[0]} {shown(run.best[1])}")
    if run.test is not None:
        figures = ", ".join(f"{key} {shown(value)}" for key, value in result["test"].items() if key != "n")
        looks = number_of(looks_of(run.folder)["looks"], "look")
        lines.append(f"test         {figures} (n = {result['test']['n']:,}, {looks} at it)")
    return lines + ([said(result["reference"])] if "reference" in result else [])


def of_machine(record: Mapping[str, Any]) -> list[str]:
    """The line on what it was computed with."""
    versions, git = record.get("versions") or {}, record.get("git") or {}
    parts = [
        str(record.get("gpu") or record.get("cpu") or ""),
        number_of(threads, "thread") if type(threads := record.get("threads")) is int else "",
        *(f"{name} {versions[name]}" for name in ("torch", "python") if name in versions),
        f"commit {str(git['commit'])[:7]}{' with changes' if git.get('dirty') else ''}" if "commit" in git else "",
    ]
    said_parts = [part for part in parts if part]
    return [f"machine      {', '.join(said_parts)}"] if said_parts else []
