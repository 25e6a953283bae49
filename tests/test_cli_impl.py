"""impl= from the command line: the same run in another library, what it refuses, and compare-impl."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused, predictions
from PIL import Image
from threadpoolctl import threadpool_info

from trainer.commands import compare_impl
from trainer.config.freeze import from_dict
from trainer.config.ranges import IMPLS
from trainer.run import directory
from trainer.run.checkpoint_files import steps_in
from trainer.run.machine import resolve_auto
from trainer.run.safe_load import read_checkpoint

OTHERS = [impl for impl in IMPLS if impl != "concise"]


def result(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path("outputs", name, "result.json").read_text())
    return loaded


def weights(name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_checkpoint(steps_in(Path("checkpoints", name))[-1])["model"]
    return found


@pytest.mark.parametrize("impl", OTHERS)
def test_linear_regression_finds_the_same_weights_in_every_library(cli: Cli, impl: str) -> None:
    for name in ("concise", impl):
        outcome = cli(f"impl={name}", f"name={name}", "device.precision=fp64", "plots=false")
        assert outcome.code == 0, outcome.err
    assert result(impl)["weight"] == pytest.approx(result("concise")["weight"], rel=0, abs=1e-12)
    assert result(impl)["bias"] == pytest.approx(result("concise")["bias"], rel=0, abs=1e-12)


@pytest.mark.parametrize("impl", ["autograd", "scratch"])
def test_a_lenet_of_one_library_is_evaluated_by_the_others(cli: Cli, tiny_mnist: Path, impl: str) -> None:
    words = [f"paths.data={tiny_mnist}", "plots=false"]
    outcome = cli("model=lenet", "data=mnist", "epochs=1", "name=a", "optimizer.lr=0.05", *words)
    assert "channels_last=true" in outcome.out  # what the layers of torch.nn get by themselves, and ours do without
    test = result("a")["test"]
    outcome = cli("eval", "checkpoint=a", f"impl={impl}", *words)
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.out
    found = json.loads(Path("outputs", "a", "eval-mnist-test.json").read_text())
    assert found["loss"] == pytest.approx(test["loss"], rel=1e-5)
    assert found["accuracy"] == test["accuracy"]
    outcome = cli("predict", "checkpoint=a", f"impl={impl}", *words)
    assert outcome.code == 0, outcome.err


def test_a_network_trained_by_numpy_is_evaluated_by_torch(cli: Cli, tiny_mnist: Path) -> None:
    words = [f"paths.data={tiny_mnist}", "plots=false", "device.precision=fp64"]
    outcome = cli("model=mlp", "data=mnist", "epochs=1", "name=a", "impl=numpy", *words)
    assert outcome.code == 0, outcome.err
    outcome = cli("eval", "checkpoint=a", "impl=concise", *words)
    assert outcome.code == 0, outcome.err
    found = json.loads(Path("outputs", "a", "eval-mnist-test.json").read_text())
    assert found["loss"] == pytest.approx(result("a")["test"]["loss"], rel=1e-12)


REFUSED = {
    "impl=torch": ("impl=torch is not allowed", "concise, autograd, scratch, numpy"),
    "impl=numpi": ("Did you mean impl=numpy?",),
    "impl=scratch device.precision=bf16": ("device.precision=bf16", "impl=scratch", "fp32, fp64"),
    "impl=autograd device.precision=fp16": ("device.precision=fp16", "impl=autograd", "fp32, fp64"),
    "impl=numpy device.compile=true": ("device.compile=true", "impl=numpy"),
    "impl=scratch device.channels_last=true": ("device.channels_last=true", "impl=scratch"),
    "impl=numpy device.matmul=onednn": ("device.matmul=onednn", "impl=numpy"),
    "impl=numpy device=cuda": ("device=cuda", "impl=numpy", "device=cpu"),
    "loss.impl=numpy device=mps": ("device=mps", "impl=numpy"),
    "impl=numpy model=lenet data=mnist": ("impl=numpy does not have model=lenet", "autograd, scratch"),
    "impl=numpy model=mlp model.batch_norm=true": ("model.batch_norm=true", "impl=scratch"),
    "impl=numpy loss=l1": ("impl=numpy does not have loss=l1", "loss.impl=concise"),
    "impl=numpy loss=huber": ("impl=numpy does not have loss=huber",),
    "impl=numpy optimizer=adam": ("impl=numpy does not have optimizer=adam", "optimizer.impl=concise"),
    "impl=scratch optimizer=rmsprop": ("impl=scratch does not have optimizer=rmsprop", "impl=concise"),
    "impl=autograd model=torchvision data=mnist": ("impl=autograd does not have model=torchvision",),
    "model.impl=numpy model=lenet data=mnist": ("model.impl=numpy does not have model=lenet", "model.impl=concise"),
    "optimizer.impl=numpy optimizer=adamw": ("optimizer.impl=numpy does not have optimizer=adamw",),
    "model.impl=keras": ("model.impl=keras", "null"),
    "data.impl=numpy": ("data.impl",),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_a_library_cannot_do_is_refused_with_the_reason(cli: Cli, words: str, tmp_path: Path) -> None:
    assert_refused(cli(*words.split()), *REFUSED[words])
    assert list(tmp_path.iterdir()) == []


def test_a_bf16_run_is_evaluated_by_hand_in_fp32_when_that_is_said(cli: Cli, tiny_mnist: Path) -> None:
    words = [f"paths.data={tiny_mnist}", "plots=false"]
    assert cli("data=mnist", "epochs=1", "name=a", "device.precision=bf16", *words).code == 0
    assert_refused(cli("eval", "checkpoint=a", "impl=scratch", *words), "device.precision=bf16", "fp32")
    assert cli("eval", "checkpoint=a", "impl=scratch", "device.precision=fp32", *words).code == 0


def test_eval_needs_no_optimizer_in_the_library(cli: Cli, tiny_mnist: Path) -> None:
    words = [f"paths.data={tiny_mnist}", "plots=false"]
    assert cli("data=mnist", "epochs=1", "optimizer=adam", "impl=scratch", "name=a", *words).code == 0
    for verb in ("eval", "predict"):
        outcome = cli(verb, "checkpoint=a", "impl=numpy", *words)
        assert outcome.code == 0, outcome.err
        assert "impl=numpy" in outcome.out
        assert "warning" not in outcome.out


def test_a_run_says_where_its_parts_come_from_unless_it_is_torch(cli: Cli) -> None:
    assert "impl" not in cli("name=a", "epochs=1", "plots=false").out
    assert "seed=0 impl=autograd\n" in cli("impl=autograd", "name=b", "epochs=1", "plots=false").out
    outcome = cli("model.impl=scratch", "name=c", "epochs=1", "plots=false")
    assert "seed=0 model.impl=scratch loss.impl=concise optimizer.impl=concise\n" in outcome.out
    # what is typed for all holds for the part that the run had from elsewhere
    assert "impl=numpy" in cli("eval", "checkpoint=c", "impl=numpy").out
    assert "impl=scratch" in cli("eval", "checkpoint=c").out


def test_numpy_computes_with_as_many_threads_as_torch(cli: Cli) -> None:
    for threads in (1, 2):
        outcome = cli("impl=numpy", f"device.num_threads={threads}", f"name=t{threads}", "epochs=1", "plots=false")
        assert outcome.code == 0, outcome.err
        of_numpy = [pool for pool in threadpool_info() if "numpy" in pool["filepath"]]
        assert [pool["num_threads"] for pool in of_numpy] == [threads]


def test_numpy_says_nothing_of_its_own_where_numbers_overflow(cli: Cli) -> None:
    outcome = cli("impl=numpy", "optimizer.lr=100", "plots=false")
    assert outcome.code == 3
    assert outcome.err.startswith("error: diverged")


def test_the_layout_is_that_of_the_models_library(cli: Cli, tiny_mnist: Path) -> None:
    words = ["model=lenet", "data=mnist", "epochs=1", "plots=false", f"paths.data={tiny_mnist}"]
    words += ["optimizer.impl=scratch", "device.channels_last=true"]
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert "channels_last=true" in outcome.out


@pytest.mark.parametrize("word", ["model.bias=false", "model.init_std=torch"])
def test_a_spread_of_biases_that_are_not_drawn_is_refused(cli: Cli, word: str) -> None:
    assert_refused(cli("model=mlp", "model.bias_std=1", word), "model.bias_std=1", word.split("=")[0])


def test_each_part_can_come_from_another_library(cli: Cli) -> None:
    words = ["model.impl=scratch", "loss.impl=numpy", "optimizer.impl=autograd", "device.precision=fp64"]
    for name, more in (("plain", words[-1:]), ("mixed", words)):
        outcome = cli(f"name={name}", "plots=false", *more)
        assert outcome.code == 0, outcome.err
    assert result("mixed")["weight"] == pytest.approx(result("plain")["weight"], rel=0, abs=1e-12)
    saved = json.loads(Path("outputs", "mixed", "config.json").read_text())["config"]
    assert [saved[part]["impl"] for part in ("model", "loss", "optimizer")] == ["scratch", "numpy", "autograd"]
    assert saved["impl"] == "concise"
    assert from_dict(saved).loss.impl == "numpy"


@pytest.mark.parametrize("impl", ["scratch", "numpy"])
def test_an_interrupted_run_goes_on_to_the_same_bits(cli: Cli, impl: str, tiny_mnist: Path) -> None:
    words = [f"impl={impl}", "data=mnist", "model=mlp", "model.dropout=0.5", "optimizer.momentum=0.9", "plots=false"]
    words += [f"paths.data={tiny_mnist}", "batch_size=50"]
    assert cli(*words, "name=whole", "epochs=4").code == 0
    assert cli(*words, "name=halves", "epochs=2").code == 0
    outcome = cli("resume=halves", "epochs=4")
    assert outcome.code == 0, outcome.err
    whole, halves = weights("whole"), weights("halves")
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_resume_in_another_library_has_to_be_allowed(cli: Cli) -> None:
    assert cli("name=a", "optimizer.momentum=0.9", "plots=false").code == 0
    assert_refused(cli("resume=a", "epochs=4", "impl=scratch"), "impl")
    outcome = cli("resume=a", "epochs=4", "impl=scratch", "resume_allow=[impl]")
    assert outcome.code == 0, outcome.err
    assert len(directory.read_metrics(Path("outputs/a"))) == 4


def test_numpy_stays_on_the_cpu_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    choices = {"data": "synthetic", "model": "linreg", "loss": "mse", "optimizer": "sgd", "schedule": "constant"}
    config = from_dict({"choices": choices | {"device": "auto"}, "impl": "numpy"})
    assert resolve_auto(config)[1].device.type == "cpu"


def test_what_is_not_concise_computes_in_fp32_and_in_its_own_layout() -> None:
    choices = {"data": "cifar10", "model": "resnet34", "loss": "cross_entropy", "optimizer": "sgd"}
    choices |= {"schedule": "constant", "device": "cpu"}
    settled, machine = resolve_auto(from_dict({"choices": choices, "impl": "scratch"}))
    assert (settled.device["precision"], settled.device["channels_last"]) == ("fp32", False)
    assert (machine.autocast_to, machine.channels_last) == (None, False)


def test_the_two_layer_network_is_an_experiment(cli: Cli) -> None:
    outcome = cli("experiment=two_layer", "impl=numpy", "epochs=20", "name=a", "plots=false")
    assert outcome.code == 0, outcome.err
    losses = [row["train_loss"] for row in directory.read_metrics(Path("outputs/a"))]
    assert losses[0] > 1e5  # ||y_hat - y||^2 per row, with weights from N(0, 1)
    assert losses[-1] < losses[0] / 50
    assert {name: tuple(w.shape) for name, w in weights("a").items()} == {
        "layers.1.weight": (100, 1000),
        "layers.4.weight": (10, 100),
    }


def test_compare_impl_prints_a_table_and_draws_the_curves(cli: Cli) -> None:
    outcome = cli("compare-impl", "epochs=1", "device.precision=fp64")
    assert outcome.code == 0, outcome.err
    folder = Path("outputs/compare-impl-synthetic-linreg")
    found = json.loads((folder / "comparison.json").read_text())
    assert [row["impl"] for row in found["libraries"]] == list(IMPLS)
    for row in found["libraries"]:
        assert row["ms_per_step"] > 0
        assert row["largest_difference"] <= 1e-12
        assert row["final_loss"] == pytest.approx(found["libraries"][0]["final_loss"], rel=1e-10)
        assert any(line.split()[0] == row["impl"] for line in outcome.out.splitlines() if line)
    points = {impl: found["curves"][impl] for impl in IMPLS}
    assert [step for step, _ in points["numpy"]] == list(range(1, 91))  # 900 examples by 10
    assert points["numpy"][-1][1] == pytest.approx(points["concise"][-1][1], rel=1e-10)
    with Image.open(folder / "comparison.png") as picture:
        assert picture.size[0] > 1000
    assert not Path("checkpoints").exists()


def test_compare_impl_trains_what_train_trains(cli: Cli, tiny_mnist: Path) -> None:
    """Also dropout: each library has the random numbers it would have alone. The second epoch has 8 steps of 11."""
    words = ["data=mnist", "model=mlp", "model.dropout=0.5", "epochs=2", "batch_size=50", f"paths.data={tiny_mnist}"]
    words += ["device.precision=fp64", "plots=false", "schedule=cosine", "max_steps=19"]
    assert cli("compare-impl", *words).code == 0
    found = json.loads(Path("outputs/compare-impl-mnist-mlp/comparison.json").read_text())
    assert max(row["largest_difference"] for row in found["libraries"]) <= 1e-12
    assert cli(*words, "name=alone", "impl=scratch").code == 0
    last = directory.read_metrics(Path("outputs/alone"))[-1]
    scratch = next(row for row in found["libraries"] if row["impl"] == "scratch")
    assert scratch["final_loss"] == pytest.approx(last["train_loss"], rel=1e-12)


def test_compare_impl_says_which_library_is_left_out_and_why(cli: Cli) -> None:
    outcome = cli("compare-impl", "optimizer=adam", "epochs=1", "plots=false", "stop_at.train_loss=1")
    assert outcome.code == 0, outcome.err
    assert "warning: stop_at.train_loss has no effect on compare-impl" in outcome.out
    assert "without numpy: impl=numpy does not have optimizer=adam.\n" in outcome.out
    found = json.loads(Path("outputs/compare-impl-synthetic-linreg/comparison.json").read_text())
    assert [row["impl"] for row in found["libraries"]] == ["concise", "autograd", "scratch"]
    assert_refused(cli("compare-impl", "optimizer=rmsprop"), "nothing to compare", "optimizer=rmsprop")


@pytest.mark.parametrize(
    "word", ["impl=numpy", "name=a", "resume=a", "checkpoint=a", "model.impl=scratch", "split=val", "init_from=a"]
)
def test_compare_impl_refuses_what_it_decides_itself(cli: Cli, word: str) -> None:
    assert_refused(cli("compare-impl", word), word.split("=")[0], "compare-impl")


def test_compare_impl_refuses_a_folder_that_is_not_for_it(cli: Cli) -> None:
    folder = "compare-impl-synthetic-linreg"
    assert cli(f"name={folder}", "epochs=1", "plots=false").code == 0
    assert_refused(cli("compare-impl", "epochs=1"), f"outputs/{folder}", "paths.outputs")
    assert not Path("outputs", folder, "comparison.json").exists()
    Path("other").mkdir()
    Path("other", folder).write_text("")
    assert_refused(cli("compare-impl", "paths.outputs=other", "epochs=1"), f"other/{folder}", "paths.outputs")


@pytest.mark.parametrize("words", [[], ["data.limit=10", "epochs=90"]])
def test_the_points_of_a_comparison_leave_no_example_out(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """However many points there are, and however many epochs there are between two of them."""
    means = []
    for points in (500, 7):
        monkeypatch.setattr(compare_impl, "POINTS", points)
        assert cli("compare-impl", "device.precision=fp64", "plots=false", *words).code == 0
        found = json.loads(Path("outputs/compare-impl-synthetic-linreg/comparison.json").read_text())
        curve = found["curves"]["concise"]
        steps = [0, *(step for step, _ in curve)]
        assert steps[-1] == (90 if words else 270)
        means.append(sum((b - a) * loss for a, b, (_, loss) in zip(steps, steps[1:], curve, strict=False)))
    assert means[1] == pytest.approx(means[0], rel=1e-12)


def test_compare_impl_stops_where_a_loss_is_not_finite(cli: Cli) -> None:
    outcome = cli("compare-impl", "optimizer.lr=100")
    assert outcome.code == 3
    assert "impl=concise" in outcome.err
    assert "smaller optimizer.lr" in outcome.err


def test_the_probability_of_a_network_of_sigmoids_is_its_sigmoid(cli: Cli, tiny_mnist: Path) -> None:
    words = [f"paths.data={tiny_mnist}", "plots=false"]
    assert cli("data=mnist", "model=mlp", "loss=quadratic", "epochs=1", "name=a", *words).code == 0
    outcome = cli("predict", "checkpoint=a", *words)
    assert outcome.code == 0, outcome.err
    with predictions().open() as file:
        found = [float(row["probability"]) for row in csv.DictReader(file)]
    # weights near 0: the sigmoids are near 1/2, where a softmax over ten classes would say 1/10
    assert min(found) > 0.3
