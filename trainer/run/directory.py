"""Run directories: their names, where they are, who holds them, and the files in them. Torch-free.

`folder` is outputs/<run>, where all files of a run are but its checkpoints.
"""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from trainer.config.plugins import as_word, paths_recorded
from trainer.config.schema import Config
from trainer.run import records
from trainer.run.folders import in_brief, is_broken_link, newest_file, why
from trainer.run.records import read_record
from trainer.utils.errors import BusyError, ConfigError, DamagedError
from trainer.utils.files import open_regular, write_json
from trainer.utils.locks import try_lock
from trainer.utils.program import main_py
from trainer.utils.screen import Screen

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
JOB = re.compile(rf"{NAME.pattern}(/[0-9]{{1,9}})?")  # a run, or one of the numbered jobs of a sweep
RESERVED = ("auto", "last", "best")
# no file or folder there has such a name
OF_WINDOWS = re.compile(r"""(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?|.*[. ]|.*[:*?"<>|\\].*""", re.IGNORECASE)
LONGEST = Path("n", "tb", "f" * 64)  # of what will be below a folder of runs, at least


@dataclass(frozen=True)
class Run:
    """The two folders of a run: outputs/<name> and checkpoints/<name>."""

    name: str
    outputs: Path
    checkpoints: Path

    @property
    def is_job(self) -> bool:
        """Whether it is a job of a sweep."""
        return "/" in self.name


def check_name(name: str, outputs: str) -> str:
    """Return name; refuse what cannot be typed back, would leave the outputs folder, or is forbidden on Windows.

    Args:
        name: of a run or sweep.
        outputs: where it is, or will be: what has a name that is not for Windows can still be resumed.
    Raises:
        ConfigError: malformed or reserved.
    """
    if not NAME.fullmatch(name):
        allowed = "up to 100 letters, digits, '.', '_' and '-', first a letter or digit"
        raise ConfigError(f"name={name} is not allowed. Allowed: {allowed}.")
    if name in RESERVED:
        raise ConfigError(f"name={name} is not allowed: {', '.join(RESERVED)} have a meaning of their own.")
    if OF_WINDOWS.fullmatch(name) and not os.path.isdir(os.path.join(outputs, name)):
        other = f"run-{name.rstrip('.')}"[:100]
        raise ConfigError(f"name={name} is not allowed: no folder on Windows has such a name. Allowed: name={other}.")
    return name


