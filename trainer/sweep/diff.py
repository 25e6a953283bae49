"""The diff command: in which settings and figures runs differ, and their curves over each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.command_line import Command
from trainer.run import directory
from trainer.run.brief import Brief, brief_of, setting_text
from trainer.run.target import existing_run
from trainer.utils.errors import ConfigError
from trainer.utils.program import main_py
from trainer.utils.screen import shown, table
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit

NO_DIFFERENCE = ("name", "paths.outputs", "paths.checkpoints")  # they differ and change nothing


def run_diff(command: Command, _stop: StopSignal) -> None:
    """Print what differs between runs, and draw their curves over each other.

    Raises:
        ConfigError: one of them is unknown, or given twice.
    """
    found = [existing_run(name, **command.folders) for name in command.names]
    runs = [brief_of(target.run.name, target.run.outputs) for target in found]
    if len({run.name for run in runs}) < len(runs):
        raise ConfigError(f"{', '.join(run.name for run in runs)}: diff takes each run once.")
    for what, rows in (
        ("settings", settings_of(runs)),
        ("figures", figures_of_runs(runs)),
        ("machine", machine_of(runs)),
    ):
        head = f"{what}:" if what in command.names else what  # the columns have names of their own
        if rows:
            emit(*table([{head: name} | dict(zip((r.name for r in runs), cells, strict=True)) for name, cells in rows]))
        else:
            emit(f"The same {what}.")
        emit("")
    curves = {run.name: lines for run in runs if (lines := directory.read_metrics(run.folder))}
    if len(curves) > 1:
        from trainer.plots.sweep import draw_curves  # matplotlib takes 0.4 s

        others = "-".join(run.name.replace("/", "-") for run in runs[1:])[:100]
        path = runs[0].folder / "plots" / f"diff-{others}.png"
        draw_curves(curves, path)
        emit(f"plot         {path}")
    emit(f"compare      {main_py()} compare {' '.join([*(run.name for run in runs), *command.overrides])}")


def differing(rows: Mapping[str, Sequence[Any]]) -> list[tuple[str, list[str]]]:
    """The rows whose values are not all the same, as text."""
    return [
        (name, [cell_of(value) for value in values])
        for name, values in rows.items()
        if any(value != values[0] or type(value) is not type(values[0]) for value in values)
    ]


def cell_of(value: Any) -> str:
    """A value as a table shows it; nothing where there is none."""
    return "" if value is None else shown(value) if isinstance(value, float) else setting_text(value)


def settings_of(runs: Sequence[Brief]) -> list[tuple[str, list[str]]]:
    """The settings that differ."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in NO_DIFFERENCE)
    rows = {key: [setting_text(run.settings[key]) if key in run.settings else None for run in runs] for key in keys}
    return differing(rows)


def figures_of_runs(runs: Sequence[Brief]) -> list[tuple[str, list[str]]]:
    """The figures that differ."""
    results = [run.result or {} for run in runs]
    rows: dict[str, list[Any]] = {key: [run.cell(key) for run in runs] for key in ("state", "epochs", "seconds")}
    rows["parameters"] = [result.get("num_parameters") for result in results]
    rows["best epoch"] = [result["best"]["epoch"] if result else None for result in results]
    metrics = dict.fromkeys(run.best[0] for run in runs if run.best is not None)
    for metric in metrics:
        rows[f"best {metric}"] = [run.best[1] if run.best and run.best[0] == metric else None for run in runs]
    tests = [result["test"] if result else {} for result in results]
    for key in dict.fromkeys(key for test in tests for key in test):
        rows[f"test {key}"] = [test.get(key) for test in tests]
    return differing(rows)


def machine_of(runs: Sequence[Brief]) -> list[tuple[str, list[str]]]:
    """What differs in versions, hardware and commit."""
    rows: dict[str, list[Any]] = {}
    for key in ("cpu", "gpu", "device", "threads", "platform"):
        rows[key] = [run.record.get(key) for run in runs]
    versions = [run.record.get("versions") or {} for run in runs]
    for package in dict.fromkeys(name for each in versions for name in each):
        rows[package] = [each.get(package) for each in versions]
    gits = [run.record.get("git") or {} for run in runs]
    rows["commit"] = [str(git.get("commit", ""))[:7] for git in gits]
    return differing(rows)
