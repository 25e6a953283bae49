"""Search: spaces, what is refused, trials shared by processes, killed ones, pruning, and Hydra's side of it."""

import contextlib
import csv
import functools
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
from conftest import Cli
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

import main
from hydra_plugins.optuna_sweeper import sweeper as plugin
from trainer.config.command_line import Command
from trainer.config.compose import run_hydra
from trainer.config.options import CONFIGS, defaults_of, group_choices, load_yaml
from trainer.sweep import search_space
from trainer.sweep.study import Search, summary
from trainer.sweep.trial import SEARCH_RULES, Trial, load_optuna, search_settings, storage_of, told_of_study, trial_of
from trainer.utils.errors import ConfigError, ResourceError

ROOT = Path(main.__file__).parent
DEFAULTS = defaults_of(group_choices({"data": "mnist", "model": "mlp"}))
LR: dict[str, BaseDistribution] = {"optimizer.lr": FloatDistribution(1e-4, 1, log=True)}


def sweeper_node(**changed: Any) -> dict[str, Any]:
    """hydra.sweeper as it stands in the YAML file, with some values changed."""
    loaded = load_yaml(CONFIGS / "hydra" / "sweeper" / "optuna.yaml")
    assert set(changed) <= set(loaded)
    return loaded | changed


@functools.cache
def empty() -> bytes:
    """A data base without a study: making its tables takes longer than all that a test does with them."""
    with tempfile.TemporaryDirectory() as folder:
        with storage_of(search_settings(sweeper_node()), Path(folder)):
            pass
        return (Path(folder) / "study.db").read_bytes()


def begin(folder: Path, of: dict[str, BaseDistribution] = LR, **changed: Any) -> Search:
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "study.db").write_bytes(empty())
    return Search(search_settings(sweeper_node(**changed)), of, folder, maximize=True)


def read(word: str) -> Any:
    """The distribution of one typed word."""
    (override,) = OverridesParser.create().parse_overrides([word])
    return plugin.distribution(override, DEFAULTS)


def asked(study: Search) -> tuple[int, dict[str, Any]]:
    """The next trial, which there has to be."""
    trial = study.ask()
    assert trial is not None
    return trial


