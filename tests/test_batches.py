"""Mini-batches: each example once, everything a function of (seed, epoch, index), augmentation against slicing."""

import itertools
import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.data.augment import Augment
from trainer.data.batches import Batches, Placement, eval_batch_size, generator, normalizer
from trainer.data.pixels import expanded, move, moves
from trainer.data.splits import Split, Splits, cut
from trainer.data.synthetic import synthetic
from trainer.data.workers import shutting_down, signals_waiting, start_worker
from trainer.utils.errors import Interrupted
from trainer.utils.signals import StopSignal

CPU = Placement(torch.device("cpu"), torch.float64)
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
UNTOUCHED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std that leave x / 255


class Stored(Dataset[Tensor]):
    """Images handed out one by one, as a set on disk does."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i]


def images(n: int, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    shape = (n, channels, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def splits_of(
    x: Any, in_shape: tuple[int, ...], *, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Splits:
    """Labels are the numbers of the examples, so that a batch tells who is in it."""
    channels = in_shape[0] if len(in_shape) == 3 else 0
    split = Split(x, torch.arange(len(x)))
    return Splits(split, split, split, in_shape, 10, "classification", (), mean[:channels], std[:channels], "")


def batches_of(x: Any, placement: Placement = CPU, *, norm: Any = (MEAN, STD), **options: Any) -> Batches:
    splits = splits_of(x, tuple(x[0].shape), mean=norm[0], std=norm[1])
    return Batches(splits, splits.train, placement, **({"batch_size": 4, "seed": 0} | options))


def indices(batches: Batches, epoch: int = 1, start: int = 0) -> list[int]:
    return [i for _, y in batches.epoch(epoch, start) for i in y.tolist()]


def by_index(batches: Batches, epoch: int = 1) -> dict[int, Tensor]:
    return {int(i): row for x, y in batches.epoch(epoch) for i, row in zip(y, x, strict=True)}


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (12, 4), (3, 4), (1, 1), (7, 1)])
def test_an_epoch_has_every_example_once_and_keeps_the_short_last_batch(n: int, batch_size: int) -> None:
    batches = batches_of(images(n), batch_size=batch_size)
    sizes = [len(y) for _, y in batches.epoch(1)]
    assert sizes == [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    assert len(batches) == len(sizes)
    assert sorted(indices(batches)) == list(range(n))


def test_inputs_and_labels_stay_together() -> None:
    x = images(10)
    for index, got in by_index(batches_of(x, norm=UNTOUCHED)).items():
        assert torch.equal((got * 255).round().to(torch.uint8), x[index])


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    x = images(50)
    torch.manual_seed(1)
    first = indices(batches_of(x, seed=3), epoch=2)
    torch.manual_seed(2)
    assert indices(batches_of(x, seed=3, batch_size=7, augment=Augment("crop_flip")), epoch=2) == first
    assert indices(batches_of(x, seed=3), epoch=3) != first
    assert indices(batches_of(x, seed=4), epoch=2) != first
    used = batches_of(x, seed=3)
    for epoch in (1, 5):
        indices(used, epoch)
    assert indices(used, epoch=2) == first


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_leave_the_global_generator_alone(streamed: bool) -> None:
    x = images(10)
    before = torch.get_rng_state()
    indices(batches_of(Stored(x) if streamed else x, augment=Augment("crop_flip")))
    assert torch.equal(torch.get_rng_state(), before)


def test_shuffling_is_uniform() -> None:
    """Where 8 examples land over 800 epochs: 64 cells of 100 expected, 49 degrees of freedom, 5 deviations allowed."""
    batches = batches_of(images(8, height=1, width=1), batch_size=8)
    counts = torch.zeros(8, 8)
    for epoch in range(800):
        counts[torch.arange(8), torch.tensor(indices(batches, epoch))] += 1
    assert float(((counts - 100) ** 2 / 100).sum()) < 49 + 5 * math.sqrt(2 * 49)


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("streamed", [False, True])
def test_start_gives_the_tail_of_the_same_epoch(augment: str, streamed: bool) -> None:
    x = images(11)
    batches = batches_of(Stored(x) if streamed else x, augment=Augment(augment))
    whole = list(batches.epoch(3))
    for start in (0, 4, 8, 11, 12):
        tail = list(batches.epoch(3, start))
        assert len(tail) == max(0, len(whole) - -(-start // 4))
        for (x_whole, y_whole), (x_tail, y_tail) in zip(whole[-(-start // 4) :], tail, strict=True):
            assert torch.equal(x_whole, x_tail)
            assert torch.equal(y_whole, y_tail)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_torchvisions_in_float64(channels: int) -> None:
    x = images(20, channels)
    mean, std = (torch.tensor(v[:channels], dtype=torch.float64)[None, :, None, None] for v in (MEAN, STD))
    expected = (x.double() / 255 - mean) / std
    got = normalizer(MEAN[:channels], STD[:channels], CPU)(x)
    assert got.dtype == torch.float64
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


def test_normalisation_in_float32_is_within_its_roundings() -> None:
    """x * scale + shift rounds scale, product, shift and sum once each, at 2^-24 of their size."""
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    mean, std = (torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in (MEAN, STD))
    exact = (x.double() / 255 - mean) / std
    bound = 2.0**-24 * (2.02 * x.double() / 255 / std + mean / std + 1.01 * exact.abs())
    got = normalizer(MEAN, STD, Placement(torch.device("cpu")))(x)
    assert got.dtype == torch.float32
    assert bool(((got.double() - exact).abs() <= bound).all())


def test_normalising_changes_neither_argument_nor_rows_of_numbers() -> None:
    x = images(2)
    kept = x.clone()
    normalizer(MEAN, STD, CPU)(x)
    assert torch.equal(x, kept)
    rows = torch.randn(3, 4)
    assert torch.equal(normalizer((), (), CPU)(rows), rows.double())


def by_slicing(image: Tensor, augment: str) -> list[Tensor]:
    """Every way a (C, H, W) image may come out, by padding with zeros, slicing, and mirroring."""
    c, h, w = image.shape
    if augment == "flip":
        return [image, image.flip(2)]
    padding = {"crop_flip": 4, "shift": 1}[augment]
    padded = torch.zeros(c, h + 2 * padding, w + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + h, padding : padding + w] = image
    if augment == "shift":
        corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
        return [padded[:, oy : oy + h, ox : ox + w] for oy, ox in corners]
    cut = [padded[:, oy : oy + h, ox : ox + w] for oy, ox in itertools.product(range(9), range(9))]
    return [*cut, *(image.flip(2) for image in cut)]


def test_expansion_is_each_image_and_its_four_moves() -> None:
    x = images(3, 2, 9, 7)
    whole = expanded(x)
    assert whole.shape == (15, 2, 9, 7)
    for i, image in enumerate(x):
        assert [key(found) for found in whole[i::3]] == [key(moved) for moved in by_slicing(image, "shift")]


def test_a_set_with_fresh_rows_has_others_in_each_epoch_and_the_same_when_resumed() -> None:
    options: dict[str, Any] = {"w": [2.0], "b": 3.0, "noise": 0.5, "num_examples": 40, "data_seed": 5}
    source = synthetic(Path(), Path(), inputs=[0, 5], fresh=True, **options)
    splits = cut(source, val_fraction=0.25, split_seed=0)
    batches = Batches(splits, splits.train, CPU, batch_size=8, seed=0)
    first, second = (torch.cat([x for x, _ in batches.epoch(epoch)]) for epoch in (1, 2))
    assert len(first) == len(second) == 30
    assert set(first.flatten().tolist()).isdisjoint(second.flatten().tolist())
    assert 0 <= first.min() < first.max() <= 5
    other = Batches(splits, splits.train, CPU, batch_size=8, seed=0)
    assert torch.equal(torch.cat([x for x, _ in other.epoch(2, start=16)]), second[16:])
    x, y = next(iter(batches.epoch(2)))
    assert (y - (2 * x + 3)).abs().max() < 2.5  # the law, within five standard deviations
    held = Batches(splits, splits.val, CPU)  # what is only measured stays what it is
    assert torch.equal(*(next(iter(held.epoch(epoch)))[0] for epoch in (0, 2)))


def key(image: Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


@pytest.mark.parametrize(("augment", "ways"), [("flip", 2), ("crop_flip", 162), ("shift", 5)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(9, 7), (32, 32)])
def test_every_move_is_bit_equal_to_slicing(augment: str, ways: int, channels: int, height: int, width: int) -> None:
    image = images(1, channels, height, width)
    table = moves(augment, height, width)
    got = move(image.repeat(len(table), 1, 1, 1), table)
    assert got.dtype == torch.uint8
    expected = by_slicing(image[0], augment)
    assert len(table) == len(expected) == ways
    assert {key(p) for p in got} == {key(p) for p in expected}
    assert len({key(p) for p in got}) == ways


@pytest.mark.parametrize(("augment", "ways"), [("flip", 2), ("crop_flip", 162), ("shift", 5)])
def test_moves_are_used_uniformly(augment: str, ways: int) -> None:
    """100 samples a move expected: chi-square with ways - 1 degrees of freedom, 5 standard deviations allowed."""
    one = torch.arange(1, 82, dtype=torch.uint8).view(1, 9, 9)
    number = {key(p): i for i, p in enumerate(by_slicing(one, augment))}
    n = 100 * ways
    batches = batches_of(one.expand(n, 1, 9, 9), norm=UNTOUCHED, augment=Augment(augment), batch_size=1000)
    counts = torch.zeros(ways)
    for x, _ in batches.epoch(1):
        for image in (x * 255).round().to(torch.uint8):
            counts[number[key(image)]] += 1
    chi_square = float(((counts - 100) ** 2 / 100).sum())
    assert counts.sum() == n
    assert abs(chi_square - (ways - 1)) < 5 * math.sqrt(2 * (ways - 1))


@pytest.mark.parametrize("augment", ["flip", "crop_flip", "shift"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_augmented_example_is_a_move_of_itself(augment: str, channels: int) -> None:
    x = images(30, channels)
    got = by_index(batches_of(x, norm=UNTOUCHED, augment=Augment(augment)))
    assert len(got) == 30
    for index, image in got.items():
        assert key((image * 255).round().to(torch.uint8)) in {key(p) for p in by_slicing(x[index], augment)}


@pytest.mark.parametrize("augment", ["flip", "crop_flip", "shift"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(augment: str) -> None:
    x = images(40)
    first = by_index(batches_of(x, augment=Augment(augment)))
    for batch_size in (1, 7, 40):
        again = by_index(batches_of(x, augment=Augment(augment), batch_size=batch_size))
        assert all(torch.equal(first[i], again[i]) for i in range(40))
    other_epoch = by_index(batches_of(x, augment=Augment(augment)), epoch=2)
    other_seed = by_index(batches_of(x, augment=Augment(augment), seed=1))
    assert not all(torch.equal(first[i], other_epoch[i]) for i in range(40))
    assert not all(torch.equal(first[i], other_seed[i]) for i in range(40))


def test_order_and_augmentation_draw_from_different_generators() -> None:
    draws = [
        torch.rand(4, generator=generator(*args)) for args in ((0, 1, "order"), (0, 1, "augment"), (1, 0, "order"))
    ]
    assert len({tuple(d.tolist()) for d in draws}) == 3
    assert torch.equal(torch.rand(4, generator=generator(0, 1, "order")), draws[0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_equal_resident_ones(workers: int, channels: int) -> None:
    x = images(23, channels)
    resident = list(batches_of(x, augment=Augment("crop_flip")).epoch(2, start=4))
    streamed = list(batches_of(Stored(x), augment=Augment("crop_flip"), workers=workers).epoch(2, start=4))
    for (x_resident, y_resident), (x_streamed, y_streamed) in zip(resident, streamed, strict=True):
        assert torch.equal(x_resident, x_streamed)
        assert torch.equal(y_resident, y_streamed)


@pytest.mark.parametrize("streamed", [False, True])
def test_without_a_seed_examples_come_in_order_and_untouched(streamed: bool) -> None:
    x = images(10)
    batches = batches_of(Stored(x) if streamed else x, norm=UNTOUCHED, seed=None, augment=Augment("crop_flip"))
    assert indices(batches, epoch=0) == list(range(10))
    got = torch.cat([x for x, _ in batches.epoch(5)])
    assert torch.equal((got * 255).round().to(torch.uint8), x)


def test_targets_of_a_regression_take_the_type_and_labels_keep_theirs() -> None:
    rows = Split(torch.randn(6, 2), torch.randn(6, 1))
    splits = Splits(rows, rows, rows, (2,), 1, "regression", (), (), (), "")
    (x, y), *_ = Batches(splits, rows, CPU, batch_size=6, seed=0).epoch(1)
    assert (x.dtype, y.dtype, y.shape) == (torch.float64, torch.float64, (6, 1))
    (_, labels), *_ = batches_of(images(3)).epoch(1)
    assert labels.dtype == torch.int64


def test_the_set_itself_is_never_changed() -> None:
    x = images(10)
    kept = x.clone()
    for batch, labels in batches_of(x, augment=Augment("crop_flip")).epoch(1):
        batch.zero_()
        labels.zero_()
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("in_shape", "expected"),
    [((1,), 1000), ((1, 28, 28), 1000), ((3, 32, 32), 1000), ((3, 224, 224), 26), ((3, 4000, 4000), 1)],
)
def test_eval_batch_size_follows_from_the_size_of_an_example(in_shape: tuple[int, ...], expected: int) -> None:
    assert eval_batch_size(in_shape) == expected
    assert expected == 1 or expected * math.prod(in_shape) <= 4_000_000


def test_an_empty_split_has_no_batches() -> None:
    empty = batches_of(images(3))
    empty.x, empty.y = empty.x[:0], empty.y[:0]
    assert len(empty) == 0
    assert list(empty.epoch(1)) == []


@pytest.mark.parametrize("start", [0, 4])
def test_a_smaller_last_batch_can_be_dropped(start: int) -> None:
    x = torch.arange(10, dtype=torch.float64)[:, None]
    splits = Splits(Split(x, x), *[Split(x[:0], x[:0])] * 2, (1,), 1, "regression", (), (), (), "")
    batches = Batches(splits, splits.train, CPU, batch_size=4, seed=0, drop_last=True)
    whole = Batches(splits, splits.train, CPU, batch_size=4, seed=0)
    assert (len(batches), len(whole)) == (2, 3)
    dropped, kept = ([x.flatten().tolist() for x, _ in each.epoch(1, start)] for each in (batches, whole))
    assert dropped == kept[:-1]
    assert [len(batch) for batch in dropped] == batches.sizes(start) == [4, 4][start // 4 :]


def test_a_signal_waits_until_the_workers_are_started() -> None:
    class Loader:
        """Gets a signal in the middle of its start."""

        def __iter__(self) -> Iterator[int]:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            started.append("all")
            return iter([])

    started: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as other:  # as TensorBoard's: a signal may reach Python through it
        other.submit(int).result()
        try:
            with pytest.raises(Interrupted), StopSignal(), shutting_down(Loader()):
                started.append("on")
        finally:
            signal.signal(signal.SIGTERM, before)
    assert started == ["all"]


class Stuck(Dataset[Tensor]):
    """Images that never come, as from a network drive that is gone."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(60)
        return torch.zeros(1)


