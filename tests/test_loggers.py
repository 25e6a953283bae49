"""logger=: metrics.csv, MLflow and Weights & Biases, read back with their own readers; none ever ends a run."""

import csv
import importlib.util
import json
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused
from test_recorder import row

from trainer.run import loggers, services
from trainer.run.loggers import Sender
from trainer.run.recorder import Recorder
from trainer.sweep.table import say_best

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs requirements-loggers.txt")
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs requirements-loggers.txt")
pytestmark = pytest.mark.filterwarnings("default")  # of packages that are imported in a thread
SMALL = ("plots=false", "report=false", "epochs=2", "device.num_threads=1")
ALL = "logger=[tensorboard,csv,mlflow,wandb]"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, store: str, tmp_path: Path) -> None:
    for key in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)


def weights(name: str) -> dict[str, torch.Tensor]:
    content = torch.load(f"checkpoints/{name}/best.pt", weights_only=True)
    found: dict[str, torch.Tensor] = content["model"]
    return found


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"outputs/{name}/metrics.jsonl").read_text().splitlines()]


@needs_mlflow
@needs_wandb
def test_a_run_with_all_loggers_has_the_weights_of_one_with_none(cli: Cli, store: str) -> None:
    from mlflow.tracking import MlflowClient

    assert cli("name=none", "logger=null", *SMALL).code == 0
    assert not Path("outputs/none/tb").exists()
    outcome = cli("name=all", ALL, *SMALL[1:], "plots=true")
    assert outcome.code == 0
    assert "warning" not in outcome.out
    assert "wandb sync outputs/all/wandb/offline-run-*" in outcome.out
    assert "mlflow ui --backend-store-uri sqlite:///" in outcome.out
    one, other = weights("none"), weights("all")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    with open("outputs/all/metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in line.items()} for line in table] == lines("all")
    assert len(list(Path("outputs/all/wandb").glob("offline-run-*/*.wandb"))) == 1
    ids = json.loads(Path("outputs/all/loggers.json").read_text())
    client = MlflowClient(store)
    run = client.get_run(ids["mlflow"])
    assert (run.info.run_name, run.info.status) == ("all", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "synthetic"
    assert run.data.params["optimizer.lr"] == "0.03"
    assert "command" in run.data.tags
    assert "test/loss" in run.data.metrics
    assert {Path(file.path).name for file in client.list_artifacts(ids["mlflow"], "plots")} >= {"curves.png"}
    # a resumed run is the same run there, with each epoch once
    assert cli("resume=all", "epochs=3", *SMALL[:2]).code == 0  # logger= is the run's own
    assert json.loads(Path("outputs/all/loggers.json").read_text()) == ids
    points = client.get_metric_history(ids["mlflow"], "train_loss")
    assert [(p.step, p.value) for p in points] == [(line["epoch"], line["train_loss"]) for line in lines("all")]
    run = client.get_run(ids["mlflow"])
    assert (run.info.status, run.data.params["epochs"], run.data.tags["changed.epochs"]) == ("FINISHED", "2", "3")


@needs_mlflow
def test_an_interrupted_run_is_killed_there_and_no_epoch_comes_twice(
    cli: Cli, store: str, signal_at: Callable[..., None]
) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    signal_at(250, signal.SIGINT)
    words = ("epochs=4", "plots=false", "report=false", "record.every_steps=10", "save.every_steps=90")
    assert cli("name=cut", "logger=[mlflow]", *words).code == 130
    run_id = json.loads(Path("outputs/cut/loggers.json").read_text())["mlflow"]
    assert client.get_run(run_id).info.status == "KILLED"
    # as after a kill between the record of an epoch and its checkpoint: the epoch is trained and told again
    again = services.open_service("mlflow", Path("outputs/cut"))
    again.epochs(lines("cut"))
    assert client.get_run(run_id).info.status == "RUNNING"
    assert cli("resume=cut").code == 0
    assert [p.step for p in client.get_metric_history(run_id, "train_loss")] == [1, 2, 3, 4]
    assert client.get_run(run_id).info.status == "FINISHED"


@needs_mlflow
def test_a_logger_that_a_resume_brings_gets_the_epochs_of_before(cli: Cli, store: str) -> None:
    from mlflow.tracking import MlflowClient

    assert cli("name=late", "logger=null", *SMALL).code == 0
    assert cli("resume=late", "logger=[mlflow]", "epochs=3", *SMALL[:2]).code == 0
    run_id = json.loads(Path("outputs/late/loggers.json").read_text())["mlflow"]
    points = MlflowClient(store).get_metric_history(run_id, "train_loss")
    assert [(p.step, p.value) for p in points] == [(line["epoch"], line["train_loss"]) for line in lines("late")]


class FakeWandbRun:
    """What wandb.init returns; offline."""

    id, offline = "abc", True

    def __init__(self) -> None:
        self.steps = list[tuple[int, str]]()

    def log(self, values: dict[str, Any], step: int) -> None:
        self.steps.append((step, "picture" if any("plots" in key for key in values) else "epoch"))


@needs_wandb
@pytest.mark.parametrize(("known", "done"), [(False, [1, 2]), (True, [])])
def test_wandb_gets_the_epochs_that_it_lacks_and_no_picture_takes_the_step_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, done: list[int]
) -> None:
    import wandb
    from PIL import Image

    run = FakeWandbRun()
    monkeypatch.setattr(wandb, "init", lambda **options: run)
    if known:
        services.note_id(tmp_path, "wandb", "abc")
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    service = services.InWandb(tmp_path, {"config": {"choices": {"data": "a"}, "name": "a"}}, epochs_done=2)
    service.epochs([row(1), row(2)])
    service.epochs([row(3)])
    for name in ("a", "b"):  # without a step each would count as one, and the epochs of a resume come too late for W&B
        service.picture(name, tmp_path / "a.png")
    assert run.steps == [*((epoch, "epoch") for epoch in done), (3, "epoch"), (3, "picture"), (3, "picture")]


def test_an_error_of_several_lines_is_told_up_to_its_details() -> None:
    long = "1 validation error for Settings\nmode\n  Input should be 'online' or 'offline' [type=literal_error]\n See"
    expected = "1 validation error for Settings mode Input should be 'online' or 'offline'"
    assert loggers.first_words(ValueError(long)) == expected
    assert loggers.first_words(SystemExit()) == "SystemExit"


def test_csv_alone_writes_no_curves_and_gets_a_new_column(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path, ["csv"])) as recorder:
        recorder.epoch(row(1))
    assert not (tmp_path / "tb").exists()
    with closing(Recorder(tmp_path, ["csv"], epochs_done=1, steps_done=10)) as recorder:
        recorder.epoch(row(2) | {"gradient_norms": {"a": 0.5}})
        recorder.epoch(row(3))
    with open(tmp_path / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["epoch"] for line in table] == ["1", "2", "3"]
    assert [line["gradient_norms.a"] for line in table] == ["", "0.5", ""]


