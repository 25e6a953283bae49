"""What `auto` comes to, that it is kept, and that the way to a GPU holds as far as can be seen without one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused
from torch import nn

from trainer import build, engine
from trainer.build import OPTIMIZERS
from trainer.config.freeze import from_dict
from trainer.config.schema import Config
from trainer.data.augment import Augment
from trainer.data.batches import Batches, Placement
from trainer.data.splits import Split, Splits
from trainer.models import MODELS
from trainer.run import machine
from trainer.run.machine import Machine, fastest, mkldnn, onednn_is_exact, resolve_auto, set_up
from trainer.run.parts import place
from trainer.totals import Totals
from trainer.utils.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PLAIN = {"precision": "fp32", "channels_last": False, "matmul": "torch"}
ZEN5 = ("AMD EPYC", {"avx512_f", "avx512_bf16"})
ZEN3 = ("AMD EPYC", set[str]())
XEON = ("Intel(R) Xeon(R)", {"avx512_f", "avx512_bf16", "amx_bf16"})


@pytest.fixture(autouse=True)
def machine_put_back() -> Iterator[None]:
    yield
    set_up("cpu")


def config_of(data: str, model: str, typed: tuple[str, ...] = (), /, **values: Any) -> Config:
    loss = "mse" if data == "synthetic" else "cross_entropy"
    choices = {"data": data, "model": model, "loss": loss, "optimizer": "sgd", "schedule": "constant", "device": "cpu"}
    return from_dict({"choices": choices} | values, typed)


@pytest.mark.parametrize(
    ("data", "model", "cpu", "expected"),
    [
        ("synthetic", "linreg", ZEN5, {}),
        ("fashion_mnist", "softmax", ZEN5, {"matmul": "onednn"}),
        ("fashion_mnist", "mlp", ZEN5, {"matmul": "onednn"}),
        ("fashion_mnist", "mlp", ZEN3, {}),
        ("fashion_mnist", "mlp", XEON, {}),
        ("fashion_mnist", "lenet", ZEN5, {"channels_last": True}),
        ("fashion_mnist", "lenet", XEON, {"channels_last": True}),
        ("mnist", "convnet", XEON, {"channels_last": True}),
        ("cifar10", "resnet34", ZEN5, {"precision": "bf16", "channels_last": True}),
        ("cifar10", "resnet18", XEON, {"precision": "bf16", "channels_last": True}),
        ("cifar10", "resnet34", ZEN3, {"channels_last": True}),
        ("cifar10", "cifarnet", ZEN5, {"precision": "bf16", "channels_last": True}),
        ("cifar10", "torchvision", ZEN5, {}),
    ],
)
def test_the_rule_for_a_cpu(
    data: str, model: str, cpu: tuple[str, set[str]], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_name", lambda: cpu[0])
    monkeypatch.setattr(machine, "cpu_can", lambda name: name in cpu[1])
    monkeypatch.setattr(machine, "onednn_is_exact", lambda: True)
    assert fastest(config_of(data, model), CPU) == PLAIN | expected


@pytest.mark.parametrize(
    ("stem", "size", "channels_last"),
    [("auto", 64, True), ("auto", 65, False), ("imagenet", 32, False), ("cifar", 224, True)],
)
def test_the_layout_of_a_resnet_goes_by_its_stem(stem: str, size: int, channels_last: bool) -> None:
    config = config_of("folder", "resnet18", data={"size": size, "root": "photos"}, model={"stem": stem})
    assert fastest(config, CPU)["channels_last"] is channels_last


@pytest.mark.parametrize(
    ("model", "capability", "expected"),
    [
        ("resnet34", (9, 0), PLAIN | {"precision": "bf16", "channels_last": True}),
        ("cifarnet", (9, 0), PLAIN | {"precision": "bf16", "channels_last": True}),
        ("resnet34", (7, 5), PLAIN),
        ("mlp", (9, 0), PLAIN),
        ("lenet", (9, 0), PLAIN),
    ],
)
def test_the_rule_for_a_gpu(
    model: str, capability: tuple[int, int], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fastest(config_of("cifar10", model), GPU) == expected


def test_what_is_typed_wins_over_the_rule() -> None:
    config, machine = resolve_auto(
        config_of("cifar10", "resnet18", device={"precision": "fp32", "channels_last": False})
    )
    assert (config.device["precision"], config.device["channels_last"]) == ("fp32", False)
    assert (machine.autocast_to, machine.channels_last) == (None, False)


def test_nothing_is_auto_afterwards_and_settling_again_changes_nothing() -> None:
    for model in ("softmax", "mlp", "lenet", "resnet18"):
        config, machine = resolve_auto(config_of("fashion_mnist", model))
        assert "auto" not in config.device.options.values()
        assert resolve_auto(config) == (config, machine)


def test_products_through_onednn_have_the_accuracy_of_float32() -> None:
    if not onednn_is_exact():
        pytest.skip("oneDNN rounds products on this CPU, so it is never used")
    assert set_up("cpu", matmul="onednn").matmul == "onednn"
    a, b = torch.randn(256, 784, dtype=torch.float64), torch.randn(784, 256, dtype=torch.float64)
    error = (a.float() @ b.float()).double() - a @ b
    bound = 784 * 2**-24 * (a.abs() @ b.abs())  # of a sum of 784 products in float32, in any order
    assert (error.abs() <= bound).all()


def rounding_product(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if self.dtype != torch.float32:
        return torch.matmul(self, other)
    return torch.matmul(self.bfloat16().float(), other.bfloat16().float())


def test_a_cpu_whose_onednn_rounds_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding_product)
    assert not onednn_is_exact()
    assert set_up("cpu", matmul="onednn").matmul == "torch"
    with pytest.raises(ConfigError, match=r"device.matmul=onednn would round on this CPU. Allowed: auto, torch"):
        resolve_auto(config_of("fashion_mnist", "mlp", ("device.matmul",), device={"matmul": "onednn"}))
    config, machine = resolve_auto(config_of("fashion_mnist", "mlp", device={"matmul": "onednn"}))  # saved elsewhere
    assert (config.device["matmul"], machine.matmul) == ("onednn", "torch")


def test_the_switch_is_off_again_for_the_next_run_of_a_sweep() -> None:
    set_up("cpu", matmul="onednn")
    set_up("cpu")
    assert mkldnn.matmul.fp32_precision == "none"


def test_the_choice_is_said_stored_and_kept(cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["data=mnist", f"paths.data={tiny_mnist}", "model=lenet", "batch_size=50", "name=a", "plots=false"]
    first = cli(*words, "epochs=1")
    assert "channels_last=true matmul=torch (auto: precision, channels_last, matmul)" in first.out
    saved = json.loads(Path("outputs/a/config.json").read_text())["config"]["device"]
    assert saved["channels_last"] is True
    monkeypatch.setattr(machine, "fastest", lambda *_: PLAIN)
    second = cli("resume=a", "epochs=2")
    assert second.code == 0
    assert "precision=fp32 channels_last=true matmul=torch\n" in second.out
    refused = cli("resume=a", "epochs=3", "device.channels_last=false")
    assert_refused(refused, "device.channels_last: the run has true, now it says false")
    third = cli("resume=a", "epochs=3", "device.channels_last=auto")
    assert "precision=fp32 channels_last=true matmul=torch\n" in third.out


def test_a_setting_of_another_device_is_refused(cli: Cli) -> None:
    assert_refused(cli("device=cpu", "device.matmul=tf32"), "device.matmul=tf32 needs an NVIDIA GPU")
    words = ("device=cpu", "device.matmul=onednn", "device.precision=fp64")
    assert_refused(cli(*words), "device.matmul=onednn is for device.precision=fp32, which is fp64 here")
    assert_refused(cli("device.matmul=onedn"), "Did you mean device.matmul=onednn?")


def test_a_step_reads_nothing_from_the_device() -> None:
    """On torch's meta device, which has shapes and no numbers, reading one is an error."""
    meta = torch.device("meta")
    pictures = Split(torch.zeros(300, 3, 32, 32, dtype=torch.uint8), torch.zeros(300, dtype=torch.int64))
    moments = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "classes": tuple("0123456789"), "task": "classification"}
    splits = Splits(pictures, pictures, pictures, in_shape=(3, 32, 32), num_outputs=10, sha256="", **moments)
    with meta:
        model = MODELS["resnet18"](nn, (3, 32, 32), 10).to(memory_format=torch.channels_last)
    batches = Batches(splits, pictures, Placement(meta), batch_size=128, seed=0, augment=Augment("crop_flip"))
    totals = Totals(meta)
    steps = engine.train_epoch(
        model,
        lambda y_hat, y: build.cross_entropy(y_hat, y, label_smoothing=0.1),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),  # the fused kernel needs numbers
        engine.whole(batches.epoch(1)),
        lr_at=lambda step: 0.1,
        step=0,
        totals=totals,
        autocast=Machine(meta).autocast,
        update=engine.Update(clip_norm=1.0),
    )
    assert list(steps) == [1, 2, 3]
    assert totals.num_examples == 300
    with pytest.raises((RuntimeError, NotImplementedError)):
        _ = totals.loss


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_no_step_waits_for_a_gpu() -> None:
    model = MODELS["lenet"](nn, (1, 28, 28), 10).to(GPU)
    pictures = Split(torch.zeros(300, 1, 28, 28, dtype=torch.uint8), torch.zeros(300, dtype=torch.int64))
    moments = {"mean": (0.5,), "std": (0.2,), "classes": tuple("0123456789"), "task": "classification"}
    splits = Splits(pictures, pictures, pictures, in_shape=(1, 28, 28), num_outputs=10, sha256="", **moments)
    batches = Batches(splits, pictures, Placement(GPU), batch_size=5, seed=0, augment=Augment("shift"))
    totals = Totals(GPU)
    optimizer = OPTIMIZERS["sgd"](model.parameters(), lr=0.1)
    options: dict[str, Any] = {"lr_at": lambda step: 0.1, "autocast": Machine(GPU).autocast}
    epoch = engine.whole(batches.epoch(1))
    try:
        for step in engine.train_epoch(
            model, nn.functional.cross_entropy, optimizer, epoch, step=0, totals=totals, **options
        ):
            torch.cuda.set_sync_debug_mode("error")  # from the second step on
            reading = totals.reading(step, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reading.step == 60
    assert reading.loss > 0


def test_channels_last_is_the_layout_of_the_weights_and_of_what_comes_between() -> None:
    machine = Machine(CPU, channels_last=True)
    model = place(MODELS["lenet"](nn, (3, 32, 32), 10), machine)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    model.conv2.register_forward_hook(lambda _module, inputs, output: seen.extend([*inputs, output]))
    model(torch.rand(4, 3, 32, 32))
    assert all(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in seen)


def test_a_reading_stays_as_it_was_taken() -> None:
    totals = Totals(CPU)
    totals.add(torch.tensor(2.0), torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    reading = totals.reading(7, 0.5)
    totals.add(torch.tensor(9.0), torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    assert (reading.step, reading.num_examples, reading.seconds, reading.loss) == (7, 4, 0.5, 2.0)
    assert reading.has_arrived
