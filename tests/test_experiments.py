"""Experiments: each is complete, composes, and ends with a verdict; seeds and how sure one can be of a mean."""

import csv
import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cli, assert_refused
from PIL import Image

from trainer.config.options import CONFIGS, choices_of, swept_by
from trainer.run.looks import right_of, vote_of
from trainer.run.parts import Parts
from trainer.utils.errors import Interrupted
from trainer.utils.evidence import difference, mcnemar, mean_of
from trainer.utils.files import read_csv
from trainer.utils.objective import DECIDING, rating

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
    assert_refused(cli("eval", "s"), "s is a sweep: name one of its jobs, such as s/")
    assert cli("experiment=nielsen_slowdown", "loss=quadratic", "epochs=5", "plots=false", "name=one").code == 0
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
        (("seeds=2", "seed=1,2", "-m"), "which is no whole number from 0"),
        (("-m", "experiment=line_fit,nielsen_slowdown"), "experiment=nielsen_slowdown has a list of its own, loss"),
        (("-m", "experiment=search_mlp,line_fit"), "experiment=search_mlp brings a search of its own"),
        (("seeds=2", "seed=-1"), "seed=-1, which is no whole number from 0"),
        (("seeds=2", "--cfg", "job"), "--cfg prints the settings of one run: with train, type seed="),
        (("experiment=nielsen_slowdown", "name=a", "resume=auto"), "A sweep is continued by giving the same command"),
        (("seeds=2", "resume=a"), "a resumed run keeps its own seed"),
        (("eval", "checkpoint=a", "seeds=2"), "with eval, type seed= instead of seeds="),
    ],
)
def test_seeds_and_lists_that_mean_nothing_are_refused(
    words: tuple[str, ...], said: str, cli: Cli, tmp_path: Path
) -> None:
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


def test_a_model_with_a_sigmoid_is_measured_on_targets_that_it_reaches(cli: Cli) -> None:
    words = ("data.inputs=[0,1]", "data.w=[0.5]", "data.b=0", "data.noise=0", "loss=quadratic", "name=a")
    assert cli(*words, *FEW).code == 0
    assert cli("eval", "a").code == 0
    assert_refused(cli("eval", "a", "data.w=[3]"), "loss=quadratic is for targets in [0, 1]", "name data with such")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("reference.metric=test_accuracy", "reference.value=1"),
            "reference.metric has no effect on train: this run has",
        ),
        (("reference.metric=weight_error", "reference.value=0", "model=mlp"), "this run has no weight_error"),
        (("model.start=2", "model.init_std=0.5"), "model.init_std has no effect on train: model.start sets all"),
        (("data.fresh=true", "overfit_batches=1"), "data.fresh has no effect on train: overfit_batches trains on the"),
        (("reference.metric=test_loss", "reference.value=1"), ""),
    ],
)
def test_settings_without_effect_are_named(words: tuple[str, ...], said: str, cli: Cli) -> None:
    outcome = cli(*words, "epochs=1", *FEW)
    assert outcome.code == 0
    assert said in outcome.out
    assert said or "no effect" not in outcome.out


