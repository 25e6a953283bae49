"""One job of a sweep: what it was told, how it ended, and whether there is something left to do."""

import contextlib
import math
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config.freeze import flat_settings
from trainer.config.roles import FREE_ON_RESUME, HOW_FAR
from trainer.config.schema import Config
from trainer.run import directory, records
from trainer.run.records import read_record
from trainer.utils import ranks
from trainer.utils.errors import ConfigError, TrainerError
from trainer.utils.files import open_regular, write_json
from trainer.utils.text import emit, is_terminal, one_line


def log_failure(folder: Path, text: str) -> None:
    """Append why a job failed to its train.log, also where it failed before its directory was made."""
    with contextlib.suppress(OSError):  # there may be something else in its place, which may be the reason
        folder.mkdir(parents=True, exist_ok=True)
        with open_regular(folder / "train.log", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join(map(one_line, text.split("\n"))))


def told_in(folder: Path, pattern: str = "*.json") -> dict[int, dict[str, Any]]:
    """What each job of the sweep in `folder` was told and why it failed, by number, as far as it can be read."""
    found = {}
    for path in (folder / "jobs").glob(pattern):
        if re.fullmatch("[0-9]{1,9}", path.stem):
            with contextlib.suppress(ConfigError):
                own = {"job": int(path.stem), "overrides": {}, "error": ""}
                found[int(path.stem)] = own | read_record(path, records.OF_JOB) | {"job": int(path.stem)}
    return found


def as_words(overrides: Mapping[str, str]) -> str:
    """{"optimizer.lr": "0.1", "seed": "2"} -> `optimizer.lr=0.1 seed=2`."""
    return " ".join(f"{key}={value}" for key, value in overrides.items())


INTERRUPTED = "interrupted; the same command continues the sweep."


@dataclass(frozen=True)
class Job:
    """A run of a sweep: outputs/<sweep>/<number>."""

    number: int
    overrides: Mapping[str, str]  # what is swept over, as typed
    config: Config | None  # None: it was refused
    error: Exception | None = None  # why

    @property
    def text(self) -> str:
        """`optimizer.lr=0.1 seed=2`."""
        return as_words(self.overrides)


def config_of_job(job: Job, folder: Path) -> Config:
    """The settings of a job under its name, to start it or to resume it."""
    assert job.config is not None
    return replace(job.config, name=f"{folder.name}/{job.number}", resume="auto")


def fail(job: Job, folder: Path, error: BaseException) -> float:
    """Note and say why a job failed."""
    if not ranks.of_environment().is_first:
        return math.nan
    told = str(error) if isinstance(error, TrainerError) else one_line(error)  # whose line ends are ours
    reason = f"{type(error).__name__}: {told}"
    note(job, folder, reason)
    log = folder / str(job.number) / "train.log"
    emit(*f"[{folder.name}/{job.number}] failed: {reason} See {log}.".split("\n"), file=sys.stderr)
    log_failure(log.parent, "".join(traceback.format_exception(error)))
    return math.nan


def say(line: str) -> None:
    """Print a line where no board shows the same."""
    if not is_terminal():
        emit(line)


def note(job: Job, folder: Path, error: str = "") -> None:
    """Write outputs/<sweep>/jobs/<number>.json: what the job was told, and why it failed."""
    if not ranks.of_environment().is_first:
        return
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    content = {"job": job.number, "overrides": dict(job.overrides), "error": error}
    if told_in(folder, f"{job.number}.json").get(job.number) != content:  # a finished sweep is left as it is
        write_json(folder / "jobs" / f"{job.number}.json", content)


def objective_of(job: Job, own: Path) -> float | None:
    """The objective of a job that is done, with these very settings; None where there is something to do."""
    result = directory.read_result(own)
    if job.config is None or directory.read_status(own).get("state") != "done" or result is None:
        return None
    try:
        saved = directory.read_config(own)
    except ConfigError:
        return None
    was, now = (
        {k: v for k, v in flat_settings(plain).items() if k.startswith(HOW_FAR) or not k.startswith(FREE_ON_RESUME)}
        for plain in (saved, job.config.to_dict())
    )
    settled = {key for key, value in now.items() if key.startswith("device.") and value == "auto"}  # the run chose it
    if any(was.get(key) != now[key] for key in now if key not in settled):
        return None
    return float(result["objective"]["value"])
