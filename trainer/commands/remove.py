"""The rm command: runs and sweeps deleted, with their checkpoints, after a question."""

import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from trainer.config.command_line import Command
from trainer.run import directory
from trainer.run.directory import Run
from trainer.run.target import name_of, unknown_run
from trainer.utils.errors import ConfigError, listed
from trainer.utils.program import main_py
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit, number_of


def run_remove(command: Command, _stop: StopSignal) -> None:
    """Delete the runs and sweeps that are named: outputs/<run> and checkpoints/<run>.

    Raises:
        ConfigError: one of them is unknown or no name, or nobody was there to ask.
        BusyError: one of them is in use.
    """
    names = [name_of(name, **command.folders) for name in command.names]
    runs = [run_to_remove(name, command) for name in dict.fromkeys(names)]
    with ExitStack() as held:
        for run in runs:
            for folder in (run.outputs, *sorted(path.parent for path in run.outputs.glob("*/status.json"))):
                if folder.is_dir():
                    held.enter_context(directory.hold(folder))
        folders = dict.fromkeys(folder for run in runs for folder in folders_of(run))
        whole = [folder for folder in folders if not folder.is_symlink()]  # what a link leads to stays
        files = {path for folder in whole for path in folder.rglob("*") if path.is_file()}
        size = sum(path.lstat().st_size for path in files)
        told = f"{', '.join(run.name for run in runs)}: {number_of(len(files), 'file')}, {size / 1e6:.1f} MB"
        if links := [str(folder) for folder in folders if folder.is_symlink()]:
            told += f"; of {listed(links)} the link, not what it leads to"
        if "--yes" not in command.flags and not agreed(f"{told}. Delete them? [y/N] ", command):
            emit("Nothing was deleted.")
            return
        for folder in folders:
            if folder.is_dir():  # a job goes with its sweep
                delete(folder)
    emit(f"deleted {told}")


def run_to_remove(name: str, command: Command) -> Run:
    """The run or sweep of this very name.

    Raises:
        ConfigError: there is none, or the word may mean another one tomorrow.
    """
    if name == "last" or ":" in name:
        raise ConfigError(f"{name}: rm takes names, which mean the same run tomorrow. {main_py()} runs lists them.")
    run = directory.locate(name, **command.folders)
    is_sweep = directory.NAME.fullmatch(name) and (run.outputs / "sweep.json").is_file()
    if not is_sweep and not (directory.JOB.fullmatch(name) and directory.exists(name, command.folders["outputs"])):
        raise unknown_run(name, *map(Path, command.folders.values()))
    return run


def folders_of(run: Run) -> list[Path]:
    """The two folders of a run, as far as they are there; the one with its records last, so that it can be named."""
    return [folder for folder in (run.checkpoints, run.outputs) if folder.is_dir()]


def agreed(question: str, command: Command) -> bool:
    """Whether the user says yes; ConfigError where nobody can be asked."""
    if sys.stdin is None or not sys.stdin.isatty():
        words = " ".join([*map(shlex.quote, command.names), *directory.moved_folders(**command.folders)])
        raise ConfigError(f"rm asks first, and there is no terminal: {main_py()} rm {words} --yes")
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def delete(folder: Path) -> None:
    """Delete a folder; of a link to one the link."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)
