"""What resume=, checkpoint= and init_from= point at: looked up once, its file read once. Torch-free but for files."""

import contextlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.config.freeze import from_dict
from trainer.config.options import flatten
from trainer.config.plugins import changes_since, check_plugged
from trainer.config.roles import OF_THE_COMMAND, OF_THIS_MACHINE, decisive
from trainer.config.verbs import PLACES_OF_DATA
from trainer.run import directory, records
from trainer.run.directory import Run
from trainer.utils.errors import ConfigError, DamagedError, MissingPluginError, close_to, did_you_mean
from trainer.utils.text import emit


@dataclass(frozen=True)
class Target:
    """A run and which of its files, or a checkpoint file that was named."""

    run: Run  # the run; of a file, the run that is named in it
    which: str = ""  # best, last, or "" where nothing was said
    file: Path | None = None  # the file that was named; None: a run was
    content: Mapping[str, Any] = field(default_factory=dict)  # what is in that file

    @cached_property
    def saved_config(self) -> dict[str, Any]:
        """The plain config that the run was started with, or that stands in the file: what counts of it here.

        Read once: of a record that is damaged one warning is enough.
        """
        if self.file is None:
            return settings_of_run(self.run)
        try:
            record = directory.read_config(self.run.outputs)
        except DamagedError:  # the file was brought here
            record = {}
        return checked(settings_of_file(self.content["config"], record), self.file)

    def changed_plugins(self) -> list[str]:
        """A warning for each file of plugins= that is not what it was in the training."""
        with contextlib.suppress(DamagedError):
            saved = directory.read_config(self.run.outputs) if self.file is None else self.content["config"]
            return changes_since(saved.get("plugins"))
        return []

    def results(self, path: Path, outputs: str) -> Path:
        """Where what is measured of its file goes: the run's folder, of a file elsewhere outputs/eval-<stem>.

        With -2, -3 ... where that holds what another file of this name came to.
        """
        if self.file is None or path.parent.resolve() == self.run.checkpoints.resolve():
            return self.run.outputs
        folders = (Path(outputs, f"eval-{path.stem}{f'-{i}' if i > 1 else ''}") for i in itertools.count(1))
        return next(each for each in folders if all(is_of(path, file) for file in each.glob("eval-*.json")))

    def path(self) -> Path:
        """The file to measure: the one that was named, the run's newest for RUN:last, else the run's best.

        Raises:
            ConfigError: the run has no such file yet.
        """
        if self.file is not None:
            return self.file
        from trainer.run.checkpoint_files import steps_in  # imports torch

        if self.which == "last" and (files := steps_in(self.run.checkpoints)):
            return files[-1]
        best = self.run.checkpoints / "best.pt"
        if not self.run.checkpoints.is_dir() and directory.read_status(self.run.outputs).get("checkpoint"):
            raise ConfigError(f"{self.run.checkpoints} is gone, with all files of {self.run.name}. Bring it back.")
        if best.exists() and not best.is_file():
            raise ConfigError(f"{best} is no file. Move it away; {self.run.name}:last takes the newest step file.")
        if not best.is_file():
            raise ConfigError(f"{self.run.name} has no best.pt yet: it is written at the end of its first epoch.")
        return best

    def read(self) -> tuple[Path, dict[str, Any]]:
        """The file to measure and its content; ConfigError as path()."""
        path = self.path()
        if self.file is not None:
            return path, dict(self.content)
        from trainer.run.safe_load import read_checkpoint  # imports torch

        return path, read_checkpoint(path)


def is_of(path: Path, figures: Path) -> bool:
    """Whether a file of eval's figures is of this checkpoint."""
    with contextlib.suppress(DamagedError):
        found = records.read_record(figures, records.OF_FIGURES)["checkpoint"]
        return bool(os.path.abspath(found) == os.path.abspath(path))
    return False


