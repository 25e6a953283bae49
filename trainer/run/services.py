"""MLflow and Weights & Biases as services that keep a run. Each imports its package when it is opened."""

import contextlib
import os
import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config.options import flatten
from trainer.run import records
from trainer.run.loggers import LONGEST_WAIT, Service, figures_in, id_of, mlflow_store, note_id, wandb_mode
from trainer.utils.files import open_regular
from trainer.utils.locks import try_lock

MLFLOW_STATES = {"done": "FINISHED", "interrupted": "KILLED"}  # of MLflow, by ours; any other one: FAILED
LONGEST_NAME, LONGEST_VALUE, PARAMS_AT_ONCE, METRICS_AT_ONCE = 250, 500, 100, 1000  # what MLflow's servers take


def open_service(name: str, folder: Path, epochs_done: int = 0) -> Service:
    """Import a logger's package, which takes seconds, and open the run there, of which some epochs are done."""
    about = records.read_record(folder / "config.json", records.OF_CONFIG)
    return InMlflow(folder, about) if name == "mlflow" else InWandb(folder, about, epochs_done)


def source_tags(about: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The command, the commit and the folder."""
    git = about.get("git")
    commit = str(git.get("commit", "")) if isinstance(git, dict) else ""
    words = about.get("command")
    command = shlex.join(map(str, words)) if isinstance(words, list) else ""
    return {"command": command, "commit": commit, "folder": str(folder.absolute())}


OPENING = threading.Lock()


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Let one thread of one process at a time go on: two that make the tables of a new database leave neither whole."""
    with OPENING, open_regular(path, "a+", encoding="utf-8") as file:  # the lock goes with the file
        until = time.monotonic() + LONGEST_WAIT
        while not try_lock(file) and time.monotonic() < until:
            time.sleep(0.05)
        yield


class InMlflow:
    """A run in MLflow: settings as params, lines of metrics.jsonl by epoch, plots as artifacts.

    One experiment per data set: MLflow's pages compare the runs of an experiment, and an accuracy on MNIST says nothing
    beside one on CIFAR-10.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        # set before the import; what the user has set wins. No random wait: it would draw from the run's generator
        for key, value in {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        }.items():
            os.environ.setdefault(key, value)
        import logging

        from mlflow.tracking import MlflowClient

        for noisy in ("alembic", "mlflow"):  # what they say would run through the progress bar
            logging.getLogger(noisy).setLevel(logging.ERROR)
        config = about["config"]
        outputs = config["paths"]["outputs"]
        self.folder = folder
        tags = source_tags(about, folder)
        tags |= {"mlflow.source.name": tags["command"], "mlflow.source.git.commit": tags["commit"]}
        known = id_of(folder, "mlflow")
        with only_one(Path(outputs) / ".mlflow.lock"):
            self.client = MlflowClient(mlflow_store(outputs))  # makes the tables
            self.run_id, before, self.last = self._open(known, config, {k: v for k, v in tags.items() if v})
        self._params(flatten(config), before)

    def _open(self, known: str | None, config: Mapping[str, Any], tags: Mapping[str, str]) -> tuple[str, Any, int]:
        """The id of the run, the params that it has, and its last epoch; known: its id, of before."""
        if known is not None:
            with contextlib.suppress(Exception):  # another store than before, or the run was deleted there
                run = self.client.get_run(known)
                self.client.update_run(known, status="RUNNING")
                past = [point.step for point in self.client.get_metric_history(known, "train_loss")]
                return known, run.data.params, max(past, default=0)
        name = str(config["choices"]["data"])
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
        run = self.client.create_run(self._experiment(experiment, config), run_name=config["name"], tags=dict(tags))
        note_id(self.folder, "mlflow", run.info.run_id)
        return run.info.run_id, {}, 0

    def _experiment(self, name: str, config: Mapping[str, Any]) -> str:
        """The id of an experiment, which several jobs of a sweep may be making at the same time."""
        outputs = config["paths"]["outputs"]
        own = None if os.environ.get("MLFLOW_TRACKING_URI") else (Path(outputs) / "mlflow").absolute().as_uri()
        for last in (False, True):
            if (found := self.client.get_experiment_by_name(name)) is not None:
                return str(found.experiment_id)
            try:
                return str(self.client.create_experiment(name, artifact_location=own))
            except Exception:
                if last:
                    raise
                time.sleep(0.2)
        raise AssertionError("the second try returns or raises")

    def _params(self, settings: Mapping[str, Any], before: Mapping[str, str]) -> None:
        """The settings; MLflow's params cannot change, so that what a resume changed becomes a tag."""
        from mlflow.entities import Param

        named = {plain_name(key): shortened_value(value) for key, value in settings.items()}
        new = [Param(key, value) for key, value in named.items() if key not in before]
        for start in range(0, len(new), PARAMS_AT_ONCE):
            self.client.log_batch(self.run_id, params=new[start : start + PARAMS_AT_ONCE])
        for key, value in named.items():
            if key in before and before[key] != value:
                self.client.set_tag(self.run_id, f"changed.{key}"[:LONGEST_NAME], value)

    def epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Metrics with the epoch as their step. MLflow forgets nothing: an epoch that it has stays as it is."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [row for row in rows if row["epoch"] > self.last]
        named = [(row["epoch"], figures_in(row)) for row in rows]
        metrics = [
            Metric(plain_name(k), float(v), now, epoch)
            for epoch, found in named
            for k, v in found.items()
            if k != "epoch"
        ]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_AT_ONCE])
        self.last = max([self.last, *(row["epoch"] for row in rows)])

    def final(self, metrics: Mapping[str, float]) -> None:
        """The figures of the test split."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id, [Metric(plain_name(k), float(v), now, self.last) for k, v in metrics.items()]
        )

    def picture(self, name: str, path: Path) -> None:
        """A PNG file as an artifact."""
        self.client.log_artifact(self.run_id, str(path), "plots")

    def finish(self, state: str) -> None:
        """FINISHED, KILLED or FAILED."""
        self.client.set_terminated(self.run_id, MLFLOW_STATES.get(state, "FAILED"))


def plain_name(key: str) -> str:
    """A name that MLflow takes: letters, digits, _ - . space /."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", key)[:LONGEST_NAME]


