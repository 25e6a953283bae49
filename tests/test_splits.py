"""Cutting validation from training: shares, seeds, limits, normalisation."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from trainer.data import adapt
from trainer.data.adapt import measured, normalized, scaled
from trainer.data.images import Frame, read_image
from trainer.data.splits import Source, Split, cut
from trainer.data.stratify import mixed, stratified
from trainer.utils.errors import ConfigError

COUNTS = (50, 30, 15, 5, 1)  # examples of each class


def labels_of(counts: tuple[int, ...] = COUNTS, seed: int = 0) -> Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def source_of(n: int = 101, **changes: Any) -> Source:
    """Image i is filled with the value i, so that an image tells which one it is."""
    x = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 2, 2)
    y = labels_of() if n == sum(COUNTS) else torch.arange(n) % 2
    test = Split(x[:4], y[:4])
    classes = tuple("abcde") if n == sum(COUNTS) else ("a", "b")
    fresh = Source(Split(x, y), test, (3, 2, 2), "digest", classes, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    return replace(fresh, **changes)


def numbers(split: Split) -> list[int]:
    return [int(split.x[i][0, 0, 0]) for i in range(len(split))]


def regression(n: int = 20) -> Source:
    split = Split(torch.arange(n, dtype=torch.float32)[:, None], torch.zeros(n, 2))
    return Source(split, split, (1,), "digest")


def by_largest_remainders(counts: list[int], size: int) -> list[set[int]]:
    """What each class may get, in exact arithmetic; where remainders tie either number is right."""
    total = sum(counts)
    exact = [Fraction(c * size, total) for c in counts]
    left = size - sum(int(e) for e in exact)
    remainders = sorted((e - int(e) for e in exact), reverse=True)
    if left == 0:
        return [{int(e)} for e in exact]
    last, following = remainders[left - 1], remainders[left] if left < len(remainders) else None
    allowed = []
    for e in exact:
        r = e - int(e)
        up = r >= last
        allowed.append({int(e), int(e) + 1} if r == last == following else {int(e) + up})
    return allowed


@pytest.mark.parametrize("size", [0, 1, 2, 7, 10, 33, 50, 99, 100, 101])
def test_stratified_gives_each_class_its_share_by_largest_remainders(size: int) -> None:
    labels = labels_of()
    chosen, rest = stratified(labels, len(labels), size, seed=3)
    assert (len(chosen), len(rest)) == (size, len(labels) - size)
    got = torch.bincount(labels[chosen], minlength=len(COUNTS)).tolist()
    allowed = by_largest_remainders(list(COUNTS), size)
    assert all(number in options for number, options in zip(got, allowed, strict=True)), (got, allowed)


def test_stratified_keeps_exact_shares_for_many_sizes_and_class_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        counts = torch.randint(1, 40, (int(torch.randint(1, 12, (), generator=generator)),), generator=generator)
        labels = labels_of(tuple(counts.tolist()))
        size = int(torch.randint(0, len(labels) + 1, (), generator=generator))
        chosen, _ = stratified(labels, len(labels), size, seed=1)
        got = torch.bincount(labels[chosen], minlength=len(counts)).tolist()
        assert sum(got) == size
        allowed = by_largest_remainders(counts.tolist(), size)
        assert all(number in options for number, options in zip(got, allowed, strict=True)), (counts, size, got)


@pytest.mark.parametrize("labels", [None, labels_of()])
@pytest.mark.parametrize("size", [0, 20, 101])
def test_chosen_and_rest_are_disjoint_complete_and_ascending(labels: Tensor | None, size: int) -> None:
    chosen, rest = stratified(labels, 101, size, seed=0)
    assert len(chosen) == size
    assert sorted(chosen.tolist() + rest.tolist()) == list(range(101))
    for part in (chosen, rest):
        assert part.dtype == torch.int64
        assert part.tolist() == sorted(part.tolist())


@pytest.mark.parametrize("labels", [None, labels_of()])
def test_the_choice_depends_on_the_seed_alone(labels: Tensor | None) -> None:
    torch.manual_seed(1)
    first, _ = stratified(labels, 101, 30, seed=5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, _ = stratified(labels, 101, 30, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, stratified(labels, 101, 30, seed=6)[0])


def test_the_choice_within_a_class_is_random() -> None:
    """Over 200 seeds each of 20 examples is chosen about half the time: 100 +- 5.5 standard deviations of 7.07."""
    labels = torch.zeros(20, dtype=torch.int64)
    hits = torch.zeros(20)
    for seed in range(200):
        hits[stratified(labels, 20, 10, seed)[0]] += 1
    assert hits.sum() == 2000
    assert (hits - 100).abs().max() < 5.5 * 50**0.5


def rare(counts: tuple[int, ...] = (60, 40, 1, 1)) -> Source:
    """A set in which some classes have a single example."""
    labels = labels_of(counts)
    split = Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)
    return Source(split, split, (1, 2, 2), "digest", tuple("abcdefgh"[: len(counts)]), mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("val_fraction", [0.1, 0.5, 0.9, 98])
def test_the_cut_for_validation_leaves_every_class_in_training(val_fraction: float) -> None:
    for seed in range(20):
        splits = cut(rare(), val_fraction=val_fraction, split_seed=seed)
        num_val = round(102 * val_fraction) if val_fraction < 1 else val_fraction
        assert (len(splits.train), len(splits.val)) == (102 - num_val, num_val)
        assert splits.train.y.unique().tolist() == [0, 1, 2, 3]
        assert splits.gaps == ("the validation part has no example of 2 of 4 classes: c, d",)


@pytest.mark.parametrize("limit", [4, 5, 10, 50, 101])
def test_a_limit_keeps_every_class(limit: int) -> None:
    splits = cut(rare(), val_fraction=0, split_seed=3, limit=limit)
    counts = torch.bincount(splits.train.y, minlength=4).tolist()
    assert sum(counts) == limit
    assert counts[2:] == [1, 1]
    assert counts[:2] == {4: [1, 1], 5: [2, 1], 10: [5, 3], 50: [29, 19], 101: [59, 40]}[limit]
    assert splits.gaps == ()


def test_a_cut_too_small_for_the_classes_says_which_are_missing() -> None:
    splits = cut(rare((60, 40, 1, 1)), val_fraction=0, split_seed=0, limit=2)
    assert splits.gaps == ("the training part has no example of 2 of 4 classes: c, d",)
    splits = cut(rare(), val_fraction=100, split_seed=0)
    assert len(splits.gaps) == 1
    assert splits.gaps[0].startswith("the training part has no example of 2 of 4 classes: ")


def test_each_and_spare_change_nothing_where_shares_keep_every_class() -> None:
    labels = labels_of((50, 30, 15, 12))
    for size in (20, 50, 90):
        plain, _ = stratified(labels, len(labels), size, seed=2)
        assert torch.equal(plain, stratified(labels, len(labels), size, seed=2, each=True, spare=True)[0])


def test_a_mixed_sample_takes_classes_in_turn() -> None:
    labels = torch.arange(5).repeat_interleave(torch.tensor([100, 50, 3, 1, 20]))
    chosen = mixed(labels, 31)
    assert torch.bincount(labels[chosen]).tolist() == [9, 9, 3, 1, 9]
    assert len(set(chosen.tolist())) == 31
    assert sorted(labels[chosen[:5]].tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(chosen, mixed(labels, 31))
    assert sorted(mixed(labels, 1000).tolist()) == list(range(174))
    assert len(mixed(labels[:0], 32)) == 0


@pytest.mark.parametrize(
    ("val_fraction", "num_val"),
    [(0.0, 0), (0.1, 10), (0.5, 50), (0.99, 100), (1, 1), (1.0, 1), (25, 25)],  # 0.99 are 99.99 examples
)
def test_val_fraction_is_a_share_below_one_and_a_count_from_one_on(val_fraction: float, num_val: int) -> None:
    source = source_of()
    splits = cut(source, val_fraction=val_fraction, split_seed=0)
    assert (len(splits.val), len(splits.train)) == (num_val, 101 - num_val)
    assert sorted(numbers(splits.train) + numbers(splits.val)) == list(range(101))
    for part in (splits.train, splits.val):
        assert part.y.tolist() == [int(source.train.y[i]) for i in numbers(part)]


def test_cut_describes_the_set_and_leaves_the_test_part_alone() -> None:
    source = source_of()
    splits = cut(source, val_fraction=0.2, split_seed=0)
    assert splits.test is source.test
    assert (splits.in_shape, splits.num_outputs, splits.task) == ((3, 2, 2), 5, "classification")
    assert (splits.classes, splits.sha256) == (source.classes, source.sha256)


def test_the_split_seed_decides_who_is_validated() -> None:
    chosen = [numbers(cut(source_of(), val_fraction=0.3, split_seed=s).val) for s in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_a_sources_own_validation_is_kept() -> None:
    own = Split(torch.full((3, 3, 2, 2), 200, dtype=torch.uint8), torch.tensor([0, 1, 0]))
    splits = cut(source_of(val=own), val_fraction=0.5, split_seed=0)
    assert splits.val is own
    assert numbers(splits.train) == list(range(101))


def test_limit_is_stratified_and_leaves_validation_as_it_was() -> None:
    whole = cut(source_of(), val_fraction=0.2, split_seed=0)
    splits = cut(source_of(), val_fraction=0.2, split_seed=0, limit=40)
    assert numbers(splits.val) == numbers(whole.val)
    assert set(numbers(splits.train)) <= set(numbers(whole.train))
    got = torch.bincount(splits.train.y, minlength=5).tolist()
    allowed = by_largest_remainders(torch.bincount(whole.train.y, minlength=5).tolist(), 40)
    assert allowed == [{20}, {12}, {6}, {2}, {0}]
    assert got == [19, 12, 6, 2, 1]  # the only example of the last class stays


def test_the_split_seed_decides_who_stays_within_the_limit() -> None:
    kept = [numbers(cut(source_of(), val_fraction=0, split_seed=s, limit=40).train) for s in (0, 0, 1)]
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]


def test_limit_may_take_everything_but_no_more() -> None:
    whole = cut(source_of(), val_fraction=1, split_seed=0)
    assert numbers(cut(source_of(), val_fraction=1, split_seed=0, limit=100).train) == numbers(whole.train)
    with pytest.raises(ConfigError, match=r"data\.limit=101 .*100 training examples"):
        cut(source_of(), val_fraction=1, split_seed=0, limit=101)


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [
        ("own", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ("none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ([0.5, 0.25], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ([[0.1, 0.2, 0.3], 0.25], (0.1, 0.2, 0.3), (0.25, 0.25, 0.25)),
    ],
)
def test_normalize_settles_mean_and_std(normalize: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    splits = normalized(cut(source_of(), val_fraction=0, split_seed=0), normalize)
    assert (splits.mean, splits.std) == (mean, std)


@pytest.mark.parametrize("val_fraction", [101, 102, 1000, 0.996])
def test_nothing_left_to_train_on_is_refused(val_fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_fraction=.* leaves nothing to train on.* 101 "):
        cut(source_of(), val_fraction=val_fraction, split_seed=0)


def test_regression_is_cut_without_classes() -> None:
    splits = cut(regression(), val_fraction=0.25, split_seed=0, limit=10)
    assert (splits.task, splits.num_outputs, splits.classes) == ("regression", 2, ())
    assert (splits.mean, splits.std) == ((), ())
    assert (len(splits.train), len(splits.val)) == (10, 5)
    assert not set(splits.train.x[:, 0].tolist()) & set(splits.val.x[:, 0].tolist())


class Counting(Dataset[Tensor]):
    """Image i is filled with i; remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Tensor:
        self.asked.append(i)
        return torch.full((1, 2, 2), i, dtype=torch.uint8)


