"""What resume=, checkpoint= and init_from= point at: looked up once, its file read once. Torch-free but for files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.run import directory
from trainer.run.directory import Run
from trainer.utils.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """A run and which of its files, or a checkpoint file that was named."""

    run: Run  # the run; of a file, the run that is named in it
    which: str = ""  # best, last, or "" where nothing was said
    file: Path | None = None  # the file that was named; None: a run was
    content: Mapping[str, Any] = field(default_factory=dict)  # what is in that file

    def saved_config(self) -> dict[str, Any]:
        """The plain config that the run was started with, or that stands in the file."""
        if self.file is None:
            return directory.read_config(self.run.outputs)
        saved = dict(self.content["config"])
        own = self.run.checkpoints / self.file.name
        if not own.is_file() or not own.samefile(self.file):
            saved["paths"] = {}  # the file was brought here: its folders are of the machine that it was written on
        return saved

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


def find_run(target: str, *, outputs: str, checkpoints: str) -> Target | None:
    """What RUN, RUN:best, RUN:last or `last` means; None: it names no run."""
    name, colon, which = target.rpartition(":")
    if not colon or which not in ("best", "last"):
        name, which = target, ""
    if name == "last":
        name = directory.newest(Path(outputs))
    if not directory.JOB.fullmatch(name) or not directory.exists(name, outputs):
        return None
    return Target(directory.locate(name, outputs=outputs, checkpoints=checkpoints), which)


def find(target: str, *, outputs: str, checkpoints: str) -> Target:
    """What RUN, RUN:best, RUN:last, `last` or a path means. A run wins over a file of the same name.

    Raises:
        ConfigError: there is no such run and no such file, or the file is no checkpoint of this program.
    """
    if found := find_run(target, outputs=outputs, checkpoints=checkpoints):
        return found
    path = existing_file(target, outputs)
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
    return existing_file(target, outputs)


def existing_file(target: str, outputs: str) -> Path:
    """The path of a file that was named; ConfigError where there is none."""
    if not os.path.isfile(target):  # Path.is_file raises where a name is too long
        raise directory.unknown_run(target, Path(outputs))
    return Path(target)


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
