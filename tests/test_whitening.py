"""whiten=true and the network made for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused, write_class_folders
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models import MODELS
from trainer.run.safe_load import read_checkpoint
from trainer.run.whitening import VARIANCE_EPS, whitening_filters
from trainer.utils.errors import ConfigError

FOLDER = ("data=folder", "data.root=p", "data.size=16", "batch_size=8", "epochs=2", "plots=false", "report=false")


def newest(run: str) -> dict[str, Any]:
    """The content of the checkpoint of a run's last epoch."""
    return read_checkpoint(max(Path("checkpoints", run).glob("step_*.pt")))


def blurred(n: int, size: int = 24) -> Tensor:
    """Images whose neighbouring pixels are alike, as photographs have them: (n, 3, size, size)."""
    draw = torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(draw, 3, stride=1, padding=1) + 0.1 * draw


def test_the_filters_make_what_varies_of_variance_one_and_let_noise_stay_small() -> None:
    patches = F.unfold(blurred(40), 3).transpose(1, 2).reshape(-1, 27)
    filters = whitening_filters(patches.T @ patches / len(patches), 54)
    outputs = patches @ filters[:27].T
    before = patches.T @ patches / len(patches)
    variances = torch.linalg.eigvalsh(before).flip(0)
    expected = variances / (variances + VARIANCE_EPS)
    torch.testing.assert_close(outputs.T @ outputs / len(outputs), expected.diag(), rtol=0, atol=1e-9)
    assert expected[0] > 0.9
    assert expected[-1] < 0.5 < VARIANCE_EPS / variances[-1]
    assert (before - before.diag().diag()).abs().max() > 0.05  # they did
    assert torch.equal(filters[27:], -filters[:27])


@pytest.mark.parametrize(("n", "expected"), [(4, 4), (5, 5), (54, 54), (64, 54)])
def test_fewer_filters_are_those_of_the_largest_variance(n: int, expected: int) -> None:
    moments = torch.arange(1.0, 28).double().diag()
    filters = whitening_filters(moments, n)
    assert len(filters) == expected
    strongest = filters[0].abs().argmax().item(), filters[1].abs().argmax().item()
    assert strongest == (26, 25)
    assert filters[0, 26].item() == pytest.approx((27 + VARIANCE_EPS) ** -0.5)  # its sign too


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (("model=cifarnet", "model.widths=[8,16]", "optimizer=muon"), "first.weight"),
        (("model=lenet", "impl=scratch"), "conv1.weight"),
        pytest.param(("model=resnet18", "optimizer=adamw"), "conv1.weight", marks=pytest.mark.slow),
    ],
)
def test_the_first_convolution_whitens_and_stays(model: tuple[str, ...], key: str, cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 48, "test": 12})
    for name, epochs in (("short", 1), ("long", 2)):
        words = (*FOLDER, *model, "whiten=true", f"name={name}", f"epochs={epochs}", "schedule=constant")
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
    short, long = (newest(name)["model"] for name in ("short", "long"))
    assert torch.equal(short[key], long[key])
    assert torch.allclose(short[key][0], -short[key][min(len(short[key]) // 2, short[key][0].numel())])
    assert any(not torch.equal(short[other], long[other]) for other in short)
    assert cli("eval", "checkpoint=long").code == 0
    assert json.loads(Path("outputs/long/config.json").read_text())["config"]["whiten"] is True


@pytest.mark.parametrize("words", [("model=softmax",), ("model=mlp",), ("model=convnet", "model.layers=[conv4x17p8]")])
def test_networks_without_a_convolution_are_refused(words: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 24, "test": 6})
    assert_refused(cli(*FOLDER, *words, "whiten=true", "name=a"), "whiten=true", "convolution", "whiten=false")
    assert not Path("outputs/a").exists()


def test_rows_are_refused(cli: Cli) -> None:
    assert_refused(cli("whiten=true", "name=a"), "whiten=true", "convolution")


def test_weights_of_others_are_refused_beside_it(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 24, "test": 6})
    assert cli(*FOLDER, "model=lenet", "name=a").code == 0
    assert_refused(cli(*FOLDER, "model=lenet", "whiten=true", "init_from=a", "name=b"), "whiten=true", "whiten=false")


@pytest.mark.parametrize("size", [8, 16, 20, 24, 32])
def test_cifarnet_takes_images_of_any_size(size: int) -> None:
    assert MODELS["cifarnet"](nn, (3, 32, 32), 10)(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert MODELS["cifarnet"](nn, (1, size, size), 7)(torch.zeros(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("widths", [[8, 8, 8, 8], []])
def test_cifarnet_refuses_images_that_it_would_halve_to_nothing(widths: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"model\.widths=\[.*\] is not for images of \(3, 8, 8\): .* halves"):
        MODELS["cifarnet"](nn, (3, 8, 8), 10, widths=widths)


def test_cifarnet_has_gelu_where_that_is_asked_for() -> None:
    kinds = [{type(layer) for layer in MODELS["cifarnet"](nn, (3, 32, 32), 10, gelu=gelu).stages} for gelu in (0, 1)]
    assert kinds[0] ^ kinds[1] == {nn.ReLU, nn.GELU}
    assert nn.GELU in kinds[1]


def test_cifarnet_begins_as_the_identity_of_its_input() -> None:
    x = torch.rand(2, 8, 6, 6)
    net = MODELS["cifarnet"](nn, (3, 32, 32), 10, widths=[64, 64])
    drawn = MODELS["cifarnet"](nn, (3, 32, 32), 10, widths=[64, 64], identity_init=False)
    first, second = (m for m in list(net.stages)[:5] if isinstance(m, nn.Conv2d))
    x = torch.rand(2, 64, 6, 6)
    assert torch.equal(second(x), x)
    assert torch.equal(first(x[:, :54])[:, :54], x[:, :54, ::2, ::2])
    assert not torch.equal(drawn.stages[3](x), x)
