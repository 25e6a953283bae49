"""eval and predict with several checkpoints: the mean of their probabilities."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Cli, assert_refused, predictions, write_class_folders

from trainer import build
from trainer.api import load
from trainer.commands.ensemble import Ensemble

RUN = ("data=folder", "data.root=pictures", "data.size=8", "epochs=1", "plots=false", "batch_size=6")


@pytest.fixture
def three(cli: Cli, tmp_path: Path) -> Cli:
    """Runs a, b (an MLP) and c on the same images, with other weights each."""
    write_class_folders(tmp_path / "pictures", {"train": 30, "test": 12}, size=12)
    for name, *words in (
        ["a", "model=softmax"],
        ["b", "model=mlp"],
        ["c", "model=softmax", "seed=3", "optimizer.lr=1"],
    ):
        assert cli(*RUN, *words, f"name={name}").code == 0
    return cli


def chances_of(cli: Cli, checkpoint: str, *words: str) -> list[tuple[str, float]]:
    assert cli("predict", f"checkpoint={checkpoint}", "input=pictures/test", *words).code == 0
    text = predictions(Path("outputs/a")).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return [(row["class"], float(row["probability"])) for row in rows]


def test_predictions_are_the_mean_of_the_probabilities(three: Cli) -> None:
    images = sorted(Path("pictures/test").glob("*/*.png"))
    each = torch.stack([torch.as_tensor(load(name).predict(images).probabilities) for name in "abc"])
    assert (each[0] - each[1]).abs().max() > 0.01, "the runs must differ"
    got = chances_of(three, "[a,b,c]")
    torch.testing.assert_close(torch.tensor([p for _, p in got]), each.mean(0).amax(1).float(), atol=2e-6, rtol=0)
    assert Path("outputs/a/predictions-test-mean-of-3.csv").is_file()
    together = torch.as_tensor(load(["a", "b", "c"]).predict(images).probabilities)
    torch.testing.assert_close(together, each.mean(0).to(together), atol=1e-6, rtol=0)


def test_the_library_that_is_typed_computes_all_of_them(three: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    original = build.build_model
    monkeypatch.setattr(
        build, "build_model", lambda m, impl, *rest: used.append(m.impl or impl) or original(m, impl, *rest)
    )
    assert chances_of(three, "[a,b]", "impl=scratch")
    assert (used[0], used[-1]) == ("scratch", "scratch")  # in between, files are compared with what they are of
    used.clear()
    assert chances_of(three, "[a,b]")
    assert set(used) == {"concise"}


def test_eval_measures_the_mean_and_says_of_what(three: Cli) -> None:
    outcome = three("eval", "checkpoint=[a, b:last, outputs/c]")
    assert outcome.code == 0
    assert "the mean of 3 models" in outcome.out
    found = json.loads(Path("outputs/a/eval-folder-test-mean-of-3.json").read_text())
    assert len(found["ensemble"]) == 2
    images = sorted(Path("pictures/test").glob("*/*.png"))
    each = torch.stack([torch.as_tensor(load(name).predict(images).probabilities) for name in "abc"])
    labels = torch.tensor([int(path.parent.name[-1]) for path in images])
    loss = -each.mean(0)[torch.arange(len(labels)), labels].log().mean()
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["accuracy"] == pytest.approx(float((each.mean(0).argmax(1) == labels).double().mean()))
    for name in "abc":  # each was looked at once more
        assert json.loads(Path(f"outputs/{name}/test.json").read_text())["looks"] == 2
    for folder in ("outputs", "checkpoints"):
        Path(folder, "s").mkdir()
        Path(folder, "b").rename(Path(folder, "s", "0"))
    assert three("eval", "checkpoint=[a, s/0]").code == 0
    assert json.loads(Path("outputs/s/0/test.json").read_text())["looks"] == 3
    assert json.loads(Path("outputs/c/test.json").read_text())["looks"] == 2
    shutil.copy("checkpoints/c/best.pt", "checkpoints/c/copy.pt")
    assert three("eval", "checkpoint=[c, checkpoints/c/copy.pt]").code == 0
    assert json.loads(Path("outputs/c/test.json").read_text())["looks"] == 3  # one look at it, though by two files
    twice = f"checkpoint=[a, {Path('checkpoints/a/best.pt').absolute()}]"
    assert_refused(three("eval", twice), "best.pt twice: it would count twice")


def test_figures_of_files_elsewhere_take_the_place_of_no_others(
    three: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        Path(f"at-{name}").mkdir()
        shutil.copy(f"checkpoints/{name}/best.pt", f"at-{name}")
        assert three("eval", f"at-{name}/best.pt", "plots=false").code == 0
    assert three("eval", "at-b/best.pt", "plots=false").code == 0
    folders = [f"paths.{name}={Path(name).absolute()}" for name in ("outputs", "checkpoints")]
    monkeypatch.chdir("at-b")
    assert three("eval", "best.pt", "plots=false", f"data.root={tmp_path / 'pictures'}", *folders).code == 0
    monkeypatch.chdir("..")
    found = {
        path.parent.name: json.loads(path.read_text())["checkpoint"] for path in Path("outputs").glob("eval-*/*.json")
    }
    files = {name: str(Path(f"at-{name}/best.pt").absolute()) for name in "ab"}
    assert found == {"eval-best": files["a"], "eval-best-2": files["b"]}


def test_several_runs_without_brackets_are_answered_with_them(three: Cli) -> None:
    for words in (["eval", "a,b"], ["eval", "checkpoint=a,b"], ["predict", "a,b", "pictures/test"]):
        assert_refused(three(*words), "checkpoint=[a,b]", f"{words[1].replace('a,b', '[a,b]')}'")
    assert_refused(three("eval", "a", "b"), "takes one run", "checkpoint=[a,b]")
    assert "type:" not in three("eval", "a,nowhere").err


def test_of_one_model_nothing_changes(three: Cli) -> None:
    assert chances_of(three, "[a]") == chances_of(three, "a")


@pytest.mark.parametrize("sigmoids", [False, True])
def test_extreme_outputs_stay_numbers(sigmoids: bool) -> None:
    class Constant(torch.nn.Module):
        def __init__(self, values: list[float]) -> None:
            super().__init__()
            self.values = torch.tensor([values])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.values.expand(len(x), -1)

    both = Ensemble([Constant([200.0, -200.0]), Constant([-200.0, 200.0])], sigmoids=sigmoids, classes=True)
    got = both(torch.zeros(3, 2))
    assert got.isfinite().all()
    torch.testing.assert_close(got.sigmoid() if sigmoids else got.softmax(1), torch.full((3, 2), 0.5))


def test_models_that_do_not_go_together_are_refused(three: Cli, tmp_path: Path) -> None:
    assert three(*RUN, "model=softmax", "data.channels=1", "name=grey").code == 0
    assert_refused(three("eval", "checkpoint=[a,grey]"), "grey", "shape of the inputs")
    assert three(*RUN, "model=softmax", "data.normalize=none", "name=other").code == 0
    assert_refused(three("eval", "checkpoint=[a,other]"), "normalisation")
    assert three(*RUN, "model=softmax", "loss=quadratic", "optimizer.lr=0.1", "name=sig").code == 0
    assert_refused(three("eval", "checkpoint=[a,sig]"), "quadratic", "cross_entropy")
    assert three(*RUN, "model=softmax", "data.split_seed=5", "name=cut").code == 0
    assert_refused(three("eval", "checkpoint=[a,cut]", "split=val"), "split_seed")
    assert_refused(three("eval", "checkpoint=[a,nope]"), "nope", "no run of this name")
    assert_refused(three("eval", "checkpoint=[a,b,b]"), "twice")
    assert_refused(three("eval", "checkpoint=[a,a]"), "twice")
    assert_refused(three("eval", "checkpoint=[]"), "no run of this name")
    assert_refused(three("train", "data=folder", "ensemble=[a]"), "ensemble")
