"""Augmentation: each step against torchvision, picture by picture, and the same picture however it is computed."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused, write_class_folders
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as torchvision  # type: ignore[import-untyped]

from benchmarks.ladder import undisturbed
from trainer import build
from trainer.config.ranges import AUGMENTS
from trainer.config.schema import Choice
from trainer.data import augment, policies
from trainer.data.augment import Augment, boxes, color_factors, erased_boxes, step_named
from trainer.data.batches import Batches, Placement
from trainer.data.mixing import Mixing
from trainer.data.pixels import erased, recolored, resized_crop
from trainer.data.policies import NAMES, OPERATIONS, applied, operate, randaugment, trivial
from trainer.data.splits import Split, Splits
from trainer.totals import Totals

CPU = torch.device("cpu")
SIZE = (18, 20)
MIXED = Augment(["flip", "color"], Mixing(0.3, 1.0, 3))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 24, channels: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    """Smooth colours with noise, so that neighbouring pixels differ and all values occur."""
    noise = torch.randint(0, 60, (n, channels, *size), generator=seeded(n))
    slope = torch.linspace(0, 195, size[1]) * torch.linspace(0.2, 1, size[0])[:, None]
    return (noise + slope).to(torch.uint8)


class OnDisk(Dataset[Tensor]):
    """Images that are asked for one by one."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index]


def batches_of(asked: Augment, *, streamed: bool = False, stored: int = 0, **options: Any) -> Batches:
    """Batches of 23 pictures of 12 x 12, or cut out of larger ones."""
    x = pictures(23, size=(stored or 12, stored or 12))
    split = Split(OnDisk(x) if streamed else x, torch.arange(23) % 3)
    splits = Splits(split, split, split, (3, 12, 12), 3, "classification", ("a", "b", "c"), (0.4,) * 3, (0.3,) * 3, "")
    splits = Splits(**(vars(splits) | {"stored_shape": (3, stored, stored) if stored else ()}))
    return Batches(splits, split, Placement(CPU), **({"batch_size": 8, "seed": 3} | options), augment=asked)


def epoch_of(batches: Batches, start: int = 0) -> tuple[Tensor, Tensor]:
    """All of an epoch from an example on."""
    x, y = zip(*batches.epoch(2, start), strict=True)
    return torch.cat(x), torch.cat(y)


def torchvision_operation(name: str, image: Tensor, m: float) -> Tensor:
    """torchvision's own operation of its AutoAugment family on one picture."""
    name = {"shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY"}.get(
        name, {"saturation": "Color", "autocontrast": "AutoContrast"}.get(name, name.capitalize())
    )
    nearest = v2.InterpolationMode.NEAREST
    if name == "Posterize":
        m = round(8 - m)
    if name == "Solarize":
        m = 1 - m
    result: Tensor = v2.TrivialAugmentWide()._apply_image_or_video_transform(image, name, m, nearest, {Tensor: 0})
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_that_of_torchvision(name: str, channels: int) -> None:
    largest, _, has_sign = OPERATIONS[name]
    x = pictures(31, channels)
    m = torch.linspace(-largest if has_sign else 0, largest, 31)
    m = m.trunc() if name.startswith("translate") else m
    got = operate(name, x, m[:, None, None, None])
    wanted = torch.stack([torchvision_operation(name, image, float(value)) for image, value in zip(x, m, strict=True)])
    assert got.shape == x.shape
    assert got.dtype == torch.uint8
    # pixels that fall between two others, and values that a fused multiplication rounds the other way
    differ = (got.int() - wanted.int()).abs() > (0 if name in ("posterize", "solarize", "equalize") else 1)
    assert differ.float().mean() < 0.01, f"{differ.float().mean():.4f} of the pixels"
    if largest and not (name == "saturation" and channels == 1):
        assert (got != x).any()


def test_trivial_draws_each_operation_level_and_sign_equally_often() -> None:
    number, magnitude = trivial(60_000, seeded(), size=SIZE)[:, 0].unbind(1)
    assert torch.bincount(number.int()).sub(60_000 / 14).abs().max() < 300
    turned = magnitude[number == NAMES.index("rotate")]
    assert len(turned.unique()) == 61
    assert abs(float((turned > 0).float().mean()) - 30 / 62) < 0.03
    assert float(magnitude[number == NAMES.index("posterize")].min()) == 0


