"""What is offered in place of a refused command line: a whole one, which is accepted when it is typed."""

import random
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, write_class_folders

import main
from trainer.commands import start
from trainer.config.compose import check_lists
from trainer.config.options import defaults_of, group_choices
from trainer.config.ranges import RANGES, OneOf, Range

VALUES = ("abc", "-1", "[1, 2]", "1e400", "null", "", "true", "(1,2)", "0.1, 0.2", "{a: 1}")
TYPED: dict[str, str] = {  # what is typed, and what is offered
    "data=MNIST model=LeNet": "data=mnist model=lenet",
    "model=resnet50 data=cifar10": "model=torchvision model.arch=resnet50 data=cifar10",
    "data=folder data.root=my photos": "data=folder 'data.root=my photos'",
    "model=mlp model.num_hiddens=[128, 64]": "model=mlp 'model.num_hiddens=[128,64]'",
    "model=mlp 'model.num_hiddens=(128, 64)'": "model=mlp 'model.num_hiddens=[128,64]'",
    "-m optimizer.lr=0.1, 0.2": "-m optimizer.lr=0.1,0.2",
    "optimizr.lr=0.1,0.2": "-m optimizer.lr=0.1,0.2",
    "-m seed=0,1 model=LeNet,mlp data=Mnist": "-m seed=0,1 model=lenet,mlp data=mnist",
    "lr 0.1": "optimizer.lr=0.1",
    "--lr 0.1 -epochs 3": "optimizer.lr=0.1 epochs=3",
    "lr = 0.1": "optimizer.lr=0.1",
    "lr=0.1 --epochs 3 batchsize=32": "optimizer.lr=0.1 epochs=3 batch_size=32",
    "epochs=3.0": "epochs=3",
    "trian model=mlp": "train model=mlp",
    "model=mlp loss=MSE model.activation=ReLU": "model=mlp loss=mse model.activation=relu",
    "eval onee": "eval one",
    "shwo onee": "show one",
    "data shwo mnsit": "data show mnist",
    "resume=onee epoch=5": "resume=one epochs=5",
    "eval one splt=val": "eval one split=val",
    "resume=auto name=one epoch=5": "resume=auto name=one epochs=5",
    "name=one overwrite=true epoch=5": "name=one overwrite=true epochs=5",
    "--cfg job epoch=3": "--cfg job epochs=3",
    "paths.outputs=outputs rerun one": "rerun paths.outputs=outputs one",  # not: a folder "outputs rerun one"
    "data=mnist summary": "summary data=mnist",
    "logger=csv,mlflow seed=1": "'logger=[csv,mlflow]' seed=1",
    "logger=csv,mlflow seed=1,2": "-m 'logger=[csv,mlflow]' seed=1,2",
    "eval one sub/image.png": "",  # it predicts numbers
    # nothing that would be accepted is known
    "model=LeNet": "",  # of synthetic rows
    "model.num_hidens=3": "",
    "device=gpu": "",
    "foo=1": "",
    "=": "",
    "my photo.jpg": "",
    "compare one on": "",
    "resume=one optimizer.l=0.1": "",  # with another rate it is another run
    "resume=auto name=one optimizer.l=0.1": "",
    "name=one epoch=5": "",  # there is one
    "-m name=one epoch=5,6": "",
    "name=a,b epoch=5": "",
    "eval --split=val": "",
    "eval one splt=val data.eval_limit=0": "",
    "--cfg jbo epoch=3": "",
}


@pytest.fixture
def untrained(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """A command line that does all but its work, beside one finished run."""
    assert cli("name=one", "plots=false", "epochs=1").code == 0
    Path("sub").mkdir()
    Path("sub/image.png").touch()
    monkeypatch.setattr(start, "run_verb", lambda *_args: None)
    monkeypatch.setattr(main, "run_sweep", lambda command, _stop: check_lists(command.overrides))
    return cli


def offered(err: str) -> list[str] | None:
    """The words of the command line that a refusal offers."""
    lines = [line for line in err.splitlines() if line.startswith("type: ")]
    return shlex.split(lines[-1])[3:] if lines else None


def test_a_refused_command_line_is_offered_without_its_mistakes(untrained: Cli) -> None:
    for typed, wanted in TYPED.items():
        outcome = untrained(*shlex.split(typed), as_typed=True)
        assert (outcome.code, outcome.out) == (2, ""), typed
        assert (typed, offered(outcome.err)) == (typed, shlex.split(wanted) or None)
        if wanted:
            assert untrained(*shlex.split(wanted), as_typed=True).code == 0, wanted


def test_a_file_that_is_named_like_a_flag_or_a_setting_is_offered_with_its_folder(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 12, "test": 3})
    assert cli("data=folder", "data.root=p", "model=softmax", "epochs=1", "name=a", "plots=false").code == 0
    for name in ("-x.png", "a=b.png", "=d"):
        shutil.copy(next(Path("p").rglob("*.png")), name)
        refused = cli("predict", "a", name, "plots=false", as_typed=True)
        assert offered(refused.err) == ["predict", "a", f"./{name}", "plots=false"]
        assert cli(*offered(refused.err) or (), as_typed=True).code == 0
    assert offered(cli("predict", "a", "-y.png", as_typed=True).err) is None


