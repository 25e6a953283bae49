"""The options of the loop: accumulation, clipping, the running mean of the weights, fp16, and the two for debugging."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from conftest import Cli, assert_refused
from torch import Tensor, nn

from trainer import build, engine
from trainer.config.freeze import from_dict
from trainer.config.options import group_choices
from trainer.config.schema import Choice
from trainer.models import MODELS
from trainer.run.directory import read_metrics
from trainer.run.progress import Progress
from trainer.totals import Totals

LR = 0.1


def examples(n: int = 22) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=draw, dtype=torch.float64)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)


def trained(
    steps: int = 3, *, form: str = "half", lr: float = LR, num_parts: int = 1, with_ema: bool = False, **options: object
) -> tuple[nn.Linear, Totals]:
    """A linear layer after some steps on the same 22 examples."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    totals = Totals(torch.device("cpu"), is_sum=form == "sum")
    batches = [examples()] * steps
    parts = engine.whole(batches) if num_parts == 1 else engine.in_parts(batches, [22] * steps, num_parts, totals)
    if with_ema:
        options["ema"] = build.running_mean(model, 0.2)
        model.ema = [options["ema"]]  # in a list: no submodule
    for _ in engine.train_epoch(
        model,
        build.build_loss(Choice("mse", {"form": form}), "concise"),
        torch.optim.SGD(model.parameters(), lr=lr),
        parts,
        lr_at=lambda step: lr,
        step=0,
        totals=totals,
        autocast=contextlib.nullcontext,
        update=engine.Update(**options),  # type: ignore[arg-type]
    ):
        pass
    return model, totals


@pytest.mark.parametrize("parts", [2, 4, 5])
@pytest.mark.parametrize("form", ["half", "sum"])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(parts: int, form: str) -> None:
    lr = LR if form == "half" else 0.001
    whole, sums = trained(form=form, lr=lr)
    inparts, sums_of_parts = trained(form=form, lr=lr, num_parts=parts)
    torch.testing.assert_close(inparts.weight, whole.weight, rtol=0, atol=1e-12)
    assert sums_of_parts.loss == pytest.approx(sums.loss, abs=1e-12)
    assert sums_of_parts.num_examples == sums.num_examples == 66


def test_the_summed_loss_is_reported_per_example() -> None:
    _, mean = trained(steps=1, form="mean")
    _, total = trained(steps=1, form="sum", lr=0.0)
    assert total.loss == pytest.approx(mean.loss, rel=1e-12)  # one output an example: the mean is the sum over N


def test_a_long_gradient_is_cut_to_the_norm_and_a_short_one_is_left() -> None:
    torch.manual_seed(0)
    start = nn.Linear(3, 1).double()
    model, _ = trained(steps=1, clip_norm=0.01)
    moved = torch.cat([(model.weight - start.weight).flatten(), model.bias - start.bias])
    assert float(moved.detach().norm()) == pytest.approx(LR * 0.01, rel=1e-4)
    free, _ = trained(steps=1)
    loose, _ = trained(steps=1, clip_norm=1e6)
    torch.testing.assert_close(loose.weight, free.weight, rtol=0, atol=0)


def test_the_running_mean_is_the_written_out_one() -> None:
    """Its decay grows to 0.2: 2 / 11 after one update, 3 / 12 is more already."""
    mean, second, third = (trained(steps=steps)[0].weight.detach() for steps in (1, 2, 3))
    for decay, weight in ((2 / 11, second), (0.2, third)):
        mean = decay * mean + (1 - decay) * weight
    model, _ = trained(steps=3, with_ema=True)
    torch.testing.assert_close(model.ema[0].module.weight.detach(), mean, rtol=0, atol=1e-12)