def shortened_value(value: Any) -> str:
    """A setting as text that is short enough for MLflow."""
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


class InWandb:
    """A run in Weights & Biases, in outputs/<run>/wandb; the epoch is its step."""

    def __init__(self, folder: Path, about: Mapping[str, Any], epochs_done: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        known = id_of(folder, "wandb")
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=30, x_disable_stats=True, save_code=False, disable_git=True
        )
        self.wandb = wandb
        config = about["config"]
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or str(config["choices"]["data"]),
            name=config["name"],
            id=known,
            resume="allow" if known else None,
            reinit="create_new",  # the runs of a stack are open at the same time
            dir=str(folder),
            mode=wandb_mode(),  # type: ignore[arg-type]  # never asks for a login: without one it is offline
            config=dict(flatten(config)) | {f"run.{k}": v for k, v in source_tags(about, folder).items()},
            allow_val_change=True,
            settings=settings,
        )
        if known is None:
            note_id(folder, "wandb", self.run.id)
        # a server knows which epochs it lacks; offline, those of before are in another folder of the run
        self.last = epochs_done if known and self.run.offline else 0

    def epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl; of an epoch that it has, W&B ignores another line."""
        for row in rows:
            if row["epoch"] > self.last:
                self.run.log(figures_in(row), step=row["epoch"])
                self.last = row["epoch"]

    def final(self, metrics: Mapping[str, float]) -> None:
        """The figures of the test split, in the summary."""
        self.run.summary.update(dict(metrics))

    def picture(self, name: str, path: Path) -> None:
        """A PNG file among the run's media, beside the last epoch: at a step of its own it would take a later one's."""
        self.run.log({f"plots/{name}": self.wandb.Image(str(path))}, step=self.last)

    def finish(self, state: str) -> None:
        """Exit code 0 where the run is done."""
        self.run.finish(exit_code=0 if state == "done" else 1)