def test_gradients_of_each_layer_are_kept_and_drawn(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", "model=mlp", "model.num_hiddens=[8,8]", "model.activation=sigmoid", "epochs=3")
    assert cli(*words, f"paths.data={tiny_mnist}", "batch_size=50", "record.gradients=true", "name=a").code == 0
    rows = [json.loads(line) for line in Path("outputs/a/metrics.jsonl").read_text().splitlines()]
    assert [len(row["gradient_norms"]) for row in rows] == [6] * 3
    assert all(length > 0 for row in rows for length in row["gradient_norms"].values())
    assert Path("outputs/a/plots/gradients.png").stat().st_size > 1000


def test_gradients_are_kept_where_a_run_ends_between_the_last_step_of_an_epoch_and_its_record(
    cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("data=mnist", "model=mlp", "model.num_hiddens=[8]", "epochs=2", f"paths.data={tiny_mnist}")
    words = (*words, "batch_size=50", "record.gradients=true", "plots=false")
    assert cli(*words, "name=straight").code == 0

    def interrupted(*_: object) -> None:
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "measure", interrupted)
        assert cli(*words, "name=cut").code == 143
    assert cli("resume=cut").code == 0
    straight, cut = (
        [json.loads(line)["gradient_norms"] for line in Path(f"outputs/{name}/metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "cut")
    )
    assert len(straight) == 2
    assert all(row for row in straight)
    assert cut == straight


def test_gradients_of_a_stack_are_those_of_its_runs(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", "model=mlp", "model.num_hiddens=[8]", "epochs=2", f"paths.data={tiny_mnist}")
    words = (*words, "batch_size=50", "record.gradients=true", "plots=false")
    assert cli(*words, "-m", "optimizer.lr=0.1,0.2", "sweep.stack=true", "name=s").code == 0
    assert cli(*words, "optimizer.lr=0.2", "name=alone").code == 0
    stacked, alone = (
        json.loads(Path(f"outputs/{name}/metrics.jsonl").read_text().splitlines()[-1])["gradient_norms"]
        for name in ("s/1", "alone")
    )
    assert len(alone) == 4
    assert stacked == pytest.approx(alone, rel=1e-4)


# figures by scipy.stats 1.17: t.interval, ttest_ind(equal_var=False).confidence_interval, binomtest


def test_the_interval_of_a_mean_is_students() -> None:
    mean = mean_of([0.1, 0.2, 0.25])
    assert (mean.low, mean.high) == pytest.approx((-0.006395818346504628, 0.3730624850131713), rel=1e-9)
    assert mean.std == pytest.approx(0.0763762616, rel=1e-8)
    assert str(mean_of([0.5])) == "0.5000 (n = 1)"


def test_the_difference_of_two_means_is_welchs() -> None:
    found = difference([0.1, 0.2, 0.25], [0.3, 0.34, 0.4, 0.41])
    assert found == pytest.approx((-0.17916666666666664, -0.3326363313646814, -0.02569700196865185), rel=1e-9)


def test_the_interval_of_an_accuracy_stays_where_accuracies_are() -> None:
    # t.interval: 0.2147 to 1.4853, -0.2853 to 0.9853; of losses the same
    mean = mean_of([0.9, 0.8], "test_accuracy")
    assert (mean.low, mean.high) == pytest.approx((0.2146897632401, 1.0), rel=1e-9)
    assert str(mean) == "0.8500 +- 0.0707 (n = 2), 95% interval of the mean 0.2147 to 1.0000"
    mean = mean_of([0.4, 0.3], "test_accuracy")
    assert (mean.low, mean.high) == pytest.approx((0.0, 0.9853102367599), rel=1e-9)
    assert mean_of([0.9, 0.8], "val_macro_f1").high == 1.0
    assert mean_of([0.9, 0.8], "test_loss").high == pytest.approx(1.4853102367599, rel=1e-9)
    assert difference([0.9, 0.8], [0.4, 0.2], "test_accuracy") == pytest.approx(
        (0.55, -0.14185228300710628, 1.0), rel=1e-9
    )
    assert difference([0.4, 0.2], [0.9, 0.8], "test_accuracy")[1] == -1.0


def test_mcnemars_test_is_the_exact_one() -> None:
    assert mcnemar(5, 15) == mcnemar(15, 5) == pytest.approx(0.04138946533203125, rel=1e-12)
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1.0


# compare, experiments, looks at the test split


def test_two_runs_are_compared_by_what_each_has_right(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "plots=false", "epochs=2")
    assert cli(*words, "name=good").code == 0
    assert cli(*words, "name=bad", "optimizer.lr=1e-9").code == 0
    tests = {name: read(f"outputs/{name}/test.json") for name in ("good", "bad")}
    for name, test in tests.items():
        result = read(f"outputs/{name}/result.json")["test"]
        assert len(test["true"]) == len(test["predicted"]) == result["n"]
        assert right_of(test).count(True) / result["n"] == pytest.approx(result["accuracy"])
        assert test["looks"] == 1
    pairs = list(zip(right_of(tests["good"]), right_of(tests["bad"]), strict=True))
    only_good, only_bad = pairs.count((True, False)), pairs.count((False, True))
    p = mcnemar(only_good, only_bad)
    outcome = cli("compare", "good", "bad")
    assert outcome.code == 0
    first = "good is better than bad" if p < 0.05 else "good and bad differ by no more than chance may"
    assert f"{first}: test accuracy" in outcome.out
    said = f"the first alone has {only_good} right and the second alone {only_bad} (McNemar's test, p = {p:.2g}"
    assert said in outcome.out
    same = cli("compare", "good", "good", as_typed=True)
    assert "good and good differ by no more than chance may" in same.out
    assert "p = 1;" in same.out
    assert cli(*words, "name=fewer", "data.eval_limit=20").code == 0
    assert_refused(cli("compare", "good", "fewer"), "good and fewer were tested on other data")
    assert cli(*words, "name=all", "data.eval_limit=9999").code == 0  # more than there are
    assert " than all: " in cli("compare", "bad", "all").out
    config = Path("outputs/all/config.json")
    config.rename("gone.json")
    assert " than all: " in cli("compare", "bad", "all").out
    others = tests["bad"] | {"true": tests["bad"]["true"][::-1]}
    Path("outputs/bad/test.json").write_text(json.dumps(others))
    assert_refused(cli("compare", "good", "bad"), "good and bad were tested on other data")


def test_each_look_at_a_runs_test_split_is_counted_and_said(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "plots=false", "epochs=1")
    assert cli(*words, "name=a").code == 0
    here = (f"paths.data={tiny_mnist}", "plots=false")
    assert "look 2 at this run's test split" in cli("eval", "a", *here).out
    assert "look" not in cli("eval", "a", "split=val", *here).out
    assert "look 3 at this run's test split" in cli("predict", "a", *here).out
    assert read("outputs/a/test.json")["looks"] == 3
    assert "predicted" in read("outputs/a/test.json")
    for folder in ("outputs", "checkpoints"):
        Path(folder, "a").rename(Path(folder, "other"))
    assert "look 4 at this run's test split" in cli("eval", "other", *here).out
    for folder in ("outputs", "checkpoints"):
        Path(folder, "other").rename(Path(folder, "a"))
    assert cli(*words, "name=b").code == 0
    assert "A test split was looked at 4 times" in cli("compare", "a", "b").out
    Path("outputs/a/test.json").write_text('{"looks": "many", "sha256": 3}')
    assert "look" not in cli("eval", "a", *here).out  # nobody knows how many


def test_settings_are_compared_over_their_seeds(cli: Cli) -> None:
    for name, lr in (("fast", "0.03"), ("slow", "0.001")):
        assert cli("seeds=3", "epochs=2", *FEW, f"optimizer.lr={lr}", f"name={name}").code == 0
    fast, slow = (
        [read(f"outputs/{name}/{job}/result.json")["test"]["loss"] for job in range(3)] for name in ("fast", "slow")
    )
    apart, low, high = difference(fast, slow)
    assert high < 0
    outcome = cli("compare", "fast", "slow")
    assert outcome.code == 0
    said = f"a difference of {apart:+.4f}, with 95 % interval {low:+.4f} to {high:+.4f} over the seeds"
    assert "fast is better than slow: test loss" in outcome.out
    assert said in outcome.out
    assert "slow is worse than fast" in cli("compare", "slow", "fast").out


def test_seeds_that_are_not_done_are_said_to_be_left_out(cli: Cli) -> None:
    for name, lr in (("a", "0.03"), ("b", "0.01")):
        assert cli("seeds=3", "epochs=1", *FEW, f"optimizer.lr={lr}", f"name={name}").code == 0
    said = "jobs are not done and left out"
    assert said not in cli("compare", "a", "b").out
    status = Path("outputs/b/1/status.json")
    status.write_text(status.read_text().replace('"done"', '"diverged"'))
    assert f"b: 1 of 3 {said}" in cli("compare", "a", "b").out


def test_compare_takes_last_and_says_what_is_no_result(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "plots=false", "epochs=1")
    for name in ("a", "b"):
        assert cli(*words, f"name={name}").code == 0
    for typed in (("a", "last"), ("outputs/a/", "checkpoints/b/"), ("a:best", "b")):
        assert "a and b differ by no more than chance may" in cli("compare", *typed).out
    path = Path("outputs/b/test.json")
    whole = read("outputs/b/test.json")
    for damaged in ({**whole, "predicted": whole["predicted"][1:]}, {"looks": 1}, None):
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_text(json.dumps(damaged))
        assert_refused(cli("compare", "a", "b"), "b/test.json, which says what b was tested on, is missing or damaged")
    assert cli(*words, "name=c", "fast_dev_run=true").code == 0
    assert_refused(cli("compare", "a", "c"), "c was a trial by fast_dev_run=true")


def test_what_cannot_be_compared_is_refused(cli: Cli) -> None:
    line = ("epochs=1", *FEW)
    for typed in (("name=a",), ("name=three", "seeds=3"), ("name=rates", "-m", "optimizer.lr=0.01,0.02")):
        assert cli(*line, *typed).code == 0
    assert cli(*line, "name=other", "data.b=1").code == 0
    assert cli(*line, "name=half", "seeds=2", "optimizer.lr=1e-7").code == 0
    Path("outputs/half/1/result.json").unlink()
    cases = {
        ("a",): "compare needs two runs",
        ("a", "nowhere"): "nowhere: there is no run of this name",
        ("a", "../a"): "../a: there is no run of this name",
        ("a", "three"): "a has n = 1, three n = 3",
        ("a", "rates"): "rates is a sweep over optimizer.lr: name two of its jobs, rates/0 rates/1",
        ("a", "a"): "one run each of a and a says nothing about chance: train several of each, seeds=5",
        ("a", "rates:best"): "one run each of a and rates/",
        ("outputs/three/", "a"): "three has n = 3, a n = 1",
        ("a", "other"): "a and other were tested on other data",
        ("three", "half"): "half is not done",
        ("a", "three", "epochs=3"): "epochs=3: compare takes runs, paths.outputs=",
    }
    for words, said in cases.items():
        outcome = cli("compare", *words, as_typed=True)
        assert outcome.code == 2
        assert said in outcome.err
        assert outcome.err.count("error: ") == 1


def test_experiments_are_listed_with_what_they_came_to_here(cli: Cli) -> None:
    before = cli("experiments").out
    assert all(f"\n{name}\n" in f"\n{before}" for name in choices_of("experiment"))
    assert "last here" not in before
    assert cli("experiment=d2l_linreg", "plots=false", "name=a").code == 0
    assert cli("experiment=d2l_linreg", "plots=false", "name=b", "optimizer.lr=0.02").code == 0  # another one
    lines = cli("experiments").out.splitlines()
    (found,) = [line for line in lines if "last here" in line]
    assert re.search(r"weight error: yours 0.000\d \(n = 1\), the book's 0 \+- 0.02 .*: within, a$", found)


def test_a_test_figure_never_decides(cli: Cli) -> None:
    """What chooses epochs, stops early, and ranks the jobs of a sweep or a search, is none of the test split's."""
    assert not [metric for metric in DECIDING if "test" in metric]
    outcome = cli("-m", "hydra/sweeper=optuna", "optimizer.lr=0.1,0.2", "hydra.sweeper.metric=test_accuracy")
    assert outcome.code == 2


def test_a_run_can_be_named_without_its_key(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "plots=false", "epochs=1")
    assert cli(*words, "name=a").code == 0
    here = (f"paths.data={tiny_mnist}", "plots=false")
    assert cli("eval", "a", *here).out.splitlines()[1:4] == cli("eval", "checkpoint=a", *here).out.splitlines()[1:4]
    assert_refused(cli("eval", "a", "b", *here), "b: eval takes one run, and this is one more")
    for name in ("seed", "x=1.png", "photo"):  # a file wins over a setting of its name
        Image.new("L", (28, 28)).save("image.png")
        Path("sub").mkdir(exist_ok=True)
        Path("image.png").rename(f"sub/{name}")
    assert "x=1.png" in cli("predict", "a", "sub/x=1.png", *here).out
    Path("sub/seed").rename("seed")
    assert Path("outputs/a/predictions-seed.csv").exists() is False
    assert cli("predict", "a", "seed", *here).code == 0
    assert Path("outputs/a/predictions-seed.csv").is_file()
    assert cli("predict", "a", "seed", "sub/photo", "sub", "seed", *here).code == 0  # one file given twice counts once
    written = read_csv(Path("outputs/a/predictions-seed-and-2-more.csv"))
    assert [row["input"] for row in written] == ["seed", "sub/photo", "sub/x=1.png"]
    assert cli("predict", "a", "input=[seed,sub/photo]", *here).out.count("written") == 1
    assert_refused(cli("predict", "a", "seed", "input=sub", *here), "seed: predict takes no files beside input=")
    assert cli("eval", "a", "checkpoint=b").code == 2
    refused = cli("predict", "a", "my", "photo.jpg")
    assert_refused(refused, "input=my: there is no such file or folder. A name with spaces needs quotes.")
    assert cli("eval", "optimizer.lr", "=", "0.1").code == 2


def test_the_majority_of_several_runs_votes() -> None:
    true = [0, 1, 2, 1]
    tests = [{"true": true, "predicted": predicted} for predicted in ([0, 1, 0, 2], [0, 0, 2, 0], [1, 1, 2, 1])]
    assert vote_of(tests) == 3 / 4  # 0, 1, 2, and of three classes with one vote each the first run's: 2
    assert vote_of([*tests, {"true": [0, 1, 2, 0], "predicted": true}]) is None
    assert vote_of([*tests, {"looks": 1, "sha256": ""}]) is None


def test_a_vote_stands_beside_its_published_figure(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "plots=false", "epochs=1", "seeds=3")
    outcome = cli(*words, "name=s", "reference.metric=vote_accuracy", "reference.value=0.2", "reference.tolerance=1")
    assert outcome.code == 0
    vote = vote_of([read(f"outputs/s/{job}/test.json") for job in range(3)])
    assert f"vote accuracy: yours {vote:.4f} (n = 3), the book's 0.2 +- 1: within" in outcome.out
    assert f"majority of the 3: test accuracy {vote:.4f}" in cli(*words, "name=plain").out
