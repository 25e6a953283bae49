"""Runs and sweeps that an earlier version of the program left: this version resumes them as its own.

before.zip was written by the program as it was before its files were moved into rooms: a run that SIGTERM interrupted
after epoch 2 of 4, a finished run of 2 epochs (MLP, dropout, Adam, mean of the weights), a stacked sweep and one
of lone runs, both interrupted. straight.json has the losses of the same commands, run without interruption by that
version.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from PIL import Image

from trainer import data
from trainer.data.splits import Splits
from trainer.run import directory

BEFORE = Path(__file__).with_name("before.zip")
SHORT = ("data.num_examples=60", "data.val_fraction=20", "batch_size=10", "epochs=4", "plots=false")


@pytest.fixture
def straight(tmp_path: Path) -> dict[str, Any]:
    """What is in before.zip, put into the current folder; returns the losses of the uninterrupted runs."""
    with zipfile.ZipFile(BEFORE) as archive:
        archive.extractall(tmp_path)
    losses: dict[str, Any] = json.loads((tmp_path / "straight.json").read_text())
    return losses


def check_run(name: str, straight: dict[str, Any], *, rel: float = 1e-4) -> None:
    """The run has all its epochs, each with the losses of the uninterrupted one (on another CPU, to its rounding)."""
    rows = directory.read_metrics(Path("outputs", name))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row, expected in zip(rows, straight[name], strict=True):
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=rel)
    assert directory.read_status(Path("outputs", name))["state"] == "done"


def test_an_interrupted_run_of_before_is_resumed(straight: dict[str, Any], cli: Cli) -> None:
    outcome = cli("resume=interrupted")
    assert outcome.code == 0, outcome.err
    check_run("interrupted", straight)


def test_a_setting_that_was_not_there_before_had_its_default(straight: dict[str, Any], cli: Cli) -> None:
    outcome = cli("resume=interrupted", "data.drop_last=true")
    assert outcome.code == 2
    assert "data.drop_last: the run has false, now it says true" in outcome.err


def test_a_finished_run_of_before_is_extended(straight: dict[str, Any], cli: Cli) -> None:
    outcome = cli("resume=finished", "epochs=4")
    assert outcome.code == 0, outcome.err
    check_run(
        "finished", straight, rel=1e-3
    )  # the mean of the weights grows to its decay now: before, it began with it


@pytest.mark.parametrize("target", ["finished", "finished:last", "checkpoints/finished/best.pt"])
def test_a_checkpoint_of_before_is_measured(target: str, straight: dict[str, Any], cli: Cli) -> None:
    outcome = cli("eval", f"checkpoint={target}")
    assert outcome.code == 0, outcome.err
    before = json.loads(Path("outputs/finished/result.json").read_text())["test"]["loss"]
    assert f"loss {before:.4f} on 60 examples" in outcome.out


def test_a_stacked_sweep_of_before_is_resumed_as_the_same_stack(straight: dict[str, Any], cli: Cli) -> None:
    outcome = cli("-m", "name=stacked", *SHORT, "optimizer.lr=0.01,0.02")
    assert outcome.code == 0, outcome.err
    assert "as one of 2 together" in outcome.out
    assert "are trained one after another" not in outcome.out
    for job in ("0", "1"):
        check_run(f"stacked/{job}", straight)


def test_a_sweep_of_before_is_resumed_where_it_was(straight: dict[str, Any], cli: Cli) -> None:
    outcome = cli("-m", "name=single", "sweep.stack=false", *SHORT, "seed=0,1,2")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("done before") == 1
    for job in ("0", "1", "2"):
        check_run(f"single/{job}", straight)


def test_a_run_whose_cut_left_a_class_without_training_images_keeps_that_cut(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions cut: resume trains on the same images, and eval measures those that were held out."""
    for part, n in (("train", 9), ("test", 3)):
        for k in range(3):
            (tmp_path / "p" / part / f"class{k}").mkdir(parents=True)
            for i in range(1 if (part, k) == ("train", 2) else n):
                Image.new("L", (8, 8), 80 * k + i).save(tmp_path / "p" / part / f"class{k}" / f"{i}.png")
    words = ("data=folder", "data.root=p", "data.size=8", "data.channels=1", "model=softmax", "batch_size=2")
    words = (*words, "plots=false", "schedule=constant", "data.val_fraction=0.6")
    now, read = data.cut, list[Splits]()

    def watched(*args: Any, **options: Any) -> Splits:
        read.append(now(*args, **options))
        return read[-1]

    with monkeypatch.context() as before:
        before.setattr(data, "cut", lambda *args, **options: watched(*args, **options | {"spares": False}))
        assert cli(*words, "name=a", "epochs=1").code == 0
        assert cli(*words, "name=straight", "epochs=2").code == 0
    held_out = list(read[0].val.names)
    assert "train/class2/0.png" in held_out  # its only image
    monkeypatch.setattr(data, "cut", watched)
    for command in (("resume=a", "epochs=2"), ("eval", "checkpoint=a", "split=val"), ("resume=a", "epochs=3")):
        outcome = cli(*command)
        assert outcome.code == 0, outcome.err
        assert list(read[-1].val.names) == held_out
    rows = directory.read_metrics(Path("outputs/a")), directory.read_metrics(Path("outputs/straight"))
    assert [row["val_loss"] for row in rows[0]][:2] == [row["val_loss"] for row in rows[1]]
    assert cli(*words, "name=new", "epochs=1").code == 0
    assert "train/class2/0.png" in read[-1].train.names
    assert cli("resume=new", "epochs=2").code == 0
    assert "train/class2/0.png" in read[-1].train.names