def test_a_full_disk_switches_the_table_off_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with closing(Recorder(tmp_path, ["csv"], warn=said.append)) as recorder:
        recorder.epoch(row(1))
        assert recorder.table is not None
        recorder.table.path = Path("/dev/full")
        recorder.epoch(row(2))
        recorder.epoch(row(3))
    assert len(said) == 1
    assert "metrics.csv is off" in said[0]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("logger=[tensorbord]", "tensorboard"),
        ("logger=[csv,csv]", "each once"),
        ("logger=aim", "a list of tensorboard, csv, mlflow, wandb"),
    ],
)
def test_what_is_no_logger_is_refused(cli: Cli, word: str, said: str) -> None:
    assert_refused(cli(word), "logger=", said)


@pytest.mark.parametrize("words", [(), ("-m", "seed=0,1")])
def test_a_missing_package_is_refused_before_anything_is_made(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    assert_refused(cli(*words, "logger=[mlflow]"), "pip install -r", "requirements-loggers.txt")
    assert not Path("outputs").exists()


class Fake:
    """A service that fails, or hangs."""

    def __init__(self, hang: float = 0.0, after: int = 10**9) -> None:
        self.hang, self.after, self.rows = hang, after, list[Any]()

    def epochs(self, rows: Any) -> None:
        time.sleep(self.hang)
        self.rows += rows
        if len(self.rows) > self.after:
            raise ConnectionError("server gone")

    def finish(self, state: str) -> None:
        self.rows.append(state)


def test_a_server_that_goes_away_is_given_up_with_one_warning(tmp_path: Path) -> None:
    said: list[str] = []
    sender = Sender("mlflow", tmp_path, lambda: Fake(after=1), said.append)  # type: ignore[arg-type,return-value]
    for epoch in range(5):
        sender.tell("epochs", [row(epoch + 1)])
        time.sleep(0.05)
    sender.close()
    assert said == ["warning: logger=mlflow is off, the run goes on: server gone"]


def test_a_server_that_hangs_costs_a_run_no_time_until_the_end_and_then_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "LONGEST_WAIT", 0.3)
    said: list[str] = []
    sender = Sender("wandb", tmp_path, lambda: Fake(hang=60.0), said.append)  # type: ignore[arg-type,return-value]
    began = time.monotonic()
    for epoch in range(100):
        sender.tell("epochs", [row(epoch + 1)])
    assert time.monotonic() - began < 0.2
    sender.close()
    assert time.monotonic() - began < 2
    assert said == ["warning: logger=wandb is off, the run goes on: it did not answer for 0.3 s"]