def test_randaugment_draws_two_operations_of_one_magnitude() -> None:
    drawn = randaugment(5000, seeded(), size=SIZE)
    assert drawn.shape == (5000, 2, 2)
    turned = drawn[..., 1][drawn[..., 0] == NAMES.index("rotate")]
    assert turned.unique().tolist() == [-9, 9]
    moved = drawn[..., 1][drawn[..., 0] == NAMES.index("translate_y")].abs().unique()
    torch.testing.assert_close(moved, torch.tensor([0.3 * 150 / 331 * SIZE[0]]))


def test_the_operations_of_an_image_are_done_one_after_the_other() -> None:
    x, drawn = pictures(40), randaugment(40, seeded(), size=SIZE)
    for image, each, got in zip(x, drawn, applied(x, drawn), strict=True):
        wanted = image[None]
        for number, m in each.tolist():
            wanted = operate(NAMES[int(number)], wanted, torch.full((1, 1, 1, 1), m))
        assert torch.equal(got, wanted[0])


@pytest.mark.parametrize("shape", [(12, 12), (18, 20), (24, 30)])
def test_a_crop_is_that_of_torchvision(shape: tuple[int, int]) -> None:
    x, found = pictures(), boxes(24, seeded(), size=SIZE, kind="crop")
    got = resized_crop(x, found, shape=shape)
    assert got.shape == (24, 3, *shape)
    for image, box, cut in zip(x, found.int().tolist(), got, strict=True):
        wanted = torchvision.resized_crop(image, *box, list(shape), antialias=False)
        assert (cut.int() - wanted.int()).abs().max() <= 1


def test_boxes_lie_inside_and_have_the_areas_and_ratios_of_their_kind() -> None:
    for kind, area, ratio in (("crop", (0.08, 1), (0.75, 4 / 3)), ("erase", (0.02, 0.33), (0.3, 3.3))):
        top, left, height, width = boxes(20_000, seeded(), size=(200, 300), kind=kind).unbind(1)
        assert min(top.min(), left.min()) >= 0
        assert (top + height).max() <= 200
        assert (left + width).max() <= 300
        share = height * width / 60_000
        whole = share == 1
        assert area[0] * 0.95 < share.min()
        assert share[~whole].max() < min(area[1] * 1.02, 1.01)
        assert ((width / height)[~whole] > ratio[0] * 0.95).all()
        assert ((width / height)[~whole] < ratio[1] * 1.05).all()
    assert abs(float(share.mean()) - 0.175) < 0.01


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    assert boxes(50, seeded(), size=(4, 900), kind="crop")[:, 2:].unique(dim=0).tolist() == [[4, 900]]


def test_half_of_the_images_lose_a_black_rectangle() -> None:
    found = erased_boxes(4000, seeded(), size=SIZE)
    assert abs(float((found[:, 2] > 0).float().mean()) - 0.5) < 0.03
    x = pictures(200).clamp(min=1)
    for image, (top, left, height, width) in zip(erased(x, found[:200]), found[:200].int().tolist(), strict=True):
        black = image == 0
        assert black[:, top : top + height, left : left + width].all()
        assert black.sum() == 3 * height * width


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_as_torchvision_changes_them(channels: int) -> None:
    x, factors = pictures(40, channels), color_factors(40, seeded())
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    for image, (b, c, s), got in zip(x, factors.tolist(), recolored(x, factors), strict=True):
        wanted = torchvision.adjust_contrast(torchvision.adjust_brightness(image, b), c)
        wanted = torchvision.adjust_saturation(wanted, s)
        assert (got.int() - wanted.int()).abs().max() <= 2


@pytest.mark.parametrize("asked", [*(Augment(name) for name in AUGMENTS), Augment(list(AUGMENTS)), MIXED])
def test_an_example_becomes_the_same_however_it_is_computed(asked: Augment) -> None:
    stored = 14 if "resized_crop" in asked.steps else 0
    x, y = epoch_of(batches_of(asked, stored=stored))
    assert x.shape == (23, 3, 12, 12)
    for options in ({"streamed": True}, {"streamed": True, "workers": 2}, {"resident": False}):
        assert torch.equal(epoch_of(batches_of(asked, stored=stored, **options))[0], x), options
    for start in (8, 16):
        rest = epoch_of(batches_of(asked, stored=stored), start)
        assert torch.equal(rest[0], x[start:])
        assert torch.equal(rest[1], y[start:])
    ranks = [list(batches_of(asked, stored=stored, rank=rank, world=2).epoch(2)) for rank in range(2)]
    joined = [torch.cat([part[k] for pair in zip(*ranks, strict=True) for part in pair]) for k in range(2)]
    assert torch.equal(joined[0], x)
    assert torch.equal(joined[1], y)
    if not asked.mixing:  # which takes a neighbour from the batch
        assert torch.equal(epoch_of(batches_of(asked, stored=stored, batch_size=1))[0], x)
    other = next(iter(batches_of(asked, stored=stored).epoch(3)))[0]
    assert not torch.equal(other, x[:8])


