"""MLflow and Weights & Biases, extra packages that keep runs elsewhere: logger=[mlflow,wandb]. Torch-free.

Each is told by a thread of its own, so that a slow or dead server costs a run no time until the end, and then at most
LONGEST_WAIT. What a logger needs to know of a run stands in the run's files.
"""

import contextlib
import importlib.util
import netrc
import os
import queue
import re
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from trainer.config.options import flatten
from trainer.run import directory, records
from trainer.utils.errors import ConfigError
from trainer.utils.files import write_json
from trainer.utils.program import pip_install, script

LONGEST_WAIT = 60.0  # seconds at the end of a run for what a logger has not written yet
MOST_WAITING = 10_000  # epochs and the like that a server has not taken yet; then it is given up
IDS = "loggers.json"  # in the run's folder: under which ids the loggers know it


def check_loggers(loggers: Sequence[str]) -> None:
    """Refuse a logger whose package is missing, without importing it.

    Raises:
        ConfigError: says what to type.
    """
    for name in loggers:
        if name in ("mlflow", "wandb") and importlib.util.find_spec(name) is None:
            how = f"Type: {pip_install('requirements-loggers.txt')}"
            raise ConfigError(f"logger={name} needs the package {name}. {how}")


def figures_in(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a line of metrics.jsonl, also those by layer."""
    return {key: value for key, value in flatten(row).items() if type(value) in (int, float)}


class Service(Protocol):
    """Something that keeps runs; every method may fail."""

    def epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep lines of metrics.jsonl."""

    def final(self, metrics: Mapping[str, float]) -> None:
        """Keep the figures of the end."""

    def picture(self, name: str, path: Path) -> None:
        """Keep a PNG file."""

    def finish(self, state: str) -> None:
        """Note how the run ended, as in status.json."""


class Sender:
    """Tells a service what happens, in a thread of its own; when that fails, gives it up with one warning.

    Args:
        name: of the logger.
        folder: outputs/<run>.
        opened: imports the logger's package, which takes seconds, and opens the run there.
        warn: is told.
    """

    def __init__(self, name: str, folder: Path, opened: Callable[[], Service], warn: Callable[[str], None]) -> None:
        self.name, self.folder, self.open, self.warn = name, folder, opened, warn
        self.tasks = queue.Queue[tuple[str, Any]](MOST_WAITING)
        self.failed = ""
        self.is_off = False
        self.thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self.thread.start()

    def tell(self, what: str, value: Any) -> None:
        """Hand on a value for a method of Service; returns at once."""
        if not self.failed and not self.is_off:
            try:
                self.tasks.put_nowait((what, value))
            except queue.Full:
                self.failed = f"{MOST_WAITING:,} messages wait"
        self._warn_once()

    def close(self) -> None:
        """Wait until all is written, for LONGEST_WAIT at most."""
        self.tell("finish", directory.read_status(self.folder).get("state", "failed"))
        self.thread.join(0.0 if self.failed else LONGEST_WAIT)
        if self.thread.is_alive() and not self.failed:
            self.failed = f"it did not answer for {LONGEST_WAIT:g} s"
        self._warn_once()

    def _warn_once(self) -> None:
        if self.failed and not self.is_off:
            self.is_off = True
            self.warn(f"warning: logger={self.name} is off, the run goes on: {self.failed}")

    def _work(self) -> None:
        try:
            service = self.open()
            done = False
            while not done:
                tasks = [self.tasks.get()]
                with contextlib.suppress(queue.Empty):
                    while True:
                        tasks.append(self.tasks.get_nowait())
                # many at once: an epoch may take 5 ms
                if rows := [row for what, value in tasks if what == "epochs" for row in value]:
                    service.epochs(rows)
                for what, value in tasks:
                    if what == "final":
                        service.final(value)
                    elif what == "picture":
                        service.picture(*value)
                    elif what == "finish":
                        service.finish(value)
                        done = True
        except BaseException as error:  # a library of others: also its SystemExit must not end a thread unheard
            self.failed = first_words(error)


def first_words(error: BaseException) -> str:
    """What an error of a library says, without what follows in brackets: the SQL, the input's type."""
    return re.split(r" \[", " ".join(str(error).split()))[0][:300] or type(error).__name__


def id_of(folder: Path, name: str) -> str | None:
    """Under which id a logger knows this run; None: it does not yet."""
    with contextlib.suppress(ConfigError):
        found = records.parse(records.text_of(folder / IDS))
        known = found.get(name) if isinstance(found, dict) else None
        return known if isinstance(known, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", known) else None
    return None


ID_LOCK = threading.Lock()


def note_id(folder: Path, name: str, run_id: str) -> None:
    """Keep an id for the next process that continues this run."""
    with ID_LOCK:  # both loggers write the file
        ids = {other: known for other in ("mlflow", "wandb") if (known := id_of(folder, other))}
        write_json(folder / IDS, ids | {name: run_id})


def mlflow_store(outputs: str) -> str:
    """Where MLflow keeps runs: what MLFLOW_TRACKING_URI says, otherwise a database beside the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(Path(outputs) / 'mlflow.db').absolute().as_posix()}"


def wandb_mode() -> str:
    """What WANDB_MODE says; without it online where somebody has logged in, otherwise offline."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host):  # where `wandb login` notes it
            return "online"
    return "offline"


def where_to_look(loggers: Sequence[str], outputs: str, folder: Path, jobs: str = "") -> list[str]:
    """The last lines on the screen: how to see a run, or with `/*` the jobs of a sweep, in MLflow and W&B."""
    lines = []
    if "mlflow" in loggers:
        store = mlflow_store(outputs)
        web = store.startswith(("http://", "https://"))
        has_password = urlsplit(store).password is not None
        given = '"$MLFLOW_TRACKING_URI"' if has_password else shlex.quote(store)
        command = f"{shlex.join([script('mlflow'), 'ui', '--backend-store-uri'])} {given}"
        lines.append(f"mlflow       {urlsplit(store).hostname if web else command}")
    if "wandb" in loggers and wandb_mode() == "offline":
        sync = shlex.join([script("wandb"), "sync", str(folder)])
        lines.append(f"wandb        offline, nothing was sent; {sync}{jobs}/wandb/offline-run-*")
    return lines


def loggers_of_sweep(folder: Path) -> list[str]:
    """Which loggers know a job of a sweep."""
    return [name for name in ("mlflow", "wandb") if any(id_of(path.parent, name) for path in folder.glob(f"*/{IDS}"))]
