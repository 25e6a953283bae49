"""train, eval and predict from the command line: the files they leave, and the figures in them."""

import csv
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli, assert_refused, predictions, striped_pictures, write_class_folders
from PIL import Image

from trainer.build import LOSSES, OPTIMIZERS
from trainer.commands.outputs import further_columns
from trainer.models import MODELS
from trainer.run import safe_load
from trainer.schedules import SCHEDULES
from trainer.utils.files import read_csv

CURVES = {"epoch", "step", "lr", "train_loss", "val_loss", "seconds", "samples_per_second", "w1", "w2", "b"}
ACCURACIES = {"train_accuracy", "val_accuracy"}
QUICK = ("plots=false", "epochs=1", "device.num_threads=1")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def metrics_of(outputs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outputs / "metrics.jsonl").read_text().splitlines()]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tiny(cli: Cli, tiny_mnist: Path) -> Path:
    """A finished run `a`: softmax on 540 + 60 + 100 pictures; returns the outputs folder."""
    outcome = cli("data=mnist", f"paths.data={tiny_mnist}", "epochs=3", "batch_size=50", "name=a", "plots=false")
    assert outcome.code == 0, outcome.err
    return Path("outputs").resolve()


# train


def test_train_writes_the_files_of_the_contract(cli: Cli, tiny_mnist: Path, tmp_path: Path) -> None:
    outcome = cli("data=mnist", f"paths.data={tiny_mnist}", "epochs=2", "batch_size=50", "name=a")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "checkpoints", "tiny"}
    run = tmp_path / "outputs" / "a"
    assert [path.name for path in run.parent.iterdir()] == ["a"]
    lock = {"run.lock"}  # which process is at work here: no result
    entries = {path.name for path in run.iterdir()} - lock
    assert entries == {
        "config.json",
        "metrics.jsonl",
        "result.json",
        "status.json",
        "test.json",
        "train.log",
        "tb",
        "plots",
        "report.html",
    }
    assert files_below(tmp_path / "checkpoints") == {"a/step_00000011.pt", "a/step_00000022.pt", "a/best.pt"}
    pictures = files_below(run / "plots") - {"wrong.png"}  # only where something is wrong
    assert "lr.csv" in pictures
    pictures.remove("lr.csv")
    assert pictures == {"curves.png", "lr.png", "confusion.png", "predictions.png", "batch.png"}
    for name in pictures:
        with Image.open(run / "plots" / name) as image:
            assert min(image.size) > 100
    assert any(name.startswith("events.out.tfevents") for name in files_below(run / "tb"))
    log = (run / "train.log").read_text()
    for line in outcome.out.splitlines():
        assert line in log
    for command in ("eval checkpoint=a", "predict checkpoint=a", "tensorboard --logdir outputs/a"):
        assert command in outcome.out


def test_the_files_hold_the_documented_keys(tiny: Path) -> None:
    config = read(tiny / "a" / "config.json")
    assert {"config", "versions", "git", "command", "device", "threads", "cpu"} <= set(config)
    assert config["git"] is None or set(config["git"]) == {"commit", "dirty"}
    choices = {"data": "mnist", "model": "softmax", "loss": "cross_entropy", "optimizer": "sgd", "schedule": "constant"}
    assert config["config"]["choices"] == choices | {"device": "auto"}
    assert config["config"]["epochs"] == 3
    rows = metrics_of(tiny / "a")
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 11), (2, 22), (3, 33)]
    for row in rows:
        assert set(row) == CURVES - {"w1", "w2", "b"} | ACCURACIES
        assert 0 <= row["val_accuracy"] <= 1
        assert row["lr"] == 0.1
    result = read(tiny / "a" / "result.json")
    assert {"run", "status", "epochs", "seconds", "num_parameters", "best", "test"} <= set(result)
    assert (result["run"], result["status"], result["epochs"]) == ("a", "done", 3)
    assert result["num_parameters"] == 784 * 10 + 10
    assert set(result["best"]) == {"epoch", "val_loss", "val_accuracy"}
    assert set(result["test"]) == {"loss", "accuracy", "n"}
    assert result["test"]["n"] == 100
    status = read(tiny / "a" / "status.json")
    assert status["state"] == "done"
    assert {"started", "reason"} <= set(status)


def test_best_is_the_first_epoch_of_the_highest_val_accuracy(tiny: Path) -> None:
    accuracies = [row["val_accuracy"] for row in metrics_of(tiny / "a")]
    best = read(tiny / "a" / "result.json")["best"]
    assert best["epoch"] == accuracies.index(max(accuracies)) + 1
    assert best["val_accuracy"] == max(accuracies)
    content = torch.load("checkpoints/a/best.pt", weights_only=True)
    assert content["best"]["epoch"] == best["epoch"]


def test_plots_false_leaves_no_pictures(tiny: Path) -> None:
    assert not list(tiny.rglob("*.png"))


