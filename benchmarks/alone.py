"""The tasks that measure main.py alone: start-up, more data, data on disk, augmentation."""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, BenchError, Measured, folders, in_turn, least, product, run, train
from benchmarks.report import Section, number, spread, verdict
from benchmarks.tasks import TASKS

AUGMENTATION_LIMIT = 200  # microseconds
STARTUP_LIMITS = {  # seconds: more than `import torch` takes, and in total
    "main.py plots=false": (0.8, None),
    "main.py": (1.2, None),
    "main.py --help": (None, 0.35),
    "main.py model=mpl (refused)": (None, 0.5),
    "CIFAR-10 images, second start": (None, 0.5),
}


def need_images(task: str, args: argparse.Namespace) -> Path:
    """Return the folder of CIFAR-10 as image files, or raise a BenchError if it does not exist."""
    root = Path(args.cifar) / "cifar10"
    if not (ROOT / root).is_dir():
        raise BenchError(f"{task} needs CIFAR-10 as image files in {root}/{{train,test}}/<class>/*.")
    return root


def startup(name: str, args: argparse.Namespace) -> Section:
    """Time the smallest run, help, a refusal, and the reading of data."""
    need_images("startup", args)
    probe = ["-m", "benchmarks.probes", f"--cifar={args.cifar}", "data_ready"]
    run(probe)  # decodes the images, if they are not in the cache yet
    variants: dict[str, Callable[[], float]] = {
        "import torch": lambda: run(["-c", "import torch"]).seconds,
        "main.py plots=false": lambda: train(["plots=false"], 3).seconds,
        "main.py": lambda: train([], 3).seconds,
        "main.py --help": lambda: run(["main.py", "--help"]).seconds,
        "main.py model=mpl (refused)": lambda: run(["main.py", "model=mpl"], exit_code=2).seconds,
        "CIFAR-10 images, second start": lambda: float(run(probe).result),
    }
    found = in_turn(variants, args.rounds or 7)
    torch_alone = statistics.median(found["import torch"])
    rows = []
    for variant, seconds in found.items():
        median = statistics.median(seconds)
        over, total = STARTUP_LIMITS.get(variant, (None, None))
        goal = f"<= {over} over torch" if over else f"<= {total}" if total else ""
        is_met = median - torch_alone <= over if over else median <= (total or 0)
        rows.append([variant, *spread(seconds), f"{median - torch_alone:+.2f}", goal, verdict(is_met) if goal else ""])
    title = "Wall time of whole commands; for the images, from an imported torch to the splits"
    return Section(name, title, ("command", "s", "all", "over import torch", "goal", ""), rows)


def scaling(name: str, args: argparse.Namespace) -> Section:
    """Measure time per example and memory with the training part repeated."""
    rows = []
    for model, epochs in (("softmax", 40), ("mlp", 16)):
        task = replace(TASKS[model], num_eval=0)
        words = [*task.words(), *folders(args, task)]

        def measure(repeat: int, words: list[str] = words, epochs: int = epochs) -> Measured:
            program = ["-m", "benchmarks.probes", "train", f"--repeat={repeat}", "fashion_mnist"]
            return product(words, (1, 1 + epochs // repeat), program)

        found = in_turn({str(k): partial(measure, k) for k in (1, 2, 4, 8)}, args.rounds or 4)
        first: tuple[float, int] | None = None
        for repeated, measured in found.items():
            n = 60_000 * int(repeated)
            microseconds = least(measured) / n * 1e6
            peak = max(m.whole.peak_bytes for m in measured if m.whole)
            first = first or (microseconds, peak)
            growth = microseconds / first[0] - 1
            more = f"{(peak - first[1]) / ((n - 60_000) * 784):.1f}" if n > 60_000 else ""
            judged = ["<= +5 %", verdict(growth <= 0.05)] if n > 60_000 else ["", ""]
            memory = [f"{n * 784 / 2**20:.0f}", f"{peak / 2**20:.0f}", more]
            rows.append([model, repeated, number(microseconds), f"{growth:+.1%}", *judged, *memory])
    header = ("model", "times", "us per example", "to 1", "goal", "", "data, MiB", "peak, MiB", "peak per byte added")
    title = "Fashion-MNIST's training part repeated; no validation; the least long run minus the least short one"
    return Section(name, title, header, rows)


def streaming(name: str, args: argparse.Namespace) -> Section:
    """Compare images decoded when needed with images held in memory."""
    root, n = need_images("streaming", args), 10_000
    words = [
        *("data=folder", "recipe=none", f"data.root={root}", "data.size=32", f"data.limit={n}", "data.val_fraction=0"),
        *("model=lenet", "schedule=constant", "batch_size=128", f"device={args.device}"),
    ]
    for resident in ("true", "false"):  # fills the cache of decoded images, and reads every file once
        train([*words, f"data.resident={resident}"], 1)
    variants: dict[str, Callable[[], Measured]] = {
        "resident": partial(product, [*words, "data.resident=true"], (1, 9)),
    }
    for k in (0, 1, 2, 4):
        streamed = [*words, "data.resident=false", f"data.workers={k}"]
        variants[f"streaming, workers={k}"] = partial(product, streamed, (1, 4))
    found = in_turn(variants, args.rounds or 2)
    rates = {variant: [n / m.seconds for m in measured] for variant, measured in found.items()}
    best = statistics.median(rates["resident"])
    rows = [[key, *spread(values), f"{statistics.median(values) / best:.2f}"] for key, values in rates.items()]
    title = "LeNet on CIFAR-10's images as data=folder, with crop and flip, training only"
    return Section(name, title, ("variant", "images/s", "all", "/ resident"), rows)


def ranks(name: str, args: argparse.Namespace) -> Section:
    """Compare one process with one or two threads with two processes of one thread each."""
    rows = []
    for key in ("softmax", "mlp", "lenet"):
        task = TASKS[key]
        words = [*task.words(), *folders(args, task)]
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main.py")
        variants: dict[str, Callable[[], Measured]] = {
            "1 process, 1 thread": partial(product, [*words, "device.num_threads=1"], task.product_epochs),
            "1 process, 2 threads": partial(product, [*words, "device.num_threads=2"], task.product_epochs),
            "2 processes, 1 thread": partial(product, [*words, "device.num_threads=1"], task.product_epochs, torchrun),
        }
        found = in_turn(variants, args.rounds or 3)
        seconds = {variant: least(measured) for variant, measured in found.items()}
        first = seconds["1 process, 1 thread"]
        rows += [[f"{key}: {variant}", number(each), f"{first / each:.2f}"] for variant, each in seconds.items()]
    title = "Seconds per epoch with validation; the least long run minus the least short one"
    return Section(name, title, ("variant", "s / epoch", "speed to 1 thread"), rows)


def augmentation(name: str, args: argparse.Namespace) -> Section:
    """Time the preparation of a batch with crop and flip."""
    probe = ["-m", "benchmarks.probes", f"--cifar={args.cifar}", f"--device={args.device}", "augmentation"]
    found: list[Any] = in_turn({"both": lambda: run(probe).result}, args.rounds or 3)["both"]
    rows = []
    for augment, limit in (("none", None), ("crop_flip", AUGMENTATION_LIMIT)):
        values = [result[augment] for result in found]
        judged = [f"<= {limit}", verdict(statistics.median(values) <= limit)] if limit else ["", ""]
        rows.append([augment, *spread(values), *judged])
    title = "Gathering, augmenting and normalising a batch of 128 CIFAR-10 images"
    return Section(name, title, ("data.augment", "us", "all", "goal", ""), rows)
