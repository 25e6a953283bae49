"""The experiments command: what can be reproduced, and what it came to on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config.command_line import Command
from trainer.config.options import CONFIGS, choices_of, experiment_settings, flatten
from trainer.run import directory
from trainer.utils.errors import DamagedError
from trainer.utils.objective import said
from trainer.utils.program import main_py
from trainer.utils.screen import shown
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit


def run_experiments(command: Command, _stop: StopSignal) -> None:
    """Print each experiment with its source, its figure, the time it takes, and the newest result below outputs/."""
    finished = finished_runs(Path(command.folders["outputs"]))
    for name in choices_of("experiment"):
        lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        emit(name, *(f"    {line.removeprefix('# ')}" for line in lines[1:] if line.startswith("# ")))
        wanted = experiment_settings(name)
        if last := next((line for line, settings in finished if agrees(wanted, settings)), None):
            emit(f"    last here: {last}")
    emit("", f"{main_py()} experiment=NAME trains one; seeds=3 three runs of it, with their mean and spread.")


def finished_runs(outputs: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """What each finished run came to, with its settings by dotted name; the newest first."""
    paths = [*outputs.glob("*/result.json"), *outputs.glob("*/*/result.json")]
    found: list[tuple[str, Mapping[str, Any]]] = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        result, name = directory.read_result(path.parent), path.parent.relative_to(outputs).as_posix()
        try:
            settings = flatten(directory.read_config(path.parent))
        except DamagedError:
            continue
        if result is None or result.get("fast_dev_run"):
            continue
        metric = "accuracy" if "accuracy" in result["test"] else "loss"
        figure = f"test {metric}: yours {shown(result['test'][metric])} (n = 1)"
        found.append((f"{said(result['reference']) if 'reference' in result else figure}, {name}", settings))
    return found


def agrees(wanted: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a run has all the settings of an experiment."""
    return all(key in settings and settings[key] == value for key, value in wanted.items())
