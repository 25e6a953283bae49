"""Programs as separate processes, one after the other, on a pseudo-terminal so that progress bars are drawn.

Torch-free: Linux counts the peak memory of the process that starts another one into that of the other.
"""

import argparse
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.tasks import Task

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


class BenchError(Exception):
    """A program did not do what was expected."""


@dataclass(frozen=True)
class Finished:
    """A finished process: wall time, peak of main memory, and what it printed."""

    seconds: float
    peak_bytes: int
    output: str

    @property
    def result(self) -> Any:
        """The content of the last line, which is JSON."""
        return json.loads(self.output.strip().splitlines()[-1])


@dataclass(frozen=True)
class Measured:
    """Seconds per epoch, and the accuracy on the test part after `epochs` (None: not measured)."""

    seconds: float
    accuracy: float | None
    epochs: int
    whole: Finished | None = None  # of main.py: the longer run
    short: tuple[float, int] | None = None  # the seconds and the epochs of the shorter one


def run(words: Sequence[str], *, exit_code: int = 0) -> Finished:
    """Run this Python with `words` in the project's folder, or raise a BenchError if it exits with another code."""
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (40, 120))
    env = os.environ | {"TERM": "xterm-256color"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=env, stdin=its_end, stdout=its_end, stderr=its_end
    )
    os.close(its_end)
    chunks = []
    try:
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while chunk := os.read(terminal, 65536):
                chunks.append(chunk)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    finally:
        os.close(terminal)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    output = b"".join(chunks).decode(errors="replace")
    if process.returncode != exit_code:
        raise BenchError(f"{' '.join(words)} ended with {process.returncode}:\n{output[-2000:]}")
    return Finished(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), output)


def loop(module: str, task: str, epochs: int, *words: str) -> Measured:
    """Run a loop of this folder; its first epoch warms up and is not counted."""
    result = run(["-m", *module.split(), "--task", task, f"--epochs={epochs}", *words]).result
    timed = result["seconds"][1:]
    return Measured(sum(timed) / len(timed), result["accuracy"], epochs)


def train(words: Sequence[str], epochs: int, program: Sequence[str] = ("main.py",)) -> Finished:
    """Run main.py and remove its files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = (f"paths.outputs={folder}/outputs", f"paths.checkpoints={folder}/checkpoints")
        return run([*program, *words, f"epochs={epochs}", *paths])


def product(words: Sequence[str], epochs: tuple[int, int], program: Sequence[str] = ("main.py",)) -> Measured:
    """Measure main.py's seconds per epoch as the difference of a long and a short run, without start-up."""
    few, many = epochs
    short, long = train(words, few, program), train(words, many, program)
    if long.seconds - short.seconds < 1:
        raise BenchError(
            f"{few} and {many} epochs differ by less than start-up varies: raise product_epochs in tasks.py"
        )
    accuracy = re.search(r"test: accuracy ([\d.]+)", long.output)
    assert accuracy is not None, "classifiers print it"
    each = (long.seconds - short.seconds) / (many - few)
    return Measured(each, float(accuracy[1]), many, long, (short.seconds, few))


def least(measured: Sequence[Measured]) -> float:
    """Seconds per epoch from the least long and the least short run of product(): other programs only add to either."""
    long = min((m.whole.seconds, m.epochs) for m in measured if m.whole is not None)
    short = min(m.short for m in measured if m.short is not None)
    return (long[0] - short[0]) / (long[1] - short[1])


def product_of(task: Task, words: Sequence[str], program: Sequence[str] = ("main.py",)) -> Measured:
    """Run product() for a task, and check that the number of images is that of the task."""
    measured = product([*task.words(), *words], task.product_epochs, program)
    assert measured.whole is not None
    counts = re.search(r"examples: ([\d,]+) train, ([\d,]+) val", measured.whole.output)
    found = [int(n.replace(",", "")) for n in counts.groups()] if counts else []
    if found != [task.num_train, task.num_eval]:
        raise BenchError(f"main.py used {found} images, the others {[task.num_train, task.num_eval]}")
    return measured


def in_turn(variants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run the variants in turn, so that a change of the machine's speed affects all of them."""
    found: dict[str, list[T]] = {name: [] for name in variants}
    for i in range(rounds):
        for name, measure in variants.items():
            if sys.stdout.isatty():
                print(f"  round {i + 1}/{rounds}: {name:40}", end="\r", flush=True)
            found[name].append(measure())
    if sys.stdout.isatty():
        print(" " * 60, end="\r")
    return found


def folders(args: argparse.Namespace, task: Task) -> list[str]:
    """Return main.py's settings for the folder of a task's data and the device."""
    return [f"paths.data={args.cifar if task.data == 'cifar10' else args.data}", f"device={args.device}"]


def options(args: argparse.Namespace) -> list[str]:
    """Return the same settings for the loops of this folder."""
    return [f"--data={args.data}", f"--cifar={args.cifar}", f"--device={args.device}"]