# spaces


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=interval(1e-4,1)", FloatDistribution(1e-4, 1)),
        ("optimizer.lr=tag(log, interval(1e-4,1))", FloatDistribution(1e-4, 1, log=True)),
        ("optimizer.weight_decay=interval(0,1)", FloatDistribution(0, 1)),
        ("batch_size=interval(16,256)", IntDistribution(16, 256)),
        ("batch_size=int(interval(16,256))", IntDistribution(16, 256)),
        ("batch_size=tag(log, interval(16,256))", IntDistribution(16, 256, log=True)),
        ("batch_size=range(32,256,step=32)", IntDistribution(32, 224, step=32)),
        ("optimizer.momentum=range(0,0.9,step=0.3)", FloatDistribution(0, 0.6, step=0.3)),
        ("model.num_hiddens=choice([64],[128,64])", CategoricalDistribution(["[64]", "[128,64]"])),
        ("batch_size=64,128", CategoricalDistribution([64, 128])),
        ("optimizer.nesterov=true,false", CategoricalDistribution([True, False])),
        ("model=mlp,softmax", CategoricalDistribution(["mlp", "softmax"])),
        ("model.activation=choice('relu',tanh)", CategoricalDistribution(["relu", "tanh"])),
    ],
)
def test_words_of_the_command_line_become_distributions(word: str, expected: BaseDistribution) -> None:
    assert read(word) == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.lr=interval(1,0.1)", "low below high"),
        ("optimizer.lr=interval(1,inf)", "two numbers"),
        ("optimizer.lr=interval(0,1)", r"optimizer.lr=0.0 is not allowed.*above 0"),
        ("optimizer.weight_decay=tag(log, interval(0,1))", "a logarithm needs numbers above 0"),
        ("optimizer.momentum=interval(0.5,1)", r"optimizer.momentum=1.0 is not allowed.*to below 1"),
        ("batch_size=interval(0.5,8)", "batch_size=0.5 is not allowed.*whole"),
        ("batch_size=64,0", "batch_size=0 is not allowed"),
        ("batch_size=range(0,64)", "batch_size=0 is not allowed"),
        ("batch_size=range(8,8)", "holds no number"),
        ("model.num_hiddens=interval(16,64)", "model.num_hiddens=16.* is not allowed. Allowed: a list"),
        ("model=mlp,mpl", "model=mpl.*Did you mean model=mlp"),
        ("batch_size=tag(log, choice(1,2))", "no other tag"),
        ("optimizer.lr=tag(lgo, interval(0.1,1))", "no other tag"),
        ("batch_size=shuffle(1,2)", "the sampler chooses the order"),
    ],
)
def test_a_space_that_cannot_work_is_refused_before_the_first_trial(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(word)


@pytest.mark.parametrize("value", [3, 0.5, 1e-05, True, "[128,64]", "null", "'a b'"])
def test_a_value_comes_through_the_command_line_as_it_was(value: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={search_space.word(value)}"])
    texts = {"[128,64]": [128, 64], "null": None, "'a b'": "a b"}
    assert override.value() == (texts[value] if isinstance(value, str) else value)


# settings


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sampler", "tpee", r"hydra.sweeper.sampler=tpee is not allowed. Did you mean tpe\?.*tpe, random, grid, cmaes"),
        ("pruner", "mean", "hydra.sweeper.pruner=mean.*none, median, hyperband"),
        ("n_trials", 0, "hydra.sweeper.n_trials=0.*from 1"),
        ("n_trials", 2.5, "hydra.sweeper.n_trials=2.5.*whole numbers"),
        ("n_jobs", 0, "hydra.sweeper.n_jobs=0"),
        ("seed", -1, "hydra.sweeper.seed=-1"),
        ("seed", None, "hydra.sweeper.seed=null"),
        ("pruner_reduction_factor", 1, "from 2"),
        ("storage", "", "hydra.sweeper.storage"),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        search_settings(sweeper_node(**{key: value}))


def test_the_yaml_file_holds_the_settings_with_a_comment_each() -> None:
    search_settings(sweeper_node())
    assert set(sweeper_node()) == {*SEARCH_RULES, "_target_", "params"}
    lines = (CONFIGS / "hydra" / "sweeper" / "optuna.yaml").read_text().splitlines()[2:]
    assert all("  # " in line for line in lines)


@pytest.mark.parametrize(
    ("of", "changed", "said"),
    [
        ({}, {}, "nothing to search"),
        (LR, {"sampler": "grid"}, "optimizer.lr is an interval of real numbers"),
        ({"a": IntDistribution(1, 1000), "b": IntDistribution(1, 101)}, {"sampler": "grid"}, "more than 100,000"),
        ({"a": CategoricalDistribution([1, 2])}, {"sampler": "cmaes"}, "for numbers; a is a list"),
        (LR, {"storage": "sqlite:////no/such/folder/a.db"}, "cannot be opened"),
        (LR, {"storage": "nonsense"}, "storage=nonsense cannot be opened"),
    ],
)
def test_a_search_that_cannot_begin_is_refused(
    of: dict[str, BaseDistribution], changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        begin(tmp_path / "a", of, **changed)


def test_no_password_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        begin(tmp_path / "a", storage="postgresql://me:secret@nowhere/db")
    assert "secret" not in str(refused.value)
    assert "nowhere" in str(refused.value)


def test_optuna_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements.txt"):
        load_optuna()


def test_cmaes_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(ConfigError, match="cmaes needs cmaes: pip install"):
        begin(tmp_path / "a", sampler="cmaes")


def test_a_study_of_another_space_or_other_settings_is_refused(tmp_path: Path) -> None:
    settings = search_settings(sweeper_node())
    with Search(settings, LR, tmp_path / "a", maximize=True, fixed=["epochs=3"]):
        pass
    other: dict[str, BaseDistribution] = {"optimizer.lr": FloatDistribution(1e-3, 1, log=True)}
    for of, maximize, fixed, said in (
        (other, True, ["epochs=3"], "another optimizer.lr"),
        (LR, True, ["epochs=5"], "another epochs"),
        (LR, True, [], "another epochs"),
        (LR, False, ["epochs=3"], "another metric"),
    ):
        with pytest.raises(ConfigError, match=said):
            Search(settings, of, tmp_path / "a", maximize=maximize, fixed=fixed)
    with Search(settings, LR, tmp_path / "a", maximize=True, fixed=["epochs=3"]) as study:
        assert asked(study)[0] == 0


# trials


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [("tpe", "hyperband"), ("random", "none"), ("grid", "median"), ("cmaes", "median")],
)
def test_every_sampler_and_every_pruner_works(sampler: str, pruner: str, tmp_path: Path) -> None:
    of: dict[str, BaseDistribution] = {"x": IntDistribution(0, 20), "y": FloatDistribution(0, 1, step=0.25)}
    node = sweeper_node(
        sampler=sampler, pruner=pruner, n_trials=8, n_startup_trials=3, pruner_startup_trials=2, pruner_warmup_epochs=0
    )
    seen = []
    changed = {key: value for key, value in node.items() if key not in ("_target_", "params")}
    with begin(tmp_path / "a", of, **changed) as study:
        while (one := study.ask()) is not None:
            number, params = one
            seen.append(tuple(params.values()))
            with trial_of(node, tmp_path / "a", number, epochs=3) as trial:
                any(trial.report(epoch, -number) for epoch in (1, 2, 3))  # each worse than all before
                trial.done(-number)
            study.release(number)
    found = summary(node, tmp_path / "a")
    assert sum(found.counts.values()) == len(seen) == 8
    assert (found.counts.get("pruned", 0) > 0) == (pruner != "none")
    assert set(found.counts) <= {"complete", "pruned"}
    assert str(found).startswith("search: 8 trials: ")
    assert "best: trial 0 with 0.0000: x=" in str(found)
    if sampler == "grid":
        assert len(set(seen)) == 8


def done(folder: Path, number: int, value: float = 0.5, **changed: Any) -> None:
    with trial_of(sweeper_node(**changed), folder, number) as trial:
        trial.done(value)


def test_a_grid_ends_with_its_last_point(tmp_path: Path) -> None:
    of: dict[str, BaseDistribution] = {"x": CategoricalDistribution(["a", "b", "c"]), "y": IntDistribution(1, 2)}
    seen = []
    for per_process, seed in ((3, 0), (4, 1)):  # a restart, also with another seed
        with begin(tmp_path / "a", of, sampler="grid", n_trials=100, seed=seed) as study:
            for _ in range(per_process):
                if (one := study.ask()) is not None:
                    seen.append(tuple(one[1].values()))
                    done(tmp_path / "a", one[0])
    assert one is None
    assert len(seen) == len(set(seen)) == 6


def test_suggestions_do_not_depend_on_restarts(tmp_path: Path) -> None:
    """Each trial has a seed of its own: the same whether one process asks for all or four for one each."""
    found: dict[str, list[float]] = {"at_once": [], "restarted": []}
    for name, per_process in (("at_once", 4), ("restarted", 1)):
        for _ in range(4 // per_process):
            with begin(tmp_path / name, n_trials=4, n_startup_trials=2) as study:
                for _ in range(per_process):
                    number, params = asked(study)
                    done(tmp_path / name, number, params["optimizer.lr"])
                    found[name].append(params["optimizer.lr"])
    assert found["at_once"] == found["restarted"]
    assert len(set(found["at_once"])) == 4


@pytest.mark.parametrize("killed", ["after the decision", "before it"])
def test_what_a_resumed_run_repeats_is_decided_as_without_the_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    node = sweeper_node(pruner_startup_trials=1, pruner_warmup_epochs=1)
    with begin(tmp_path / "a") as study:
        good, _ = asked(study)
        with trial_of(node, tmp_path / "a", good, epochs=4) as trial:
            assert [trial.report(epoch, 0.9) for epoch in (1, 2)] == ["", ""]
            trial.done(0.9)
        bad, _ = asked(study)
        with trial_of(node, tmp_path / "a", bad, epochs=4) as trial, monkeypatch.context() as kill:
            assert trial.report(1, 0.1) == ""
            if killed == "before it":
                kill.setattr(optuna.trial.Trial, "should_prune", Mock(side_effect=KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    trial.report(2, 0.1)
            else:
                assert trial.report(2, 0.1) == "pruned by median at epoch 2"
        # its process was killed before it could save
        with trial_of(node, tmp_path / "a", bad, epochs=4) as again:
            assert [again.report(epoch, 0.1) for epoch in (1, 2)] == ["", "pruned by median at epoch 2"]
            again.done(0.1)
            again.done(0.1)  # by the process that took it over as well
        found = study.study.trials[bad]
        assert (found.state.name, found.value) == ("PRUNED", 0.1)
        assert found.intermediate_values == {1: 0.1, 2: 0.1}


def test_the_last_epoch_is_not_pruned(tmp_path: Path) -> None:
    node = sweeper_node(pruner_startup_trials=1, pruner_warmup_epochs=0)
    with begin(tmp_path / "a") as study:
        for value in (0.9, 0.1):
            with trial_of(node, tmp_path / "a", asked(study)[0], epochs=1) as trial:
                assert trial.report(1, value) == ""
                trial.done(value)
        assert [trial.state.name for trial in study.study.trials] == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("reason", ["DivergedError: too fast", "the objective is nan"])
def test_a_failed_trial_counts_and_is_not_begun_again(reason: str, tmp_path: Path) -> None:
    with (
        begin(tmp_path / "a", n_trials=1) as study,
        trial_of(sweeper_node(), tmp_path / "a", asked(study)[0]) as trial,
    ):
        trial.done(math.nan) if "nan" in reason else trial.failed(reason)
    with begin(tmp_path / "a", n_trials=1) as study:
        assert study.ask() is None
        assert study.study.trials[0].user_attrs["reason"] == reason
    assert str(summary(sweeper_node(), tmp_path / "a")) == "search: 1 trials: 1 fail"


# several processes

ASK = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from optuna.distributions import FloatDistribution
from trainer.run import directory
from trainer.sweep.study import Search
from trainer.sweep.trial import search_settings, trial_of
node = {node!r}
space = {{"optimizer.lr": FloatDistribution(1e-4, 1, log=True)}}
folder = Path({folder!r})
with Search(search_settings(node), space, folder, maximize=True) as study:
    while (one := study.ask()) is not None:
        number, params = one
        {what}
print("end", flush=True)
"""
FINISH = """print(number, params["optimizer.lr"], flush=True)
        with trial_of(node, folder, number) as trial:
            trial.done(0.5)
        study.release(number)"""
HANG = """print(number, params["optimizer.lr"], flush=True)
        time.sleep(60)"""
# the process that asked is gone, the one that trains is not
TRAIN = """study.release(number)
        run = directory.hold(folder / str(number))
        print(number, params["optimizer.lr"], flush=True)
        time.sleep(60)"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that asks the study in tmp_path/a; those left are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(what: str, **changed: Any) -> subprocess.Popen[str]:
        code = ASK.format(root=str(ROOT), node=sweeper_node(**changed), folder=str(tmp_path / "a"), what=what)
        started.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def line_of(one: subprocess.Popen[str]) -> tuple[int, float]:
    """The trial that a process says it has."""
    assert one.stdout is not None
    number, value = one.stdout.readline().split()
    return int(number), float(value)


def test_two_processes_together_begin_no_more_trials_than_asked_for(process: Any) -> None:
    both = [process(FINISH, n_trials=10) for _ in range(2)]
    lines = [line for one in both for line in one.communicate(timeout=60)[0].splitlines() if line != "end"]
    assert sorted(int(line.split()[0]) for line in lines) == list(range(10))
    assert len({line.split()[1] for line in lines}) == 10


def test_a_killed_process_leaves_its_trial_to_the_next_and_a_live_one_does_not(process: Any, tmp_path: Path) -> None:
    killed, alive = process(HANG, n_trials=3), process(HANG, n_trials=3)
    left, busy = line_of(killed), line_of(alive)
    assert {left[0], busy[0]} == {0, 1}
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with begin(tmp_path / "a", n_trials=3) as study:
        number, params = asked(study)
        assert (number, params["optimizer.lr"]) == left
        assert asked(study)[0] == 2
        assert study.ask() is None  # all are begun, one by another process
        assert len(study.study.trials) == 3


def test_a_trial_whose_run_is_in_use_is_left_alone(process: Any, tmp_path: Path) -> None:
    training = process(TRAIN, n_trials=1)
    assert line_of(training)[0] == 0
    with begin(tmp_path / "a", n_trials=1) as study:
        assert study.ask() is None
    training.kill()
    training.wait()
    with begin(tmp_path / "a", n_trials=1) as study:
        assert asked(study)[0] == 0


def test_one_left_trial_is_taken_by_one_process_only(process: Any, tmp_path: Path) -> None:
    with begin(tmp_path / "a", n_trials=1) as study:
        asked(study)
    both = [process(HANG, n_trials=1) for _ in range(2)]
    deadline = time.monotonic() + 30
    while all(one.poll() is None for one in both) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sorted(one.poll() is None for one in both) == [False, True]


def test_a_trial_that_ended_since_the_list_was_read_is_not_taken_over(tmp_path: Path) -> None:
    """Its process tells and releases it without the study's lock."""
    with begin(tmp_path / "a", n_trials=1) as study:
        number, _ = asked(study)
        stale = study.study.get_trials()[number]
        done(tmp_path / "a", number)
        study.release(number)
        study.mine.clear()  # as another process
        assert stale.state.name == "RUNNING"
        assert not study.take_over(stale)


def test_a_trial_killed_before_it_had_its_values_gets_them(tmp_path: Path) -> None:
    with begin(tmp_path / "a", n_trials=1) as study:
        study.study.ask()
    with begin(tmp_path / "b", n_trials=1) as study:
        expected = asked(study)
    with begin(tmp_path / "a", n_trials=1) as study:
        assert asked(study) == expected


def test_a_trial_of_another_machine_is_not_judged_from_here(tmp_path: Path) -> None:
    """Its folder is not here, so neither is the lock that would tell."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    with begin(tmp_path / "there" / "a", n_trials=2, storage=storage) as study:
        assert asked(study)[0] == 0
    with begin(tmp_path / "here" / "a", n_trials=2, storage=storage) as study:
        assert asked(study)[0] == 1
        assert study.ask() is None


# Hydra


def job(composed: Any) -> float:
    """A trial that trains nothing; at the top of the file, so that another process can be given it."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    value = float(composed.optimizer.lr) + float(composed.batch_size)
    with trial_of(hydra.sweeper, Path(hydra.sweep.dir), int(hydra.job.name), composed.epochs) as trial:
        assert trial.report(1, value) == ""
        trial.done(value)
    return value


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a search by Hydra is refused with."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        with pytest.raises(ConfigError) as error:
            multirun("hydra/sweeper=optuna", "hydra.sweep.dir=outputs/a", *words)
        return str(error.value)

    return run


def test_a_search_that_hydra_begins_is_refused_in_our_words(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "nothing to search" in refused("epochs=1")
    assert "hydra.sweeper.sampler=tpee" in refused("hydra.sweeper.sampler=tpee", "optimizer.lr=0.1,0.2")
    assert "cannot be compared" in refused("data=synthetic,mnist")
    assert "Add data.task=classification or" in refused("data=table", "recipe=none", "optimizer.lr=0.1,0.2")
    assert "their recipes watch other figures (auto, val_loss). Add monitor=" in refused(
        "data=table", "model=mlp,softmax"
    )
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("data", "model", "loss", "task", "monitor", "maximized"),
    [
        ("mnist", "mlp", "auto", "", "auto", True),
        ("mnist", "mlp", "auto", "", "val_loss", False),
        ("synthetic", "mlp", "mse", "", "auto", False),
        ("table", "mlp", "auto", "regression", "auto", False),
        ("table", "mlp", "auto", "classification", "auto", True),
        ("table", "linreg", "auto", "auto", "auto", False),
        ("table", "mlp", "huber", "auto", "auto", False),
        ("table", "softmax", "auto", "auto", "auto", True),
        ("table", "mlp", "auto", "auto", "val_loss", False),
        ("table", "of_a_plugin", "auto", "regression", "auto", False),
    ],
)
def test_an_accuracy_is_maximised_and_a_loss_is_not(
    data: str, model: str, loss: str, task: str, monitor: str, maximized: bool
) -> None:
    config = OmegaConf.create({"monitor": monitor, "data": {"task": task} if task else {}})
    assert plugin.is_maximized({}, {"data": data, "model": model, "loss": loss}, config) is maximized


def test_models_that_are_searched_over_have_recipes_of_their_own() -> None:
    config = OmegaConf.create({"monitor": "val_loss", "data": {"task": "classification"}})  # of the default, an mlp
    space = {"model": CategoricalDistribution(["softmax", "of_a_plugin"])}
    choices = {"data": "table", "model": "mlp", "loss": "auto"}
    assert plugin.is_maximized(space, choices, config) is True
    assert plugin.is_maximized(space, choices, config, ["monitor=val_loss"]) is False


def test_an_option_that_a_choice_lacks_ends_the_search_and_is_not_tried_again(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    words = ["data=random", "model=softmax,mlp", "model.dropout=0.1", "hydra.sweeper.sampler=grid"]
    assert "model.dropout" in refused(*words)
    found = summary(sweeper_node(), tmp_path / "outputs" / "a")
    assert found.counts.get("fail") == 1


def test_an_experiment_brings_a_search_and_what_is_typed_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=search_mlp", "hydra.sweep.dir=outputs/a", "hydra.sweeper.n_trials=1"]
    multirun(*words, "optimizer.lr=0.5", "batch_size=8,16")
    best = summary(sweeper_node(), Path("outputs/a"))
    assert list(best.params) == ["model.num_hiddens", "optimizer.weight_decay", "batch_size"]
    assert best.value == 0.5 + best.params["batch_size"]


def test_a_space_in_yaml_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "in_yaml", lambda value: f"{value})")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"a search space cannot be read.*Allowed: interval"):
        multirun("experiment=search_mlp", "hydra.sweep.dir=outputs/a")


def multirun(*words: str) -> None:
    run_hydra(Command("train", (), multirun=True), words, job)


BOTH = ["basic", pytest.param("joblib", marks=pytest.mark.slow)]
LAUNCHERS = {"basic": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"]}


@pytest.mark.parametrize("launcher", BOTH)
def test_jobs_know_their_trial(launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.chdir(tmp_path)
    words = ["hydra/sweeper=optuna", "hydra.sweep.dir=outputs/a", "batch_size=8,16", "epochs=1"]
    words += ["optimizer.lr=interval(0.1,0.5)"]
    multirun(*words, "hydra.sweeper.n_trials=2", *LAUNCHERS[launcher])
    multirun(*words, "hydra.sweeper.n_trials=4", *LAUNCHERS[launcher])  # two more
    storage = f"sqlite:///{tmp_path}/outputs/a/study.db"
    with storage_of(search_settings(sweeper_node(storage=storage)), Path()) as opened:
        trials = optuna.load_study(study_name="a", storage=opened).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    assert all(trial.value == trial.params["optimizer.lr"] + trial.params["batch_size"] for trial in trials)


def test_a_search_that_may_end_otherwise_when_it_is_continued_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "batch_size=8,16", "optimizer.lr=interval(0.1,0.5)"]
    told = "which values are tried and which trials are pruned depends"
    for name, more, is_told in (
        ("one", [], False),
        ("two", ["hydra.sweeper.n_jobs=2"], True),
        ("tpe", ["hydra.sweeper.n_jobs=2", "hydra.sweeper.pruner=none"], True),
        ("pruned", ["hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler=random"], True),
        ("fixed", ["hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler=random", "hydra.sweeper.pruner=none"], False),
    ):
        multirun(*words, f"hydra.sweep.dir=outputs/{name}", *more)
        assert (told in capsys.readouterr().out) == is_told, name


# a database that is damaged, removed or replaced while trials run

SEARCH = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "optimizer.lr=interval(0.001,0.1)", "name=b")
SEARCH += ("plots=false", "epochs=2", "data.num_examples=100", "device.num_threads=1")
DATABASE = Path("outputs/b/study.db")


def drop_a_table() -> None:
    with contextlib.closing(sqlite3.connect(DATABASE, timeout=30)) as database:
        database.execute("drop table trials")
        database.commit()


def replace_by(content: bytes) -> None:
    DATABASE.unlink()
    DATABASE.write_bytes(content)


def replace_by_a_folder() -> None:
    DATABASE.unlink()
    DATABASE.mkdir()


DAMAGE: dict[str, tuple[Callable[[], Any], str]] = {
    "garbage": (lambda: DATABASE.write_text("garbage"), "is damaged (file is not a database). Move it away"),
    "cut short": (lambda: os.truncate(DATABASE, 3000), "is damaged (database disk image is malformed). Move it away"),
    "a table less": (drop_a_table, "does not hold this search any more: it was damaged or replaced"),
    "a folder": (replace_by_a_folder, "is a folder where a file belongs. Move it away"),
    "removed": (DATABASE.unlink, "is gone: it was moved or removed while the search ran"),
    "another one": (lambda: replace_by(empty()), "does not hold this search any more: it was damaged or replaced"),
    "all outputs removed": (lambda: shutil.rmtree("outputs"), "is gone: it was moved or removed while the search ran"),
}


QUICK_DAMAGE = ("garbage", "a table less", "removed")


@pytest.mark.parametrize(
    "case", [case if case in QUICK_DAMAGE else pytest.param(case, marks=pytest.mark.slow) for case in DAMAGE]
)
def test_a_damaged_database_ends_a_search_in_one_line_and_costs_no_job(
    case: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, said = DAMAGE[case]
    original, pending = Trial.report, [1]

    def report(self: Trial, epoch: int, value: float) -> str:
        if [self.number] == pending:
            pending.clear()
            damage()
        return original(self, epoch, value)

    monkeypatch.setattr(Trial, "report", report)
    outcome = cli(*SEARCH)
    assert outcome.code == 4
    assert outcome.err.startswith(f"error: outputs/b/study.db {said}")
    assert outcome.err.count("\n") == 1
    assert "give the same command again. Jobs that are done are not trained again." in outcome.err
    assert "Error executing job" not in outcome.out + outcome.err
    if case in ("garbage", "cut short", "a folder"):  # with a table less, Optuna makes it anew
        again = cli(*SEARCH)
        assert again.code == 2
        assert again.err == outcome.err
        DATABASE.rename("outputs/b/old.db")
    again = cli(*SEARCH)
    if case == "all outputs removed":
        assert again.code == 1
        assert "resume=checkpoints/b/0/step_" in again.err
        assert "To start anew, move checkpoints/b/0 away." in again.err
    else:
        assert again.code == 0, again.err
        is_gone = "warning: outputs/b/study.db is gone" in again.out
        assert is_gone is (case in ("garbage", "cut short", "a folder", "removed"))
        assert "[b/0] optimizer.lr=0.09910418012203454: done before" in again.out
        with open("outputs/b/sweep.csv") as file:
            assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 3


def test_a_search_that_asks_for_other_values_than_its_runs_have_needs_another_name(cli: Cli) -> None:
    assert cli(*SEARCH).code == 0
    DATABASE.unlink()
    again = cli(*SEARCH, "hydra.sweeper.seed=9")
    assert again.code == 1
    assert "That would be another run. Choose another name= for the sweep." in again.err
    assert "resume_allow" not in again.err
    assert Path("outputs/b/0/result.json").is_file()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("database is locked", "cannot be used just now (database is locked). Mend that"),
        ("attempt to write a readonly database", "cannot be used just now (attempt to write a readonly database)"),
        ("database or disk is full", "cannot be used just now (database or disk is full)"),
        ("file is not a database", "is damaged (file is not a database). Move it away"),
    ],
)
def test_what_passes_is_not_taken_for_damage(message: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("")
    own, shared = (search_settings(sweeper_node(**how)) for how in ({}, {"storage": "postgresql://a/b"}))
    error = optuna.exceptions.StorageInternalError("an exception is raised during the commit")
    error.__cause__ = sqlite3.OperationalError(message)
    with pytest.raises(ResourceError) as told, told_of_study(own, tmp_path):
        raise error
    assert str(told.value).startswith(f"{tmp_path}/study.db {said}")
    with pytest.raises(ConfigError) as told, told_of_study(shared, tmp_path, ConfigError):
        raise RuntimeError(message)
    assert f"hydra.sweeper.storage=postgresql://a/b ({message})" in str(told.value)
