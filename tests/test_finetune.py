"""Weights that others trained: where they come from, what images they bring, and what is trained of the network."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision  # type: ignore[import-untyped]
from conftest import Cli, Outcome, Server, assert_refused, write_class_folders
from torch import Tensor

from trainer.models.torchvision import published, weight_names
from trainer.run import finetune, pretrained
from trainer.run.safe_load import read_checkpoint

PHOTOS = ("data=folder", "data.root=photos", "data.augment=none", "plots=false")
# the fewest images that can be cut into parts, in networks of 11 million weights
SMALL = (*PHOTOS, "data.size=32", "data.val_fraction=0.2", "batch_size=8", "device.precision=fp32", "recipe=none")
NAMED = "resnet18-{}.pth"


@pytest.fixture
def photos(tmp_path: Path, cli: Cli) -> Path:
    """A folder of 30 images of three classes, which `cli` stands beside."""
    return write_class_folders(tmp_path / "photos", {"": 30})


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A resnet18 of torchvision's with three outputs, and its bytes under the name that torchvision would give it."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18(num_classes=3).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return model, file.getvalue()


def named(content: bytes) -> str:
    return NAMED.format(hashlib.sha256(content).hexdigest()[:8])


def serve(server: Server, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let torchvision's weights lie on the server under this name."""
    server.contents[name] = content

    def here(arch: str, wanted: str) -> Any:
        found = published(arch, wanted)
        return found and replace(found, address=server.address + name, **changes)

    monkeypatch.setattr(pretrained.torchvision, "published", here)


def weights_of(run: str) -> dict[str, Tensor]:
    model: dict[str, Tensor] = read_checkpoint(max(Path("checkpoints", run).glob("step_*.pt")))["model"]
    return model


def default(cli: Cli, *words: str, name: str = "a") -> Outcome:
    return cli(*SMALL, "model=resnet18", "model.weights=default", "epochs=1", f"name={name}", *words)


