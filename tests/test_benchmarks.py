"""What `make bench` types is what the program takes; the measurements themselves take minutes."""

import argparse
import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks import alone, processes
from trainer.config.command_line import parse_command


@pytest.mark.parametrize("task", ["scaling", "streaming", "ranks"])
def test_its_command_lines_are_taken(task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    typed, clock = [], itertools.accumulate(itertools.count(1))

    def run(words: list[str], **_: Any) -> processes.Finished:
        first = next(i for i, word in enumerate(words) if "=" in word and not word.startswith("-"))
        typed.append(parse_command(words[first:]))
        return processes.Finished(output="test: accuracy 0.5", seconds=float(next(clock)), peak_bytes=1)

    monkeypatch.setattr(processes, "run", run)
    (tmp_path / "cifar10").mkdir()
    args = argparse.Namespace(data="d", cifar=str(tmp_path), device="cpu", rounds=1)
    assert getattr(alone, task)(task, args).rows
    assert len(typed) > 5


def test_a_disturbed_short_run_makes_an_epoch_no_shorter() -> None:
    def measured(long: float, short: float) -> processes.Measured:
        whole = processes.Finished(seconds=long, peak_bytes=1, output="")
        return processes.Measured(long - short, None, 3, whole, (short, 1))

    assert processes.least([measured(10, 4), measured(11, 9)]) == 3
