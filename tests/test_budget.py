"""max_steps ends training in the middle of an epoch; budget= chooses it from the speed that is measured here."""

import itertools
import json
import math
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused, write_class_folders

from trainer.config.duration import in_seconds
from trainer.config.options import check_value
from trainer.run import budget
from trainer.run.checkpoint_files import write_checkpoint
from trainer.utils.errors import ConfigError
from trainer.utils.ranks import Ranks

RUN = ("data.num_examples=240", "data.val_fraction=40", "batch_size=10", "plots=false", "device.num_threads=1")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"outputs/{name}/metrics.jsonl").read_text().splitlines()]


def settings(name: str) -> dict[str, Any]:
    return json.loads(Path(f"outputs/{name}/config.json").read_text())["config"]


def last_weights(name: str) -> torch.Tensor:
    path = sorted(Path(f"checkpoints/{name}").glob("step_*.pt"))[-1]
    return torch.load(path, weights_only=True)["model"]["linear.weight"]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes a second for a step, and 2 s for 40 examples that are measured."""
    speeds = itertools.cycle([1.0, 2.0])
    monkeypatch.setattr(budget, "seconds_of_each", lambda *_, **__: next(speeds))
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(budget, "ENDS", 0.0)
    monkeypatch.setattr(budget, "SPARE", 0.0)


def test_a_duration_is_read_in_days_hours_minutes_and_seconds() -> None:
    assert [in_seconds(text) for text in ("45s", "20m", "1h30m", "2d")] == [45, 1200, 5400, 172800]
    for bad in ("", "0s", "1", 60, "h", "1h 30m", "1.5h", "30m1h", "-1h", True, ["1h"]):
        with pytest.raises(ConfigError, match="Allowed: a time such as 45s"):
            check_value("budget", bad, None)


def test_max_steps_ends_in_the_middle_of_an_epoch_and_the_schedule_ends_there(cli: Cli) -> None:
    outcome = cli(*RUN, "schedule=cosine", "epochs=9", "max_steps=50", "name=a")
    assert outcome.code == 0, outcome.err
    assert "training ends with step 50: 2.50 epochs" in outcome.out
    found = rows("a")
    assert [row["step"] for row in found] == [20, 40, 50]
    assert all("val_loss" in row for row in found)
    # torch's formula at the last of 50 steps
    assert found[-1]["lr"] == pytest.approx(0.03 * (1 + math.cos(math.pi * 49 / 50)) / 2)
    result = json.loads(Path("outputs/a/result.json").read_text())
    assert (result["status"], result["epochs"]) == ("done", 3)


def test_a_warmup_that_is_longer_than_the_steps_is_said(cli: Cli) -> None:
    words = (*RUN, "epochs=9", "schedule.warmup_epochs=2")
    said = "warning: schedule.warmup_epochs=2 is all of it: the learning rate only rises"
    assert said in cli(*words, "max_steps=40").out
    assert said not in cli(*words, "max_steps=41").out
    assert "warning: max_steps=181 has no effect: epochs=9 end with step 180" in cli(*words, "max_steps=181").out


@pytest.mark.parametrize("at", [45, 50])  # in the last epoch, and after its last step, before it is validated
def test_a_run_that_is_interrupted_before_max_steps_ends_as_if_it_had_not_been(
    cli: Cli, at: int, signal_at: Any
) -> None:
    run = (*RUN, "schedule=cosine", "epochs=9", "max_steps=50", "record.every_steps=5")
    assert cli(*run, "name=straight").code == 0
    signal_at(at)
    assert cli(*run, "name=a").code == 143
    assert len(rows("a")) == 2
    outcome = cli("resume=a")
    assert outcome.code == 0, outcome.err
    assert [row["step"] for row in rows("a")] == [20, 40, 50]
    assert torch.equal(last_weights("a"), last_weights("straight"))
    drop = ("seconds", "samples_per_second")
    assert [{k: v for k, v in row.items() if k not in drop} for row in rows("a")] == [
        {k: v for k, v in row.items() if k not in drop} for row in rows("straight")
    ]


def test_a_finished_run_says_what_continues_it_and_then_does(cli: Cli) -> None:
    assert cli(*RUN, "epochs=9", "max_steps=30", "name=a", "schedule=cosine").code == 0
    outcome = cli("resume=a", "epochs=12")
    assert "already complete: 2 epochs. epochs=N with a larger N, and max_steps=null instead of 30, continues" in (
        outcome.out
    )
    outcome = cli("resume=a", "max_steps=70", "epochs=5")
    assert outcome.code == 0, outcome.err
    assert "warning: max_steps had ended an epoch early" not in outcome.out
    assert [row["step"] for row in rows("a")] == [20, 30, 50, 70]
    outcome = cli("resume=a", "max_steps=null", "epochs=5")
    said = "whose rest is left out: training ends with step 90, and schedule=cosine is laid out for 100"
    assert said in outcome.out
    assert rows("a")[-1]["step"] == 90
    file = next(Path("checkpoints/a").glob("step_*90.pt"))
    assert_refused(cli(f"resume={file}", "max_steps=60"), f"max_steps=60: {file} has already trained 90 steps")


def test_a_budget_becomes_steps_that_the_run_keeps(cli: Cli, slow: None, signal_at: Any) -> None:
    signal_at(65)
    # 12 s for the test; 3 epochs of 22 s, then 9 s, of which validation takes 2
    outcome = cli(*RUN, "budget=1m27s", "schedule=cosine", "name=a", "record.every_steps=5")
    assert outcome.code == 143
    assert "budget=1m27s: 67 steps, which are 3.35 epochs of 22.0 s; done at about" in outcome.out
    assert (settings("a")["epochs"], settings("a")["max_steps"]) == (4, 67)
    assert cli("resume=a").code == 0
    assert rows("a")[-1]["step"] == 67
    assert cli(*RUN, "max_steps=67", "epochs=4", "schedule=cosine", "name=straight").code == 0
    assert torch.equal(last_weights("a"), last_weights("straight"))
    assert_refused(cli("resume=a", "budget=2h"), "budget: the run has 1m27s, now it says 2h", "init_from=a")


def test_the_end_of_an_epoch_takes_the_time_of_a_checkpoint(
    cli: Cli, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, now = list[Path](), itertools.count(0.0, 4.0)  # from the first file on each look at the clock is 4 s later

    def write(path: Path, content: Any) -> None:
        monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: next(now)))
        written.append(path)
        write_checkpoint(path, content)

    monkeypatch.setattr(budget, "write_checkpoint", write)
    monkeypatch.setattr(budget, "RECORDS", 3.0)
    # two files in 4 s: the end of an epoch takes 2 + 6 s. 92 s but 8 for measuring and 12 for the test: 28 + 28 + 16
    outcome = cli(*RUN, "budget=1m32s", "name=a")
    assert outcome.code == 0, outcome.err
    assert "48 steps, which are 2.40 epochs of 28.0 s" in outcome.out
    assert len(written) == 3
    assert not written[0].exists()


def test_a_budget_for_more_than_the_most_epochs_says_when_these_are_done(
    cli: Cli, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MOST_EPOCHS", 2)
    monkeypatch.setattr(budget, "datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 1, 23, 59)))
    outcome = cli(*RUN, "budget=9d")
    assert "budget=9d has time for more than 2 epochs, the most there may be" in outcome.out
    assert "40 steps, which are 2.00 epochs of 22.0 s; done at about 23:59:56" in outcome.out
    monkeypatch.setattr(budget, "MOST_EPOCHS", 4)
    assert "done at about 00:00:40 on 2026-01-02" in cli(*RUN, "budget=9d").out


def test_the_same_command_continues_with_the_steps_of_its_first_start(
    cli: Cli, slow: None, signal_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*RUN, "budget=1m27s", "record.every_steps=5")
    signal_at(45)
    assert cli(*command, "name=a", "resume=auto").code == 143
    signal_at(45)
    assert cli("-m", *command, "name=s", "optimizer.lr=0.03").code == 143
    monkeypatch.setattr(budget, "seconds_of_each", lambda *_, **__: pytest.fail("measured again"))
    assert cli(*command, "name=a", "resume=auto").code == 0
    assert cli("-m", *command, "name=s", "optimizer.lr=0.03").code == 0
    assert rows("a")[-1]["step"] == rows("s/0")[-1]["step"] == 67


def test_smaller_images_are_measured_too(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "photos", {"train": 80, "val": 8, "test": 8})
    monkeypatch.setattr(budget, "ENDS", 0.0)
    monkeypatch.setattr(budget, "SPARE", 0.0)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: 0.0))
    times = {1: 1.0, 3: 2.0, 4: 4.0}  # of a step on images of 8, 12 and 16 pixels
    monkeypatch.setattr(budget, "seconds_of_step", lambda _, epoch, __: times[epoch])
    monkeypatch.setattr(budget, "seconds_of_measuring", lambda *_: (2.0, 5.0))
    words = ("data=folder", "data.root=photos", "data.size=16", "model=cifarnet", "batch_size=10", "plots=false")
    words = (*words, "model.widths=[8]", "recipe=none")
    # 5 s for the test, 10 + 10 + 18 for the first epochs of 8 steps; 33 are left, 2 of them for validation
    outcome = cli(*words, "data.first_sizes=[8,8,12]", "budget=1m16s", "name=a", "fast_dev_run=false")
    assert outcome.code == 0, outcome.err
    assert (
        "budget=1m16s: 31 steps, which are 3.88 epochs of 34.0 s, and less of smaller images: 8, 8, 12" in outcome.out
    )
    assert settings("a")["max_steps"] == 31


def test_what_does_not_go_with_a_budget_is_said(cli: Cli, slow: None) -> None:
    assert_refused(cli(*RUN, "budget=1h", "epochs=3"), "budget=1h chooses epochs and max_steps: leave epochs= out")
    assert_refused(cli(*RUN, "budget=60"), "budget=60 is not allowed. Allowed: a time such as 45s, 20m, 1h30m or 2d")
    assert_refused(
        cli(*RUN, "budget=1s", "name=a"), "budget=1s is too short: start and end take", "an epoch 22.0 s here."
    )
    assert not Path("checkpoints/a").exists()
    assert not Path("outputs/a").exists()
    late = ("schedule=cosine", "schedule.warmup_epochs=4")
    assert_refused(
        cli(*RUN, "budget=1m27s", *late), "schedule.warmup_epochs=4 is not allowed: it must be below epochs=4"
    )
    outcome = cli(*RUN, "budget=1m27s", "fast_dev_run=true")
    assert "warning: budget has no effect" in outcome.err + outcome.out


def test_the_time_of_a_step_is_that_of_enough_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counts = [0.0], list[int]()

    def work(count: int) -> Any:
        counts.append(count)
        clock[0] += count * 0.1 + 90.0 * (len(counts) == 1)  # the first compiles
        return type("Totals", (), {"loss_sum": torch.zeros(())})

    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert budget.seconds_of_each(work, Ranks(), 300.0) == pytest.approx(0.1)
    assert counts == [1, 1, 2, 4, 8, 16, 32]  # 3.2 s are more than a half of 2 % of 300 s
    counts.clear()
    assert budget.seconds_of_each(work, Ranks(), 300.0, most=3) == pytest.approx(0.1)
    assert counts == [1, 1, 2]


def test_an_experiment_with_a_budget_takes_epochs_instead_and_the_same_command_continues_it(
    cli: Cli, tmp_path: Path, signal_at: Any
) -> None:
    write_class_folders(tmp_path / "photos", {"": 60})
    images = ("data=folder", "data.root=photos", "data.size=8", "data.first_sizes=[]", "data.val_fraction=0.2")
    command = ("experiment=resnet34_cifar10", *images, "model=softmax", "batch_size=10", "plots=false")
    for typed, what in (("epochs=3", "epochs"), ("max_steps=9", "max_steps")):
        signal_at(6)
        run = (*command, typed, f"name={what}", "resume=auto", "report=false", "record.every_steps=1")
        outcome = cli(*run)
        assert outcome.code == 143, outcome.err
        assert f"{what} was typed, so that budget=1h is left out" in outcome.out
        assert settings(what)["budget"] is None
        outcome = cli(*run)
        assert outcome.code == 0, outcome.err
    late = ("schedule=cosine", "schedule.warmup_epochs=3")
    assert_refused(cli(*command, *late, "epochs=2"), "warmup_epochs=3 is not allowed: it must be below epochs=2")


def test_a_small_split_is_measured_by_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    few = type("Few", (), {"__len__": lambda _: 1, "y": range(40), "batch_size": 1000})()
    monkeypatch.setattr(budget, "seconds_of_each", lambda *_, **__: 2.0)  # of its only batch
    monkeypatch.setattr(budget, "eval_batches", lambda *_: few)
    splits = SimpleNamespace(train=range(200), val=range(40), test=range(400))
    parts: Any = SimpleNamespace(val=few, splits=splits, ranks=Ranks(), last=None, model=None, machine=None)
    config: Any = None
    assert budget.seconds_of_measuring(config, parts, 60.0) == pytest.approx((2.0, 20.0))
    parts.last = object()  # each image goes through the frozen backbone once
    assert budget.seconds_of_measuring(config, parts, 60.0) == pytest.approx((2.0, 32.0))


@pytest.mark.parametrize("part", ["data.val_fraction=0.2", "data.val_fraction=0"])
def test_a_frozen_backbone_has_budgets_too(
    part: str, cli: Cli, tmp_path: Path, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(work: Any, *_: Any, **__: Any) -> float:
        assert math.isfinite(work(1).loss_sum)
        return 0.5

    monkeypatch.setattr(budget, "seconds_of_each", one)
    write_class_folders(tmp_path / "photos", {"train": 40, "test": 8})
    words = ("data=folder", "data.root=photos", "data.size=8", "model=mlp", "batch_size=10", "plots=false", part)
    assert cli(*words, "epochs=1", "name=start", "report=false").code == 0
    few = ("data.augment=none", "budget=20s", "report=false")
    frozen = cli(*words, "init_from=start", "finetune.freeze=backbone", *few)
    assert frozen.code == 0, frozen.err
    assert "are computed once" in frozen.out


def test_unfreezing_is_compared_with_the_epochs_of_the_budget(cli: Cli, tmp_path: Path, slow: None) -> None:
    write_class_folders(tmp_path / "photos", {"train": 40, "val": 8, "test": 8})
    words = ("data=folder", "data.root=photos", "data.size=8", "model=mlp", "batch_size=10", "plots=false")
    assert cli(*words, "epochs=1", "name=start", "report=false").code == 0
    freeze = ("init_from=start", "finetune.freeze=backbone", "finetune.unfreeze_epoch=12", "report=false")
    for span, warnings in (("20s", 1), ("2m", 0)):
        outcome = cli(*words, *freeze, f"budget={span}")
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("finetune.unfreeze_epoch has no effect") == warnings
