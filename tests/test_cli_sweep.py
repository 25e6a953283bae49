"""Multirun: jobs of their own, one line each in sweep.csv, and nothing that one job leaves to the next."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli

from trainer.utils.recorder import Recorder

QUICK = ("plots=false", "epochs=2")
TIMES = ("seconds", "samples_per_second")


def lines_of(sweep: str) -> list[dict[str, str]]:
    with open(Path("outputs", sweep, "sweep.csv"), newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def metrics_of(run: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path("outputs", run, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights_of(run: str) -> dict[str, torch.Tensor]:
    return torch.load(Path("checkpoints", run, "best.pt"), weights_only=True)["model"]


def snapshot(folder: Path) -> dict[Path, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {path: path.read_bytes() for path in files}


def test_each_job_has_its_directories_and_its_line(cli: Cli) -> None:
    outcome = cli("-m", "optimizer.lr=0.01,0.02", "name=s", *QUICK)
    assert outcome.code == 0, outcome.err
    for n, lr in ((0, "0.01"), (1, "0.02")):
        assert {"config.json", "metrics.jsonl", "result.json", "status.json", "train.log"} <= {
            path.name for path in Path("outputs/s", str(n)).iterdir()
        }
        assert Path("checkpoints/s", str(n), "best.pt").is_file()
        assert [str(row["lr"]) for row in metrics_of(f"s/{n}")] == [lr, lr]
        assert read(Path("outputs/s", str(n), "result.json"))["run"] == f"s/{n}"
    lines = lines_of("s")
    assert [(line["job"], line["overrides"], line["status"]) for line in lines] == [
        ("0", "optimizer.lr=0.01", "done"),
        ("1", "optimizer.lr=0.02", "done"),
    ]
    for line in lines:
        result = read(Path("outputs/s", line["job"], "result.json"))
        assert float(line["val_loss"]) == result["best"]["val_loss"]
        assert float(line["test_loss"]) == result["test"]["loss"]
    table = outcome.out[outcome.out.index("\njob ") :]
    assert [line.split()[0] for line in table.strip().splitlines()][:4] == ["job", "1", "0", "best"]  # the best first
    assert "eval checkpoint=s/1" in table


def test_two_groups_make_every_combination(cli: Cli) -> None:
    assert cli("-m", "optimizer=sgd,adam", "loss=mse,l1", "name=s", *QUICK).code == 0
    assert [line["overrides"] for line in lines_of("s")] == [
        f"optimizer={optimizer} loss={loss}" for optimizer in ("sgd", "adam") for loss in ("mse", "l1")
    ]


def test_row_34_a_bad_job_fails_alone(cli: Cli) -> None:
    outcome = cli("-m", "optimizer.lr=0.01,-1,0.02", "name=s", *QUICK)
    assert outcome.code == 1
    assert [line["status"] for line in lines_of("s")] == ["done", "failed", "done"]
    assert "optimizer.lr=-1" in lines_of("s")[1]["error"]
    assert "optimizer.lr=-1 is not allowed" in outcome.err
    assert "1 of 3 jobs failed" in outcome.err
    assert "optimizer.lr=-1 is not allowed" in Path("outputs/s/1/train.log").read_text()
    assert len(metrics_of("s/2")) == 2


def test_a_diverged_job_fails_alone(cli: Cli) -> None:
    outcome = cli("-m", "optimizer.lr=1000,0.02", "data.w=[1e6,1e6]", "name=s", *QUICK)
    assert outcome.code == 1
    assert [line["status"] for line in lines_of("s")] == ["failed", "done"]
    assert read(Path("outputs/s/0/status.json"))["state"] == "diverged"
    assert "diverged" in Path("outputs/s/0/train.log").read_text()


def test_a_bad_group_choice_refuses_the_whole_sweep(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("-m", "optimizer=sgd,adm", "seed=1,2", "name=s", *QUICK)
    assert outcome.code == 2
    assert "optimizer=adm" in outcome.err
    assert "Did you mean adam?" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_skips_what_is_finished(cli: Cli, tmp_path: Path) -> None:
    words = ("-m", "optimizer.lr=0.01,0.02", *QUICK)
    assert cli(*words).code == 0
    (sweep,) = Path("outputs").iterdir()
    assert sweep.name.startswith("sweep-")
    before = snapshot(tmp_path)
    outcome = cli(*words)
    assert outcome.code == 0
    assert snapshot(tmp_path) == before
    assert "\njob " in outcome.out
    assert len(lines_of(sweep.name)) == 2
    assert cli("-m", "optimizer.lr=0.01,0.03", *QUICK).code == 0
    assert len(list(Path("outputs").iterdir())) == 2


def test_row_35_an_interrupted_sweep_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("-m", "seed=1,2,3", *QUICK)
    assert cli(*words, "name=straight").code == 0
    original, left = Recorder.epoch, [3]  # the third epoch is the first of the second job

    def epoch(self: Recorder, row: Any) -> None:
        original(self, row)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "epoch", epoch)
    outcome = cli(*words, "name=cut")
    assert outcome.code == 143
    assert read(Path("outputs/cut/0/status.json"))["state"] == "done"
    assert read(Path("outputs/cut/1/status.json"))["state"] == "interrupted"
    assert not Path("outputs/cut/2").exists()
    assert cli(*words, "name=cut").code == 0
    for job in ("0", "1", "2"):
        assert metrics_of(f"cut/{job}") == metrics_of(f"straight/{job}")
    assert len(lines_of("cut")) == 3


def test_another_sweep_of_the_same_name_is_refused_job_by_job(cli: Cli) -> None:
    assert cli("-m", "optimizer.lr=0.01,0.02", "name=s", *QUICK).code == 0
    before = snapshot(Path("outputs/s/0"))
    outcome = cli("-m", "optimizer.lr=0.03,0.04", "name=s", *QUICK)
    assert outcome.code == 1
    assert "optimizer.lr" in outcome.err
    after = snapshot(Path("outputs/s/0"))
    assert {path.name for path in before if after[path] != before[path]} <= {"train.log"}


@pytest.mark.parametrize("swept", ["device.num_threads=1,2", "device.precision=fp64,fp32", "optimizer=adam,sgd"])
def test_row_36_a_job_after_another_is_what_it_is_alone(swept: str, cli: Cli) -> None:
    words = ("model=mlp", "model.dropout=0.5", "data.num_examples=200", *QUICK)
    assert cli("-m", swept, *words, "name=s").code == 0
    key, _, values = swept.partition("=")
    assert cli(f"{key}={values.split(',')[1]}", *words, "name=alone").code == 0
    assert metrics_of("s/1") == metrics_of("alone")
    swept_weights, alone = weights_of("s/1"), weights_of("alone")
    assert all(torch.equal(swept_weights[name], alone[name]) for name in alone)
    threads = [read(Path("outputs", run, "config.json"))["threads"] for run in ("s/1", "alone")]
    assert threads[0] == threads[1] == (2 if key == "device.num_threads" else torch.get_num_threads())


def test_swept_threads_go_back_to_the_default(cli: Cli) -> None:
    assert cli("-m", "device.num_threads=1,0", "name=s", *QUICK).code == 0
    assert read(Path("outputs/s/0/config.json"))["threads"] == 1
    assert read(Path("outputs/s/1/config.json"))["threads"] == torch.get_num_threads()


def test_a_sweep_of_data_sets_brings_each_its_own_model(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=synthetic,mnist", f"paths.data={tiny_mnist}", "batch_size=50", "name=s", *QUICK)
    assert cli("-m", *words).code == 0
    choices = [read(Path("outputs/s", n, "config.json"))["config"]["choices"] for n in "01"]
    assert [(c["data"], c["model"], c["loss"]) for c in choices] == [
        ("synthetic", "linreg", "mse"),
        ("mnist", "softmax", "cross_entropy"),
    ]
    assert [bool(line["val_accuracy"]) for line in lines_of("s")] == [False, True]
