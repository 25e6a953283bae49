"""Runs of a sweep one after another compared with the same runs stacked, in turn in one process.

python -m benchmarks.stacks                           all sizes, K = 4 and 16, 1 and 2 threads: a quarter of an hour
python -m benchmarks.stacks linreg softmax --rounds 5 --runs 16 --threads 2
python -m benchmarks.stacks --steps                   CPU time of steps alone, without files: a minute

The images are noise, since only their shape matters. "Training" is the time of the steps alone, as in metrics.jsonl,
without the first epoch; "whole" is everything from the settings to result.json, with plots=false.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer import build, data, engine
from trainer.commands.train import train
from trainer.config.freeze import from_dict
from trainer.config.options import group_choices
from trainer.config.schema import Choice, Config
from trainer.data.splits import Source, Split
from trainer.models import MODELS
from trainer.run import directory
from trainer.sweep.stack import layers
from trainer.sweep.stack.eligible import group_runs
from trainer.sweep.stack.optim import StackedSGD
from trainer.sweep.stack.training import train_stack
from trainer.totals import Totals
from trainer.utils.signals import StopSignal

EPOCHS = 3


@dataclass(frozen=True)
class Size:
    """A model and the amount of data that it trains on."""

    data: str
    steps: int  # of an epoch
    batch_size: int = 256
    model: dict[str, Any] = field(default_factory=dict)

    def config(self, folder: Path, name: str, lr: float, threads: int) -> Config:
        """Return the settings of a run."""
        choices = group_choices({"data": self.data, "model": "mlp"} if self.model else {"data": self.data})
        plain: dict[str, Any] = {"choices": choices, "epochs": EPOCHS, "batch_size": self.batch_size, "plots": False}
        plain |= {"paths": {key: str(folder / key) for key in ("outputs", "checkpoints")}, "sweep": {"stack": True}}
        plain |= {"optimizer": {"lr": lr}, "device": {"num_threads": threads}, "model": dict(self.model)}
        plain["data"] = {"val_fraction": 100}
        if self.data == "synthetic":
            plain["data"]["num_examples"] = self.steps * self.batch_size + 100
        return replace(from_dict(plain), name=name)


SIZES = {
    "linreg": Size("synthetic", 400, 10),
    "softmax": Size("fashion_mnist", 100),
    "mlp16": Size("fashion_mnist", 50, model={"num_hiddens": [16]}),
    "mlp64": Size("fashion_mnist", 50, model={"num_hiddens": [64]}),
    "mlp256": Size("fashion_mnist", 25, model={"num_hiddens": [256]}),
}


def noise(steps: int) -> Source:
    """Return noise in the shape of Fashion-MNIST's images."""
    draw = torch.Generator().manual_seed(0)

    def part(n: int) -> Split:
        return Split(torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=draw), torch.arange(n) % 10)

    classes = tuple("abcdefghij")
    return Source(part(steps * 256 + 100), part(1000), (1, 28, 28), "0" * 64, classes, (0.5,), (0.3,))


def seconds_of_epochs(outputs: Path, names: Sequence[str]) -> list[float]:
    """Return the seconds of the steps of each epoch except the first, summed over the runs."""
    runs = [directory.read_metrics(outputs / name) for name in names]
    return [sum(rows[epoch]["seconds"] for rows in runs) for epoch in range(1, EPOCHS)]


def measure(size: Size, num_runs: int, threads: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of an epoch's steps, and of the whole, both ways."""
    taken: dict[str, list[float]] = {key: [] for key in ("alone", "stacked", "whole alone", "whole stacked")}
    sources: dict[str, Source] = {}
    data.DATASETS["fashion_mnist"] = lambda *_, **__: noise(size.steps)
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            folder, lrs = Path(name), [0.01 * (k + 1) / num_runs for k in range(num_runs)]
            began = time.perf_counter()
            for k, lr in enumerate(lrs):
                train(size.config(folder, f"a/{k}", lr, threads), StopSignal(), sources=sources)
            between = time.perf_counter()
            configs = [size.config(folder, f"s/{k}", lr, threads) for k, lr in enumerate(lrs)]
            assert group_runs(configs).stacks == [list(range(num_runs))]
            train_stack(configs, StopSignal(), sources=sources)
            taken["whole stacked"].append(time.perf_counter() - between)
            taken["whole alone"].append(between - began)
            for way, sweep in (("alone", "a"), ("stacked", "s")):
                names = [f"{sweep}/{k}" for k in range(num_runs)]
                taken[way].append(statistics.median(seconds_of_epochs(folder / "outputs", names)))
    return {key: values[1:] for key, values in taken.items()}  # the first round warms up


def steps(hidden: Sequence[int], num_runs: int) -> list[float]:
    """Return the time of K single steps divided by that of a stacked one, in five turns; 784-...-10, SGD."""
    x, y = torch.randn(256, 784), torch.arange(256) % 10
    choice = Choice("mlp", {"num_hiddens": hidden}) if hidden else Choice("softmax", {})
    options = {"lr": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "decay_all": True}
    lone = [build.build_model(choice, "concise", (784,), 10) for _ in range(num_runs)]
    together = MODELS[choice.name](
        layers.stacked_layers(num_runs), (784,), 10, **{**choice.options, "init_std": "torch"}
    )
    layers.copy_into_stack(together, lone)
    loss_fn = build.build_loss(Choice("cross_entropy", {"label_smoothing": 0.0}), "concise")
    objective = partial(layers.objective, loss_fn, is_sum=False, classes_second=True)
    optimizer: Any = StackedSGD(together, [options] * num_runs)
    own = [build.build_optimizer(Choice("sgd", options), "concise", model) for model in lone]

    def seconds(model: Any, loss_fn: Any, optimizer: Any, lr: Any, totals: Any) -> float:
        began = time.process_time()  # CPU time of this process, so that others matter less
        for _ in engine.train_epoch(
            *(model, loss_fn, optimizer, engine.whole([(x, y)] * 10)),
            **{"lr_at": lambda step: lr, "step": 0, "totals": totals, "autocast": contextlib.nullcontext},
        ):
            pass
        return time.process_time() - began

    ratios = []
    for _ in range(6):
        alone = sum(
            seconds(model, loss_fn, each, 0.01, Totals(torch.device("cpu")))
            for model, each in zip(lone, own, strict=True)
        )
        ratios.append(alone / seconds(together, objective, optimizer, torch.full((num_runs,), 0.01), Uncounted()))
    return ratios[1:]


class Uncounted(Totals):
    """Totals that add nothing: the program adds rarely, for many batches at once."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    def add(self, *_: Any) -> None:
        """Do nothing."""


def print_steps() -> None:
    """Print a line for each size and number of runs, on one thread."""
    torch.set_num_threads(1)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]  # oneDNN, as the program on AMD
    print("| model | runs | CPU time alone / stacked (of each turn) |\n|---|---|---|")
    for hidden in ([], [16], [64], [256]):
        for num_runs in (2, 4, 16):
            ratios = steps(hidden, num_runs)
            name = "-".join(map(str, (784, *hidden, 10)))
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {name} | {num_runs} | **{statistics.median(ratios):.2f}** ({each}) |", flush=True)


def main() -> None:
    """Print a line for each size, number of runs and number of threads."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.stacks", description=__doc__)
    options.add_argument("sizes", nargs="*", help=f"{', '.join(SIZES)}; default: all of them")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--runs", type=int, nargs="*", default=[4, 16])
    options.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    options.add_argument("--steps", action="store_true", help="CPU time of bare steps, for a busy machine")
    args = options.parse_args()
    if args.steps:
        return print_steps()
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