def test_the_default_recovers_the_law(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 0, outcome.err
    (run,) = Path("outputs").iterdir()
    assert run.name.startswith("synthetic-linreg-")
    result = read(run / "result.json")
    for found, true in zip([*result["weight"], result["bias"]], [2, -3.4, 4.2], strict=True):
        assert abs(found - true) < 0.02
    assert {"curves.png", "lr.png"} <= files_below(run / "plots")


def test_a_regression_has_no_accuracy(cli: Cli) -> None:
    assert cli("name=a", *QUICK).code == 0
    (row,) = metrics_of(Path("outputs/a"))
    assert set(row) == CURVES
    result = read(Path("outputs/a/result.json"))
    assert set(result["test"]) == {"loss", "n"}
    assert set(result["best"]) == {"epoch", "val_loss"}
    assert cli("eval", "checkpoint=a").code == 0
    assert read(Path("outputs/a/eval-synthetic-test.json")).keys().isdisjoint({"accuracy", "classes"})


def test_without_validation_the_last_epoch_counts(cli: Cli) -> None:
    assert cli("name=a", "plots=false", "epochs=2", "data.val_fraction=0").code == 0
    assert set(metrics_of(Path("outputs/a"))[0]) == CURVES - {"val_loss"}
    assert read(Path("outputs/a/result.json"))["best"] == {"epoch": 2}
    outcome = cli("eval", "checkpoint=a", "split=val")
    assert outcome.code == 2
    assert "split=val" in outcome.err


def test_two_runs_without_a_name_do_not_meet(cli: Cli) -> None:
    for _ in range(2):
        assert cli(*QUICK).code == 0
    assert len(list(Path("outputs").iterdir())) == 2
    assert len(list(Path("checkpoints").iterdir())) == 2


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", "model=mlp", "model.dropout=0.5", "data.augment=shift", f"paths.data={tiny_mnist}", *QUICK)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert cli(*words, f"name={name}", f"seed={seed}").code == 0
    a, b, c = (weights_of(Path("checkpoints", name, "best.pt")) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)


FEW = ("data.num_examples=20", "data.val_fraction=0.5", "batch_size=5", "epochs=1", "plots=false")


@pytest.mark.parametrize(
    ("loss", "optimizer", "schedule"),
    [
        ("mse", "sgd", "constant"),
        ("l1", "adam", "step"),
        ("huber", "adamw", "cosine"),
        ("auto", "rmsprop", "onecycle"),
        ("mse", "muon", "constant"),
    ],
)
def test_choices_train_a_step_or_two(loss: str, optimizer: str, schedule: str, cli: Cli) -> None:
    words = (f"loss={loss}", f"optimizer={optimizer}", f"schedule={schedule}")
    outcome = cli(*words, "model=mlp", "optimizer.lr=0.01", "name=a", *FEW)
    assert outcome.code == 0, outcome.err
    (row,) = metrics_of(Path("outputs/a"))
    assert row["step"] == 2
    assert math.isfinite(row["train_loss"])
    assert cli(*words, "model=mlp", "optimizer.lr=1e-30", "name=still", *FEW).code == 0
    moved, still = (weights_of(Path("checkpoints", name, "best.pt")) for name in ("a", "still"))
    assert any(not torch.equal(moved[key], still[key]) for key in moved)


def test_the_choices_above_are_all_there_are() -> None:
    with_pictures = {"cross_entropy", "sigmoid_cross_entropy", "quadratic"}  # below
    assert set(LOSSES) == {"mse", "l1", "huber", "auto"} | with_pictures
    assert set(OPTIMIZERS) == {"sgd", "adam", "adamw", "rmsprop", "muon"}
    assert set(SCHEDULES) == {"constant", "step", "cosine", "onecycle"}


@pytest.mark.parametrize("loss", ["sigmoid_cross_entropy", "quadratic"])
def test_losses_on_sigmoids_train(loss: str, cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 60, "test": 30})
    words = ("data=folder", "data.root=pictures", "data.size=16", "batch_size=8", "model=mlp", f"loss={loss}")
    outcome = cli(*words, "optimizer.lr=0.5", "model.init_std=fan_in", "epochs=30", "name=a", "plots=false")
    assert outcome.code == 0, outcome.err
    assert read(Path("outputs/a/result.json"))["test"]["accuracy"] > 0.6  # chance: a third


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"linreg"}))
def test_each_picture_model_trains(model: str, cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 18, "test": 6})
    words = ("data=folder", "data.root=pictures", "data.size=16", "batch_size=8", f"model={model}", "name=a", *QUICK)
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert read(Path("outputs/a/result.json"))["test"]["n"] == 6


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_in_memory_and_streamed_gives_equal_weights(channels: int, cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"": 45})
    words = ("data=folder", "data.root=pictures", f"data.channels={channels}", "data.size=12", "model=mlp")
    words += ("batch_size=10", "data.augment=crop_flip", "device.num_threads=1", "epochs=2", "plots=false")
    ways = {"memory": ("data.resident=true",)}
    ways |= {f"disk{n}": ("data.resident=false", f"data.workers={n}") for n in (0, 2)}
    for name, way in ways.items():
        outcome = cli(*words, *way, f"name={name}")
        assert outcome.code == 0, outcome.err
    memory, *others = (weights_of(Path("checkpoints", name, "best.pt")) for name in ways)
    for other in others:
        assert all(torch.equal(memory[key], other[key]) for key in memory)
    tests = [read(Path("outputs", name, "result.json"))["test"] for name in ways]
    assert tests[0] == tests[1] == tests[2]
    assert tests[0]["n"] == 4  # a tenth of 45, rounded to even