def test_decay_all_false_spares_the_vectors() -> None:
    model = MODELS["resnet18"](nn, (3, 8, 8), 10)
    options = {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.5}
    spared = build.build_optimizer(Choice("sgd", options | {"decay_all": False}), "concise", model)
    decays = {id(p): group["weight_decay"] for group in spared.param_groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    assert all(decays[id(p)] == (0.5 if p.ndim > 1 else 0.0) for p in model.parameters())
    every = build.build_optimizer(Choice("sgd", options | {"decay_all": True}), "concise", model)
    assert [group["weight_decay"] for group in every.param_groups] == [0.5]


def test_vector_lr_is_a_factor_for_the_vectors() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    before = [p.detach().clone() for p in model.parameters()]
    options = {"lr": 9.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "vector_lr": 64.0}
    optimizer = build.build_optimizer(Choice("sgd", options), "concise", model, list(model[1].parameters()), 0.5)
    x, y = examples()
    batches = engine.whole([(x, y.expand(-1, 2))])
    loss_fn, totals = build.build_loss(Choice("mse", {"form": "half"}), "concise"), Totals(torch.device("cpu"))
    keep: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        p.register_hook(lambda g, name=name: keep.update({name: g.clone()}))
    steps = engine.train_epoch(
        model, loss_fn, optimizer, batches, lr_at=lambda _: 0.01, step=0, totals=totals, autocast=contextlib.nullcontext
    )
    assert list(steps) == [1]
    factors = {"0.weight": 1.0, "0.bias": 64.0, "1.weight": 32.0, "1.bias": 32.0}  # the slow half of the network too
    for (name, p), start in zip(model.named_parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.01 * factors[name] * keep[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape", "options", "published"),
    [
        ("lenet", (1, 28, 28), {}, 61_706),
        ("resnet34", (3, 32, 32), {}, 21_282_122),
        ("resnet34", (3, 32, 32), {"project_stage1": True}, 21_286_346),
        ("resnet34", (3, 32, 32), {"stem": "imagenet"}, 21_289_802),
    ],
)
def test_models_have_the_published_number_of_parameters(
    name: str, shape: tuple[int, ...], options: dict[str, object], published: int
) -> None:
    assert build.parameter_count(MODELS[name](nn, shape, 10, **options)) == published


def test_a_gain_counts_from_the_last_one_that_counted() -> None:
    """As in Keras and Lightning: 1.000 -> 0.994 -> 0.988 gains 0.012 since 1.000, although 0.006 in each epoch."""
    config = from_dict({"choices": CHOICES, "early_stopping": {"patience": 2, "min_delta": 0.01}})
    progress, bad = Progress(), []
    for epoch, loss in enumerate((1.000, 0.994, 0.988, 0.982, 0.979), 1):
        assert not progress.stopped
        progress.end_epoch(config, {"epoch": epoch, "step": epoch, "train_loss": loss, "val_loss": loss})
        bad.append(progress.bad_epochs)
    assert bad == [0, 1, 0, 1, 2]
    assert progress.stopped
    assert progress.best["epoch"] == 5  # any gain makes an epoch the best


CHOICES = group_choices({"data": "synthetic"})
TINY = ("data=mnist", "model=lenet", "batch_size=50", "plots=false")


def result_of(run: str) -> dict[str, object]:
    return json.loads(Path(f"outputs/{run}/result.json").read_text())


def test_overfit_batches_learns_its_few_examples(cli: Cli, tiny_mnist: Path) -> None:
    words = (*TINY, f"paths.data={tiny_mnist}", "overfit_batches=2", "epochs=15", "data.augment=shift", "name=a")
    outcome = cli(*words, "optimizer=adam")
    assert outcome.code == 0, outcome.err
    assert "100 train, 100 val" in outcome.out
    last = json.loads(Path("outputs/a/metrics.jsonl").read_text().splitlines()[-1])
    assert last["train_accuracy"] == last["val_accuracy"] == 1.0


def test_fast_dev_run_takes_classes_without_a_part_for_validation(cli: Cli, tiny_mnist: Path) -> None:
    words = (*TINY, f"paths.data={tiny_mnist}", "fast_dev_run=true", "data.val_fraction=0", "batch_size=50")
    outcome = cli(*words, "name=a")
    assert outcome.code == 0, outcome.err
    assert "50 train, 0 val, 50 test" in outcome.out


def test_fast_dev_run_is_one_batch_of_everything(cli: Cli, tiny_mnist: Path) -> None:
    outcome = cli(*TINY, f"paths.data={tiny_mnist}", "fast_dev_run=true", "epochs=9", "name=a")
    assert outcome.code == 0, outcome.err
    assert "50 train, 50 val, 50 test" in outcome.out
    assert result_of("a")["epochs"] == 1


def test_a_running_mean_is_what_is_measured_and_kept(cli: Cli, tiny_mnist: Path) -> None:
    words = (*TINY, f"paths.data={tiny_mnist}", "epochs=2", "ema_decay=0.9")
    assert cli(*words, "name=a").code == 0
    content = torch.load("checkpoints/a/best.pt", weights_only=True)
    assert not torch.equal(content["ema"]["fc3.weight"], content["model"]["fc3.weight"])
    assert cli("eval", "checkpoint=a", "plots=false").code == 0
    measured = json.loads(Path("outputs/a/eval-mnist-test.json").read_text())
    assert measured["loss"] == result_of("a")["test"]["loss"]  # type: ignore[index]


@pytest.mark.parametrize(
    "words",
    [
        ("ema_decay=0.9",),
        ("device.precision=fp16", "clip_norm=1"),
        pytest.param(("accumulate_steps=3",), marks=pytest.mark.slow),
    ],
)
def test_resume_goes_on_with_the_mean_and_the_scaler(cli: Cli, tiny_mnist: Path, words: tuple[str, ...]) -> None:
    common = (*TINY, *words, f"paths.data={tiny_mnist}", "optimizer=adam", "optimizer.decay_all=false")
    assert cli(*common, "epochs=3", "name=straight").code == 0
    assert cli(*common, "epochs=1", "name=cut").code == 0
    assert cli("resume=cut", "epochs=3").code == 0
    straight, cut = (
        torch.load(f"checkpoints/{name}/step_00000033.pt", weights_only=True) for name in ("straight", "cut")
    )
    for part in ("model", "ema"):
        assert (straight[part] is None) == (cut[part] is None)
        for name, tensor in (straight[part] or {}).items():
            assert torch.equal(tensor, cut[part][name]), name
    assert straight["scaler"] == cut["scaler"]
    assert straight["fingerprint"] == cut["fingerprint"]
    for name, buffers in straight["optimizer"]["state"].items():
        assert all(torch.equal(buffer, cut["optimizer"]["state"][name][key]) for key, buffer in buffers.items())


def test_a_batch_larger_than_the_set_takes_all_of_it(cli: Cli) -> None:
    words = ("data.limit=100", "plots=false")
    large = cli(*words, "batch_size=256", "name=large")
    assert (large.code, "each step takes all 100 training examples" in large.out) == (0, True)
    exact = cli(*words, "batch_size=100", "name=exact")
    assert (exact.code, "each step takes all" in exact.out) == (0, False)
    rows = [read_metrics(Path("outputs", name)) for name in ("large", "exact")]
    assert [row["train_loss"] for row in rows[0]] == [row["train_loss"] for row in rows[1]]
    assert_refused(cli(*words, "batch_size=256", "data.drop_last=true"), "batch_size=256 is more than the 100")
