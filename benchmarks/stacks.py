"""Runs of a sweep one after another against the same runs stacked, in turn in one process; see trainer/groups.py.

python -m benchmarks.stacks                           all sizes, K = 4 and 16, 1 and 2 threads: a quarter of an hour
python -m benchmarks.stacks linreg softmax --rounds 5 --runs 16 --threads 2

The pictures are noise: only their shape matters. Training is the time of the steps alone, as metrics.jsonl counts it,
without the first epoch; the whole is everything from the settings to result.json, with plots=false.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trainer import commands, config, data, groups, stack
from trainer.data.splits import Source, Split
from trainer.utils.recorder import read_metrics
from trainer.utils.signals import StopSignal

EPOCHS = 3


@dataclass(frozen=True)
class Size:
    """A model, and on how much it is trained."""

    data: str
    steps: int  # of an epoch
    batch_size: int = 256
    model: dict[str, Any] = field(default_factory=dict)

    def config(self, folder: Path, name: str, lr: float, threads: int) -> config.Config:
        """A run's settings."""
        choices = config.settle({"data": self.data, "model": "mlp"} if self.model else {"data": self.data})
        plain: dict[str, Any] = {"choices": choices, "epochs": EPOCHS, "batch_size": self.batch_size, "plots": False}
        plain |= {"paths": {key: str(folder / key) for key in ("outputs", "checkpoints")}, "sweep": {"stack": True}}
        plain |= {"optimizer": {"lr": lr}, "device": {"num_threads": threads}, "model": dict(self.model)}
        plain["data"] = {"val_fraction": 100}
        if self.data == "synthetic":
            plain["data"]["num_examples"] = self.steps * self.batch_size + 100
        return replace(config.from_dict(plain), name=name)


SIZES = {
    "linreg": Size("synthetic", 400, 10),
    "softmax": Size("fashion_mnist", 100),
    "mlp16": Size("fashion_mnist", 50, model={"num_hiddens": [16]}),
    "mlp64": Size("fashion_mnist", 50, model={"num_hiddens": [64]}),
    "mlp256": Size("fashion_mnist", 25, model={"num_hiddens": [256]}),
}


def noise(steps: int) -> Source:
    """Pictures in the shape of Fashion-MNIST's."""
    draw = torch.Generator().manual_seed(0)

    def part(n: int) -> Split:
        pictures = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=draw)
        return Split(pictures, torch.arange(n) % 10)

    classes = tuple("abcdefghij")
    return Source(part(steps * 256 + 100), part(1000), (1, 28, 28), "0" * 64, classes, (0.5,), (0.3,))


def seconds_of_epochs(outputs: Path, names: Sequence[str]) -> list[float]:
    """What the steps of each epoch but the first took, all runs together."""
    runs = [read_metrics(outputs / name) for name in names]
    return [sum(rows[epoch]["seconds"] for rows in runs) for epoch in range(1, EPOCHS)]


def measure(size: Size, num_runs: int, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds an epoch's steps take, and those of the whole, both ways."""
    taken: dict[str, list[float]] = {key: [] for key in ("alone", "stacked", "whole alone", "whole stacked")}
    sources: dict[str, Source] = {}
    data.DATASETS["fashion_mnist"] = lambda *_, **__: noise(size.steps)
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            folder, lrs = Path(name), [0.01 * (k + 1) / num_runs for k in range(num_runs)]
            began = time.perf_counter()
            for k, lr in enumerate(lrs):
                commands.train(size.config(folder, f"a/{k}", lr, threads), StopSignal(), sources=sources)
            between = time.perf_counter()
            configs = [size.config(folder, f"s/{k}", lr, threads) for k, lr in enumerate(lrs)]
            assert groups.groups(configs).stacks == [list(range(num_runs))]
            stack.train_stack(configs, StopSignal(), sources=sources)
            taken["whole stacked"].append(time.perf_counter() - between)
            taken["whole alone"].append(between - began)
            for way, sweep in (("alone", "a"), ("stacked", "s")):
                names = [f"{sweep}/{k}" for k in range(num_runs)]
                taken[way].append(statistics.median(seconds_of_epochs(folder / "outputs", names)))
    return {key: values[1:] for key, values in taken.items()}  # the first round warms up


def main() -> None:
    """Print a line for each size, number of runs and number of threads."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.stacks", description=__doc__)
    options.add_argument("sizes", nargs="*", help=f"{', '.join(SIZES)}; default: all of them")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--runs", type=int, nargs="*", default=[4, 16])
    options.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    args = options.parse_args()
    print("| model | runs | threads | alone, s/epoch | stacked, s/epoch | ratio (of each round) | whole |")
    print("|---|---|---|---|---|---|---|")
    for name in args.sizes or SIZES:
        for num_runs in args.runs:
            for threads in args.threads:
                taken = measure(SIZES[name], num_runs, threads, args.rounds)
                ratios = [a / s for a, s in zip(taken["alone"], taken["stacked"], strict=True)]
                wholes = [a / s for a, s in zip(taken["whole alone"], taken["whole stacked"], strict=True)]
                alone, stacked = (statistics.median(taken[way]) for way in ("alone", "stacked"))
                each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                shown = f"**{statistics.median(ratios):.2f}** ({each}) | {statistics.median(wholes):.2f}"
                print(f"| {name} | {num_runs} | {threads} | {alone:.3f} | {stacked:.3f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
