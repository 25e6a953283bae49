"""What can only be measured inside the program: `python -m benchmarks.probes NAME ...` prints one JSON line.

machine describes, data_ready and augmentation measure, train is main.py with another number of images.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

CHOICE = {"mirror": None, "val_fraction": 0.1, "split_seed": 0, "limit": None, "normalize": "own"}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Return versions, hardware and commit, as main.py records them."""
    from trainer.data.workers import num_cores
    from trainer.run.environment import provenance
    from trainer.run.machine import Machine

    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    return provenance(Machine(device)) | {"cores": num_cores()}


def data_ready(args: argparse.Namespace) -> float:
    """Return the seconds from an imported torch to CIFAR-10 cut into its splits."""
    began = time.perf_counter()
    from trainer import data
    from trainer.config.schema import Choice, Paths

    data.load(Choice("cifar10", CHOICE), Paths(args.cifar, "", "", "datasets/.cache"))
    return time.perf_counter() - began


def augmentation(args: argparse.Namespace) -> dict[str, float]:
    """Return the microseconds to prepare 128 CIFAR-10 images without and with crop and flip, medians of five epochs."""
    from trainer import data
    from trainer.config.schema import Choice, Paths
    from trainer.data.augment import Augment
    from trainer.data.batches import Batches, Placement

    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    splits = data.load(Choice("cifar10", CHOICE), Paths(args.cifar, "", "", "datasets/.cache"))
    taken: dict[str, list[float]] = {"none": [], "crop_flip": []}
    for epoch in range(1, 7):
        for augment, values in taken.items():
            batches = Batches(splits, splits.train, Placement(device), batch_size=128, seed=0, augment=Augment(augment))
            began = time.perf_counter()
            for _ in batches.epoch(epoch):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize()
            values.append((time.perf_counter() - began) / len(batches) * 1e6)
    return {augment: statistics.median(values[1:]) for augment, values in taken.items()}  # the first warms up


def train(args: argparse.Namespace) -> int:
    """Run main.py with the images of one data set limited or repeated; everything else is unchanged."""
    import main
    from trainer import data
    from trainer.data.splits import Source, Split

    reader = data.DATASETS[args.of]

    def part(split: Split, limit: int | None, repeat: int) -> Split:
        if limit is not None:  # of all classes
            split = split.take(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:limit])
        x = torch.as_tensor(split.x)
        return Split(x.repeat(repeat, *[1] * (x.ndim - 1)), split.y.repeat(repeat))

    def changed(*where: Path, **options: Any) -> Source:
        source = reader(*where, **options)
        return replace(source, train=part(source.train, args.train, args.repeat), test=part(source.test, args.test, 1))

    data.DATASETS[args.of] = changed
    sys.argv = ["main.py", *args.words]
    return main.main()


def cli() -> int:
    """Parse the command line and run a probe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cifar", default="datasets", help="folder of CIFAR-10")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    probes = parser.add_subparsers(dest="probe", required=True)
    for name in ("machine", "data_ready", "augmentation"):
        probes.add_parser(name)
    driver = probes.add_parser("train")
    driver.add_argument("of", help="the data set")
    driver.add_argument("--train", type=int, help="number of images of the training part")
    driver.add_argument("--test", type=int, help="number of images of the test part")
    driver.add_argument("--repeat", type=int, default=1, help="how many times to repeat the training part")
    driver.add_argument("words", nargs="*", help="for main.py")
    args = parser.parse_args()
    if args.probe == "train":
        return train(args)
    print(json.dumps({"machine": machine, "data_ready": data_ready, "augmentation": augmentation}[args.probe](args)))
    return 0


if __name__ == "__main__":
    sys.exit(cli())
