"""check-resume: says bit-identical where that is so, and what differs and why where it is not."""

import os
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Cli, assert_refused, start, wait_for, write_class_folders

from trainer.commands import check_resume
from trainer.commands.check_resume import differences_between
from trainer.config.schema import Config
from trainer.utils.errors import ConfigError

DROPOUT = ("data=folder", "data.root=p", "data.size=8", "model=mlp", "model.dropout=0.5", "batch_size=8")
# Python runs a module of this name at the start of every process that finds it, so also of those that are started here
SABOTAGE = "sitecustomize.py"
FORGET = """
from trainer.run import seeds
seeds.restore_rng = lambda state, device: None
"""
UNSTEADY = """
import time
from trainer.run import seeds
seed_everything = seeds.seed_everything
seeds.seed_everything = lambda seed: seed_everything(time.time_ns() % 2**32)
"""


def test_a_run_that_can_be_resumed_is_called_bit_identical(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("check-resume", "plots=true", "save.every_steps=7", "paths.outputs=elsewhere")
    assert outcome.code == 0, outcome.err
    for key in ("plots", "save.every_steps", "paths.outputs"):
        assert f"warning: {key} has no effect on check-resume" in outcome.out
    assert [outcome.out.count(word) for word in ("SIGKILL after", "SIGTERM after")] == [2, 1]
    assert outcome.out.splitlines()[-1].startswith("bit-identical")
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_signal_that_comes_before_training_begins_is_no_failure(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_resume, "steps_saved", lambda _: 6)
    outcome = cli("check-resume")
    assert outcome.code == 0, outcome.err
    assert "SIGTERM after step 6" in outcome.out


def test_the_budget_of_an_experiment_does_not_make_it_longer(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def note(config: Config, *_: object) -> None:
        found.append(config)
        raise ConfigError("enough")

    monkeypatch.setattr(check_resume, "finished", note)
    assert_refused(cli("check-resume", "experiment=resnet34_cifar10"), "enough")
    assert found[0].budget is None
    assert found[0].epochs == check_resume.EPOCHS


def test_the_run_of_a_killed_check_ends_with_it(tmp_path: Path) -> None:
    slow = (
        "data=random",
        "data.num_examples=4000",
        "batch_size=1000",
        "model.num_hiddens=[3000,3000]",
    )  # 20 s of steps
    environment = {"TMPDIR": str(tmp_path), "PYTHONSAFEPATH": "1"}  # Python adds no folder to the path
    check = start("check-resume", *slow, "device.num_threads=1", cwd=tmp_path, **environment)
    wait_for(lambda: any(tmp_path.glob("check-resume-*/outputs/straight/status.json")), check)
    [lock] = tmp_path.glob("check-resume-*/outputs/straight/run.lock")
    pid = lock.read_text().split()[1]
    with check:  # communicate() would wait for the run, too
        check.kill()
    until = time.monotonic() + 3
    while (
        Path(f"/proc/{pid}/stat").exists()
        and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    ):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("sabotage", "why"),
    [
        pytest.param(FORGET, "Two straight runs are equal", marks=pytest.mark.slow),
        pytest.param(UNSTEADY, "Two straight runs differ as well", marks=pytest.mark.slow),
    ],
    ids=["a state is forgotten", "nothing repeats"],
)
def test_what_differs_is_named_with_the_reason(sabotage: str, why: str, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 60, "test": 6}, size=8)
    (tmp_path / SABOTAGE).write_text(sabotage)
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    process = start("check-resume", *DROPOUT, cwd=tmp_path, PYTHONPATH=path)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "not bit-identical" in errors
    assert "model." in errors
    assert why in errors


def test_what_the_run_itself_refuses_is_refused(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 60, "test": 6}, size=8)
    outcome = cli("check-resume", *DROPOUT, "batch_size=1000", "data.drop_last=true")
    assert outcome.code == 2
    assert "batch_size=1000" in outcome.err


@pytest.mark.parametrize("word", ["name=a", "resume=a", "checkpoint=a", "fast_dev_run=true"])
def test_settings_of_other_commands_are_refused(cli: Cli, word: str) -> None:
    assert cli("check-resume", word).code == 2


def test_the_comparison_sees_a_single_bit_and_not_the_clock() -> None:
    parts = ("model", "optimizer", "scaler", "ema", "rng", "progress", "early_stop", "best")
    one = dict.fromkeys(parts) | {"model": {"w": torch.zeros(3)}, "metrics": [{"loss": 0.1, "seconds": 1.0}]}
    later = one | {"metrics": [{"loss": 0.1, "seconds": 2.0}]}
    assert list(differences_between(one, later)) == []
    flipped = one | {"model": {"w": torch.tensor([0.0, 1e-45, 0.0])}}
    assert [line.split(":")[0] for line in differences_between(one, flipped)] == ["model.w"]
    other = one | {"metrics": [{"loss": 0.10000000000000002, "seconds": 1.0}]}
    assert list(differences_between(one, other)) == ["metrics.0.loss: 0.1 and 0.10000000000000002"]
    missing = one | {"model": {}}
    assert len(list(differences_between(one, missing))) == 1