def test_large_images_are_done_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch_of(batches_of(Augment(list(AUGMENTS)), stored=14))[0]
    monkeypatch.setattr(augment, "MAX_NUMBERS", 3 * 3 * 14 * 14 + 1)
    sizes: list[int] = []
    apply = policies.operate
    monkeypatch.setattr(policies, "operate", lambda name, x, m: sizes.append(len(x)) or apply(name, x, m))
    assert torch.equal(epoch_of(batches_of(Augment(list(AUGMENTS)), stored=14))[0], whole)
    assert 1 <= max(sizes) <= 4, "images of 12 x 12 are up to 4 at a time"


@pytest.mark.parametrize("name", AUGMENTS)
def test_a_step_changes_images_and_none_of_no_images(name: str) -> None:
    step, x = step_named(name, SIZE, SIZE, CPU), pictures(60)
    drawn = step.draw(60, seeded())
    before = x.clone()
    changed = (step.apply(x, drawn) != x).flatten(1).any(1)
    assert torch.equal(x, before), "the images of the set were changed"
    assert changed.float().mean() > 0.2
    assert step.apply(x[:0], drawn[:0]).shape == (0, 3, *SIZE)


def test_an_alternating_flip_shows_each_image_both_ways_in_turn() -> None:
    batches = batches_of(Augment("alternate_flip"), batch_size=23)
    plain = batches.normalize(pictures(23, size=(12, 12)))
    ways = []
    for epoch in range(1, 5):
        [(x, _)] = batches.epoch(epoch)
        way = []
        for image in x:
            same = [i for i in range(23) if image.equal(plain[i]) or image.flip(2).equal(plain[i])]
            assert len(same) == 1
            way.append((same[0], image.equal(plain[same[0]])))
        ways.append(dict(way))
    assert 4 < sum(ways[0].values()) < 19  # which way comes first is drawn
    assert ways[1] == {i: not is_plain for i, is_plain in ways[0].items()}
    assert (ways[2], ways[3]) == (ways[0], ways[1])


