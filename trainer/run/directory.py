"""Run directories: their names, where they are, who holds them, and the JSON files in them. Torch-free."""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.config.schema import Config
from trainer.utils.errors import BusyError, ConfigError, nearest
from trainer.utils.files import read_json, write_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
JOB = re.compile(rf"{NAME.pattern}(/\d+)?")  # a run, or one of the numbered jobs of a sweep
RESERVED = ("auto", "last", "best")


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


@dataclass(frozen=True)
class Found:
    """What checkpoint= or resume= points at: a run and which of its files, or a file of its own."""

    run: Run | None
    which: str = ""  # best, last, or nothing said
    file: Path = Path()


def check_name(name: str) -> str:
    """Return name; refuse what could not be typed back or would leave the outputs folder.

    Raises:
        ConfigError: malformed or reserved.
    """
    if not NAME.fullmatch(name):
        allowed = "up to 100 letters, digits, '.', '_' and '-', first a letter or digit"
        raise ConfigError(f"name={name} is not allowed. Allowed: {allowed}.")
    if name in RESERVED:
        raise ConfigError(f"name={name} is not allowed: {', '.join(RESERVED)} have a meaning of their own.")
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
    """Whether a run of this name was ever started."""
    return (Path(outputs) / name / "config.json").is_file()


def strangers_in(run: Run) -> str:
    """What lies in the folders of a run that was never started, other than what a killed start leaves; "" if nothing.

    A sweep's job may have failed before it made its files, so that its folder holds a log.
    """
    for folder, ours in ((run.outputs, ("run.lock", "train.log", ".config.json.tmp")), (run.checkpoints, ())):
        if folder.exists() and (not folder.is_dir() or any(p.name not in ours for p in folder.iterdir())):
            return str(folder)
    return ""


def find(target: str, *, outputs: str, checkpoints: str) -> Found:
    """What RUN, RUN:best, RUN:last, last or a path means.

    Raises:
        ConfigError: there is no such run and no such file.
    """
    name, colon, which = target.rpartition(":")
    if not colon or which not in ("best", "last"):
        name, which = target, ""
    if name == "last":
        name = _newest(Path(outputs))
    if JOB.fullmatch(name) and exists(name, outputs):
        return Found(locate(name, outputs=outputs, checkpoints=checkpoints), which)
    if os.path.isfile(target):  # Path.is_file raises where a name is too long
        return Found(None, file=Path(target))
    names = [str(path.parent.relative_to(outputs)) for path in _all_runs(Path(outputs))]
    where = f"there is no run of this name in {outputs}/ and no such file"
    raise ConfigError(f"{target}: {where}.{nearest(name, names)} `last` is the newest run.")


def _all_runs(outputs: Path) -> list[Path]:
    return [*outputs.glob("*/status.json"), *outputs.glob("*/*/status.json")]


def _newest(outputs: Path) -> str:
    started = {path: status_in(path.parent).get("started", "") for path in _all_runs(outputs)}
    if not started:
        raise ConfigError(f"last: there is no run in {outputs}/ yet. Start one with python main.py.")
    return str(max(started, key=lambda path: started[path]).parent.relative_to(outputs))


def read_config(run: Run) -> dict[str, Any]:
    """The plain config a run was started with."""
    saved = read_json(run.outputs / "config.json").get("config")
    if not isinstance(saved, dict):
        raise ConfigError(f"{run.outputs / 'config.json'} cannot be read: it holds no settings.")
    return saved


def write_status(run: Run, state: str, started: str, reason: str = "", *, checkpoint: str = "") -> None:
    """Put the run's state (running, done, interrupted, failed, diverged) and its reason on disk.

    Args:
        checkpoint: the first one that was written; once said, it stays there.
    """
    content = {"state": state, "started": started, "reason": reason, "run": run.name}
    content["checkpoint"] = checkpoint or read_status(run).get("checkpoint", "")
    write_json(run.outputs / "status.json", content)


def read_status(run: Run) -> dict[str, Any]:
    """The run's status; empty where none was written, or a power cut took it."""
    return status_in(run.outputs)


def status_in(folder: Path) -> dict[str, Any]:
    """The status of the run whose outputs are in `folder`; empty where there is none that can be read."""
    try:
        return read_json(folder / "status.json")
    except ConfigError:
        return {}


def result_in(folder: Path) -> dict[str, Any] | None:
    """The result of the run whose outputs are in `folder`; None where there is none that can be used."""
    try:
        result = read_json(folder / "result.json")
        complete = {"best", "test", "seconds"} <= set(result) and float(result["objective"]["value"]) is not None
    except (ConfigError, KeyError, TypeError, ValueError):
        return None
    return result if complete else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; lines that a crash cut short or a disk garbled are left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "epoch" in row:
                rows.append(row)
    return rows


def is_held(folder: Path) -> bool:
    """Whether another process holds the run whose outputs are in `folder`."""
    try:
        with open(folder / "run.lock", "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def check_writable(*folders: Path) -> None:
    """Try a file in each folder, or in the folder above it that is there; makes no folder.

    Raises:
        ConfigError: one of them cannot be written.
    """
    for folder in folders:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        probe = there / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"0")
            probe.unlink()
        except OSError as error:
            choose = "Choose another folder with paths.outputs or paths.checkpoints."
            raise ConfigError(f"{folder} cannot be written: {error.strerror}. {choose}") from None


def hold(run: Run) -> IO[str]:
    """Lock the run's directory for this process; the lock goes with the process, however it ends.

    Returns:
        The open lock file: keep it as long as the run lasts.
    Raises:
        BusyError: another live process holds it.
    """
    file = open(run.outputs / "run.lock", "a+")  # noqa: SIM115  (stays open on purpose)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: a forked child would keep that one
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise BusyError(f"{run.outputs} is in use by {holder}.") from None
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def again(config: Config, words: str) -> str:
    """The command that goes on with this run: again(config, "resume") -> python main.py resume=NAME."""
    defaults = {"outputs": "outputs", "checkpoints": "checkpoints"}
    paths = {key: getattr(config.paths, key) for key in defaults}
    moved = [shlex.quote(f"paths.{key}={path}") for key, path in paths.items() if path != defaults[key]]
    return " ".join(["python main.py", f"{words}={config.name}", *moved])