def test_take_keeps_the_order_it_was_given() -> None:
    order = torch.tensor([7, 0, 3, 3])
    y = torch.arange(10) * 10
    in_memory = Split(torch.arange(10, dtype=torch.uint8)[:, None, None, None], y).take(order)
    streamed = Split(Counting(), y).take(order)
    for split in (in_memory, streamed):
        assert len(split) == 4
        assert numbers(split) == [7, 0, 3, 3]
        assert split.y.tolist() == [70, 0, 30, 30]


def test_take_of_a_dataset_decodes_nothing() -> None:
    images = Counting()
    taken = Split(images, torch.arange(10)).take(torch.tensor([4, 2])).take(torch.tensor([1]))
    assert images.asked == []
    assert numbers(taken) == [2]
    assert images.asked == [2]


def test_take_may_be_empty() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert len(Split(torch.zeros(3, 1, 2, 2), torch.zeros(3)).take(none)) == 0
    assert len(Split(Counting(), torch.arange(10)).take(none)) == 0


def test_only_some_examples_are_measured_the_same_ones_whatever_the_cut() -> None:
    whole = [cut(source_of(val=source_of(60).train), val_fraction=0, split_seed=seed) for seed in (0, 1)]
    few = [measured(splits, 20) for splits in whole]
    assert [len(few[0].train), len(few[0].val), len(few[0].test)] == [101, 20, 4]
    assert few[0].val.y.bincount().tolist() == [10, 10]
    assert numbers(few[0].val) == numbers(few[1].val)
    assert measured(whole[0], None) is whole[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [9, 28, 32])
def test_images_are_scaled_to_the_pixels_that_predict_makes_of_a_file(
    channels: int, side: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x = torch.randint(256, (7, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    splits = cut(source_of(), val_fraction=0, split_seed=0)
    part = Split(x, splits.train.y[:7])
    splits = replace(splits, train=part, val=part.take(torch.arange(0)), test=part, in_shape=(channels, side, side))
    monkeypatch.setattr(adapt, "AT_ONCE", 3)
    for size in (8, 20, 27, 100):
        found = scaled(splits, size)
        assert (found.in_shape, found.train.x.shape) == ((channels, size, size), (7, channels, size, size))
        assert len(found.val) == 0
        for image, ours in zip(x, found.train.x, strict=True):
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(tmp_path / "a.png")
            assert torch.equal(read_image(tmp_path / "a.png", Frame((channels, size, size))), ours)
    assert scaled(splits, side) is splits
    monkeypatch.setattr(adapt, "memory_available", lambda: 1000)
    with pytest.raises(ConfigError, match=r"data\.size=1024 takes .* GB .*data\.limit=, data\.eval_limit="):
        scaled(splits, 1024)
