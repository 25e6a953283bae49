"""Runs that are trained together: each ends as it would have alone, whatever happens to the others or in between."""

import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Cli, wait_for
from torch import Tensor

from trainer import build, data
from trainer.commands.train import train
from trainer.config.freeze import from_dict
from trainer.config.options import group_choices
from trainer.config.schema import Choice, Config
from trainer.data.batches import Batches
from trainer.models import MODELS
from trainer.run import directory, epochs
from trainer.run.end import conclude
from trainer.run.epochs import save_checkpoint
from trainer.run.machine import Machine
from trainer.run.parts import assemble
from trainer.sweep.stack import training
from trainer.sweep.stack.eligible import group_runs
from trainer.sweep.stack.layers import copy_into_stack, objective, stacked_layers
from trainer.sweep.stack.members import ApartError
from trainer.sweep.stack.optim import STACKED_OPTIMIZERS
from trainer.sweep.stack.training import train_stack
from trainer.utils.errors import DivergedError, Interrupted
from trainer.utils.signals import StopSignal

TIMES = ("seconds", "samples_per_second")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configs_of(sweep: str, each: Sequence[dict[str, Any]], **nodes: Any) -> list[Config]:
    """A config for each dict of dotted settings; `nodes` are those of all."""
    made = []
    for k, own in enumerate(each):
        plain: dict[str, Any] = {"epochs": 3, "plots": False, "device": {"precision": "fp64"}}
        plain["data"] = {"num_examples": 60} if nodes.get("choices", {}).get("data", "synthetic") == "synthetic" else {}
        for key, value in [*nodes.items(), *own.items()]:
            node, _, leaf = key.rpartition(".")
            if key == "choices":
                continue
            (plain.setdefault(node, {}) if node else plain)[leaf] = value
        plain["choices"] = group_choices(nodes.get("choices", {}))
        made.append(replace(from_dict(plain), name=f"{sweep}/{k}"))
    return made


LRS = [{"optimizer.lr": lr} for lr in (0.01, 0.03, 0.1)]
MIXED = [
    {"optimizer.lr": 0.01, "optimizer.momentum": 0.9},
    {"optimizer.lr": 0.03, "optimizer.weight_decay": 0.1},
    {"optimizer.lr": 0.1, "model.init_std": 0.5},
]


def content(run: str, name: str = "best.pt") -> dict[str, Any]:
    return torch.load(Path("checkpoints", run, name), weights_only=True)


def rows(run: str) -> list[dict[str, Any]]:
    found = directory.read_metrics(Path("outputs", run))
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def result(run: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path("outputs", run, "result.json").read_text())
    return {key: value for key, value in loaded.items() if key not in ("seconds", "run")}


