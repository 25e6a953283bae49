"""metrics.jsonl and TensorBoard, read back with TensorBoard's own reader; also after an interruption."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from trainer.run import directory
from trainer.run.recorder import Recorder, yaml_lines


@pytest.fixture(autouse=True)
def seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files are read in the order of the second in their names: let a second pass with each recorder."""
    from tensorboard.summary.writer import event_file_writer

    clock: Iterator[float] = iter(range(1_700_000_000, 1_800_000_000))
    monkeypatch.setattr(event_file_writer.time, "time", lambda: float(next(clock)))


def row(epoch: int, steps_per_epoch: int = 10, **changes: Any) -> dict[str, Any]:
    metrics = {"train_loss": 1 / epoch, "train_accuracy": 0.5, "val_loss": 2 / epoch, "val_accuracy": 0.25}
    times = {"seconds": 1.5, "samples_per_second": 100.0}
    return {"epoch": epoch, "step": epoch * steps_per_epoch, "lr": 0.1 * epoch, **metrics, **times} | changes


def events(folder: Path) -> EventAccumulator:
    """All events of a run, none thinned out."""
    every = dict.fromkeys(("scalars", "histograms", "images", "tensors", "compressedHistograms"), 0)
    return EventAccumulator(str(folder / "tb"), size_guidance=every).Reload()


def series(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def test_an_epoch_is_a_line_of_json_and_a_point_of_each_curve(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path)) as recorder:
        for epoch in (1, 2):
            recorder.epoch(row(epoch))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row(1), row(2)]
    assert directory.read_metrics(tmp_path) == [row(1), row(2)]
    tags = ["accuracy/train", "accuracy/val", "loss/train", "loss/val", "lr", "samples_per_second"]
    assert sorted(events(tmp_path).Tags()["scalars"]) == sorted(tags)
    for tag in tags:
        metric, _, split = tag.partition("/")
        expected = [(r["step"], r[f"{split}_{metric}" if split else metric]) for r in (row(1), row(2))]
        assert series(tmp_path, tag) == [(s, pytest.approx(v, rel=1e-7)) for s, v in expected]  # kept as float32


def test_accuracy_and_loss_are_the_groups_that_tensorboard_opens(cli: Cli, tiny_mnist: Path) -> None:
    """Its first two by name, of numbers, histograms and images together."""
    records = ("record.every_steps=1", "record.histograms_every=1", "record.gradients=true", "plots=true")
    words = ("data=mnist", f"paths.data={tiny_mnist}", "model=softmax", "epochs=1", "batch_size=300", "name=a")
    assert cli(*words, *records).code == 0
    found = events(Path("outputs/a")).Tags()
    tags = sorted({*found["scalars"], *found["images"], *found["histograms"]})
    assert {"plots/curves", "weights/linear.weight", "norm_of_gradient/linear.weight", "lr_of_step"} <= set(tags)
    assert list(dict.fromkeys(tag.split("/")[0] for tag in tags))[:2] == ["accuracy", "loss"]
    first = [tag for tag in tags if tag.startswith(("accuracy/", "loss/"))]
    assert first == ["accuracy/train", "accuracy/val", "loss/train", "loss/train_so_far", "loss/val"]


def test_a_line_is_on_disk_as_soon_as_the_epoch_ends(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path)) as recorder:
        recorder.epoch(row(1))
        assert directory.read_metrics(tmp_path) == [row(1)]


def test_what_an_epoch_does_not_have_is_left_out(tmp_path: Path) -> None:
    regression = {key: value for key, value in row(1).items() if not key.endswith("accuracy")} | {"val_loss": None}
    with closing(Recorder(tmp_path)) as recorder:
        recorder.epoch(regression)
    assert sorted(events(tmp_path).Tags()["scalars"]) == ["loss/train", "lr", "samples_per_second"]


def interrupted(folder: Path) -> None:
    """Epochs 1 to 3 of 10 steps, each with a point per step; killed in epoch 3, in the middle of a line."""
    with closing(Recorder(folder)) as recorder:
        for epoch in (1, 2, 3):
            for step in range(10 * epoch - 9, 10 * epoch + 1):
                recorder.scalars({"loss/train_so_far": 1.0, "lr_of_step": 0.1}, step)
            recorder.epoch(row(epoch))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "step": 4')


@pytest.mark.parametrize(("epochs_done", "steps_done"), [(2, 20), (1, 17), (0, 5), (3, 30)])
def test_after_a_resume_no_epoch_and_no_step_is_there_twice(epochs_done: int, steps_done: int, tmp_path: Path) -> None:
    interrupted(tmp_path)
    with closing(Recorder(tmp_path, epochs_done=epochs_done, steps_done=steps_done)) as recorder:
        assert directory.read_metrics(tmp_path) == [row(epoch) for epoch in range(1, epochs_done + 1)]
        for epoch in range(epochs_done + 1, 5):
            for step in range(max(10 * epoch - 9, steps_done + 1), 10 * epoch + 1):
                recorder.scalars({"loss/train_so_far": 2.0, "lr_of_step": 0.1}, step)
            recorder.epoch(row(epoch))
    assert directory.read_metrics(tmp_path) == [row(epoch) for epoch in (1, 2, 3, 4)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    points = series(tmp_path, "loss/train_so_far")
    assert [step for step, _ in points] == list(range(1, 41))
    assert [value for _, value in points] == [1.0] * steps_done + [2.0] * (40 - steps_done)
    assert [step for step, _ in series(tmp_path, "loss/train")] == [10, 20, 30, 40]


def test_tensorboard_that_a_resume_brings_gets_the_epochs_of_before(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path, ["csv"])) as recorder:
        recorder.epoch(row(1))
        recorder.epoch(row(2))
    for epoch in (3, 4):  # and only once
        done = {"epochs_done": epoch - 1, "steps_done": 10 * (epoch - 1)}
        with closing(Recorder(tmp_path, **done)) as recorder:
            recorder.epoch(row(epoch))
    assert [step for step, _ in series(tmp_path, "loss/val")] == [10, 20, 30, 40]


