"""Multirun: jobs of their own, one line each in sweep.csv, and nothing that one job leaves to the next."""

import csv
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Cli, assert_refused, start, torchrun_command, wait_for
from PIL import Image

from trainer import data
from trainer.config.freeze import from_dict
from trainer.config.options import group_choices
from trainer.run.recorder import Recorder
from trainer.sweep.board import Board, chosen
from trainer.sweep.job import Job
from trainer.sweep.runner import on_a_gpu
from trainer.utils.screen import shown

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


def test_seeds_are_averaged_to_one_row_for_each_setting(cli: Cli) -> None:
    outcome = cli("-m", "optimizer.lr=0.01,0.03", "seed=0,1,2", "name=s", *QUICK)
    assert outcome.code == 0, outcome.err
    lines = lines_of("s")
    assert [(line["optimizer.lr"], line["seed"]) for line in lines] == [
        (lr, seed) for lr in ("0.01", "0.03") for seed in "012"
    ]
    with open("outputs/s/summary.csv", newline="") as file:
        settings = list(csv.DictReader(file))
    assert [(row["optimizer.lr"], row["of"]) for row in settings] == [("0.03", "3"), ("0.01", "3")]  # the best first
    for row in settings:
        losses = [float(line["test_loss"]) for line in lines if line["optimizer.lr"] == row["optimizer.lr"]]
        assert float(row["test_loss_mean"]) == pytest.approx(sum(losses) / 3, rel=1e-12)
        spread = math.sqrt(sum((loss - sum(losses) / 3) ** 2 for loss in losses) / 2)
        assert float(row["test_loss_std"]) == pytest.approx(spread, rel=1e-9)
    assert " +- " in outcome.out
    best = min(lines, key=lambda line: float(line["val_loss"]))
    assert f"checkpoint   {Path('checkpoints/s', best['job'], 'best.pt')}" in outcome.out
    assert cli("eval", f"checkpoint=s/{best['job']}").code == 0


def test_a_sweep_leaves_pictures_and_a_page_of_hyperparameters(cli: Cli) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    assert cli("-m", "optimizer.lr=0.01,0.03", "optimizer=sgd,adam", "epochs=1", "name=s").code == 0
    for name in ("options", "parallel"):
        with Image.open(f"outputs/s/plots/{name}.png") as picture:
            assert picture.size > (400, 300)
    for job, lr in (("0", 0.01), ("2", 0.03)):
        events = EventAccumulator(f"outputs/s/{job}/tb").Reload()
        data = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
        assert data.session_start_info.hparams["optimizer.lr"].number_value == lr