def tensors(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    values = nested.values() if isinstance(nested, dict) else nested if isinstance(nested, list) else ()
    return list(itertools.chain(*map(tensors, values)))


def shape(nested: Any) -> Any:
    """Keys and types, without values."""
    if isinstance(nested, dict):
        return {key: shape(value) for key, value in nested.items()}
    if isinstance(nested, Tensor):
        return nested.dtype, nested.shape, nested.untyped_storage().nbytes()
    return type(nested)


def assert_same_to_the_bit(one: str, other: str) -> None:
    assert rows(one) == rows(other)
    assert result(one) == result(other)
    for name in ("best.pt", sorted(Path("checkpoints", one).glob("step_*.pt"))[-1].name):
        a, b = content(one, name), content(other, name)
        for key in ("model", "optimizer", "rng", "progress", "best"):
            assert shape(a[key]) == shape(b[key])
            assert all(torch.equal(x, y) for x, y in zip(tensors(a[key]), tensors(b[key]), strict=True)), key


def files_of(run: str) -> list[str]:
    paths = [*Path("outputs", run).rglob("*"), *Path("checkpoints", run).rglob("*")]
    return sorted(path.name for path in paths if "tfevents" not in path.name)


def train_all(configs: Sequence[Config], stop: StopSignal | None = None) -> list[Any]:
    return train_stack(configs, stop or StopSignal())


# the tensors

SGDS = [
    {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    {"lr": 0.2, "momentum": 0.9, "nesterov": False, "weight_decay": 0.1},
]
NESTEROV = [{**SGDS[1], "nesterov": True}, {**SGDS[1], "nesterov": True, "momentum": 0.5}]
ADAMS = [
    {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0},
    {"lr": 0.03, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.2},
]
MLP = {"num_hiddens": [7, 6], "init_std": "fan_in", "activation": "tanh"}
CASES = [
    *((name, options, "linreg", {}, "mse", {"form": "half"}) for name, options in (("sgd", SGDS), ("adam", ADAMS))),
    ("sgd", NESTEROV, "mlp", MLP, "cross_entropy", {"label_smoothing": 0.1}),
    ("sgd", SGDS[:1] * 2, "mlp", MLP | {"bias": False}, "mse", {"form": "sum"}),
    ("adam", ADAMS, "mlp", MLP | {"activation": "relu"}, "quadratic", {}),
    ("adamw", ADAMS, "softmax", {}, "sigmoid_cross_entropy", {}),
    ("adamw", ADAMS, "mlp", MLP | {"activation": "sigmoid"}, "huber", {"delta": 0.5}),
    ("sgd", SGDS, "mlp", MLP | {"init_std": 0.3, "bias_std": 1.0}, "l1", {}),
]


@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize(("optimizer", "options", "model", "own", "loss", "of_loss"), CASES)
def test_a_stacked_step_is_the_step_of_each_run(
    optimizer: str,
    options: list[dict[str, Any]],
    model: str,
    own: dict[str, Any],
    loss: str,
    of_loss: dict[str, Any],
    decay_all: bool,
) -> None:
    torch.manual_seed(0)
    is_regression = loss in ("mse", "l1", "huber")
    in_shape, m = ((5,), 2) if is_regression else ((1, 2, 3), 4)
    x = torch.randn(9, *in_shape, dtype=torch.float64)
    y = torch.randn(9, m, dtype=torch.float64) if is_regression else torch.arange(9) % m
    choices = [Choice(optimizer, one | {"decay_all": decay_all}) for one in options]
    lone = [build.build_model(Choice(model, own), "concise", in_shape, m).double() for _ in options]
    together = MODELS[model](stacked_layers(len(lone)), in_shape, m, **own | {"init_std": "torch"})
    copy_into_stack(together, lone)
    loss_fn, is_sum = build.build_loss(Choice(loss, of_loss), "concise"), of_loss.get("form") == "sum"
    stepper = STACKED_OPTIMIZERS[optimizer](together, [choice.options for choice in choices])
    optimizers = [build.build_optimizer(c, "concise", a) for c, a in zip(choices, lone, strict=True)]
    for _ in range(4):
        stepper.zero_grad()
        y_hat = together(x)
        total = objective(loss_fn, y_hat, y, is_sum=is_sum, classes_second=loss == "cross_entropy")
        total.backward()
        stepper.param_groups[0]["lr"] = torch.tensor([one["lr"] for one in options], dtype=torch.float64)
        stepper.step()
        losses = [loss_fn(alone(x), y) for alone in lone]
        torch.testing.assert_close(total, sum(losses), rtol=0, atol=1e-10)
        for each, value in zip(optimizers, losses, strict=True):
            each.zero_grad()
            value.backward()
            each.step()
    for k, (alone, each) in enumerate(zip(lone, optimizers, strict=True)):
        kept = [dict(each.state[p]) for p in alone.parameters()]
        stepper.store(k, each, list(alone.parameters()))
        for p, q, before in zip(alone.parameters(), together.parameters(), kept, strict=True):
            torch.testing.assert_close(p, q[k], rtol=0, atol=1e-10)
            for name, buffer in before.items():  # as torch keeps them, where it keeps any
                if buffer is not None:
                    torch.testing.assert_close(each.state[p][name], buffer, rtol=0, atol=1e-10)


# whole runs


def assert_as_alone(each: Sequence[dict[str, Any]], **nodes: Any) -> None:
    nodes = {"sweep.stack": True, **nodes}
    for config in configs_of("alone", each, **nodes):
        train(replace(config, resume="auto"), StopSignal())
    configs = configs_of("together", each, **nodes)
    assert group_runs(configs).stacks == [list(range(len(each)))]
    outcomes = train_all(configs)
    for k, outcome in enumerate(outcomes):
        a, b = f"alone/{k}", f"together/{k}"
        assert outcome == pytest.approx(result(a)["objective"]["value"], abs=1e-10)
        for mine, theirs in ((rows(a), rows(b)), (content(a)["best"], content(b)["best"])):
            for one, other in zip(mine, theirs, strict=True) if isinstance(mine, list) else [(mine, theirs)]:
                assert list(one) == list(other)
                figures = [key for key in one if isinstance(one[key], float)]
                assert [other[key] for key in figures] == pytest.approx([one[key] for key in figures], abs=1e-10)
        assert list(result(a)) == list(result(b))
        assert result(a)["test"] == pytest.approx(result(b)["test"], abs=1e-10)
        assert shape(content(a)) == shape(content(b))
        for key in ("model", "optimizer", "rng"):
            for one, other in zip(tensors(content(a)[key]), tensors(content(b)[key]), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
        names = [
            {p.name for p in Path(top, run).rglob("*") if "tfevents" not in p.name}
            for top in ("outputs", "checkpoints")
            for run in (a, b)
        ]
        assert names[0] == names[1]
        assert names[2] == names[3]


def test_each_run_is_what_it_is_alone() -> None:
    schedule = {"schedule": "cosine"}
    assert_as_alone(MIXED, choices=schedule, **{"schedule.warmup_epochs": 1, "record.every_steps": 2})


def test_classifiers_are_what_they_are_alone(tiny_mnist: Path) -> None:
    shared = {"paths.data": str(tiny_mnist), "data.limit": 100, "batch_size": 32, "epochs": 2, "data.augment": "shift"}
    choices = {"data": "mnist", "model": "mlp", "optimizer": "adam"}
    assert_as_alone(LRS[:2], choices=choices, **shared, **{"model.num_hiddens": [8]})


def test_seeds_are_stacked_where_they_share_the_order_of_the_examples() -> None:
    seeds = [{"seed": seed} for seed in (1, 2)]
    assert_as_alone(seeds, **{"data.order_seed": 5})
    first = [content(f"alone/{k}")["model"]["linear.weight"] for k in (0, 1)]
    assert not torch.equal(*first)


def test_the_order_seed_takes_the_place_of_the_seed_in_the_order_only() -> None:
    splits = data.load(configs_of("s", [{}])[0].data, configs_of("s", [{}])[0].paths)
    each = [{"seed": 1}, {"seed": 1, "data.order_seed": 7}, {"seed": 7}, {"seed": 2, "data.order_seed": 7}]
    parts = [assemble(config, splits, Machine(CPU)) for config in configs_of("s", each)]
    own, ordered, seven, other = (next(x for x, _ in part.train.epoch(1)) for part in parts)
    assert torch.equal(ordered, seven)
    assert torch.equal(ordered, other)
    assert not torch.equal(ordered, own)
    weights = [part.model.state_dict()["linear.weight"] for part in parts]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[3])


# one that fails, or stops early


def test_a_run_that_diverges_fails_alone() -> None:
    each = [{"optimizer.lr": 0.03}, {"optimizer.lr": 900.0}, {"optimizer.lr": 0.1}]
    shared = {"epochs": 20}
    outcomes = train_all(configs_of("s", each, **shared))
    assert isinstance(outcomes[1], DivergedError)
    with pytest.raises(DivergedError) as alone:
        train(configs_of("alone", each, **shared)[1], StopSignal())
    assert str(outcomes[1]) == str(alone.value).replace("alone/", "s/")
    assert directory.read_status(Path("outputs/s/1"))["state"] == "diverged"
    assert "diverged" in Path("outputs/s/1/train.log").read_text()
    train_all(configs_of("calm", [each[0], {"optimizer.lr": 0.05}, each[2]], **shared))
    for k in (0, 2):
        assert_same_to_the_bit(f"s/{k}", f"calm/{k}")
    again = train_all(configs_of("s", each, **shared))
    assert (again[0], str(again[1]), again[2]) == (outcomes[0], str(outcomes[1]), outcomes[2])


def test_runs_may_stop_at_different_epochs() -> None:
    shared = {"stop_at.val_loss": 0.05, "epochs": 12}
    assert_as_alone(LRS, **shared)
    assert len({result(f"together/{k}")["epochs"] for k in range(3)}) > 1


# interruptions


class Killed(BaseException):
    """Ends a process, as far as these tests can do it from within: nothing is written on the way out."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Kill at the number-th write of a checkpoint or result, before or after it in turn; returns what undoes it."""
    left = [number]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and number % 2:
                raise Killed
            done = original(*args, **options)
            if left[0] == 0:
                raise Killed
            return done

        return write

    with_kill = pytest.MonkeyPatch()
    for module in (epochs, training):
        with_kill.setattr(module, "save_checkpoint", counted(save_checkpoint))
    with_kill.setattr(training, "conclude", counted(conclude))
    with_kill.setattr(training, "note_failure", lambda *_: None)
    return with_kill.undo


def test_a_kill_anywhere_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train_all(configs_of("straight", MIXED))
    for number in (2, 3, 5, 6, 8, 9, 10, 12):  # 3 runs, 3 epochs, then their results
        sweep = f"cut{number}"
        undo = killed_at(number, monkeypatch)
        with pytest.raises(Killed):
            train_all(configs_of(sweep, MIXED))
        undo()
        assert train_all(configs_of(sweep, MIXED)) == straight
        for k in range(3):
            assert_same_to_the_bit(f"straight/{k}", f"{sweep}/{k}")


def test_killed_twice_in_the_first_save(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train_all(configs_of("straight", LRS, epochs=2))
    for number in (2, 3, 2):
        undo = killed_at(number, monkeypatch)
        with pytest.raises(Killed):
            train_all(configs_of("cut", LRS, epochs=2))
        undo()
    assert train_all(configs_of("cut", LRS, epochs=2)) == straight
    assert_same_to_the_bit("straight/1", "cut/1")


@pytest.mark.parametrize("step", [2, 8])
def test_a_signal_within_an_epoch_changes_nothing(step: int, signal_at: Callable[..., None]) -> None:
    shared = {"record.every_steps": 1, "epochs": 2}
    straight = train_all(configs_of("straight", MIXED, **shared))
    signal_at(step)
    with StopSignal() as stop, pytest.raises(Interrupted):
        train_all(configs_of("cut", MIXED, **shared), stop)
    assert [directory.read_status(Path("outputs/cut", str(k)))["state"] for k in range(3)] == ["interrupted"] * 3
    assert train_all(configs_of("cut", MIXED, **shared)) == straight
    for k in range(3):
        assert_same_to_the_bit(f"straight/{k}", f"cut/{k}")


def test_saves_within_an_epoch_are_those_of_all_runs() -> None:
    train_all(configs_of("s", MIXED, **{"save.every_steps": 4, "epochs": 1}))
    assert [sorted(p.name for p in Path("checkpoints/s", str(k)).iterdir()) for k in range(3)] == [
        ["best.pt", "step_00000004.pt", "step_00000006.pt"]
    ] * 3


def test_a_run_that_was_resumed_alone_parts_the_stack(signal_at: Callable[..., None], cli: Cli) -> None:
    sweep = ("-m", "name=s", "epochs=3", "record.every_steps=1", "plots=false", "optimizer.lr=0.01,0.03,0.1")
    signal_at(8)
    assert cli(*sweep).code == 143
    outcome = cli("resume=s/1")
    assert outcome.code == 0, outcome.err
    assert "stack 3 -> 1" in outcome.out
    outcome = cli(*sweep)
    assert outcome.code == 0, outcome.err
    assert "s/0 to s/2 are trained one after another: some runs are finished while others are not" in outcome.out
    for k, lr in enumerate(("0.01", "0.03", "0.1")):
        assert cli("epochs=3", "plots=false", f"optimizer.lr={lr}", f"name=alone{k}").code == 0
        assert result(f"s/{k}")["test"] == pytest.approx(result(f"alone{k}")["test"], abs=1e-8)
    assert cli("eval", "checkpoint=s/2").code == 0


def test_a_run_that_another_process_has_costs_that_job_alone(signal_at: Callable[..., None], cli: Cli) -> None:
    sweep = ("-m", "name=s", "epochs=3", "record.every_steps=1", "plots=false", "optimizer.lr=0.01,0.03,0.1")
    signal_at(8)
    assert cli(*sweep).code == 143
    code = "import sys, time; from pathlib import Path; from trainer.run import directory;"
    code += "held = directory.hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    folder = Path("outputs/s/1").resolve()
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        outcome = cli(*sweep)
    finally:
        holder.kill()
        holder.communicate()
    assert outcome.code == 1
    assert "s/1] failed: BusyError" in outcome.err
    assert [directory.read_status(Path("outputs/s", k))["state"] for k in "012"] == ["done", "interrupted", "done"]


def test_runs_of_other_settings_are_not_resumed_together() -> None:
    train_all(configs_of("s", LRS, epochs=1))
    with pytest.raises(ApartError, match=r"optimizer\.lr: the run has"):
        train_all(configs_of("s", [{"optimizer.lr": 0.5}, *LRS[1:]], epochs=1))


def test_what_strikes_all_runs_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Batches, "epoch", no_memory)
    outcomes = train_all(configs_of("s", LRS))
    assert ["out of memory" in str(outcome) for outcome in outcomes] == [True] * 3
    assert directory.read_status(Path("outputs/s/2"))["state"] == "failed"


# who goes with whom

WORDS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"model.dropout": 0.5}, "dropout"),
    ({}, {"model.batch_norm": True}, "batch normalisation"),
    ({"optimizer": "rmsprop"}, {}, "optimizer=rmsprop"),
    ({}, {"impl": "scratch"}, "impl=concise"),
    ({}, {"ema_decay": 0.9}, "ema_decay"),
    ({}, {"clip_norm": 1.0}, "clip_norm"),
    ({}, {"accumulate_steps": 2}, "accumulate_steps"),
    ({}, {"device.precision": "bf16"}, "bf16"),
    ({}, {"fast_dev_run": True}, "fast_dev_run"),
    ({}, {"sweep.stack": False}, "sweep.stack=false"),
]