def test_fp64_and_bf16_train(cli: Cli) -> None:
    for precision, dtype in (("fp64", torch.float64), ("bf16", torch.float32)):
        assert cli(f"device.precision={precision}", f"name={precision}", *QUICK).code == 0
        assert {w.dtype for w in weights_of(Path("checkpoints", precision, "best.pt")).values()} == {dtype}
        assert cli("eval", f"checkpoint={precision}").code == 0
        saved = read(Path("outputs", precision, "result.json"))["test"]
        assert read(Path("outputs", precision, "eval-synthetic-test.json"))["loss"] == saved["loss"]


# when training stops by itself


def test_stop_at_stops_after_the_epoch_that_reaches_it(cli: Cli) -> None:
    assert cli("name=a", "plots=false", "epochs=20", "stop_at.val_loss=0.01").code == 0
    rows = metrics_of(Path("outputs/a"))
    assert len(rows) < 20
    assert [row["val_loss"] <= 0.01 for row in rows] == [False] * (len(rows) - 1) + [True]
    result = read(Path("outputs/a/result.json"))
    assert result["epochs"] == len(rows)
    assert "stop_at.val_loss" in result["stopped"]


def test_stop_at_an_accuracy(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "plots=false", "name=a", "epochs=20")
    assert cli(*words, "stop_at.train_accuracy=0.5").code == 0
    reached = [row["train_accuracy"] >= 0.5 for row in metrics_of(Path("outputs/a"))]
    assert reached == [False] * (len(reached) - 1) + [True]
    assert len(reached) < 20


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_waits_for_its_patience(patience: int, cli: Cli) -> None:
    words = (f"early_stopping.patience={patience}", "early_stopping.min_delta=1000", "epochs=20")
    outcome = cli("name=a", "plots=false", *words)  # only the first epoch, better than nothing, is a gain above 1000
    assert outcome.code == 0
    assert len(metrics_of(Path("outputs/a"))) == 1 + patience
    epochs = "1 epoch" if patience == 1 else f"{patience} epochs"
    wanted = f"no val_loss better by more than 1000 for {epochs} (early_stopping.patience)"
    assert read(Path("outputs/a/result.json"))["stopped"] == wanted  # it did get better
    assert "stopped: " in outcome.out


def test_early_stopping_keeps_the_best_weights(cli: Cli) -> None:
    words = ("early_stopping.patience=2", "epochs=60", "data.num_examples=50", "data.noise=1")
    assert cli("name=a", "plots=false", *words).code == 0
    losses = [row["val_loss"] for row in metrics_of(Path("outputs/a"))]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 2 < 60
    result = read(Path("outputs/a/result.json"))
    assert result["best"]["epoch"] == best
    assert cli("eval", "checkpoint=a", "split=val").code == 0
    assert read(Path("outputs/a/eval-synthetic-val.json"))["loss"] == min(losses)


def test_divergence_ends_the_run_with_three_and_no_bad_checkpoint(cli: Cli) -> None:
    outcome = cli("name=a", "plots=false", "optimizer.lr=1000", "data.w=[1e6,-1e6]")
    assert outcome.code == 3
    assert outcome.err.startswith("error: diverged")
    assert "optimizer.lr" in outcome.err
    status = read(Path("outputs/a/status.json"))
    assert status["state"] == "diverged"
    assert "not finite" in status["reason"]
    assert not list(Path("checkpoints").rglob("*.pt"))
    assert not Path("outputs/a/result.json").exists()
    assert "diverged" in Path("outputs/a/train.log").read_text()


def test_divergence_in_a_later_epoch_keeps_the_last_good_checkpoint(cli: Cli) -> None:
    words = ("optimizer.lr=30", "epochs=50", "data.num_examples=100", "batch_size=90")  # the loss grows 800-fold a step
    outcome = cli("name=a", "plots=false", *words)
    assert outcome.code == 3
    files = list(Path("checkpoints/a").glob("*.pt"))
    assert files
    for path in files:
        content = torch.load(path, weights_only=True)
        assert all(bool(torch.isfinite(w).all()) for w in content["model"].values())
        assert math.isfinite(content["progress"]["loss_sum"])
    newest = max(path for path in files if path.name.startswith("step"))
    assert str(newest) in outcome.err
    assert cli("eval", "checkpoint=a").code == 0


def test_metrics_hold_finite_numbers_only(cli: Cli) -> None:
    """One validation row in ten is far out, so its loss is the first that float32 cannot hold."""
    words = ("optimizer.lr=30", "epochs=50", "data.num_examples=100", "batch_size=90")
    assert cli("name=a", "plots=false", *words).code == 3
    for row in metrics_of(Path("outputs/a")):  # JSON knows no Infinity, and other readers refuse the file
        assert all(math.isfinite(value) for value in row.values())


# init_from