def test_one_copy_of_the_data_serves_every_job(cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, reads = data.DATASETS["mnist"], []

    def counted(*args: Any, **options: Any) -> Any:
        reads.append(options)
        return original(*args, **options)

    monkeypatch.setitem(data.DATASETS, "mnist", counted)
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "plots=false", "epochs=1")
    assert cli("-m", *words, "data.val_fraction=0.1,0.2", "seed=0,1", "name=s").code == 0
    assert len(reads) == 1
    assert cli(*words, "data.val_fraction=0.2", "seed=1", "name=alone").code == 0
    assert metrics_of("s/3") == metrics_of("alone")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "the sweep has no jobs"),
        (("optimizer.lr=interval(0.1,1)",), "hydra/sweeper=optuna"),
        (
            ("optimizer.lr=0.1,0.2", "hydra/launcher=joblib"),
            "Choices: gpus, processes, ray_cluster, slurm, slurm_local",
        ),
        (("optimizer.lr=0.1,0.2", "hydra/launcher=processes", "hydra.launcher.njobs=2"), "Did you mean n_jobs?"),
        (("optimizer.lr=0.1,0.2", "hydra/launcher=processes", "hydra.launcher.n_jobs=0"), "from 1 to"),
        (("optimizer.lr=0.1,0.2", "hydra.launcher.n_jobs=2"), "choose one with hydra/launcher="),
        (("optimizer.lr=0.1,0.2", "hydra/launcher=processes", "hydra.launcher._target_=os.system"), "is not allowed"),
        (("optimizer.lr=0.1,0.2", "hydra.job.num=3"), "not for the command line"),
        (("seed=shuffle(range(0,5))",), "has to find the same jobs"),
        (("seed=range(0,2),0",), "seed=range(0,2),0: this list cannot be read. Allowed: values such as 0,1,2"),
        (("seed=range(0,2,step=0)",), "this list cannot be read"),
        (("seed=1,0,0",), "seed=0 would be trained twice, as jobs 1 and 2"),
        (("optimizer.lr=range(0.1,0.2,step=0)",), "this list cannot be read"),
        (("optimizer.lr=1,1.0",), "optimizer.lr=1.0 would be trained twice, as jobs 0 and 1"),
        (("optimizer.lr=0.1,0.10", "seed=0,1"), "optimizer.lr=0.1 seed=0 would be trained twice, as jobs 0 and 2"),
        (("seed=0,", "hydra/launcher=processes"), "seed=0,: this value cannot be read. Lists are a,b or [a,b]"),
        (("seed=0,1", "hydra/launcher=processes", "hydra.launcher.n_jobs=["), "is not allowed"),
        (("seed=0,1", "--cfg", "job"), "Leave -m and the lists of values out"),
        (
            ("seed=0,1", "hydra/launcher=processes", "hydra.launcher.prefer={_target_:builtins.open,file:evil,mode:w}"),
            "is not allowed",
        ),
        (
            (
                "seed=0,1",
                "hydra/launcher=processes",
                "++hydra.launcher.verbose={_target_:builtins.open,file:evil,mode:w}",
            ),
            "is not allowed",
        ),
        (
            ("seed=0,1", "hydra/sweeper=optuna", "++hydra.sweeper.foo={_target_:builtins.open,file:evil,mode:w}"),
            "is not allowed",
        ),
        (("seed=0,1", "hydra/sweeper=optuna", "hydra.sweeper.storage=${oc.env:HOME}"), "is not resolved here"),
    ],
)
def test_what_no_sweep_can_be_made_of_is_refused(
    words: tuple[str, ...], said: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())  # as if all launchers were there
    assert_refused(cli("-m", *words, *QUICK), said)
    assert list(tmp_path.iterdir()) == []