def test_a_run_cut_before_its_first_checkpoint_starts_its_curves_anew(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with closing(Recorder(tmp_path, epochs_done=0, steps_done=0)) as recorder:
        assert directory.read_metrics(tmp_path) == []
        for step in range(1, 11):
            recorder.scalars({"loss/train_so_far": 2.0}, step)
        recorder.epoch(row(1))
    assert series(tmp_path, "loss/train_so_far") == [(step, 2.0) for step in range(1, 11)]
    assert [step for step, _ in series(tmp_path, "loss/train")] == [10]


@pytest.mark.parametrize("torn", ['{"epoch": 3', '{"epoch": 3, "step": 30}garbage\n', "\0\0\0\0", "\n", '{"a": "'])
def test_a_torn_last_line_is_left_out(torn: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2)) + "\n" + torn)
    assert directory.read_metrics(tmp_path) == [row(1), row(2)]
    Recorder(tmp_path, epochs_done=2, steps_done=20).close()
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(row(1)) + "\n" + json.dumps(row(2)) + "\n"


def test_without_a_file_there_are_no_metrics(tmp_path: Path) -> None:
    assert directory.read_metrics(tmp_path) == []


def test_hyperparameters_stand_in_the_same_run_beside_the_metrics(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path)) as recorder:
        settings = {"optimizer.lr": 0.1, "plots": True, "model": "mlp", "model.num_hiddens": [4, 2], "name": None}
        recorder.hyperparameters(settings, {"test/accuracy": 0.75}, 30)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["tb"]
    assert not [p for p in (tmp_path / "tb").iterdir() if p.is_dir()]  # add_hparams makes a run below this one
    assert series(tmp_path, "test/accuracy") == [(30, 0.75)]
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events(tmp_path).PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert set(start) == set(settings)
    assert start["optimizer.lr"].number_value == 0.1
    assert start["plots"].number_value == 1.0
    assert start["model"].string_value == "mlp"
    assert start["model.num_hiddens"].string_value == "[4, 2]"
    assert "_hparams_/experiment" not in content  # that of one run would hold for all others


def test_settings_are_yaml() -> None:
    settings = {"a": {"b": 0.5, "c": {}}, "d": None, "e": ["x: y", True], "f": "on"}
    assert OmegaConf.to_container(OmegaConf.create("\n".join(yaml_lines(settings)))) == settings


def test_each_class_has_a_curve(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path)) as recorder:
        recorder.curves(["cat", "dog"], torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]), 5)
    assert {"val/cat", "val/dog"} <= set(events(tmp_path).PluginTagToContent("pr_curves"))


def test_histograms_hold_every_weight_and_the_norm_of_every_gradient(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).to(torch.bfloat16)
    model[1].requires_grad_(False)
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(6).view(2, 3))
    model[0].weight.grad = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]], dtype=torch.bfloat16)
    with closing(Recorder(tmp_path)) as recorder:
        recorder.histograms(model, 20)
    read = events(tmp_path)
    assert sorted(read.Tags()["histograms"]) == sorted(f"weights/{name}" for name, _ in model.named_parameters())
    (event,) = read.Histograms("weights/0.weight")
    histogram = event.histogram_value
    assert (event.step, histogram.num, histogram.min, histogram.max, histogram.sum) == (20, 6, 0.0, 5.0, 15.0)
    assert read.Tags()["scalars"] == ["norm_of_gradient/0.weight"]
    assert series(tmp_path, "norm_of_gradient/0.weight") == [(20, 5.0)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_picture_comes_back_as_it_was(mode: str, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    Image.fromarray(drawn).convert(mode).save(tmp_path / "curve.png")
    with closing(Recorder(tmp_path)) as recorder:
        recorder.image("loss", tmp_path / "curve.png", 30)
    (event,) = events(tmp_path).Images("plots/loss")
    assert event.encoded_image_string == (tmp_path / "curve.png").read_bytes()
    assert (event.step, event.width, event.height) == (30, 4, 6)


@pytest.mark.parametrize(("words", "times"), [([], 1), (["epochs=20"], 4), (["record.histograms_every=0"], 0)])
def test_histograms_come_at_the_end_and_after_each_quarter(cli: Cli, words: list[str], times: int) -> None:
    assert cli("name=a", "epochs=2", "plots=false", "report=false", *words).code == 0
    found = events(Path("outputs/a"))
    assert len(found.Histograms("weights/linear.weight") if times else found.Tags()["histograms"]) == times


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])
def test_weights_without_a_histogram_are_left_out(tmp_path: Path, value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1, bias=False))
    model.register_parameter("none", nn.Parameter(torch.empty(0)))
    with torch.no_grad():
        model[0].weight[0, 0] = value
    with closing(Recorder(tmp_path)) as recorder:
        recorder.histograms(model, 1)
    assert sorted(events(tmp_path).Tags()["histograms"]) == ["weights/0.bias", "weights/1.weight"]