def new_name(data: str, model: str) -> str:
    """A name that no other run has: <data>-<model>-<time with microseconds>-<random>."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return f"{data}-{model}-{stamp}-{int(now % 1 * 1e6):06d}-{secrets.token_hex(2)}"


def locate(name: str, *, outputs: str, checkpoints: str) -> Run:
    """The run of this name, whether it exists or not."""
    return Run(name, Path(outputs) / name, Path(checkpoints) / name)


def exists(name: str, outputs: str) -> bool:
    """Whether a run of this name was ever started; config.json may be lost since."""
    return any((Path(outputs) / name / file).is_file() for file in ("config.json", "status.json"))


def occupied(run: Run) -> Path | None:
    """The folder of a run that was never started in which there is something else; None: neither has anything.

    A killed start may have left a lock, a log and a temporary file; a sweep's job may have failed before it made its
    files, so that its folder holds a log.
    """
    ours = ("run.lock", "train.log", ".config.json.tmp")  # earlier versions named their temporary files like this one
    for folder, names in ((run.outputs, ours), (run.checkpoints, ())):
        there = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        strange = [name for name in there if name not in names and not name.startswith(".tmp-")]
        if strange or (os.path.lexists(folder) and not folder.is_dir()):
            return folder
    return None


def check_free(run: Run) -> None:
    """Refuse the name of a run that was never started where there is something else in its folders.

    Raises:
        ConfigError: says what is there, and how the run that it may be of is continued.
    """
    if (taken := occupied(run)) is None:
        return
    check_folders(run)
    what = f"{taken} exists already and is not a run to resume: {run.outputs / 'config.json'} is missing."
    other = "" if run.is_job else " or choose another name="
    raise ConfigError(f"name={run.name}: {what}{how_to_continue(run)} To start anew, move {taken} away{other}.")


def check_folders(run: Run) -> None:
    """Refuse a run one of whose two folders is something else; ConfigError names it."""
    for folder in (run.outputs, run.checkpoints):
        if os.path.lexists(folder) and not folder.is_dir():
            raise ConfigError(f"name={run.name}: {why(folder / 'file', OSError())}")


def how_to_continue(run: Run) -> str:
    """What is saved of a run, and what to type to continue it: sentences that follow others."""
    newest = newest_file(run.checkpoints)
    if newest is None:
        return f" {run.checkpoints} has no step file of it." if run.outputs.is_dir() else ""
    above = run.name.count("/")
    moved = moved_folders(str(run.outputs.parents[above]), str(run.checkpoints.parents[above]))
    is_whole = (run.outputs / "config.json").is_file()
    target = run.name if is_whole else shlex.quote(str(newest))
    what = "continues" if is_whole else f"continues and writes {run.outputs / 'config.json'} again"
    return f" Saved: {newest}; {' '.join([main_py(), f'resume={target}', *moved])} {what}."


def make(run: Run, overwrite: bool) -> IO[str]:
    """Make the directory of a new run and hold it; BusyError where another process did so a moment ago."""
    run.outputs.mkdir(parents=True, exist_ok=True)  # a killed start may have left it empty
    held = hold(run.outputs)
    if overwrite:  # only now: whatever was wrong with the new run would have cost the old one
        empty(run)
    if (run.outputs / "config.json").exists():
        held.close()
        raise BusyError(f"{run.outputs} was made by another process a moment ago.")
    return held


def empty(run: Run) -> None:
    """Delete all files of a run that this process holds, but its lock."""
    for folder in (run.checkpoints, run.outputs):  # either may be a link to another disk, which stays
        # config.json last: with it a killed deletion is still one of this run, which overwrite=true finishes
        for path in sorted(folder.glob("*"), key=lambda path: path.name == "config.json"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "run.lock":
                path.unlink()


def newest(outputs: Path) -> str:
    """The name of the run that was started last, of those with something to go on with.

    Raises:
        ConfigError: there is none yet.
    """
    states = {path.parent: read_status(path.parent) for path in all_runs(outputs)}
    for folder in sorted(states, key=lambda folder: states[folder].get("started", ""), reverse=True):
        if states[folder].get("state") != "diverged" and not is_trial(folder):
            return folder.relative_to(outputs).as_posix()
    os.getcwd()  # where that is gone, so are the runs
    but = " but trials with fast_dev_run and runs that diverged" if states else ""
    raise ConfigError(f"last: there is no run in {outputs}/{but or ' yet'}. Start one with {main_py()}.")


def is_trial(folder: Path) -> bool:
    """Whether it is a run of one batch, by fast_dev_run."""
    try:
        return read_config(folder).get("fast_dev_run") is True
    except ConfigError:
        return False


def all_runs(outputs: Path) -> list[Path]:
    """The status.json of every run."""
    return [*outputs.glob("*/status.json"), *outputs.glob("*/*/status.json")]


def read_config(folder: Path) -> dict[str, Any]:
    """The plain config that a run was started with.

    Raises:
        DamagedError: its config.json is missing or damaged.
    """
    saved: dict[str, Any] = read_record(folder / "config.json", records.OF_CONFIG)["config"]
    return saved


def set_aside_damaged(run: Run, screen: Screen) -> None:
    """Keep records of a run that cannot be read as *.corrupt, before others are written in their place, and say so."""
    kinds = {"config.json": records.OF_CONFIG, "status.json": records.OF_STATUS, "result.json": records.OF_RESULT}
    for name, fields in kinds.items():
        if reason := set_aside(run.outputs / name, fields):
            # why config.json cannot be read was said where the settings were taken from the checkpoint instead
            said = f"The damaged {run.outputs / name}" if name == "config.json" else f"warning: {reason} It"
            screen.say(f"{said} is kept as {Path(name).stem}.corrupt.")


def set_aside(path: Path, fields: records.Fields) -> str:
    """Rename a record that is there but cannot be read to *.corrupt; returns why, or ""."""
    try:
        read_record(path, fields)
    except DamagedError as error:
        if os.path.lexists(path):
            path.replace(path.with_suffix(".corrupt"))
            return str(error)
    return ""


def write_status(run: Run, state: str, started: str, reason: str = "", *, checkpoint: str = "") -> None:
    """Put the run's state (running, done, interrupted, failed, diverged) and its reason on disk.

    Args:
        run: the run.
        state: one of the five words.
        started: when the run was started first, in ISO 8601.
        reason: why it is in this state.
        checkpoint: one that was written: a sign that there were some, should all be gone. Kept where it is not given.
    """
    content = {"state": state, "started": started, "reason": reason, "run": run.name}
    content["checkpoint"] = checkpoint or read_status(run.outputs).get("checkpoint", "")
    write_json(run.outputs / "status.json", content)


def read_status(folder: Path) -> dict[str, Any]:
    """The status of a run; empty where none was written.

    Of a damaged one only "started" is known, as the time at which the file was written last.
    """
    path = folder / "status.json"
    try:
        return read_record(path, records.OF_STATUS)
    except DamagedError:
        with contextlib.suppress(OSError):
            return {"started": datetime.fromtimestamp(path.lstat().st_mtime, UTC).isoformat()}
    return {}


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run; None where there is none that can be used."""
    try:
        return read_record(folder / "result.json", records.OF_RESULT)
    except DamagedError:
        return None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; lines that a crash cut short or a disk garbled are left out."""
    try:
        return records.whole_rows(records.text_of(folder / "metrics.jsonl"))[0]
    except ConfigError:
        return []


def check_writable(*folders: Path, key: str = "paths.outputs or paths.checkpoints") -> None:
    """Try a file in each folder, or in the nearest folder above it that exists; makes no folder.

    Args:
        folders: to try.
        key: the setting that chooses another one.
    Raises:
        ConfigError: one of them cannot be written.
    """
    for folder in folders:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        probe = there / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"0")
            probe.unlink()
            with contextlib.suppress(FileNotFoundError):
                os.stat(folder / LONGEST)
        except OSError as error:
            reason = why(probe, error) if is_broken_link(there) else f"{error.strerror}."
            raise ConfigError(
                f"{in_brief(folder)} cannot be written: {reason} Choose another folder with {key}."
            ) from None


def hold(folder: Path) -> IO[str]:
    """Lock a run or sweep for this process; the lock goes with the process, however that ends.

    Returns:
        The open lock file: keep it as long as the run lasts.
    Raises:
        BusyError: another live process holds it.
    """
    file = open_regular(folder / "run.lock", "a+", encoding="utf-8", errors="replace")  # stays open on purpose
    if not try_lock(file):
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise BusyError(f"{folder} is in use by {holder}.")
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def is_held(folder: Path) -> bool:
    """Whether another process holds this run."""
    try:
        with open_regular(folder / "run.lock", "r+", encoding="utf-8") as file:
            return not try_lock(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def command_for(config: Config, words: str) -> str:
    """What to type for this run: command_for(config, "resume") -> python main.py resume=NAME."""
    moved = moved_folders(config.paths.outputs, config.paths.checkpoints)
    files = [shlex.quote(as_word(paths))] if (paths := paths_recorded(config.plugins)) else []
    return " ".join([main_py(), f"{words}={config.name}", *moved, *files])


def moved_folders(outputs: str, checkpoints: str) -> list[str]:
    """The words for those of the two folders that are not where they are by default."""
    paths = {"outputs": outputs, "checkpoints": checkpoints}
    return [shlex.quote(f"paths.{key}={path}") for key, path in paths.items() if path != key]