def settings_of_run(run: Run) -> dict[str, Any]:
    """The settings in a run's own record, without what belongs to one command, as an address does.

    A record that is missing or damaged is made up for from the newest checkpoint that can be read, which says
    nothing of this machine.

    Raises:
        DamagedError: there is none.
    """
    try:
        return without(directory.read_config(run.outputs), OF_THE_COMMAND)
    except MissingPluginError:
        raise
    except DamagedError as error:
        from trainer.run.checkpoint_files import steps_in  # imports torch
        from trainer.run.safe_load import read_checkpoint

        for path in (*reversed(steps_in(run.checkpoints)), run.checkpoints / "best.pt"):
            with contextlib.suppress(ConfigError):
                settings = checked(settings_of_file(read_checkpoint(path)["config"], {}), path)
                emit(
                    f"warning: {error} Its settings are taken from {path}, "
                    "those of device=, data.root=, data.path= and paths.data= from this command."
                )
                return settings
        hint = f"No checkpoint has its settings either: start anew under another name=, or remove {run.outputs}."
        raise DamagedError(f"{error} {hint}") from None


def settings_of_file(saved: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of the settings in a checkpoint, which may come from anywhere: the one place that decides it.

    Nothing in it chooses an address, a folder, a device or processes. Those of the run's own record count if the file
    names the same data; else a setting that is left out has its default.

    Args:
        saved: what stands in the file.
        record: the settings of this machine's run of the same name; empty where it has none.
    """
    check_plugged(saved, is_own=False)
    kept = without(saved, (*OF_THE_COMMAND, *OF_THIS_MACHINE))
    if isinstance(kept.get("choices"), dict):
        kept["choices"]["device"] = "auto"
    of_file, of_run = flatten(saved), flatten(record)
    if any(of_file.get(key) != of_run.get(key) for key in ("choices.data", *PLACES_OF_DATA)):
        return kept
    for node, values in record.items():
        if isinstance(values, Mapping):
            here = {key: value for key, value in values.items() if f"{node}.{key}".startswith(OF_THIS_MACHINE)}
            kept[node] = kept.get(node, {}) | here
    return kept


def checked(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings in a checkpoint, each of which is one of this program; DamagedError names the file and the one."""
    try:
        from_dict(settings, complete=False)
    except ConfigError as error:
        raise DamagedError(f"{path} is refused: {error}") from None
    return settings


def without(saved: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Nested settings without those whose dotted name begins with one of these."""
    kept: dict[str, Any] = {}
    for key, value in saved.items():
        if isinstance(value, Mapping):
            kept[key] = {name: leaf for name, leaf in value.items() if not f"{key}.{name}".startswith(names)}
        elif not str(key).startswith(names):
            kept[key] = value
    return kept


def decisive_elsewhere(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the results depend on, on whatever machine."""
    return {key: value for key, value in decisive(saved).items() if not key.startswith(OF_THIS_MACHINE)}


def find_run(target: str, *, outputs: str, checkpoints: str) -> Target | None:
    """What RUN, RUN:best, RUN:last, SWEEP:best, `last` or a run's folder means; None: it names no run."""
    name, colon, which = target.rpartition(":")
    if not colon or which not in ("best", "last"):
        name, which = target, ""
    if name == "last":
        name = directory.newest(Path(outputs))
    else:
        name = name_of(name, outputs=outputs, checkpoints=checkpoints)
    if which == "best" and (job := best_job(name, outputs)) is not None:
        name = f"{name}/{job}"
    if not directory.JOB.fullmatch(name) or not directory.exists(name, outputs):
        return None
    return Target(directory.locate(name, outputs=outputs, checkpoints=checkpoints), which)


def existing_run(target: str, *, outputs: str, checkpoints: str) -> Target:
    """As find_run; ConfigError where there is no such run."""
    if (found := find_run(target, outputs=outputs, checkpoints=checkpoints)) is None:
        raise unknown_run(target, Path(outputs), Path(checkpoints))
    return found


def name_of(target: str, *, outputs: str, checkpoints: str) -> str:
    """The name of a run or a sweep whose folder was typed, as a shell completes it: outputs/clothes/ -> clothes."""
    if not os.path.isdir(target):
        return target
    below = [Path(os.path.relpath(target, folder)).as_posix() for folder in (outputs, checkpoints)]
    return next((path for path in below if directory.JOB.fullmatch(path) and Path(outputs, path).is_dir()), target)


def find(target: str, *, outputs: str, checkpoints: str) -> Target:
    """What RUN, RUN:best, RUN:last, `last` or a path means. A run wins over a file of the same name.

    Raises:
        ConfigError: there is no such run and no such file, or the file is no checkpoint of this program.
    """
    if found := find_run(target, outputs=outputs, checkpoints=checkpoints):
        return found
    path = existing_file(target, outputs, checkpoints)
    from trainer.run.safe_load import read_checkpoint  # imports torch

    content = read_checkpoint(path)
    run = directory.locate(content["config"]["name"], outputs=outputs, checkpoints=checkpoints)
    return Target(run, file=path, content=content)


def path_of(target: str, *, outputs: str, checkpoints: str) -> Path:
    """The file that a RUN or a path means, whatever is in it.

    Raises:
        ConfigError: there is no such run and no such file.
    """
    if found := find_run(target, outputs=outputs, checkpoints=checkpoints):
        return found.path()
    return existing_file(target, outputs, checkpoints)


def existing_file(target: str, outputs: str, checkpoints: str) -> Path:
    """The path of a file that was named; ConfigError where there is none."""
    if not os.path.isfile(target):  # Path.is_file raises where a name is too long
        raise unknown_run(target, Path(outputs), Path(checkpoints))
    return Path(target)


def best_job(name: str, outputs: str) -> int | None:
    """The best job of the sweep of this name; None where there is no such sweep, or none of its jobs is the best."""
    if not directory.NAME.fullmatch(name):
        return None
    try:
        return records.read_record(Path(outputs, name, "sweep.json"), records.OF_SWEEP).get("best")
    except DamagedError:
        return None


def unknown_run(target: str, outputs: Path, checkpoints: Path) -> ConfigError:
    """The refusal of what is neither the name of a run nor a file."""
    os.getcwd()  # where that is gone, there are no runs to name
    names = [path.parent.relative_to(outputs).as_posix() for path in directory.all_runs(outputs)]
    where = f"there is no run of this name in {outputs}/ and no such file"
    name = target.removesuffix(":best").removesuffix(":last")
    if directory.JOB.fullmatch(name) and (jobs := [run for run in names if run.startswith(f"{name}/")]):
        number = best_job(name, str(outputs))
        best = f"{name}/{number}, the best one, which {name}:best means too"
        if number is not None and f"{name}/{number}" not in names:
            told = f"the best job of {name} was {name}/{number}, which is no longer there"
            again = "the command of the sweep trains it again"
            return ConfigError(f"{target}: {told}: {again}. Or name another one, such as {min(jobs)}.")
        return ConfigError(
            f"{target} is a sweep: name one of its jobs, such as {min(jobs) if number is None else best}."
        )
    if directory.JOB.fullmatch(name) and (
        told := directory.how_to_continue(Run(name, outputs / name, checkpoints / name))
    ):
        return ConfigError(f"{target}: {where}; {outputs / name / 'config.json'} is missing.{told}")
    if name in names and not directory.JOB.fullmatch(name):
        return ConfigError(
            f"{target}: {outputs / name} has a run under a name that none may have. Rename it, in {checkpoints}/ too: "
            "letters, digits, '.', '_' and '-', first a letter or digit."
        )
    sweeps = {run.partition("/")[0] for run in names if "/" in run}
    close = close_to(name, [*sweeps, *names])
    close = [f"{run}:best" if run in sweeps else run for run in close]
    error = ConfigError(f"{target}: {where}.{did_you_mean(close)} `last` is the newest run.")
    return error.instead("run", target, close[0] if close else "")


def resolve_resume(resume: str | None, name: str | None, outputs: str) -> str | None:
    """What resume= names; None: a new run, which resume=auto starts where there is none of this name.

    Raises:
        ConfigError: resume=auto without a name.
    """
    if resume != "auto":
        return resume
    if name is None:
        raise ConfigError("resume=auto needs name=<the run's name>.")
    return name if directory.exists(name, outputs) else None
