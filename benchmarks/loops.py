"""The loops that main.py is compared with: the books', a DataLoader over floats, and a bare one.

python -m benchmarks.loops books --task mlp --workers 0 --epochs 2     prints one JSON line: the seconds of each epoch

All take the model from trainer.models and train on the same images, normalised alike.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import datasets, transforms  # type: ignore[import-untyped]

from benchmarks.tasks import TASKS, Task
from trainer.data import DATASETS
from trainer.data.splits import Source, Split
from trainer.data.vision import FASHION_MOMENTS, MNIST_MOMENTS
from trainer.models import MODELS

EVAL_BATCH = 1000  # of the bare loop, as in main.py; the books evaluate with the batch size of training
IN_SHAPES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


class Images(Dataset[Any]):
    """Images in memory, returned one by one as torchvision.datasets.CIFAR10 does: as PIL, through a transform."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        assert isinstance(split.x, Tensor)
        self.images = split.x.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, C) uint8
        self.labels = split.y.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


@dataclass(frozen=True)
class Sets:
    """Data sets of (image (C, H, W), label) for training, for validation and for testing."""

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]


def read(task: Task, args: argparse.Namespace) -> Source:
    """Read the images as main.py does, and shuffle the training part: on disk it may be sorted by class."""
    source = DATASETS[task.data](Path(args.cifar if task.data == "cifar10" else args.data), Path("datasets/.cache"))
    order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(0))
    return replace(source, train=source.train.take(order))


def image_sets(task: Task, args: argparse.Namespace) -> Sets:
    """Return images one by one through torchvision's transforms: the first num_train, the next num_eval, and test."""
    crop_flip = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    moves = crop_flip if task.augment == "crop_flip" else []

    def through(mean: tuple[float, ...], std: tuple[float, ...], *first: Any) -> Any:
        return transforms.Compose([*first, transforms.ToTensor(), transforms.Normalize(mean, std)])

    train: Dataset[Any]
    plain: Dataset[Any]
    test: Dataset[Any]
    if task.data == "cifar10":
        source = read(task, args)
        train = Images(source.train, through(source.mean, source.std, *moves))
        plain, test = (Images(part, through(source.mean, source.std)) for part in (source.train, source.test))
    else:
        kind, (mean, std) = {
            "mnist": (datasets.MNIST, MNIST_MOMENTS),
            "fashion_mnist": (datasets.FashionMNIST, FASHION_MOMENTS),
        }[task.data]
        train = kind(args.data, train=True, transform=through((mean,), (std,), *moves))
        plain = kind(args.data, train=True, transform=through((mean,), (std,)))
        test = kind(args.data, train=False, transform=through((mean,), (std,)))
    n = task.num_train
    return Sets(Subset(train, range(n)), Subset(plain, range(n, n + task.num_eval)), test)


def float_tensors(task: Task, args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return normalised images and labels to train on, and images and labels to evaluate."""
    source = read(task, args)
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.mean, source.std))
    parts: list[Tensor] = []
    for part, n in ((source.train, task.num_train), (source.test, task.num_eval)):
        assert isinstance(part.x, Tensor)
        parts += [(part.x[:n].float() / 255 - mean) / std, part.y[:n]]
    return parts[0], parts[1], parts[2], parts[3]


def make_model(task: Task) -> nn.Module:
    """Build the program's own model."""
    return MODELS[task.model](nn, IN_SHAPES[task.data], 10, **task.options)


def timed(epochs: int, device: torch.device, epoch: Callable[[], float]) -> dict[str, Any]:
    """Run `epoch`, which returns an accuracy, several times; return the seconds of each and the last accuracy."""
    seconds, accuracy = [], 0.0
    for _ in range(epochs):
        began = time.perf_counter()
        accuracy = epoch()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "accuracy": accuracy}


def books(task: Task, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time images one by one through transforms and a DataLoader."""
    sets = image_sets(task, args)
    return through_loaders(task, args, device, sets.train, Subset(sets.test, range(task.num_eval)))


def loader(task: Task, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time the same loop with a DataLoader over floats in memory, without augmentation."""
    x, y, eval_x, eval_y = float_tensors(task, args)
    return through_loaders(task, args, device, TensorDataset(x, y), TensorDataset(eval_x, eval_y))


def through_loaders(
    task: Task, args: argparse.Namespace, device: torch.device, train: Dataset[Any], evaluated: Dataset[Any]
) -> dict[str, Any]:
    """Time the books' loop: it reads the loss at every step, and evaluates the held-out images after every epoch."""
    how: dict[str, Any] = {"batch_size": task.batch_size, "num_workers": args.workers}
    train_batches: Iterable[Any] = DataLoader(train, shuffle=True, **how)
    eval_batches: Iterable[Any] = DataLoader(evaluated, **how)
    model = make_model(task).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.lr)

    def epoch() -> float:
        loss_sum = num_hits = num_seen = 0.0
        model.train()
        for x, y in train_batches:
            x, y = x.to(device), y.to(device)
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach()) * len(y)
            num_hits += float((logits.argmax(1) == y).sum())
            num_seen += len(y)
        assert num_seen == task.num_train
        if not task.num_eval:
            return num_hits / num_seen
        model.eval()
        num_hits = num_seen = 0.0
        with torch.no_grad():
            for x, y in eval_batches:
                num_hits += float((model(x.to(device)).argmax(1) == y.to(device)).sum())
                num_seen += len(y)
        assert num_seen == task.num_eval
        return num_hits / num_seen

    return timed(args.epochs, device, epoch)


def bare(task: Task, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time floats on the device, a random permutation and the fused optimizer; no metrics, no augmentation."""
    x, y, eval_x, eval_y = (part.to(device) for part in float_tensors(task, args))
    model = make_model(task).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.lr, fused=True)

    def epoch() -> float:
        model.train()
        for indices in torch.randperm(len(y), device=device).split(task.batch_size):
            loss = F.cross_entropy(model(x.index_select(0, indices)), y.index_select(0, indices))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            batches = zip(eval_x.split(EVAL_BATCH), eval_y.split(EVAL_BATCH), strict=True)
            hits = torch.stack([(model(some).argmax(1) == labels).sum() for some, labels in batches])
        return int(hits.sum()) / len(eval_y)

    return timed(args.epochs, device, epoch)


def parser() -> argparse.ArgumentParser:
    """Return a parser with the options of every process that trains here."""
    options = argparse.ArgumentParser()
    options.add_argument("--task", choices=TASKS, required=True)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--workers", type=int, default=0, help="processes of each DataLoader")
    options.add_argument("--data", default="datasets", help="folder of the MNIST sets")
    options.add_argument("--cifar", default="datasets", help="folder of CIFAR-10")
    options.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return options


def chosen(device: str) -> torch.device:
    """Return the device of a name; auto is the GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def main() -> None:
    """Run one loop and print its times."""
    options = parser()
    options.add_argument("way", choices=("books", "loader", "bare"))
    args = options.parse_args()
    torch.manual_seed(0)
    way = {"books": books, "loader": loader, "bare": bare}[args.way]
    print(json.dumps(way(TASKS[args.task], args, chosen(args.device))))


if __name__ == "__main__":
    main()