@pytest.mark.parametrize(("choices", "shared", "reason"), WORDS)
def test_what_cannot_be_stacked_says_why(choices: dict[str, str], shared: dict[str, Any], reason: str) -> None:
    found = group_runs(configs_of("s", LRS, choices={"model": "mlp"} | choices, **{"sweep.stack": True} | shared))
    assert found.stacks == []
    assert list(found.reasons) == [0, 1, 2]
    assert all(reason in text for text in found.reasons.values())


def test_runs_that_share_their_batches_go_together() -> None:
    each = [
        {"optimizer.lr": 0.1},
        {"optimizer.lr": 0.2},
        {"batch_size": 20},
        {"seed": 3},
        {"batch_size": 20, "model.init_std": 1.0},
    ]
    found = group_runs(configs_of("s", each))
    assert found.stacks == [[0, 1], [2, 4]]
    assert list(found.reasons) == [3]
    assert "no other run has the same seed; data.order_seed" in found.reasons[3]
    assert group_runs(configs_of("s", [{}])).reasons == {0: "there is no other run to stack it with"}


@pytest.mark.parametrize(
    ("choices", "shared", "pays"),
    [
        ({}, {}, True),
        ({"model": "mlp"}, {}, True),
        ({"data": "mnist"}, {}, True),
        ({"data": "mnist", "model": "mlp"}, {"batch_size": 256}, False),
        ({"data": "folder", "model": "softmax"}, {"data.root": "pictures"}, False),
    ],
)
def test_auto_stacks_where_it_was_measured_to_pay(choices: dict[str, str], shared: dict[str, Any], pays: bool) -> None:
    found = group_runs(configs_of("s", LRS, choices=choices, **shared, **{"device.precision": "auto"}))
    assert bool(found.stacks) == pays
    assert bool(group_runs(configs_of("s", LRS, choices=choices, **shared, **{"sweep.stack": True})).stacks)
    assert all("sweep.stack=true" in reason for reason in found.reasons.values())


@pytest.mark.slow
def test_kill_9_at_random_times_changes_nothing(tmp_path: Path) -> None:
    shared = {"epochs": 300, "save.every_steps": 5, "record.every_steps": 3}
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "import test_stack as t\n"
        f"t.train_all(t.configs_of('cut', t.MIXED, **{shared!r}))"
    )
    straight = train_all(configs_of("straight", MIXED, **shared))
    draw = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.DEVNULL)
        began = len(rows("cut/2")) if Path("outputs/cut/2").exists() else 0
        wait_for(lambda began=began: Path("outputs/cut/2").exists() and len(rows("cut/2")) > began, process)
        time.sleep(draw.random() * 0.3)
        process.kill()
        process.wait()
    assert train_all(configs_of("cut", MIXED, **shared)) == straight
    for k in range(3):
        assert_same_to_the_bit(f"straight/{k}", f"cut/{k}")