def test_a_translation_is_a_crop_of_the_padded_image() -> None:
    x = pictures(25, size=(12, 14))
    step = step_named("translate", (12, 14), (12, 14), CPU)
    padded = F.pad(x.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    moved = step.apply(x, torch.arange(25))
    for i in range(25):
        top, left = divmod(i, 5)
        assert moved[i].equal(padded[i, :, top : top + 12, left : left + 14])


@pytest.mark.parametrize("streamed", [False, True])
def test_the_images_of_the_first_epochs_may_be_smaller(streamed: bool) -> None:
    batches = batches_of(Augment("flip", Mixing(0, 1.0, 3), sizes=(8, 10)), streamed=streamed)
    for epoch, side in ((1, 8), (2, 10), (3, 12)):
        whole = torch.cat([x for x, _ in batches.epoch(epoch)])
        assert whole.shape == (23, 3, side, side)
        assert torch.cat([x for x, _ in batches.epoch(epoch, start=8)]).equal(whole[8:])
    plain = batches_of(Augment(sizes=(8,)), streamed=streamed, batch_size=23)
    [(x, _)] = plain.epoch(1)
    [(full, _)] = plain.epoch(2)
    again = {image.mul(1000).round().int().numpy().tobytes() for image in x}
    small = v2.functional.resize(pictures(23, size=(12, 12)), [8, 8], antialias=True)
    assert again == {image.mul(1000).round().int().numpy().tobytes() for image in plain.normalize(small)}
    assert full.shape[2:] == (12, 12)
    [(seen, _)] = batches_of(Augment(sizes=(8,)), seed=None, batch_size=23).epoch(1)
    assert seen.shape[2:] == (12, 12)  # evaluation


def test_sizes_that_a_model_cannot_take_are_refused(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "photos", {"": 24})
    words = ("data=folder", "data.root=photos", "data.size=16", "plots=false", "batch_size=8", "epochs=2")
    assert_refused(cli(*words, "model=softmax", "data.first_sizes=[8]"), "takes 16 pixels, and not 8", "resnet18")
    assert_refused(cli(*words, "model=resnet18", "data.first_sizes=[24]"), "24 is for larger images", "16 pixels")
    assert_refused(cli(*words, "model=resnet18", "data.first_sizes=[0]"), "data.first_sizes")
    lone = ("data.limit=17", "model=lenet", "data.first_sizes=[8]")  # whose last batch has one example
    for command in ((), ("summary",)):
        assert_refused(
            cli(*command, *(word for word in words if command == () or word != "plots=false"), *lone), "not 8"
        )
    outcome = cli(
        *words, "model=resnet18", "data.first_sizes=[8]", "data.workers=0", "name=a", "plots=true", "report=false"
    )
    assert outcome.code == 0, outcome.err
    assert "no epoch is left" not in outcome.out
    assert cli("eval", "a", "plots=false").code == 0
    outcome = cli(*words, "model=resnet18", "data.first_sizes=[8,8]", "report=false")
    assert "warning: data.first_sizes=[8, 8]: no epoch is left for images of 16 pixels" in outcome.out
    assert "no epoch is left" not in cli(*words, "model=resnet18", "data.first_sizes=[8,16]", "report=false").out
    outcome = cli(*words, "model=resnet18", "data.first_sizes=[8]", "max_steps=2", "report=false")
    assert "warning: data.first_sizes=[8]: no epoch is left for images of 16 pixels" in outcome.out
    Path("outputs/a/metrics.jsonl").write_text("".join(f'{{"seconds": {seconds}}}\n' for seconds in (1, 2, 6)))
    assert undisturbed(Path("outputs/a")) == 9  # the ladder's: not three times the median


def test_evaluation_sees_the_middle_of_larger_images() -> None:
    x, _ = epoch_of(batches_of(Augment("resized_crop"), stored=14, seed=None))
    middle = pictures(23, size=(14, 14))[:, :, 1:13, 1:13]
    torch.testing.assert_close(x, (middle / 255 - 0.4) / 0.3)


@pytest.mark.parametrize("mixing", [Mixing(0.4, 0, 3), Mixing(0, 1.0, 3), Mixing(0.4, 1.0, 3)])
def test_labels_are_mixed_as_the_pixels_are(mixing: Mixing) -> None:
    plain, labels = epoch_of(batches_of(Augment()))
    x, y = epoch_of(batches_of(Augment(mixing=mixing)))
    assert y.shape == (23, 3)
    assert torch.allclose(y.sum(1), torch.ones(23))
    kinds = set()
    for first in range(0, 23, 8):
        batch = slice(first, min(first + 8, 23))
        own, other = plain[batch], plain[batch].roll(1, 0)
        one_hot = F.one_hot(labels[batch], 3).float()
        for i in range(len(own)):
            is_own, is_other = (x[batch][i] == own[i]).all(0), (x[batch][i] == other[i]).all(0)
            if (is_own | is_other).all():  # each pixel is from one of the two
                share = is_own.float().mean()
                kinds.add("cutmix")
            else:
                distance = (own[i] - other[i]).abs()
                share = 1 - (x[batch][i] - own[i]).abs()[distance > 0.05].sum() / distance[distance > 0.05].sum()
                kinds.add("mixup")
            wanted = share * one_hot[i] + (1 - share) * one_hot[i - 1]
            torch.testing.assert_close(y[batch][i], wanted, atol=0.02, rtol=0)
    assert kinds == {name for name in ("mixup", "cutmix") if getattr(mixing, name)}


def test_the_share_of_a_mixed_image_has_the_beta_distribution() -> None:
    for alpha, variance in ((1.0, 1 / 12), (0.2, 0.25 / 1.4)):
        share = Mixing(alpha, 0, 3).draw(50_000, SIZE, seeded())[:, 0]
        assert abs(float(share.mean()) - 0.5) < 0.01
        assert abs(float(share.var()) - variance) < 0.005


@pytest.mark.parametrize("name", ["cross_entropy", "sigmoid_cross_entropy", "quadratic"])
@pytest.mark.parametrize("impl", ["concise", "autograd", "scratch", "numpy"])
def test_a_loss_of_shares_is_the_mean_of_the_losses_of_the_labels(name: str, impl: str) -> None:
    options = {"label_smoothing": 0.1} if name == "cross_entropy" else {}
    loss = build.build_loss(Choice(name, options), impl)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=seeded()).requires_grad_()
    first, second = torch.arange(6) % 4, (torch.arange(6) + 1) % 4
    shares = (F.one_hot(first, 4) * 0.7 + F.one_hot(second, 4) * 0.3).double()

    def cross_entropy_of(labels: Tensor) -> Tensor:
        return loss(logits, labels)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    got, wanted = cross_entropy_of(shares), 0.7 * cross_entropy_of(first) + 0.3 * cross_entropy_of(second)
    torch.testing.assert_close(gradient(got), gradient(wanted))
    if name != "quadratic":  # which is not linear in its labels, though its derivative is
        torch.testing.assert_close(got, wanted)