def test_init_from_takes_the_backbone_and_names_the_head(cli: Cli, tiny_mnist: Path, tmp_path: Path) -> None:
    assert cli("data=mnist", "model=mlp", f"paths.data={tiny_mnist}", "name=a", *QUICK).code == 0
    write_class_folders(tmp_path / "pictures", {"": 40}, size=28)
    words = ("data=folder", "data.root=pictures", "data.size=28", "data.channels=1", "model=mlp", "batch_size=30")
    outcome = cli(*words, "init_from=a", "optimizer.lr=1e-30", "name=b", *QUICK)  # too small a step to change a float
    assert outcome.code == 0, outcome.err
    old, new = (weights_of(Path("checkpoints", name, "best.pt")) for name in "ab")
    head = {key for key in old if old[key].shape != new[key].shape}
    assert head
    for key in old:
        assert (key in outcome.out) == (key in head)
        assert key in head or torch.equal(old[key], new[key])
    assert cli(*words, "init_from=a:last", "name=c", *QUICK).code == 0
    torch.save(old, "bare.pt")
    assert cli(*words, "init_from=bare.pt", "name=d", "optimizer.lr=1e-30", *QUICK).code == 0
    assert all(torch.equal(new[key], w) for key, w in weights_of(Path("checkpoints/d/best.pt")).items())


def test_init_from_a_model_without_a_common_layer_is_refused(cli: Cli) -> None:
    assert cli("name=a", *QUICK).code == 0
    outcome = cli("model=mlp", "init_from=a", "name=b", *QUICK)
    assert outcome.code == 2
    assert "init_from=" in outcome.err


# eval


def test_eval_repeats_the_test_figures_of_the_run(cli: Cli, tiny: Path, tiny_mnist: Path) -> None:
    result = read(tiny / "a" / "result.json")
    path = ("checkpoint=checkpoints/a/best.pt", f"paths.data={tiny_mnist}")
    for words in (("checkpoint=a",), ("checkpoint=a:best",), ("checkpoint=last",), path):
        outcome = cli("eval", *words, "plots=false")
        assert outcome.code == 0, outcome.err
        found = read(tiny / "a" / "eval-mnist-test.json")
        assert {key: found[key] for key in ("loss", "accuracy", "n")} == result["test"]
        assert f"accuracy {result['test']['accuracy']:.4f}" in outcome.out
        (tiny / "a" / "eval-mnist-test.json").unlink()


def test_eval_agrees_with_the_formula(cli: Cli, tiny: Path) -> None:
    assert cli("eval", "checkpoint=a", "plots=false").code == 0
    found = read(tiny / "a" / "eval-mnist-test.json")
    pictures, labels = striped_pictures(100, 10, 28, seed=1)
    content = torch.load("checkpoints/a/best.pt", weights_only=True)
    (mean,), (std,) = content["preprocess"]["mean"], content["preprocess"]["std"]
    x = ((torch.from_numpy(pictures).double() / 255 - mean) / std).flatten(1)
    weight, bias = (content["model"][key].double() for key in ("linear.weight", "linear.bias"))
    log_p = (x @ weight.T + bias).log_softmax(1)
    y = torch.from_numpy(labels).long()
    assert found["accuracy"] == (log_p.argmax(1) == y).double().mean()
    assert found["loss"] == pytest.approx(-log_p[torch.arange(100), y].mean().item(), rel=1e-5)  # float32 logits
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    confusion.index_put_((y, log_p.argmax(1)), torch.tensor(1), accumulate=True)
    assert found["confusion"] == confusion.tolist()
    keys = {"checkpoint", "data", "split", "n", "loss", "accuracy", "top5_accuracy", "macro_f1", "calibration_error"}
    assert set(found) == keys | {"balanced_accuracy", "classes", "confusion"}
    assert [row["n"] for row in found["classes"]] == [10] * 10


