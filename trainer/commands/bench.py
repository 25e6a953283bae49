"""The bench command: how long a trained model takes for a batch, and how many examples that is in a second."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.commands.evaluate import Trained, load_trained
from trainer.commands.export import random_examples, ready
from trainer.config.schema import Config
from trainer.data.folder import memory_available
from trainer.run.environment import peak_memory
from trainer.run.formats import read_onnx
from trainer.run.machine import cpu_name, gpu_name
from trainer.run.target import Target
from trainer.utils.files import write_json
from trainer.utils.screen import Screen, table
from trainer.utils.text import number_of

SIZES = tuple(2**i for i in range(9))  # 1 to 256
LEAST_TIMES, SECONDS_EACH = 10, 0.5  # a batch is timed so often, and so long
SECONDS_MOST = 2.0  # for one batch: those that take longer are left out
WARM_UP = 3


def bench(config: Config, target: Target, screen: Screen) -> None:
    """Print a table of batch sizes and write bench.json; the exported ONNX file beside it where there is one."""
    trained = load_trained(config, target, screen)
    machine = trained.machine
    model = ready(config, trained)

    @torch.inference_mode()
    def compute(x: Tensor) -> Tensor:
        with machine.autocast():
            return model(x.to(machine.device)).cpu()  # the copy waits for a GPU

    ways: dict[str, Callable[[Tensor], Tensor]] = {"torch": compute}
    onnx = trained.folder / "export" / f"{trained.content['config']['name'].replace('/', '-')}.onnx"
    if onnx.is_file() and machine.device.type == "cpu" and importlib.util.find_spec("onnxruntime") is not None:
        ways["onnx"] = read_onnx(onnx)
    noun = "images" if len(trained.in_shape) == 3 else "rows"
    where = gpu_name(machine.device) or cpu_name()
    threads = number_of(torch.get_num_threads(), "thread")
    precision = str(machine.autocast_to or machine.dtype).removeprefix("torch.")
    screen.say(
        f"from {noun} in memory to {'probabilities' if trained.classes else 'numbers'}, in {precision}, on "
        f"{machine.device} ({where}), {threads}: median, and the middle half of the times"
    )
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, way in ways.items():
        rows[name], why = timed(way, trained)
        screen.say(*([f"{name}: {why}"] if why else []))
    screen.say(*table([cells_of_batch(row["batch"], rows, noun) for row in max(rows.values(), key=len)]))
    for name, of_way in rows.items():
        best, first = max(of_way, key=lambda row: row["per_second"]), of_way[0]
        screen.say(
            f"{name}: {best['per_second']:,.0f} {noun}/s at best, in batches of {best['batch']}; "
            f"one alone takes {1000 * first['median']:.3g} ms"
        )
    every = [row for of_way in rows.values() for row in of_way]
    if any(row["quartiles"][1] - row["quartiles"][0] > row["median"] / 2 for row in every):
        screen.say("warning: times of the same batch differ by half: something else is running on this machine")
    path = trained.folder / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"checkpoint": str(trained.path), "device": str(machine.device), "hardware": where, "precision": precision}
    write_json(path, told | {"threads": torch.get_num_threads(), "unit": "seconds", **rows})
    screen.say(f"written  {path}")


def timed(compute: Callable[[Tensor], Tensor], trained: Trained) -> tuple[list[dict[str, Any]], str]:
    """A row for each size, with times in seconds; and why larger ones were left out, or ""."""
    rows: list[dict[str, Any]] = []
    before = peak_memory() or 0
    for size in SIZES:
        if 2 * ((peak_memory() or 0) - before) > memory_available():  # what half of it took
            return rows, f"batches of {size} may not fit into the memory"
        x = random_examples(trained, size)
        try:
            if seconds_of(compute, x) > SECONDS_MOST and rows:
                return rows, f"a batch of {size} takes more than {SECONDS_MOST:g} s: it and larger ones are left out"
            seconds = times_of(compute, x)
        except (torch.OutOfMemoryError, MemoryError):
            if not rows:
                raise
            return rows, f"batches of {size} do not fit into the memory"
        low, median, high = statistics.quantiles(seconds, n=4)
        times = {"median": median, "quartiles": [low, high], "times": len(seconds)}
        rows.append({"batch": size, **times, "per_second": size / median})
    return rows, ""


def seconds_of(compute: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """How long a batch takes once."""
    begun = time.perf_counter()
    compute(x)
    return time.perf_counter() - begun


def times_of(compute: Callable[[Tensor], Tensor], x: Tensor) -> list[float]:
    """Seconds of each of at least LEAST_TIMES computations, after some that are not counted."""
    for _ in range(WARM_UP):
        compute(x)
    seconds: list[float] = []
    while len(seconds) < LEAST_TIMES or sum(seconds) < SECONDS_EACH:
        seconds.append(seconds_of(compute, x))
    return seconds


def cells_of_batch(batch: int, rows: Mapping[str, list[dict[str, Any]]], noun: str) -> dict[str, Any]:
    """The line of the table on a batch size: of each way the times in milliseconds and the examples in a second."""
    cells: dict[str, Any] = {"batch": batch}
    for name, of_way in rows.items():
        row = next((row for row in of_way if row["batch"] == batch), None)
        low, high = row["quartiles"] if row else (0, 0)
        cells[f"{name} ms"] = f"{1000 * row['median']:.3g}" if row else ""
        cells[f"{name} spread"] = f"{1000 * low:.3g} to {1000 * high:.3g}" if row else ""
        cells[f"{name} {noun}/s"] = f"{row['per_second']:,.0f}" if row else ""
    return cells
