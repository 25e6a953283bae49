"""Experiments: each is complete, composes, and ends with a verdict; seeds and how sure one can be of a mean."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cli

from trainer.config.options import CONFIGS, choices_of, swept_by
from trainer.utils.evidence import difference, mcnemar, mean_of
from trainer.utils.objective import rating

FEW = ("data.num_examples=60", "plots=false")


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def head_of(name: str) -> str:
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


@pytest.mark.parametrize("name", choices_of("experiment"))
def test_an_experiment_says_its_source_its_figure_and_its_time(name: str) -> None:
    head = head_of(name)
    assert re.search(r"^source: \S", head, re.MULTILINE)
    assert "expected: " in head
    assert re.search(r"^time: \S", head, re.MULTILINE)
    reference = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text()).get("reference")
    if reference is not None:
        assert reference.keys() == {"source", "metric", "value", "tolerance"}


@pytest.mark.parametrize(
    ("metric", "yours", "word"),
    [
        ("test_accuracy", 0.95, "within"),
        ("test_accuracy", 0.94, "within"),
        ("test_accuracy", 0.9399, "worse"),
        ("test_accuracy", 0.97, "better"),
        ("test_loss", 0.97, "worse"),
        ("weight_error", 0.1, "better"),
        ("test_loss", math.nan, "worse"),
    ],
)
def test_a_figure_is_within_its_tolerance_better_or_worse(metric: str, yours: float, word: str) -> None:
    assert rating(metric, yours, 0.95, 0.01000001) == word


def test_an_experiment_ends_with_its_verdict_also_in_result_json(cli: Cli) -> None:
    outcome = cli("experiment=d2l_linreg", "plots=false", "name=a")
    assert outcome.code == 0
    reference = read("outputs/a/result.json")["reference"]
    result = read("outputs/a/result.json")
    true = [abs(a - b) for a, b in zip([*result["weight"], result["bias"]], [2, -3.4, 4.2], strict=True)]
    assert reference == {
        "source": "D2L 3.2, the true weights",
        "metric": "weight_error",
        "value": 0.0,
        "tolerance": 0.02,
        "yours": max(true),
        "n": 1,
        "verdict": "within",
    }
    said = f"weight error: yours {max(true):.4f} (n = 1), the book's 0 +- 0.02 (D2L 3.2, the true weights): within"
    assert said in outcome.out
    worse = cli("experiment=d2l_linreg", "plots=false", "optimizer.lr=0.00001", "name=b")
    assert "(D2L 3.2, the true weights): worse" in worse.out
    assert read("outputs/b/result.json")["reference"]["verdict"] == "worse"


def test_the_neuron_of_the_slowdown_ends_where_the_book_says(cli: Cli) -> None:
    """Nielsen, ch. 3: from w = b = 2 the quadratic cost starts slowly and ends at 0.20 after 300 epochs."""
    assert swept_by("nielsen_slowdown") == {"loss": "quadratic,sigmoid_cross_entropy"}
    assert cli("experiment=nielsen_slowdown", "plots=false", "name=s").code == 0  # without -m
    outputs = {}
    for job, loss in enumerate(("quadratic", "sigmoid_cross_entropy")):
        assert read(f"outputs/s/{job}/config.json")["config"]["choices"]["loss"] == loss
        rows = [json.loads(line) for line in Path(f"outputs/s/{job}/metrics.jsonl").read_text().splitlines()]
        outputs[loss] = [1 / (1 + math.exp(-(row["w1"] + row["b"]))) for row in rows]
    assert outputs["quadratic"][-1] == pytest.approx(0.20, abs=0.005)
    assert outputs["quadratic"][20] > 0.95 > 0.6 > outputs["sigmoid_cross_entropy"][20]
    assert cli("experiment=nielsen_slowdown", "loss=quadratic", "plots=false", "name=one").code == 0
    assert Path("outputs/one/result.json").is_file(), "what is typed takes the place of the list: one run"


def test_seeds_train_so_many_runs_and_say_how_sure_the_mean_is(cli: Cli) -> None:
    outcome = cli("experiment=d2l_linreg", "plots=false", "seed=4", "seeds=3", "name=s")
    assert outcome.code == 0
    found = [read(f"outputs/s/{job}/result.json") for job in range(3)]
    assert [read(f"outputs/s/{job}/config.json")["config"]["seed"] for job in range(3)] == [4, 5, 6]
    values = [result["reference"]["yours"] for result in found]
    assert len(set(values)) == 3
    mean = mean_of(values)
    said = f"weight error: yours {mean.value:.4f} +- {mean.std:.4f} (n = 3), the book's 0 +- 0.02"
    assert said in outcome.out
    assert "test loss: " in outcome.out
    assert "95% interval of the mean" in outcome.out
    with open("outputs/s/summary.csv") as file:
        assert [row["of"] for row in csv.DictReader(file)] == ["3"]
    again = cli("experiment=d2l_linreg", "plots=false", "seed=4", "seeds=3", "name=s")
    assert again.out.count("done before") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("seeds=0",), "Allowed: whole numbers from 1 to 999"),
        (("seeds=many",), "Allowed: whole numbers from 1 to 999"),
        (("seeds=2", "seed=1,2", "-m"), "which is no whole number"),
        (("seeds=2", "resume=a"), "a resumed run keeps its own seed"),
        (("eval", "checkpoint=a", "seeds=2"), "seeds= is for training"),
    ],
)
def test_seeds_that_mean_nothing_are_refused(words: tuple[str, ...], said: str, cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*words)
    assert outcome.code == 2
    assert said in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_one_seed_is_one_run(cli: Cli) -> None:
    assert cli("seeds=1", "seed=3", "name=a", "epochs=1", *FEW).code == 0
    assert read("outputs/a/config.json")["config"]["seed"] == 3


def test_targets_that_no_sigmoid_reaches_are_refused_before_the_first_step(cli: Cli) -> None:
    outcome = cli("loss=quadratic", "name=a", *FEW)
    assert outcome.code == 2
    assert re.search(r"loss=quadratic is for targets in \[0, 1\], but they go from -\d.* to \d.*loss=mse", outcome.err)


def test_gradients_of_each_layer_are_kept_and_drawn(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", "model=mlp", "model.num_hiddens=[8,8]", "model.activation=sigmoid", "epochs=3")
    assert cli(*words, f"paths.data={tiny_mnist}", "batch_size=50", "record.gradients=true", "name=a").code == 0
    rows = [json.loads(line) for line in Path("outputs/a/metrics.jsonl").read_text().splitlines()]
    assert [len(row["gradient_norms"]) for row in rows] == [6] * 3
    assert all(length > 0 for row in rows for length in row["gradient_norms"].values())
    assert Path("outputs/a/plots/gradients.png").stat().st_size > 1000


# figures by scipy.stats 1.17: t.interval, ttest_ind(equal_var=False).confidence_interval, binomtest


def test_the_interval_of_a_mean_is_students() -> None:
    mean = mean_of([0.1, 0.2, 0.25])
    assert (mean.low, mean.high) == pytest.approx((-0.006395818346504628, 0.3730624850131713), rel=1e-9)
    assert mean.std == pytest.approx(0.0763762616, rel=1e-8)
    assert str(mean_of([0.5])) == "0.5000 (n = 1)"


def test_the_difference_of_two_means_is_welchs() -> None:
    found = difference([0.1, 0.2, 0.25], [0.3, 0.34, 0.4, 0.41])
    assert found == pytest.approx((-0.17916666666666664, -0.3326363313646814, -0.02569700196865185), rel=1e-9)


def test_mcnemars_test_is_the_exact_one() -> None:
    assert mcnemar(5, 15) == mcnemar(15, 5) == pytest.approx(0.04138946533203125, rel=1e-12)
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1.0