def test_eval_and_predict_average_over_mirror_images(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "model=softmax", "epochs=1", *QUICK)
    assert cli(*words, "name=a").code == 0
    assert cli("eval", "a").code == cli("eval", "a", "tta=flip").code == 0
    plain, mean = (json.loads(Path(f"outputs/a/eval-mnist-test{end}.json").read_text()) for end in ("", "-flip"))
    assert (plain.get("tta"), mean["tta"]) == (None, "flip")
    content = safe_load.read_checkpoint(Path("checkpoints/a/best.pt"))
    pixels, labels = striped_pictures(100, 10, 28, seed=1)
    x = torch.from_numpy(pixels)[:, None].double() / 255
    x = (x - content["preprocess"]["mean"][0]) / content["preprocess"]["std"][0]
    weight, bias = (content["model"][key].double() for key in ("linear.weight", "linear.bias"))
    outputs = ((x.flatten(1) + x.flip(-1).flatten(1)) / 2) @ weight.T + bias  # the model is linear
    y = torch.from_numpy(labels).long()
    assert mean["loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, y).item(), rel=1e-5)
    assert mean["loss"] != pytest.approx(plain["loss"], rel=1e-5)
    assert cli("predict", "a", "tta=flip", "output=flip.csv").code == 0
    assert [int(row["label"]) for row in rows_of(Path("flip.csv"))] == outputs.argmax(1).tolist()
    assert cli("epochs=1", "name=line", *QUICK).code == 0
    assert_refused(cli("eval", "line", "tta=flip"), "tta=flip is for images")
    assert_refused(cli("tta=flip"), "tta= is for eval and predict")


def test_eval_of_best_and_last_repeats_their_validation(cli: Cli, tiny: Path) -> None:
    rows = metrics_of(tiny / "a")
    best = read(tiny / "a" / "result.json")["best"]["epoch"]
    for which, row in (("a", rows[best - 1]), ("a:best", rows[best - 1]), ("a:last", rows[-1])):
        assert cli("eval", f"checkpoint={which}", "split=val", "plots=false").code == 0
        found = read(tiny / "a" / "eval-mnist-val.json")
        assert (found["loss"], found["accuracy"], found["n"]) == (row["val_loss"], row["val_accuracy"], 60)


def test_eval_of_a_step_file_measures_that_file(cli: Cli, tiny: Path, tiny_mnist: Path) -> None:
    words = ("checkpoint=checkpoints/a/step_00000022.pt", f"paths.data={tiny_mnist}", "split=val", "plots=false")
    assert cli("eval", *words).code == 0
    row, found = metrics_of(tiny / "a")[1], read(tiny / "a" / "eval-mnist-val.json")
    assert (found["loss"], found["accuracy"]) == (row["val_loss"], row["val_accuracy"])
    assert found["checkpoint"].endswith("step_00000022.pt")


def test_eval_of_the_training_split(cli: Cli, tiny: Path) -> None:
    assert cli("eval", "checkpoint=a", "split=train", "plots=false").code == 0
    found = read(tiny / "a" / "eval-mnist-train.json")
    assert found["n"] == 540
    assert 0 < found["accuracy"] <= 1


def test_eval_draws_the_confusion(cli: Cli, tiny: Path) -> None:
    outcome = cli("eval", "checkpoint=a")
    assert outcome.code == 0
    (picture,) = tiny.rglob("*.png")
    assert str(picture.relative_to(tiny.parent)) in outcome.out


def test_last_is_the_newest_run_jobs_of_sweeps_included(cli: Cli) -> None:
    assert cli("-m", "seed=1,2", "name=s", *QUICK).code == 0
    outcome = cli("eval", "checkpoint=last")
    assert outcome.code == 0
    assert Path("outputs/s/1/eval-synthetic-test.json").is_file()
    assert cli("name=newer", *QUICK).code == 0
    assert cli("eval", "checkpoint=last").code == 0
    assert Path("outputs/newer/eval-synthetic-test.json").is_file()
    assert cli("eval", "checkpoint=s/0").code == 0
    assert Path("outputs/s/0/eval-synthetic-test.json").is_file()


def test_a_foreign_file_writes_to_a_folder_of_its_own(cli: Cli, tiny: Path, tiny_mnist: Path) -> None:
    shutil.copy("checkpoints/a/best.pt", "from-a-friend.pt")
    shutil.rmtree("checkpoints")
    shutil.move("outputs/a", "kept")
    outcome = cli("eval", "checkpoint=from-a-friend.pt", f"paths.data={tiny_mnist}", "plots=false")
    assert outcome.code == 0, outcome.err
    assert files_below(tiny) == {"eval-from-a-friend/eval-mnist-test.json"}
    result = read(Path("kept/result.json"))
    found = read(tiny / "eval-from-a-friend" / "eval-mnist-test.json")
    assert {key: found[key] for key in ("loss", "accuracy", "n")} == result["test"]
    assert Path("from-a-friend.pt").is_file()


def test_eval_needs_the_classes_of_the_checkpoint(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 18, "test": 6})
    words = ("data=folder", "data.root=pictures", "data.size=8", "model=mlp", "batch_size=8", "name=a", *QUICK)
    assert cli(*words).code == 0
    other = write_class_folders(tmp_path / "other", {"train": 18, "test": 6})
    assert cli("eval", "checkpoint=a", "data.root=other", "plots=false").code == 0
    for part in ("train", "test"):
        (other / part / "class2").rename(other / part / "zebra")
    outcome = cli("eval", "checkpoint=a", "data.root=other", "plots=false")
    assert outcome.code == 2
    assert "class2" in outcome.err
    assert "zebra" in outcome.err
    outcome = cli("eval", "checkpoint=a", "data=synthetic")
    assert outcome.code == 2
    assert "data=synthetic" in outcome.err