def test_no_line_is_offered_where_the_data_is_refused(cli: Cli) -> None:
    words = ("data=folder", "data.root=nowhere", "model=mlp", "model.num_hiddens=[128, 64]")
    outcome = cli(*words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: nowhere: there is no such folder")
    assert offered(outcome.err) is None
    outcome = cli(*words, "epoch=3")
    assert offered(outcome.err) == [*words[:3], "model.num_hiddens=[128,64]", "epochs=3"]


def test_no_line_is_offered_that_the_environment_refuses(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    outcome = cli("--epoch", "3", as_typed=True)
    assert outcome.err.startswith("error: LOCAL_RANK=1, without RANK")
    assert offered(outcome.err) is None


def test_what_is_typed_with_a_value_of_a_like_kind_is_taken(untrained: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(start, "run_verb", lambda _verb, config, *_args: seen.append(config))
    assert untrained("model=mlp", "model.num_hiddens=128", 'optimizer.lr="0.1"', "name='7'").code == 0
    assert (seen[0].model["num_hiddens"], seen[0].optimizer["lr"], seen[0].name) == ([128], 0.1, "7")
    assert untrained("model=mlp", 'optimizer.lr="fast"').code == 2


def a_command(rng: random.Random) -> list[str]:
    """A command line of settings that exist, with values that they take."""
    data = rng.choice(["synthetic", "mnist", "cifar10"])
    model = rng.choice(["mlp", "linreg"] if data == "synthetic" else ["mlp", "softmax", "lenet"])
    keys = sorted(key for key in defaults_of(group_choices({"data": data, "model": model})) if key in RANGES)
    words = [f"data={data}", f"model={model}"]
    for key in rng.sample(keys, 3):
        rule = RANGES[key]
        if isinstance(rule, OneOf):
            words.append(f"{key}={str(rng.choice(rule.words)).replace('None', 'null').replace('True', 'true')}")
        elif isinstance(rule, Range):
            words.append(f"{key}={rng.choice(['1', '0.1', '2', '0'])}")
    return rng.choice([["train"], [], ["-m"], ["check-resume"], ["eval", "one"]]) + words


def mutated(words: list[str], rng: random.Random) -> list[str]:
    """The words with a letter swapped, missing, doubled or in capitals, a value of another type, a word too many."""
    words = list(words)
    for _ in range(rng.choice([1, 1, 2])):
        i = rng.randrange(len(words))
        word = words[i]
        at = rng.randrange(len(word))
        key, _, value = word.partition("=")
        words[i] = rng.choice(
            [
                word[:at] + word[at + 1 :],
                word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
                word[:at] + word[at] + word[at:],
                word.upper(),
                f"--{word}",
                f"{key} = {value}",
                f"{key}={rng.choice(VALUES)}",
                f"+{word}",
                f"{word} {rng.choice(words)}",
                f"{word},{value}",
            ]
        )
    return [part for word in words for part in word.split(" ")]


def no_traceback_and_what_is_offered_passes(untrained: Cli, seed: int, number: int) -> int:
    """Returns how many command lines were offered."""
    rng, found = random.Random(seed), 0
    for _ in range(number):
        words = mutated(a_command(rng), rng)
        outcome = untrained(*words, as_typed=True)
        assert outcome.code in (0, 2), (words, outcome)
        assert "Traceback" not in outcome.err, (words, outcome.err)
        assert outcome.code == 0 or outcome.err.startswith("error: "), (words, outcome.err)
        if (instead := offered(outcome.err)) is not None:
            found += 1
            again = untrained(*instead, as_typed=True)
            assert again.code == 0, (words, instead, again.err)
    return found


def test_of_mutated_command_lines(untrained: Cli) -> None:
    assert no_traceback_and_what_is_offered_passes(untrained, 0, 30) >= 3


@pytest.mark.slow
def test_of_many_mutated_command_lines(untrained: Cli) -> None:
    assert no_traceback_and_what_is_offered_passes(untrained, 1, 500) >= 60
