"""Few of one class, many of another: weights, turns, and the figures in which each class counts as much."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli, assert_refused
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from trainer.build import build_loss
from trainer.config.schema import Choice
from trainer.data.augment import Augment
from trainer.data.batches import Batches, Placement
from trainer.data.splits import Split, Splits
from trainer.data.stratify import balanced
from trainer.plots import sweep
from trainer.utils.evidence import mean_of
from trainer.utils.metrics import classification_report
from trainer.utils.objective import deciding_metric

COUNTS = (300, 30, 10)


def splits_of(labels: Tensor) -> Splits:
    x = torch.arange(len(labels), dtype=torch.float32)[:, None, None, None].expand(-1, 1, 4, 4).to(torch.uint8)
    split = Split(x, labels)
    return Splits(split, split, split, (1, 4, 4), 3, "classification", ("a", "b", "c"), (0.0,), (1.0,), "")


@pytest.fixture
def lopsided(tmp_path: Path, cli: Cli) -> Path:
    """Noisy stripes of three widths, 300 : 30 : 10 for training and 40 of each for the test."""
    draw = np.random.default_rng(0)
    for part, counts in (("train", COUNTS), ("test", (40, 40, 40))):
        for k, count in enumerate(counts):
            folder = tmp_path / "photos" / part / f"class{k}"
            folder.mkdir(parents=True)
            stripes = 96 + 64 * (np.arange(16) // (k + 1) % 2)
            for i in range(count):
                picture = np.clip(stripes[None, :] + draw.normal(0, 90, (16, 16)), 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(folder / f"{i:03d}.png")
    return tmp_path / "photos"


LINE = ("data=folder", "data.root=photos", "data.size=16", "data.channels=1", "data.augment=none", "recipe=none")
LINE = (*LINE, "model=softmax", "optimizer=adam", "optimizer.lr=0.01", "schedule=constant", "plots=false", "epochs=8")
LINE = (*LINE, "data.val_fraction=0.2", "batch_size=16")


def result(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("outputs", run, "result.json").read_text())
    return found


def rows(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("outputs", run, "metrics.jsonl").read_text().splitlines()]


def test_weights_and_turns_raise_the_macro_f1(cli: Cli, lopsided: Path) -> None:
    found = {}
    for name, word in (("a", "seed=0"), ("b", "loss.class_weights=balanced"), ("c", "data.balance=true")):
        assert cli(*LINE, word, f"name={name}").code == 0
        assert cli("eval", name).code == 0
        found[name] = json.loads(Path("outputs", name, "eval-folder-test.json").read_text())
        assert found[name]["loss"] == pytest.approx(result(name)["test"]["loss"])  # measured without the weights
    for name in "bc":
        assert found[name]["macro_f1"] > found["a"]["macro_f1"] + 0.1
        assert found[name]["balanced_accuracy"] > found["a"]["balanced_accuracy"] + 0.1


def test_the_figures_are_those_of_their_definitions() -> None:
    labels = torch.tensor([0] * 50 + [1] * 7 + [3] * 3)  # class 2 has no example
    logits = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + 2 * F.one_hot(labels, 4)
    report = classification_report(logits, labels)
    said = logits.argmax(1)
    recalls = [float((said[labels == k] == k).float().mean()) for k in (0, 1, 3)]
    assert report.balanced_accuracy == pytest.approx(np.mean(recalls))
    f1 = []
    for k in range(4):
        hits, predicted, true = ((said == k) & (labels == k)).sum(), (said == k).sum(), (labels == k).sum()
        f1.append(float(2 * hits / max(1, predicted + true)))
    assert report.macro_f1 == pytest.approx(np.mean(f1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_the_mean_over_the_examples(smoothing: float) -> None:
    logits = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, weights = torch.arange(12) % 3, torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    choice = Choice("cross_entropy", {"label_smoothing": smoothing, "class_weights": "balanced"})
    loss_fn = build_loss(choice, "concise", weights)
    each = [F.cross_entropy(z[None], k[None], label_smoothing=smoothing) for z, k in zip(logits, labels, strict=True)]
    expected = sum(float(weights[k]) * float(loss) for loss, k in zip(each, labels, strict=True)) / 12
    assert float(loss_fn(logits, labels)) == pytest.approx(expected, rel=1e-12)
    halves = [float(loss_fn(logits[part], labels[part])) for part in (slice(0, 6), slice(6, 12))]
    assert sum(halves) / 2 == pytest.approx(expected, rel=1e-12)
    plain = build_loss(choice, "concise")
    assert float(plain(logits, labels)) == pytest.approx(float(torch.stack(each).mean()), rel=1e-12)


def test_each_class_comes_equally_often_and_its_examples_take_turns() -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    n = len(labels)
    for seed in range(5):
        order = balanced(labels, torch.randperm(n, generator=torch.Generator().manual_seed(seed)))
        assert labels[order].bincount().tolist() in ([114, 113, 113], [113, 114, 113], [113, 113, 114])
        times = order.bincount(minlength=n)
        for k, least in ((0, 0), (1, 3), (2, 11)):
            assert set(times[labels == k].tolist()) <= {least, least + 1}
        runs = labels[order][1:] == labels[order][:-1]
        assert 0.2 < float(runs.float().mean()) < 0.46  # a third: the classes are mixed
    assert balanced(torch.tensor([5, 5]), torch.tensor([1, 0])).tolist() == [0, 1]


def test_balanced_batches_depend_on_seed_and_epoch_alone() -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    options: dict[str, Any] = {"batch_size": 16, "seed": 3, "balance": True, "augment": Augment("crop_flip")}
    splits = splits_of(labels)
    batches = Batches(splits, splits.train, Placement(torch.device("cpu")), **options)
    first = list(batches.epoch(1))
    assert sum(len(y) for _, y in first) == len(labels)
    later = list(batches.epoch(1, start=160))  # a resumed epoch
    assert all(torch.equal(x, again) for (x, _), (again, _) in zip(first[10:], later, strict=True))
    assert not all(torch.equal(y, again) for (_, y), (_, again) in zip(first, batches.epoch(2), strict=True))
    halves = [Batches(splits, splits.train, Placement(torch.device("cpu")), **options, rank=r, world=2) for r in (0, 1)]
    for (x, _), (a, _), (b, _) in zip(first, halves[0].epoch(1), halves[1].epoch(1), strict=True):
        assert torch.equal(x, torch.cat([a, b]))


@pytest.mark.parametrize(
    "metric", ["val_loss", "val_macro_f1", pytest.param("val_balanced_accuracy", marks=pytest.mark.slow)]
)
def test_monitor_decides_which_epoch_is_best(metric: str, cli: Cli, lopsided: Path) -> None:
    line = (*LINE, f"monitor={metric}", "optimizer.lr=0.05")
    outcome = cli(*line, "name=a")
    assert outcome.code == 0
    heads, first = next(pair for pair in pairwise(outcome.out.splitlines()) if "train_loss" in pair[0])
    assert len(heads.split()) == len(first.split())  # no two names run together
    assert len(heads) == len(first)
    curve, best = rows("a"), result("a")
    wanted = (min if metric == "val_loss" else max)(row[metric] for row in curve)
    assert best["objective"] == {"metric": metric, "value": wanted}
    assert best["best"]["epoch"] == next(row["epoch"] for row in curve if row[metric] == wanted)
    assert cli(*line, "epochs=3", "name=b").code == cli("resume=b", "epochs=8").code == 0
    assert [row[metric] for row in rows("b")] == [row[metric] for row in curve]
    assert result("b")["objective"] == best["objective"]
    swept = cli("-m", *line, "epochs=1", "optimizer.lr=0.001,0.05", "name=s")
    assert swept.code == 0
    assert f": {metric} " in swept.out


def test_a_metric_that_is_changed_on_resume_is_compared_with_itself_alone(cli: Cli, lopsided: Path) -> None:
    line = tuple(word for word in LINE if word != "epochs=8")
    line = tuple(word for word in line if not word.startswith("optimizer.lr"))
    assert cli(*line, "monitor=val_macro_f1", "epochs=2", "optimizer.lr=0.0001", "name=a").code == 0
    patience = ("early_stopping.patience=1", "early_stopping.min_delta=0.000001")
    assert cli("resume=a", "monitor=val_loss", "resume_allow=[monitor]", "epochs=4", *patience).code == 0
    losses = [row["val_loss"] for row in rows("a")]
    assert len(losses) == 4  # the first loss is not held against the F1 before it
    assert result("a")["objective"] == {"metric": "val_loss", "value": min(losses[2:])}


@pytest.mark.parametrize(("metric", "best"), [("val_loss", min), ("val_macro_f1", max)])
def test_a_search_looks_for_what_monitor_names(metric: str, best: Any, cli: Cli, lopsided: Path) -> None:
    search = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "optimizer.lr=interval(0.0001,0.1)", "name=s")
    words = tuple(word for word in LINE if not word.startswith("optimizer.lr"))
    outcome = cli(*search, *words, "epochs=1", f"monitor={metric}")
    found = [result(f"s/{job}")["objective"]["value"] for job in range(3)]
    assert metric != "val_loss" or len(set(found)) > 1
    assert f" with {best(found):.4f}: " in outcome.out
    again = cli(*search[:-1], "name=t", *words, "epochs=1", "monitor=val_loss,val_accuracy")
    assert_refused(again, "monitor= is what the search looks for")


def test_the_interval_of_a_mean_f1_ends_at_0_and_1_and_its_axis_is_linear() -> None:
    for metric in ("val_macro_f1", "val_balanced_accuracy"):
        mean = mean_of([0.1, 0.9], metric)
        assert (mean.low, mean.high) == (0, 1)
    rows = [{"job": i, "objective": 10.0**-i, "metric": "val_macro_f1", "lr": i} for i in range(4)]
    assert sweep.options_figure(rows, ["lr"]).axes[0].get_yscale() == "linear"


REFUSED = {
    ("monitor=val_f1",): "Did you mean monitor=val_macro_f1?",
    ("monitor=val_loss", "data.root=photos/test", "data.val_fraction=0"): "need validation data",
    ("loss.class_weights=[1,2]",): "loss.class_weights has 2 numbers. Allowed: one for each of 3 classes",
    ("loss.class_weights=[0,0,0]",): "is not allowed",
    ("loss.class_weights=[1,-1,1]",): "is not allowed",
    ("loss.class_weights=balanced", "impl=scratch"): "loss.impl=concise",
    ("loss.class_weights=balanced", "data.balance=true"): "leave loss.class_weights out",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_refused(words: tuple[str, ...], cli: Cli, lopsided: Path) -> None:
    assert_refused(cli(*LINE, *words, "name=a"), REFUSED[words])
    assert not Path("outputs/a").exists()


def test_a_regression_has_its_loss_alone(cli: Cli) -> None:
    assert_refused(cli("monitor=val_accuracy"), "only losses")
    assert cli("monitor=val_loss", "epochs=1", "plots=false").code == 0


def test_compare_impl_leaves_out_the_libraries_without_weights_of_classes(cli: Cli, lopsided: Path) -> None:
    line = ("compare-impl", *LINE, "epochs=1", "loss.class_weights=balanced")
    line = tuple(word for word in line if word != "epochs=8")
    assert_refused(cli(*line), "nothing to compare", "without scratch: loss.class_weights=balanced is for loss.impl=")


def test_a_line_of_metrics_that_lost_its_metric_is_judged_by_another() -> None:
    assert deciding_metric({"monitor": "val_macro_f1", "val_macro_f1": 0.5, "val_loss": 1.0}) == "val_macro_f1"
    assert deciding_metric({"monitor": "val_macro_f1", "val_loss": 1.0, "train_loss": 1.0}) == "val_loss"