def test_weights_of_classes_and_shares_go_together() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5])
    loss = build.build_loss(Choice("cross_entropy", {"label_smoothing": 0.0}), "concise", weights)
    logits, labels = torch.randn(5, 3, generator=seeded()), torch.arange(5) % 3
    torch.testing.assert_close(loss(logits, labels), loss(logits, F.one_hot(labels, 3).float()))


def test_a_mixed_image_counts_as_right_where_its_larger_part_is() -> None:
    totals = Totals(CPU, soft=True)
    y = torch.tensor([[0.7, 0.3], [0.4, 0.6], [1.0, 0.0]])
    totals.add(torch.tensor(0.5), torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), y)
    assert int(totals.num_correct) == 1


FOLDER = (
    "data=folder",
    "data.root=pictures",
    "data.size=14",
    "model=softmax",
    "batch_size=8",
    "plots=false",
    "epochs=2",
)


def test_a_run_with_a_list_of_steps_resumes_and_is_measured_on_the_middle(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 12, "test": 7}, size=20)
    words = (*FOLDER, "data.augment=[resized_crop,flip,trivial]", "data.mixup=0.3", "data.cutmix=1", "epochs=2")
    words += ("schedule=constant", "data.interpolation=bicubic")
    assert cli(*words, "name=a").code == 0
    assert cli(*words, "name=b", "epochs=1").code == 0
    assert cli("resume=b", "epochs=2").code == 0
    a, b = (torch.load(max(Path("checkpoints", name).glob("step_*.pt")), weights_only=True)["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert cli("predict", "checkpoint=a", "output=split.csv").code == 0
    assert cli("predict", "checkpoint=a", "input=pictures/test", "output=files.csv").code == 0
    split, files = (
        {line.split(",")[0]: line.split(",")[2:4] for line in Path(name).read_text(encoding="utf-8").splitlines()}
        for name in ("split.csv", "files.csv")
    )
    assert len(split) == 8
    assert split == files, "predict sees other pixels than eval"


def test_shares_of_classes_are_no_targets_of_a_regression(cli: Cli) -> None:
    assert_refused(cli(*FOLDER, "data.mixup=0.2", "loss=auto"), "data.mixup", "loss=auto", "Name a loss")


@pytest.mark.parametrize("value", ["crop", "[flip,flip]", "[flip,none]", "3", "true", "[[flip]]"])
def test_what_is_no_augmentation_is_refused(cli: Cli, value: str) -> None:
    assert_refused(cli(*FOLDER, f"data.augment={value}"), "data.augment", "resized_crop")


@pytest.mark.parametrize(
    ("typed", "meant"), [("Flip", "flip"), ("[flip, colour]", "[flip,color]"), ("[random_crop,x]", "")]
)
def test_a_typo_in_a_step_is_answered_with_the_step(cli: Cli, typed: str, meant: str) -> None:
    outcome = cli(*FOLDER, f"data.augment={typed}")
    assert_refused(outcome, "data.augment", "resized_crop")
    assert (f"data.augment={meant}" in shlex.split(outcome.err.rpartition("type:")[2])) == bool(meant)


@pytest.mark.parametrize("key", ["data.mixup", "data.cutmix"])
def test_one_image_alone_is_mixed_with_none_and_that_is_said(cli: Cli, tmp_path: Path, key: str) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 6, "test": 3}, size=8)
    words = [word for word in FOLDER if not word.startswith("batch_size")]
    outcome = cli(*words, f"{key}=1", "batch_size=1", "fast_dev_run=true", "name=a")
    assert outcome.code == 0, outcome.err
    assert f"warning: {key} has no effect on train: batch_size=1" in outcome.out
