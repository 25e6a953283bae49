"""Several processes: which examples each gets, and what a process knows of the others. Runs of several processes are in
test_faults_runs.py (rows 37 to 40).
"""

import contextlib
import signal
from pathlib import Path

import pytest
import torch
from conftest import Cli, assert_refused, write_class_folders
from torch import Tensor, nn

from trainer import engine
from trainer.config.options import run_settings
from trainer.data.augment import Augment
from trainer.data.batches import Batches, Placement, part_of
from trainer.data.splits import Split, Splits
from trainer.run.distributed import loss_or_zero
from trainer.run.progress import Progress
from trainer.run.seeds import seed_of_rank
from trainer.totals import Totals
from trainer.utils import ranks
from trainer.utils.errors import ConfigError, DivergedError, Interrupted, ProcessLost
from trainer.utils.ranks import Ranks
from trainer.utils.signals import StopSignal

CPU = Placement(torch.device("cpu"), torch.float64)


class Numbers(torch.utils.data.Dataset[Tensor]):
    """Pictures on disk, as far as a loader can see: item i is full of i."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((1, 8, 8), index, dtype=torch.uint8)


def splits(streamed: bool) -> Splits:
    x = Numbers() if streamed else torch.stack([Numbers()[i] for i in range(11)])
    split = Split(x, torch.arange(11))
    return Splits(split, split, split, (1, 8, 8), 11, "classification", tuple("abcdefghijk"), (0.5,), (0.5,), "")


def batches(streamed: bool, rank: int = 0, world: int = 1, batch_size: int = 4) -> Batches:
    of = splits(streamed)
    return Batches(
        of, of.train, CPU, batch_size=batch_size, seed=0, augment=Augment("crop_flip"), rank=rank, world=world
    )


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("start", [0, 4])
def test_the_parts_of_all_ranks_are_the_batches_of_one_process(streamed: bool, world: int, start: int) -> None:
    whole = list(batches(streamed).epoch(3, start))
    parts = [list(batches(streamed, rank, world).epoch(3, start)) for rank in range(world)]
    for i, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[i][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[i][1] for part in parts]), y)
    assert [len(y) for _, y in whole] == batches(streamed).sizes(start)


def test_a_batch_smaller_than_the_number_of_ranks_leaves_the_last_ones_without() -> None:
    assert [part_of(torch.arange(2), rank, 3).tolist() for rank in range(3)] == [[0], [1], []]
    x, y = next(iter(batches(False, 4, 5).epoch(1)))
    assert (x.shape, y.shape) == ((0, 1, 8, 8), (0,))
    x, y = next(iter(batches(False, 4, 5).epoch(1, whole=True)))
    assert len(x) == len(y) == 4


@pytest.mark.parametrize("is_sum", [False, True])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_the_mean_of_the_gradients_of_all_ranks_is_that_of_the_whole_batch(is_sum: bool, accumulate_steps: int) -> None:
    """What DistributedDataParallel averages; the last of three ranks has no example of the last batch."""

    def gradient(examples: Batches, world: int) -> tuple[Tensor, Totals]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 11).double())
        nn.init.constant_(model[1].weight, 0.01)
        nn.init.constant_(model[1].bias, 0.0)
        loss_fn = nn.CrossEntropyLoss(reduction="sum" if is_sum else "mean")
        totals = Totals(CPU.device, is_sum=is_sum)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        gradients = []
        parts = engine.in_parts(examples.epoch(1), examples.sizes(), accumulate_steps, totals, world=world)
        for _ in engine.train_epoch(
            model, loss_or_zero(loss_fn), optimizer, parts, lr_at=lambda _: 0.0, step=0, totals=totals,
            autocast=contextlib.nullcontext,
        ):  # fmt: skip
            gradients.append(model[1].weight.grad.clone())
        return torch.stack(gradients), totals

    expected, whole = gradient(batches(False, batch_size=9), 1)
    found = [gradient(batches(False, rank, 3, batch_size=9), 3) for rank in range(3)]
    torch.testing.assert_close(sum(g for g, _ in found) / 3, expected, rtol=0, atol=1e-14)
    assert sum(float(totals.loss_sum) for _, totals in found) == pytest.approx(float(whole.loss_sum))
    assert sum(int(totals.num_correct) for _, totals in found) == int(whole.num_correct)
    assert {totals.num_examples for _, totals in found} == {11}


def test_each_rank_goes_on_with_its_own_sum_and_another_number_of_ranks_with_the_whole() -> None:
    progress = Progress(samples=6, loss_sum=6.0, loss_sums=[1.0, 2.0, 3.0], num_correct=4)

    def given(rank: int, world: int) -> tuple[float, int, int]:
        totals = progress.restore(Totals(CPU.device), Ranks(rank, world))
        return float(totals.loss_sum), int(totals.num_correct), totals.num_examples

    assert [given(rank, 3) for rank in range(3)] == [(1.0, 4, 6), (2.0, 0, 6), (3.0, 0, 6)]
    assert [given(rank, 2) for rank in range(2)] == [(6.0, 4, 6), (0.0, 0, 6)]
    assert given(0, 1) == (6.0, 4, 6)


def test_ranks_draw_their_dropout_from_seeds_of_their_own() -> None:
    assert len({seed_of_rank(seed, rank) for seed in range(3) for rank in range(1, 4)}) == 9
    assert seed_of_rank(0, 1) == seed_of_rank(0, 1)


def test_torchruns_variables_say_which_rank_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.of_environment() == Ranks() == ranks.join()
    values = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert ranks.of_environment() == Ranks(3, 4, 1)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK=first"):
        ranks.of_environment()
    assert ranks.leave(ConfigError("that"), "error: that") == 2  # which is said by all: none knows who is first
    for name, value in (("RANK", "4"), ("RANK", "-1"), ("LOCAL_RANK", "9"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "x")):
        with monkeypatch.context() as one:
            one.setenv("RANK", "3")
            one.setenv(name, value)
            with pytest.raises(ConfigError, match=f"{name}={value}"):
                ranks.of_environment()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.of_environment() == Ranks()


def test_some_of_torchruns_variables_are_refused_and_none_or_one_process_trains_alone(
    monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    values = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for number in range(1, 31):  # every part of the set; in binary, which are in it
        part = {name: value for i, (name, value) in enumerate(values.items()) if number >> i & 1}
        lacking = [name for name in values if name not in part]
        with monkeypatch.context() as one:
            for name in values:
                one.setenv(name, part.get(name, ""))  # as good as not set
            with pytest.raises(ConfigError, match=f"without {', '.join(lacking)}[.].* unset {' '.join(part)}$"):
                ranks.of_environment()
            one.setenv("WORLD_SIZE", "1")
            assert ranks.of_environment() == Ranks()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(cli("epochs=1", "name=a"), "RANK=0, WORLD_SIZE=2, without LOCAL_RANK, MASTER_ADDR, MASTER_PORT.")
    assert not Path("outputs").exists()


def test_the_only_process_of_torchrun_ends_with_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(ranks, "end_with_parent", lambda *, saving: asked.append(saving))
    assert ranks.join.__wrapped__() == Ranks()
    assert asked == []
    values = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in (values | {"TORCHELASTIC_RUN_ID": "none"}).items():
        monkeypatch.setenv(name, value)
    assert ranks.join.__wrapped__() == Ranks()
    assert asked == [True]


def test_rank_0_speaks_for_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """torchrun ends the others at the first code that is not 0, so the rest wait until rank 0 has said why."""
    monkeypatch.setattr(ranks, "FIRST_SPEAKS", 0.0)
    errors = (ConfigError("a"), DivergedError("b"), Interrupted(15), ProcessLost(4, "c"))
    assert [ranks.leave(error, "said") for error in errors] == [2, 3, 143, 4]
    assert capsys.readouterr().err == "said\n" * 4
    values = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert [ranks.leave(error, "said") for error in errors] == [2, 0, 0, 4]
    assert capsys.readouterr().err == ""


def test_a_process_that_is_one_of_several_is_never_ended_by_a_signal_alone() -> None:
    with StopSignal() as stop:
        with stop.deferred():
            for signum in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(signum)
        assert stop.signum == signal.SIGINT


def test_sync_batch_norm_does_nothing_in_one_process_and_says_so(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 12, "test": 3}, size=8)
    words = ("data=folder", "data.root=p", "data.size=8", "model=mlp", "epochs=1", "batch_size=4", "plots=false")
    outcome = cli(*words, "sync_batch_norm=true")
    assert outcome.code == 0
    assert "sync_batch_norm=true has no effect on one process" in outcome.out
    assert_refused(cli(*words, "sync_batch_norm=2"), "sync_batch_norm=2", "true, false")
    assert run_settings()["sync_batch_norm"] is False