def test_workers_that_do_not_answer_end_with_an_error_at_once() -> None:
    loader = DataLoader(Stuck(), batch_size=2, num_workers=2, worker_init_fn=start_worker)
    workers: list[Any] = []

    def interrupted() -> None:
        with shutting_down(loader) as iterator:
            workers.extend(iterator._workers)
            time.sleep(0.5)  # until they ignore SIGTERM
            raise Interrupted(signal.SIGTERM)

    began = time.monotonic()
    with pytest.raises(Interrupted):
        interrupted()
    assert time.monotonic() - began < 4  # torch would wait for ten seconds, and then for the second one
    assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)


def test_workers_end_though_one_that_was_killed_holds_a_lock_that_they_share() -> None:
    """As one that is killed while it looks whether it should end: asked to end, the others would wait for ever."""
    loader = DataLoader(torch.zeros(4, 1), batch_size=1, num_workers=2, worker_init_fn=start_worker)
    with shutting_down(loader) as iterator:
        assert len(list(itertools.islice(iterator, 4))) == 4
        iterator._workers_done_event._cond.acquire()
        workers = list(iterator._workers)
    assert not any(worker.is_alive() for worker in workers)


def test_a_worker_that_dies_while_they_are_ended_hides_no_other_and_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # torch sets its handler once in a process, and a test before this one may have put another in its place
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    loader = DataLoader(torch.zeros(4, 1), batch_size=1, num_workers=2, worker_init_fn=start_worker)
    with shutting_down(loader) as iterator:
        assert len(list(itertools.islice(iterator, 4))) == 4
        workers = list(iterator._workers)
        with signals_waiting():
            workers[0].kill()
            workers[0].join()
    assert not any(worker.is_alive() for worker in workers)
    assert signal.getsignal(signal.SIGCHLD).__module__.startswith("torch")  # it still tells of others