def test_pictures_of_predictions_show_every_class_and_the_most_confident_mistakes(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test images of a folder lie sorted by class: the first 32 would be of one class."""
    from trainer.plots import run as plots

    write_class_folders(tmp_path / "p", {"train": 30, "test": 180}, size=8)
    for k in range(3):  # half of each class with the pictures of the next one
        for path in sorted((tmp_path / "p" / "test" / f"class{k}").iterdir())[:30]:
            shutil.copy(tmp_path / "p" / "train" / f"class{(k + 1) % 3}" / f"{(k + 1) % 3:04d}.png", path)
    drawn: dict[str, Any] = {}

    def keep(images: torch.Tensor, titles: list[str], wrong: Any, path: Path, *, heading: str = "") -> None:
        drawn[path.stem] = (images, titles, wrong, heading)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)

    monkeypatch.setattr(plots, "prediction_grid", keep)
    words = ("data=folder", "data.root=p", "data.size=8", "model=softmax", "batch_size=10", "epochs=3", "name=a")
    assert cli(*words, "data.val_fraction=0").code == 0
    _, titles, wrong, heading = drawn["predictions"]
    assert [sum(f"class{k} / " in title for title in titles) for k in range(3)] in (
        [11, 11, 10],
        [11, 10, 11],
        [10, 11, 11],
    )
    assert wrong == [title.split("\n")[1].split(" / ")[0] not in title.split(" / ")[1] for title in titles]
    assert all(title.split("\n")[0].endswith(".png") for title in titles)
    assert heading == "file, true class / predicted class and its probability, red where they differ"
    _, titles, wrong, heading = drawn["wrong"]
    assert all(wrong)
    assert heading.startswith("the most confident mistakes: ")
    chances = [int(title.rpartition(" ")[2].rstrip("%")) for title in titles]
    assert chances == sorted(chances, reverse=True)
    assert cli("predict", "checkpoint=a").code == 0
    rows = [row for row in rows_of(predictions()) if row["label"] != row["true_label"]]
    highest = sorted((float(row["probability"]) for row in rows), reverse=True)[: len(chances)]
    assert chances == [round(100 * p) for p in highest]
    assert len(chances) == min(32, len(rows)) > 20
    assert set(drawn["batch"][1]) <= {"class0", "class1", "class2"}
    assert "true class" in drawn["batch"][3]


# predict


@pytest.fixture
def coloured(cli: Cli, tmp_path: Path) -> Path:
    """A finished run `a` on 3-channel pictures of 16 pixels; returns a folder with two good and three bad files."""
    write_class_folders(tmp_path / "pictures", {"train": 60, "test": 6})
    words = ("data=folder", "data.root=pictures", "data.size=16", "model=softmax", "batch_size=10", "data.augment=none")
    outcome = cli(*words, "name=a", "plots=false", "epochs=5", "device.num_threads=1")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "holiday photos"
    (folder / "deeper").mkdir(parents=True)
    for name, source in (("a(1).png", "class1/0001.png"), ("deeper/b=c.png", "class2/0002.png")):
        shutil.copy(tmp_path / "pictures" / "train" / source, folder / name)
    whole = (folder / "a(1).png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_predict_labels_the_good_files_and_names_the_bad(coloured: Path, cli: Cli) -> None:
    outcome = cli("predict", "checkpoint=a", f"input={coloured}")
    assert outcome.code == 2
    rows = rows_of(predictions())
    assert [Path(row["input"]).name for row in rows] == ["a(1).png", "b=c.png"]
    assert [row["class"] for row in rows] == ["class1", "class2"]
    assert [row["label"] for row in rows] == ["1", "2"]
    assert all(1 / 3 < float(row["probability"]) <= 1 for row in rows)
    assert "2 files" in outcome.err
    assert "4 images below" in outcome.out
    assert "(1 other file ignored)" in outcome.out
    for name in ("cut.png", "empty.png"):
        line = next(line for line in outcome.err.splitlines() if name in line)
        assert len(line.partition(f"{name}: ")[2]) > 3  # a reason
    assert "Traceback" not in outcome.err
    assert predictions().with_suffix(".png").is_file()


def test_predict_of_one_file_and_of_another_overwrites(coloured: Path, cli: Cli) -> None:
    for name, label in (("a(1).png", "class1"), ("deeper/b=c.png", "class2")):
        outcome = cli("predict", "checkpoint=a", f"input={coloured / name}", "plots=false")
        assert outcome.code == 0, outcome.err
        (row,) = rows_of(predictions())
        assert (row["input"], row["class"]) == (str(coloured / name), label)
        assert label in outcome.out


def test_predict_without_a_readable_file_is_refused(coloured: Path, cli: Cli) -> None:
    for target in (coloured / "notes.txt", coloured / "nowhere"):
        outcome = cli("predict", "checkpoint=a", f"input={target}")
        assert outcome.code == 2
        assert target.name in outcome.err
    (coloured / "hollow").mkdir()
    (coloured / "hollow" / "notes.txt").write_text("no picture")
    outcome = cli("predict", "checkpoint=a", f"input={coloured / 'hollow'}")
    assert outcome.code == 2
    assert "hollow: no images below this folder (1 other file ignored). Allowed: .apng, .bmp, " in outcome.err
    assert not Path("outputs/a/predictions.csv").exists()


def test_a_colour_model_takes_grey_pictures_of_any_size(coloured: Path, cli: Cli) -> None:
    with Image.open(coloured / "a(1).png") as image:
        assert image.mode == "L"
        image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST).save(coloured / "colour.png")
    assert cli("predict", "checkpoint=a", f"input={coloured / 'colour.png'}", "plots=false").code == 0
    (row,) = rows_of(predictions())
    assert row["class"] == "class1"


@pytest.mark.parametrize("resident", ["true", "false"])
def test_predict_of_a_folder_set_names_the_files_and_shows_the_result(
    coloured: Path, cli: Cli, resident: str, tmp_path: Path
) -> None:
    (tmp_path / "pictures" / "test" / "class0" / "deep").mkdir()
    shutil.copy(tmp_path / "pictures" / "train" / "class1" / "0001.png", "pictures/test/class0/deep/swapped.png")
    outcome = cli("predict", "checkpoint=a", f"data.resident={resident}")
    assert outcome.code == 0, outcome.err
    rows = rows_of(predictions())
    files = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "pictures" / "test").rglob("*.png"))
    assert [row["input"] for row in rows] == files
    assert [f"class{row['true_label']}" for row in rows] == [name.split("/")[2] for name in files]
    assert "test: accuracy 0.8571, loss " in outcome.out  # 6 of 7
    assert "pictures/test/class0/deep/swapped.png  class1  " in outcome.out
    assert "  wrong: class0" in outcome.out


def test_predict_writes_as_many_classes_and_probabilities_as_asked_for(coloured: Path, cli: Cli) -> None:
    assert cli("predict", "a", "pictures/test", "top_k=2", "probabilities=true", "output=two.csv").code == 0
    for row in (rows := rows_of(Path("two.csv"))):
        chances = {name: float(row[f"p({name})"]) for name in ("class0", "class1", "class2")}
        ordered = sorted(chances, key=lambda name: -chances[name])
        assert [row["class"], row["class_2"]] == ordered[:2]
        assert [row["probability"], row["probability_2"]] == [row[f"p({name})"] for name in ordered[:2]]
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    assert list(rows[0])[:5] == ["input", "label", "class", "probability", "true_label"]
    assert Path("two-confusion.png").stat().st_size > 1000  # the folders are the classes
    assert cli("predict", "a", "top_k=1000", "output=all.csv", "plots=false").code == 0  # more than there are: all
    assert "class_3" in rows_of(Path("all.csv"))[0]
    assert "class_4" not in rows_of(Path("all.csv"))[0]
    assert_refused(cli("predict", "a", "top_k=0"), "top_k=0", "1 to 1,000")
    config: Any = SimpleNamespace(top_k=3, probabilities=False)
    equal = further_columns(config, [str(k) for k in range(10)], torch.full((1, 10), 0.1))
    assert [equal["class_2"], equal["class_3"]] == [["1"], ["2"]]  # `class` is 0, the first of equals
    assert_refused(cli("eval", "a", "top_k=2"), "top_k= is not for eval")
    assert_refused(cli("probabilities=true"), "probabilities= is for predict")


def test_predict_of_class_folders_gives_an_accuracy(coloured: Path, cli: Cli, tmp_path: Path) -> None:
    for folder, count in (("pictures/test", 6), ("pictures", 66), ("pictures/train/class2", 20)):
        outcome = cli("predict", "checkpoint=a", f"input={folder}", "plots=false")
        assert outcome.code == 0, outcome.err
        rows = rows_of(predictions())
        assert len(rows) == count
        if folder.endswith("class2"):  # the folder itself is no longer on the way
            assert {row["true_label"] for row in rows} == {""}
            assert "accuracy" not in outcome.out
        else:
            assert [f"class{row['true_label']}" for row in rows] == [row["input"].split("/")[-2] for row in rows]
            assert f"accuracy 1.0000 on {count} images" in outcome.out
    shutil.copytree("pictures/test/class0", "mixed/class1")  # every one of them in a folder of another class
    outcome = cli("predict", "checkpoint=a", "input=mixed")
    assert f"accuracy 0.0000 on {len(list(Path('mixed/class1').iterdir()))} images" in outcome.out
    assert "wrong: class1" in outcome.out
    shutil.copytree("pictures/test/class0", "mixed/others")
    assert "accuracy" not in cli("predict", "checkpoint=a", "input=mixed").out


def test_predict_reads_16_bit_files_with_the_depth_of_the_run(cli: Cli, tmp_path: Path) -> None:
    for part, n in (("train", 12), ("test", 4)):
        for k, level in enumerate((200, 3900)):  # of 4095: dark and bright
            (tmp_path / "p" / part / f"class{k}").mkdir(parents=True)
            for i in range(n):
                values = np.full((8, 8), level + 10 * i, dtype=np.uint16)
                Image.fromarray(values).save(tmp_path / "p" / part / f"class{k}" / f"{i}.png")
    words = ("data=folder", "data.root=p", "data.size=8", "data.channels=1", "data.depth=12", "model=softmax")
    outcome = cli(*words, "batch_size=6", "epochs=5", "name=a", "plots=false", "data.augment=none")
    assert outcome.code == 0, outcome.err
    assert "data.depth" not in outcome.out
    outcome = cli("predict", "checkpoint=a", "input=p/test", "plots=false")
    assert "accuracy 1.0000 on 8 images" in outcome.out
    assert cli("eval", "checkpoint=a", "plots=false").out.count("test: accuracy 1.0000") == 1


def test_a_class_that_a_part_lacks_is_named(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 60, "test": 6}, size=8)
    for path in sorted((tmp_path / "p" / "train" / "class2").iterdir())[1:]:
        path.unlink()
    words = ("data=folder", "data.root=p", "data.size=8", "model=softmax", "batch_size=5", "epochs=1", "plots=false")
    outcome = cli(*words, "data.limit=6")
    assert outcome.code == 0, outcome.err
    assert "warning: the validation part has no example of 1 of 3 classes: class2" in outcome.out
    assert "the training part" not in outcome.out
    outcome = cli(*words, "data.limit=2", "batch_size=2")
    assert "warning: the training part has no example of 1 of 3 classes: class2" in outcome.out


def test_predict_takes_links_and_suffixes_as_training_does(coloured: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for k in range(3):
        (tmp_path / "linked" / f"class{k}").symlink_to(tmp_path / "pictures" / "test" / f"class{k}")
    (tmp_path / "linked" / "README").write_text("no picture")
    with Image.open(tmp_path / "pictures/test/class0/0000.png") as image:
        image.save(tmp_path / "pictures/test/class0/x.jfif", "JPEG")
    outcome = cli("predict", "checkpoint=a", "input=linked")
    assert outcome.code == 0, outcome.err
    assert len(rows_of(predictions())) == 7


def test_predict_without_input_labels_the_test_split(cli: Cli, tiny: Path) -> None:
    outcome = cli("predict", "checkpoint=a")
    assert outcome.code == 0, outcome.err
    rows = rows_of(predictions(tiny / "a"))
    assert set(rows[0]) == {"input", "label", "class", "probability", "true_label"}
    assert [row["input"] for row in rows] == [str(i) for i in range(100)]
    _, labels = striped_pictures(100, 10, 28, seed=1)
    assert [int(row["true_label"]) for row in rows] == labels.tolist()
    hits = sum(row["label"] == row["true_label"] for row in rows)
    assert hits / 100 == read(tiny / "a" / "result.json")["test"]["accuracy"]
    assert predictions(tiny / "a").with_suffix(".png").is_file()


def test_predictions_take_the_place_of_no_others(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"": 40}, size=8)
    words = ("data=folder", "data.root=p", "data.size=8", "data.channels=1", "model=softmax", "batch_size=8")
    assert cli(*words, *QUICK, "name=a", "epochs=1").code == 0
    predict = ("predict", "checkpoint=a", "plots=false")
    names = ["predictions.csv", "predictions-p.csv", "predictions-class0.csv"]
    for words in ((), ("input=p",), ("input=p/class0",)):
        assert cli(*predict, *words).code == 0
    contents = {name: Path("outputs/a", name).read_bytes() for name in names}
    assert cli(*predict, "input=p").code == 0  # the same again: the same file
    (tmp_path / "q").mkdir()
    shutil.copytree("p/class1", "q/p")  # others of the same name
    outcome = cli(*predict, "input=q/p")
    assert "written  outputs/a/predictions-p-2.csv" in outcome.out
    assert {name: Path("outputs/a", name).read_bytes() for name in names} == contents
    assert sorted(path.name for path in Path("outputs/a").glob("*.csv")) == sorted([*names, "predictions-p-2.csv"])
    assert cli(*predict, "input=p", "output=~/mine/x.csv".replace("~", str(tmp_path))).code == 0
    assert (tmp_path / "mine/x.csv").read_bytes() == contents["predictions-p.csv"]
    refused = [(f"output={tmp_path}/mine/x.csv", "exists already"), ("output=x.png", "has to end in .csv")]
    refused += [("output=/proc/x.csv", "Choose another folder with output.")]
    refused += [(f"output='{name}.csv'", "no file on Windows") for name in ("nul", "a:b", "what?", "COM1.a", "a|b")]
    for word, said in refused:
        outcome = cli(*predict, "input=p", word)
        assert outcome.code == 2
        assert said in outcome.err


def test_predict_takes_what_data_depth_auto_came_to_in_training(cli: Cli, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name, value in (("a", 500), ("b", 4000)):
            (tmp_path / "p" / part / name).mkdir(parents=True)
            for i in range(5):
                pixels = np.full((8, 8), value + i, np.uint16)
                Image.fromarray(pixels).save(tmp_path / "p" / part / name / f"{i}.png")
    words = ("data=folder", "data.root=p", "data.size=8", "data.channels=1", "data.depth=auto", "model=softmax")
    outcome = cli(*words, "name=a", "epochs=1", "batch_size=5", "plots=false", "data.normalize=none")
    assert outcome.code == 0, outcome.err
    assert "data.depth=auto: 12" in outcome.out
    assert safe_load.read_checkpoint(Path("checkpoints/a/best.pt"))["preprocess"]["depth"] == 12
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save("x.png")
    Image.fromarray(np.full((8, 8), 249, np.uint8)).save("y.png")  # the same share of white in 8 bits
    Path("q").mkdir()
    Path("x.png").rename("q/x.png")
    Path("y.png").rename("q/y.png")
    assert cli("predict", "checkpoint=a", "input=q", "plots=false").code == 0
    rows = read_csv(Path("outputs/a/predictions-q.csv"))
    assert rows[0]["probability"] == rows[1]["probability"]
    Image.fromarray(np.full((8, 8), 9000.0, np.float32)).save("q/z.tif")
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save("q/x.png")
    outcome = cli("predict", "checkpoint=a", "input=q", "plots=false")
    assert "data.depth=12 makes all above 4,095 white: 16-bit images hold up to 60,000" in outcome.out
    assert "1 image, such as q/z.tif, with values below black or above white" in outcome.out
    for i in range(5):  # another set of the same classes keeps the depth of the model
        Image.fromarray(np.full((8, 8), 60 + i, np.uint16)).save(f"p/test/a/{i}.png")
        Image.fromarray(np.full((8, 8), 600 + i, np.uint16)).save(f"p/test/b/{i}.png")
        Image.fromarray(np.full((8, 8), 600 + i, np.uint16)).save(f"p/train/a/{i}.png")
        Image.fromarray(np.full((8, 8), 600 + i, np.uint16)).save(f"p/train/b/{i}.png")
    outcome = cli("eval", "checkpoint=a", "plots=false")
    assert "of the 4,096 levels of data.depth=12" in outcome.out