@needs_mlflow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x", "sqlite:////dev/null/a.db"])
def test_a_wrong_address_never_ends_a_run(cli: Cli, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    outcome = cli("name=a", "logger=[mlflow]", *SMALL)
    assert outcome.code == 0
    assert (outcome.out + outcome.err).count("warning: logger=mlflow is off, the run goes on") == 1


@needs_mlflow
@pytest.mark.slow
def test_jobs_that_start_together_share_a_new_database(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    words = ("logger=[mlflow]", "hydra/launcher=processes", "hydra.launcher.n_jobs=4", "seed=0,1,2,3")
    assert cli("-m", "name=p", *words, *SMALL).code == 0
    assert "logger=mlflow is off" not in "".join(path.read_text() for path in Path("outputs/p").glob("*/train.log"))
    with closing(sqlite3.connect("outputs/mlflow.db")) as database:
        found = database.execute("select name, status from runs order by name").fetchall()
    assert found == [(f"p/{k}", "FINISHED") for k in range(4)]


def test_names_and_values_are_what_mlflow_takes() -> None:
    assert services.plain_name("a(b)=c\n" + "x" * 300) == "a_b__c_" + "x" * 243
    assert len(services.shortened_value("y" * 9000)) == 500


def test_the_end_of_a_sweep_says_where_its_jobs_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "outputs" / "my sweep"
    for job in (0, 1):
        (folder / str(job)).mkdir(parents=True)
        services.note_id(folder / str(job), "wandb", "abc")
    best = {"job": 1, "overrides": "seed=1", "metric": "val_loss", "objective": 0.5}
    say_best(best, False, folder, "checkpoints", "")
    assert f"wandb sync '{folder}'/*/wandb/offline-run-*" in capsys.readouterr().out
    services.note_id(folder / "0", "mlflow", "abc")
    say_best(best, False, folder, "checkpoints", "")
    assert "mlflow ui --backend-store-uri sqlite:///" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:SECRET@db.example/mlflow", '--backend-store-uri "$MLFLOW_TRACKING_URI"'),
        ("https://me:SECRET@mlflow.example", "mlflow.example"),
    ],
)
def test_no_password_of_an_address_is_said(
    address: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    [line] = loggers.where_to_look(["mlflow"], "outputs", tmp_path)
    assert "SECRET" not in line
    assert line.endswith(said)


def test_a_command_of_a_package_is_typed_as_python_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow").touch()
    monkeypatch.setattr(sys, "orig_argv", [str(tmp_path / "python"), "main.py"])
    line = loggers.where_to_look(["mlflow", "wandb"], "outputs", tmp_path)
    assert line[0].startswith(f"mlflow       {tmp_path / 'mlflow'} ui ")
    assert "; wandb sync " in line[1]  # which is not there
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py"])
    assert loggers.where_to_look(["mlflow"], "outputs", tmp_path)[0].startswith("mlflow       mlflow ui ")


def test_without_a_login_wandb_is_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert loggers.wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers.wandb_mode() == "disabled"
