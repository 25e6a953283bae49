"""model=timm: networks of the extra package, its published weights, and what is said where it is missing."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm  # type: ignore[import-untyped]
import torch
from conftest import Cli, Server, assert_refused, write_class_folders

from trainer.models import MODELS
from trainer.models.timm import published_by_timm, tags_of
from trainer.run.backbone import last_layer
from trainer.run.safe_load import read_checkpoint
from trainer.utils.errors import ConfigError

RUN = ("data=folder", "data.root=photos", "data.augment=none", "plots=false", "data.val_fraction=0.2", "batch_size=8")
NET = (*RUN, "model=timm", "model.arch=test_resnet", "epochs=1", "device.precision=fp32")


@pytest.fixture
def photos(tmp_path: Path, cli: Cli) -> Path:
    """A folder of 30 images of three classes, which `cli` stands beside."""
    return write_class_folders(tmp_path / "photos", {"": 30})


def build(arch: str, *shape: int, outputs: int = 3) -> torch.nn.Module:
    return MODELS["timm"](torch.nn, shape, outputs, arch=arch)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_efficientnet", "resnetv2_50"])
def test_architectures_take_channels_sizes_and_classes(arch: str, channels: int) -> None:
    torch.manual_seed(0)
    model = build(arch, channels, 64, 64)
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, channels, 64, 64)).shape == (2, 3)
    assert last_layer(model, 3)[1].weight.shape[0] == 3
    torch.manual_seed(0)
    again = build(arch, channels, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("arch", "shape", "said"),
    [
        ("resnet81", (3, 32, 32), "Did you mean"),
        ("hf-hub:someone/net", (3, 32, 32), "unknown to timm"),
        ("resnet18.a1_in1k", (3, 32, 32), "resnet18"),
        ("test_vit", (3, 20, 20), "test_vit"),
        ("test_resnet", (12,), "images"),
    ],
)
def test_what_timm_does_not_have_is_refused(arch: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(arch, *shape)


def test_without_timm_the_line_to_type_is_said(cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(cli(*NET), "pip install -r requirements-timm.txt")


def test_a_network_of_timm_trains_resumes_and_is_measured(cli: Cli, photos: Path) -> None:
    words = (*NET, "schedule=constant")
    assert cli(*words, "epochs=2", "name=a").code == 0
    assert cli(*words, "name=b").code == cli("resume=b", "epochs=2").code == 0
    a, b = (read_checkpoint(max(Path("checkpoints", name).glob("step_*.pt")))["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert cli("eval", "b").code == cli("predict", "b", "photos").code == 0
    assert_refused(cli(*NET, "impl=scratch"), "scratch", "timm")


def test_published_weights_come_through_a_server_and_bring_their_images(
    cli: Cli, photos: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    theirs = timm.create_model("test_resnet", num_classes=1000).state_dict()
    found = published_by_timm("test_resnet", "default")
    assert found is not None
    content = safetensors.torch.save(theirs)
    server.contents[found.address.removeprefix("https://huggingface.co/")] = content
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    words = (*NET, "model.weights=default", "finetune.freeze=backbone", "paths.weights=w", "data.size=64", "name=a")
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert f"model.weights={found.name}" in outcome.out
    assert (Path("w") / found.file).read_bytes() == content
    weights = read_checkpoint(Path("checkpoints/a/best.pt"))["model"]
    same = [name for name, w in theirs.items() if w.shape == weights[name].shape and torch.equal(w, weights[name])]
    assert {name for name in theirs if name not in same} == {"fc.weight", "fc.bias"}
    config = json.loads(Path("outputs/a/config.json").read_text(encoding="utf-8"))["config"]
    assert config["data"]["normalize"] == [list(found.mean), list(found.std)]
    server.contents.clear()
    assert "downloading" not in cli(*words[:-1], "name=b").out
    gone = cli(*words[:-1], "name=c", "paths.weights=elsewhere")
    assert_refused(gone, server.address, f"the name {found.file}", "paths.weights=FOLDER", "model.weights=FILE")


def test_a_file_of_weights_is_taken_and_a_tag_that_is_none_is_refused(cli: Cli, photos: Path) -> None:
    theirs: dict[str, Any] = timm.create_model("test_resnet", num_classes=3).state_dict()
    safetensors.torch.save_file(theirs, "own.safetensors")
    outcome = cli(*NET, "model.weights=own.safetensors", "optimizer.lr=1e-30", "name=a")
    assert outcome.code == 0, outcome.err
    weights = read_checkpoint(Path("checkpoints/a/best.pt"))["model"]
    assert torch.equal(weights["fc.weight"], theirs["fc.weight"])
    assert_refused(cli(*NET, "model.weights=r161_in1k"), "timm has r160_in1k", "Did you mean r160_in1k")


def test_tags_are_timms_in_any_case() -> None:
    assert "a1_in1k" in tags_of("resnet18")
    assert tags_of("no_such_net") == []
    first, default = published_by_timm("resnet18", "A2_IN1K"), published_by_timm("resnet18", "default")
    assert first is not None
    assert default is not None
    assert (first.name, default.name, default.size) == ("a2_in1k", "a1_in1k", 224)
    assert default.address == "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"


def test_all_published_weights_have_an_address_and_a_name_of_their_own() -> None:
    found = [published_by_timm(*name.split(".", 1)) for name in timm.list_pretrained() if name[0] in "gl"]
    assert len(found) > 20
    assert all(each is not None and "/None/" not in each.address for each in found)
    elsewhere = published_by_timm("legacy_seresnet18", "default")
    assert elsewhere is not None
    assert elsewhere.address.endswith("/seresnet18-4bb0ce65.pth")  # whose name has the digest
    assert elsewhere.file == ""