def test_settings_with_different_figures_get_a_table_too(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=synthetic,mnist", f"paths.data={tiny_mnist}", "batch_size=50", "model=mlp", "seed=0,1", *QUICK)
    outcome = cli("-m", *words, "name=s")
    assert outcome.code == 0, outcome.err
    assert "no best one: val_accuracy, val_loss cannot be compared" in outcome.out
    assert [row.split()[:2] for row in outcome.out.splitlines() if " +- " in row and "n =" not in row] == [
        ["mnist", "2"],
        ["synthetic", "2"],
    ]


@pytest.mark.parametrize("file", ["s/0/result.json", "s/jobs/0.json", "s/jobs/x.json"])
def test_a_damaged_file_costs_one_job_and_not_the_sweep(file: str, cli: Cli) -> None:
    assert cli("-m", "seed=0,1", "name=s", *QUICK).code == 0
    Path("outputs", file).write_text("{}" if file.endswith("result.json") else "garbage")
    shutil.rmtree("outputs/s/1")
    shutil.rmtree("checkpoints/s/1")
    outcome = cli("-m", "seed=0,1", "name=s", *QUICK)
    assert outcome.code == 0, outcome.err  # a result is measured again from the checkpoint
    assert "objective" in read(Path("outputs/s/0/result.json"))
    assert lines_of("s")[1]["status"] == "done"


def test_a_launcher_that_is_not_installed_says_how(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = cli("-m", "optimizer.lr=0.1,0.2", "hydra/launcher=slurm", *QUICK)
    assert_refused(outcome, "hydra-submitit-launcher", "pip install -r requirements-launchers.txt")
    assert_refused(cli("hydra/launcher=slurm"), "put -m in front")


def test_processes_run_the_jobs_of_a_sweep_and_leave_the_finished_ones(tmp_path: Path, cli: Cli) -> None:
    words = (
        "-m",
        "hydra/launcher=processes",
        "hydra.launcher.n_jobs=2",
        "batch_size=10,5000,20",
        "data.drop_last=true",
        *QUICK,
    )
    process = start(*words, "name=s", cwd=tmp_path, PYTHONSAFEPATH="1")  # Python adds no folder to the path
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert [line["status"] for line in lines_of("s")] == ["done", "failed", "done"]
    assert "[s/1] failed: ConfigError: batch_size=5000 is more than" in errors
    assert cli("batch_size=20", "data.drop_last=true", "device.num_threads=1", *QUICK, "name=alone").code == 0
    assert metrics_of("s/2") == metrics_of("alone")
    assert read(Path("outputs/s/2/config.json"))["threads"] == max(1, (os.cpu_count() or 1) // 2)
    before = snapshot(Path("outputs/s/0"))
    again = start(*words, "name=s", cwd=tmp_path)
    said, errors = again.communicate(timeout=120)
    assert "[s/0] batch_size=10: done before" in said
    assert snapshot(Path("outputs/s/0")) == before


@pytest.mark.slow
def test_a_killed_process_of_a_launcher_ends_the_sweep_in_one_line_and_costs_no_job(tmp_path: Path, cli: Cli) -> None:
    words = ("-m", "hydra/launcher=processes", "hydra.launcher.n_jobs=2", "seed=0,1,2,3", "epochs=40", "plots=false")
    process = start(*words, "name=s", cwd=tmp_path)
    wait_for(lambda: any(Path("checkpoints/s/2").glob("step_*.pt")), process)
    held = re.match("pid ([0-9]+) ", Path("outputs/s/2/run.lock").read_text())
    assert held is not None
    assert int(held[1]) != process.pid
    os.kill(int(held[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip() == (
        "error: a process of the launcher was killed, by somebody or for want of memory, and the others with it. "
        "Give the same command again to continue the sweep."
    )
    states = [line["status"] for line in lines_of("s")]
    assert len(states) == 4
    assert set(states[:2]) in ({"done"}, {"done", "interrupted"})
    assert states[2] == "interrupted"
    assert states[3] in ("waiting", "interrupted")
    done = states.index("done")
    before = snapshot(Path("outputs/s", str(done)))
    again = start(*words, "name=s", cwd=tmp_path)
    assert again.communicate(timeout=120)[1] == ""
    assert again.returncode == 0
    assert snapshot(Path("outputs/s", str(done))) == before
    assert cli("seed=2", "epochs=40", "plots=false", "name=alone", "device.num_threads=1").code == 0
    assert metrics_of("s/2") == metrics_of("alone")
    swept = weights_of("s/2")
    assert all(torch.equal(swept[name], w) for name, w in weights_of("alone").items())


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_processes_of_a_launcher_save_and_end_with_it(signum: int, tmp_path: Path, cli: Cli) -> None:
    words = ("-m", "hydra/launcher=processes", "hydra.launcher.n_jobs=2", "seed=0,1", "epochs=5000", "plots=false")
    process = start(*words, "name=s", cwd=tmp_path)
    wait_for(lambda: all(list(Path("checkpoints/s", job).glob("step_*.pt")) for job in "01"), process)
    process.send_signal(signum)
    process.communicate(timeout=60)
    assert process.returncode == (143 if signum == signal.SIGTERM else -9)
    until = time.monotonic() + 10
    while any(read(Path("outputs/s", job, "status.json"))["state"] != "interrupted" for job in "01"):
        assert time.monotonic() < until
        time.sleep(0.1)
    for job in "01":
        steps = sorted(Path("checkpoints/s", job).glob("step_*.pt"))
        saved = torch.load(steps[-1], weights_only=True)["progress"]
        assert saved["epoch"] == len(metrics_of(f"s/{job}")) + 1  # nothing was lost


@pytest.mark.slow
def test_the_local_executor_of_submitit_runs_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("-m", "hydra/launcher=slurm_local", "batch_size=10,5000,20", "data.drop_last=true", "name=s", *QUICK)
    process = start(*words, cwd=tmp_path)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 1, errors
    assert [line["status"] for line in lines_of("s")] == ["done", "failed", "done"]


@pytest.mark.slow
def test_torchrun_trains_each_run_of_a_sweep_with_all_its_processes(tmp_path: Path, cli: Cli) -> None:
    words = ("-m", "batch_size=10,5000,20", "data.drop_last=true", "device.precision=fp64", *QUICK)
    command = [*torchrun_command(), str(ROOT / "main.py"), *words]
    done = subprocess.run([*command, "name=two"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("[two/1] failed: ConfigError: batch_size=5000 is more than") == 1
    assert [line["status"] for line in lines_of("two")] == ["done", "failed", "done"]
    assert cli(*words, "name=one").code == 1
    for job in ("0", "2"):
        for row, alone in zip(metrics_of(f"two/{job}"), metrics_of(f"one/{job}"), strict=True):
            assert row == pytest.approx(alone, rel=1e-10)
    again = subprocess.run([*command, "name=two"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.stdout.count("done before") == 2
    refused = subprocess.run(
        [*command, "hydra/launcher=processes"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert "Leave hydra/... out" in refused.stderr


def test_jobs_on_gpus_never_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = from_dict({"choices": group_choices({})})
    job = Job(0, {}, config)
    with on_a_gpu(job, tmp_path) as first:
        assert first.config is not None
        assert (first.config.device.name, first.config.device["index"]) == ("cuda", 0)
        code = (
            "import sys, torch; from pathlib import Path; from trainer.sweep.job import Job;"
            "from trainer.sweep.runner import on_a_gpu; from trainer.config.freeze import from_dict;"
            "from trainer.config.options import group_choices;"
            "torch.cuda.device_count = lambda: 2; config = from_dict({'choices': group_choices({})});"
            f"held = on_a_gpu(Job(1, {{}}, config), Path({str(tmp_path)!r}));"
            "print(held.__enter__().config.device['index'])"
        )
        other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert other.stdout.strip() == "1", other.stderr
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with on_a_gpu(job, tmp_path) as refused:
        assert "no CUDA GPU is visible" in str(refused.error)


def test_two_groups_make_every_combination(cli: Cli) -> None:
    assert cli("-m", "optimizer=sgd,adam", "loss=mse,l1", "name=s", *QUICK).code == 0
    assert [line["overrides"] for line in lines_of("s")] == [
        f"optimizer={optimizer} loss={loss}" for optimizer in ("sgd", "adam") for loss in ("mse", "l1")
    ]


def test_row_34_a_bad_job_fails_alone(cli: Cli) -> None:
    outcome = cli("-m", "batch_size=10,5000,20", "data.drop_last=true", "name=s", *QUICK)
    assert outcome.code == 1
    assert [line["status"] for line in lines_of("s")] == ["done", "failed", "done"]
    assert "batch_size=5000" in lines_of("s")[1]["error"]
    assert "batch_size=5000 is more than" in outcome.err
    assert "1 of 3 jobs failed" in outcome.err
    assert "batch_size=5000 is more than" in Path("outputs/s/1/train.log").read_text()
    assert len(metrics_of("s/2")) == 2


@pytest.mark.parametrize("engine", [(), ("hydra/launcher=processes", "hydra.launcher.n_jobs=2")])
def test_values_that_no_job_can_have_are_all_named_before_the_first_job(engine: tuple[str, ...], cli: Cli) -> None:
    if engine:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ("optimizer.lr=0.01,abc,-1", "model.init_std=0.1,fan_in,nothing", "seed=1,2", "data.w=[1,2],[1,x]")
    outcome = cli("-m", *engine, *words, "name=s", *QUICK)
    assert_refused(outcome, "optimizer.lr=abc", "optimizer.lr=-1", "model.init_std=nothing", "data.w=[1, 'x']")
    assert "fan_in is not" not in outcome.err
    assert not Path("outputs").exists()


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
    assert "Did you mean optimizer=adam?" in outcome.err
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


@pytest.mark.parametrize(
    "words", [("optimizer.lr=0.03,0.04",), ("optimizer.lr=0.01,0.02", "batch_size=20"), ("hydra/sweeper=optuna",)]
)
def test_another_sweep_of_the_same_name_is_refused(words: tuple[str, ...], cli: Cli) -> None:
    assert cli("-m", "optimizer.lr=0.01,0.02", "name=s", *QUICK).code == 0
    before = snapshot(Path("outputs"))
    outcome = cli("-m", *words, "name=s", *QUICK)
    assert_refused(outcome, "name=s is a sweep with other settings", words[-1].split("=")[0])
    assert "\njob " not in outcome.out
    assert snapshot(Path("outputs")) == before
    assert cli("-m", "optimizer.lr=0.01,0.02", "name=s", "plots=false", "epochs=3").code == 0  # for more epochs
    assert len(metrics_of("s/1")) == 3


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


def test_runs_that_share_their_batches_are_trained_together(cli: Cli) -> None:
    words = ("-m", "optimizer.lr=0.01,0.02,0.03", "seed=0,1", *QUICK)
    outcome = cli(*words, "name=s")
    assert outcome.code == 0, outcome.err
    assert "[s/0] optimizer.lr=0.01 seed=0, as one of 3 together" in outcome.out
    assert cli(*words, "sweep.stack=false", "name=apart").code == 0
    for job in "012345":
        for row, alone in zip(metrics_of(f"s/{job}"), metrics_of(f"apart/{job}"), strict=True):
            assert row.keys() == alone.keys()
            assert row == pytest.approx(alone, rel=1e-4)  # float32, summed in another order
    assert [line["status"] for line in lines_of("s")] == ["done"] * 6
    before = snapshot(Path("outputs/s"))
    assert "together" not in cli(*words, "name=s").out
    assert snapshot(Path("outputs/s")) == before


def test_what_cannot_be_stacked_is_trained_one_after_another_with_the_reason(cli: Cli) -> None:
    assert "one after another, all jobs: no other run has the same seed" in cli("-m", "seed=0,1", *QUICK).out
    outcome = cli("-m", "model=mlp", "model.dropout=0.5", "optimizer.lr=0.01,0.02", *QUICK)
    assert "one after another, all jobs: dropout: each run would draw its own" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["auto", "false"])
def test_a_sweep_killed_again_and_again_ends_as_if_it_had_not_been(stack: str, tmp_path: Path, cli: Cli) -> None:
    words = (
        "-m",
        "optimizer.lr=0.003,0.01,0.02,0.03",
        "seed=0,1,2",
        "epochs=100",
        "plots=false",
        f"sweep.stack={stack}",
    )
    straight = start(*words, "name=straight", cwd=tmp_path)
    _, errors = straight.communicate(timeout=200)
    assert straight.returncode == 0, errors
    rng = random.Random(0)
    for _ in range(4):

        def saved() -> int:
            return len(list(Path("checkpoints/cut").rglob("step_*.pt")))

        process, before = start(*words, "name=cut", cwd=tmp_path), saved()
        wait_for(lambda before=before: saved() > before, process)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
    last = start(*words, "name=cut", cwd=tmp_path)
    _, errors = last.communicate(timeout=200)
    assert last.returncode == 0, errors
    assert [line["status"] for line in lines_of("cut")] == ["done"] * 12
    for job in range(12):
        assert metrics_of(f"cut/{job}") == metrics_of(f"straight/{job}")
        cut, whole = weights_of(f"cut/{job}"), weights_of(f"straight/{job}")
        assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_the_board_says_what_each_job_does(cli: Cli) -> None:
    assert cli("-m", "batch_size=10,5000", "data.drop_last=true", "name=s", *QUICK).code == 1
    board = Board(Path("outputs/s"), {0: "batch_size=10", 1: "batch_size=5000", 2: "batch_size=20"})
    done, failed, waiting = board.lines()
    best = min(row["val_loss"] for row in metrics_of("s/0"))
    assert (done["state"], done["epoch"], done["best metric"]) == ("done", "2", f"val_loss {shown(best)}")
    assert failed["state"] == "failed"
    assert "batch_size=5000 is more than" in failed["best metric"]
    assert (waiting["state"], waiting["epoch"]) == ("waiting", "")
    assert board.table().row_count == 3
    assert Board(Path("outputs/s"), {}).lines()[0]["overrides"] == "batch_size=10"  # a launcher's, read from disk


def test_a_board_without_room_shows_what_runs_and_what_failed() -> None:
    lines = [{"job": str(n), "state": "running" if n == 7 else "failed" if n == 3 else "done"} for n in range(9)]
    assert [line["job"] for line in chosen(lines, 3)] == ["0", "3", "7"]
    assert chosen(lines, 20) == lines