def test_default_weights_are_downloaded_once_and_are_torchvisions(
    cli: Cli, photos: Path, theirs: Any, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, content = theirs
    serve(server, named(content), content, monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    outcome = default(cli, "optimizer.lr=1e-30", "finetune.freeze=backbone")
    assert outcome.code == 0, outcome.err
    kept = tmp_path / "home/hub/checkpoints" / named(content)
    assert kept.read_bytes() == content
    assert f"downloading {server.address}{named(content)} to {kept}" in outcome.out
    assert "start afresh: none" in outcome.out
    preprocess = read_checkpoint(Path("checkpoints/a/best.pt"))["preprocess"]
    assert (preprocess["mean"], preprocess["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    config = json.loads(Path("outputs/a/config.json").read_text())["config"]
    assert config["model"]["stem"] == "imagenet"
    assert config["data"]["size"] == 32  # typed
    ours = weights_of("a")
    assert all(torch.equal(ours[name], w) for name, w in model.state_dict().items() if name != "fc.weight")
    with torch.no_grad():
        x = (torch.rand(2, 3, 32, 32) - torch.tensor(preprocess["mean"])[:, None, None]) / 0.2
        again = torchvision.models.resnet18(num_classes=3).eval()
        again.load_state_dict(ours)
        assert torch.equal(again(x), model(x))
    del server.contents[named(content)]
    assert "downloading" not in default(cli, name="b").out
    elsewhere = default(cli, f"paths.weights={tmp_path}/elsewhere", name="c")
    assert_refused(elsewhere, "HTTP status 404", f"{tmp_path}/elsewhere", "paths.weights=FOLDER", "model.weights=FILE")
    assert not (tmp_path / "elsewhere").exists()
    kept.write_bytes(content[:-1])
    assert_refused(default(cli, name="d"), str(kept), "SHA-256", "Delete it")


def test_weights_bring_the_size_and_the_mean_of_their_images_unless_it_is_typed(
    cli: Cli, photos: Path, theirs: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = theirs
    serve(server, named(content), content, monkeypatch, size=40, mean=(0.1, 0.2, 0.3), interpolation="bicubic")
    words = tuple(word for word in SMALL if not word.startswith("data.size"))
    outcome = cli(*words, "model=resnet18", "model.weights=default", "epochs=1", "name=a", "paths.weights=w")
    assert outcome.code == 0, outcome.err
    assert "images of 40 x 40 pixels, normalised by [[0.1, 0.2, 0.3], [0.229, 0.224, 0.225]], bicubic" in outcome.out
    config = json.loads(Path("outputs/a/config.json").read_text())["config"]
    assert config["data"]["interpolation"] == "bicubic"
    assert (config["data"]["size"], config["data"]["normalize"]) == (40, [[0.1, 0.2, 0.3], [0.229, 0.224, 0.225]])
    typed = (*SMALL, "data.normalize=none", "data.channels=1", "model=resnet18", "model.weights=DEFAULT")
    outcome = cli(*typed, "epochs=1", "name=b", "paths.weights=w", "optimizer.lr=1e-30")
    assert "conv1.weight: summed over the colours" in outcome.out
    summed = torch.load(f"w/{named(content)}", weights_only=True)["conv1.weight"].sum(1, keepdim=True)
    assert torch.equal(weights_of("b")["conv1.weight"], summed)
    assert "bit-identical to b: " in cli("rerun", "b").out
    assert cli("eval", "b").code == cli("predict", "b", "photos/class0").code == 0


@pytest.mark.parametrize("how", ["other", "broken"])
def test_weights_that_arrive_damaged_are_refused_and_not_kept(
    how: str, cli: Cli, photos: Path, theirs: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = theirs
    serve(server, named(content), content + b"x" if how == "other" else content, monkeypatch)
    if how == "broken":
        server.broken.add(named(content))
    outcome = default(cli, "paths.weights=w")
    assert_refused(outcome, "its SHA-256 begins with" if how == "other" else "broke off", "put it into w")
    assert not Path("w").exists()
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ((), {"freeze": "backbone", "unfreeze_epoch": 2, "backbone_lr": 0.1}),
        pytest.param(
            ("epochs=2",), {"freeze": "none", "unfreeze_epoch": None, "backbone_lr": 0.1}, marks=pytest.mark.slow
        ),
        (("finetune.backbone_lr=1",), {"freeze": "none", "unfreeze_epoch": None, "backbone_lr": 1.0}),
        (("recipe=none",), {"freeze": "none", "unfreeze_epoch": None, "backbone_lr": 1.0}),
        pytest.param(
            ("model.weights=none",),
            {"freeze": "none", "unfreeze_epoch": None, "backbone_lr": 1.0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_own_images_train_the_last_layer_first_and_the_rest_slowly(
    typed: tuple[str, ...], wanted: dict[str, Any], cli: Cli, photos: Path, theirs: Any
) -> None:
    Path("own.pth").write_bytes(theirs[1])
    few = ("data.size=16", "data.val_fraction=0.2", "batch_size=8", "device.precision=fp32", "data.limit=8")
    words = (*PHOTOS, *few, "model=resnet18", "model.weights=own.pth", "epochs=3", "name=a")
    outcome = cli(*words, *typed)
    assert outcome.code == 0, outcome.err
    config = json.loads(Path("outputs/a/config.json").read_text(encoding="utf-8"))["config"]
    assert config["finetune"] == wanted
    said = " ".join(f"finetune.{key}={value}" for key, value in wanted.items() if value not in ("none", None))
    assert (f"{said} (what you type wins" in outcome.out) == (wanted["backbone_lr"] < 1)
    assert "bit-identical to a: " in cli("rerun", "a").out


def test_a_budget_trains_all_layers_from_the_start(
    cli: Cli, photos: Path, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own.pth").write_bytes(theirs[1])
    monkeypatch.setattr("trainer.commands.train.lay_out", lambda config, *_: replace(config, epochs=1, max_steps=1))
    few = ("data.size=16", "data.val_fraction=0.2", "batch_size=8", "device.precision=fp32", "data.limit=8")
    outcome = cli(*PHOTOS, *few, "model=resnet18", "model.weights=own.pth", "budget=1h", "name=a")
    assert outcome.code == 0, outcome.err
    config = json.loads(Path("outputs/a/config.json").read_text(encoding="utf-8"))["config"]
    assert config["finetune"] == {"freeze": "none", "unfreeze_epoch": None, "backbone_lr": 0.1}


def test_a_sweep_of_weights_goes_on_with_the_same_command(
    cli: Cli, photos: Path, theirs: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, named(theirs[1]), theirs[1], monkeypatch, size=16, mean=(0.1, 0.2, 0.3), interpolation="bicubic")
    few = ("data.val_fraction=0.2", "batch_size=8", "device.precision=fp32", "data.limit=8", "paths.weights=w")
    line = ("-m", *PHOTOS, *few, "model=resnet18", "model.weights=default", "epochs=3", "optimizer.lr=0.1", "name=s")
    assert cli(*line).code == 0
    whole = weights_of("s/0")
    for path in (Path("outputs/s/0/result.json"), *sorted(Path("checkpoints/s/0").glob("step_*.pt"))[1:]):
        path.unlink()
    outcome = cli(*line)
    assert outcome.code == 0, outcome.out
    resumed = weights_of("s/0")
    assert all(torch.equal(resumed[name], w) for name, w in whole.items())
    again = cli("resume=s/0")
    assert "already complete" in again.out
    assert "model.weights" not in again.out


def test_names_of_weights_are_torchvisions_in_any_case() -> None:
    assert weight_names("resnet50") == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert weight_names("mlp") == []
    first, newest = published("resnet50", "imagenet1k_v1"), published("resnet50", "Default")
    assert first is not None and newest is not None  # noqa: PT018
    assert (first.name, newest.name, first.size, len(first.classes)) == ("IMAGENET1K_V1", "IMAGENET1K_V2", 224, 1000)
    assert first.address != newest.address
    assert published("resnet50", "photo.pth") is None
    halves = published("inception_v3", "default")
    assert halves is not None
    assert (halves.size, halves.mean, halves.std) == (299, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_files_and_runs_are_taken_and_what_is_neither_is_named(cli: Cli, photos: Path, theirs: Any) -> None:
    model, content = theirs
    Path("theirs.pth").write_bytes(content)
    safetensors.torch.save_file(model.state_dict(), "theirs.safetensors")
    safetensors.torch.save_file({k: v.half() for k, v in model.state_dict().items()}, "half.safetensors")
    line = (*SMALL, "model=resnet18", "model.stem=imagenet", "epochs=1", "optimizer.lr=1e-30")
    for name, file in (("a", "theirs.pth"), ("b", "theirs.safetensors"), ("c", "half.safetensors")):
        outcome = cli(*line, f"model.weights={file}", f"name={name}", "finetune.freeze=backbone")
        assert outcome.code == 0, outcome.err
        assert torch.allclose(weights_of(name)["conv1.weight"], model.conv1.weight, atol=1e-4 if name == "c" else 0)
    assert cli(*line, "model.weights=a", "name=d", "finetune.freeze=backbone").code == 0
    assert torch.equal(weights_of("d")["layer4.1.conv2.weight"], model.layer4[1].conv2.weight)
    Path("odd.safetensors").write_bytes(b"nothing")
    assert_refused(cli(*line, "model.weights=odd.safetensors"), "odd.safetensors cannot be read")
    safetensors.torch.save_file({}, "empty.safetensors")
    assert_refused(cli(*line, "model.weights=empty.safetensors"), "empty.safetensors holds no weights")
    assert_refused(cli(*line, "model.weights=nowhere"), "IMAGENET1K_V1", "no such file")
    assert_refused(cli(*line, "model.weights=imagenet1k_v7"), "Did you mean IMAGENET1K_V1?")


@pytest.fixture
def grown(cli: Cli, tiny_mnist: Path) -> tuple[str, ...]:
    """A LeNet that was trained for an epoch, as run `a`; the words of its next runs."""
    words = ("data=mnist", f"paths.data={tiny_mnist}", "model=lenet", "plots=false", "recipe=none", "batch_size=50")
    words = (*words, "device.precision=fp32", "optimizer.momentum=0.9")
    assert cli(*words, "epochs=1", "name=a", "optimizer.lr=0.1").code == 0
    return (*words, "init_from=a", "optimizer.lr=0.01")


def curve(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("outputs", run, "metrics.jsonl").read_text().splitlines()]


def test_features_have_the_precision_of_the_run(cli: Cli, grown: tuple[str, ...]) -> None:
    words = (*(word for word in grown if "precision" not in word), "epochs=2", "finetune.freeze=backbone")
    for name, more in (("b", ()), ("c", ("finetune.unfreeze_epoch=9",))):
        assert cli(*words, *more, "device.precision=fp64", f"name={name}").code == 0
    features, whole = (curve(run)[-1]["train_loss"] for run in "bc")
    assert features == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("impl", ["concise", "scratch"])
def test_a_frozen_backbone_stays_and_its_features_give_the_numbers_of_the_whole_network(
    impl: str, cli: Cli, grown: tuple[str, ...]
) -> None:
    words = (*grown, "epochs=2", "finetune.freeze=backbone", "optimizer=adamw", "optimizer.lr=0.01", f"impl={impl}")
    words = tuple(word for word in words if word not in ("optimizer.momentum=0.9",))
    outcome = cli(*words, "name=b")
    assert outcome.code == 0, outcome.err
    assert "the frozen backbone's 84 numbers for each of 600 images are computed once" in outcome.out
    assert "850 of 61,706 parameters are trained" in outcome.out
    assert cli(*words, "name=c", "finetune.unfreeze_epoch=9").code == 0  # later than the end: through the whole net
    before, after, whole = weights_of("a"), weights_of("b"), weights_of("c")
    changed = {name for name, w in after.items() if not torch.equal(w, before[name])}
    assert {name.rpartition(".")[0] for name in changed} == {next(reversed(before)).rpartition(".")[0]}
    assert all(torch.allclose(after[name], whole[name], atol=1e-6) for name in after)
    for key in ("train_loss", "val_loss", "val_accuracy"):
        assert np.allclose(*([row[key] for row in curve(run)] for run in "bc"), rtol=1e-4), key
    content = read_checkpoint(Path("checkpoints/b/best.pt"))
    assert {name for name, buffers in content["optimizer"]["state"].items() if buffers} == changed
    measured = json.loads(Path("outputs/b/result.json").read_text())["test"]["accuracy"]
    assert cli("eval", "b").code == 0
    assert json.loads(Path("outputs/b/eval-mnist-test.json").read_text())["accuracy"] == measured


def test_batch_normalisation_of_a_frozen_backbone_keeps_its_statistics(cli: Cli, photos: Path, theirs: Any) -> None:
    model, content = theirs
    Path("theirs.pth").write_bytes(content)
    words = (*SMALL, "model=resnet18", "model.stem=imagenet", "model.weights=theirs.pth", "finetune.freeze=backbone")
    assert cli(*words, "epochs=1", "data.augment=crop_flip", "name=a").code == 0
    kept = weights_of("a")
    assert all(torch.equal(kept[name], w) for name, w in model.state_dict().items() if not name.startswith("fc."))
    assert not torch.equal(kept["fc.weight"], model.fc.weight)


def test_a_backbone_that_is_unfrozen_learns_from_that_epoch_on_and_resumes_exactly(
    cli: Cli, grown: tuple[str, ...]
) -> None:
    words = (*grown, "finetune.freeze=backbone", "finetune.unfreeze_epoch=2", "finetune.backbone_lr=0.5")
    assert cli(*words, "epochs=3", "name=straight").code == 0
    assert cli(*words, "epochs=1", "name=b", "schedule=constant").code == 0
    first = next(iter(weights_of("a")))
    assert torch.equal(weights_of("b")[first], weights_of("a")[first])
    for epochs in (2, 3):
        assert cli("resume=b", f"epochs={epochs}").code == 0
        assert not torch.equal(weights_of("b")[first], weights_of("a")[first])
    straight = weights_of("straight")
    assert all(torch.equal(w, straight[name]) for name, w in weights_of("b").items())


def test_the_backbone_learns_slower_by_the_factor(cli: Cli, grown: tuple[str, ...]) -> None:
    line = (*(word for word in grown if "momentum" not in word), "epochs=1", "overfit_batches=1")
    for name, factor in (("b", "1.0"), ("c", "0.25")):
        assert cli(*line, f"name={name}", f"finetune.backbone_lr={factor}").code == 0
    start, whole, slow = (weights_of(run) for run in "abc")
    *backbone, _, last = start
    for name in (backbone[0], last):
        ratio = (slow[name] - start[name]).norm() / (whole[name] - start[name]).norm()
        assert float(ratio) == pytest.approx(1.0 if name == last else 0.25, rel=0.02)


REFUSED = {
    ("finetune.freeze=backbone",): "It needs model.weights= or init_from=",
    ("finetune.unfreeze_epoch=2",): "needs finetune.freeze=backbone",
    ("finetune.backbone_lr=0",): "finetune.backbone_lr=0 is not allowed",
    ("finetune.freeze=head",): "Allowed: none, backbone",
    ("init_from=a", "model=softmax", "finetune.freeze=backbone"): "nothing but its last layer",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], cli: Cli, tiny_mnist: Path) -> None:
    line = ("data=mnist", f"paths.data={tiny_mnist}", "plots=false", "epochs=1")
    if "init_from=a" in words:
        assert cli(*line, "model=softmax", "name=a").code == 0
        shutil.rmtree("outputs/a/tb")
    assert_refused(cli(*line, *words, "name=b"), REFUSED[words])
    assert not Path("outputs/b").exists()


def test_a_sweep_tries_several_weights_and_one_of_a_single_job_takes_recipe_none(
    cli: Cli, grown: tuple[str, ...]
) -> None:
    words = tuple(word for word in grown if not word.startswith("init_from"))
    assert cli("-m", *words, "epochs=1", "init_from=a,null", "name=s").code == 0
    logs = [Path("outputs/s", job, "train.log").read_text() for job in "01"]
    assert ["weights from" in log for log in logs] == [True, False]
    outcome = cli("-m", *words, "epochs=1", "name=t")
    assert outcome.code == 0, outcome.err


def test_what_does_nothing_is_said(cli: Cli, grown: tuple[str, ...]) -> None:
    words = (*grown, "epochs=1", "finetune.freeze=backbone")
    outcome = cli(*words, "finetune.backbone_lr=0.1", "name=b")
    assert "finetune.backbone_lr has no effect on train: finetune.freeze=backbone without" in outcome.out
    outcome = cli(*words, "finetune.backbone_lr=0.1", "finetune.unfreeze_epoch=2", "name=c")
    assert "finetune.backbone_lr has" not in outcome.out
    assert "finetune.unfreeze_epoch has no effect on train: training ends with epoch 1" in outcome.out
    parameters = [json.loads(Path("outputs", run, "result.json").read_text())["num_parameters"] for run in "ab"]
    assert parameters == [61706, 61706]


def test_commands_that_take_no_weights_of_others_refuse_them(cli: Cli, photos: Path) -> None:
    line = (*SMALL, "model=resnet18", "model.weights=nowhere")
    assert_refused(cli("compare-impl", *line), "model.weights= is not for compare-impl")
    said = "no such"  # a run that is looked for where its folders are typed to be
    outcome = cli("check-resume", *line, "paths.outputs=elsewhere", "paths.checkpoints=there")
    assert_refused(outcome, said)
    assert "paths.outputs has no effect" not in outcome.out


def test_features_are_for_images_that_stay_the_same(cli: Cli, grown: tuple[str, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr(finetune, "features", lambda *_: pytest.fail("not to be computed"))
    words = (*grown, "epochs=1", "finetune.freeze=backbone")
    for name, more in (("b", "data.augment=shift"), ("c", "ema_decay=0.9"), ("d", "finetune.unfreeze_epoch=2")):
        assert cli(*words, more, f"name={name}").code == 0
