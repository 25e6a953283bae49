"""The fault matrix as a whole: every row has its test, and the price of it all is what was promised."""

import os
import re
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli

from trainer import engine
from trainer.run import directory, epochs
from trainer.run.epochs import save_checkpoint
from trainer.run.session import Session

TESTS = Path(__file__).parent
NUM_ROWS = 46
REAL_DATA = os.environ.get("REAL_DATA", "")


def rows_tested() -> set[int]:
    """The numbers in names like test_row_07_..., test_row_30_and_32_..."""
    names = re.findall(r"^def test_(row_\d\d\w*)", "\n".join(p.read_text() for p in TESTS.glob("test_*.py")), re.M)
    return {int(number) for name in names for number in re.findall(r"(?:row|and)_(\d\d)(?=_)", name)}


def test_every_row_of_the_fault_matrix_has_a_test() -> None:
    assert rows_tested() == set(range(1, NUM_ROWS + 1))


# what makes the CPU wait for a GPU
WAITING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


def reads_of(cli: Cli, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """How often a training epoch reads a number from the device."""
    count, training_now = [0], [False]
    original = engine.train_epoch

    def train_epoch(*args: Any, **options: Any) -> Any:
        training_now[0] = True
        yield from original(*args, **options)
        training_now[0] = False

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_epoch", train_epoch)
        for name in WAITING:
            whole = getattr(torch.Tensor, name)

            def counted(self: torch.Tensor, *args: Any, whole: Any = whole, **options: Any) -> Any:
                count[0] += training_now[0]
                return whole(self, *args, **options)

            patch.setattr(torch.Tensor, name, counted)
        outcome = cli("plots=false", "epochs=1", *words)
    assert outcome.code == 0, outcome.err
    return count[0]


def test_the_check_for_finite_numbers_reads_nothing_from_the_device_in_a_step(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("record.every_steps=1000000", "optimizer=adamw", "data.val_fraction=0")
    short = reads_of(cli, monkeypatch, *words, "data.num_examples=100")
    long = reads_of(cli, monkeypatch, *words, "data.num_examples=2000")
    assert short == long
    assert reads_of(cli, monkeypatch, *words, "data.num_examples=2000", "record.every_steps=10") > long


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif(not REAL_DATA, reason="REAL_DATA is not set: what checkpoints cost is measured on real pictures")
def test_checkpoints_cost_next_to_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Medians over epochs at the default interval, with the disk's fsync in them: the machine is to be quiet."""
    original, said = save_checkpoint, ""
    for name, words in {
        "linreg": ("epochs=30",),
        "softmax": ("model=softmax", "data=fashion_mnist", "epochs=10"),
        "mlp": ("model=mlp", "data=fashion_mnist", "epochs=8"),
        "lenet": ("model=lenet", "data=mnist", "epochs=3"),
    }.items():
        seconds: list[float] = []

        def save(s: Session, seconds: list[float] = seconds) -> None:
            began = time.perf_counter()
            original(s)
            seconds.append(time.perf_counter() - began)

        monkeypatch.setattr(epochs, "save_checkpoint", save)
        assert cli(*words, "plots=false", f"name={name}", f"paths.data={REAL_DATA}").code == 0
        cost = statistics.median(seconds)
        epoch = statistics.median(row["seconds"] for row in directory.read_metrics(Path("outputs", name)))
        said += f"\n{name}: a save takes {cost * 1e3:.1f} ms, an epoch {epoch:.2f} s ({cost / epoch:.2%})"
        assert cost < max(0.006, epoch / 100), said
    with capfd.disabled():
        print(said)


FLOORS = {"torch": (2, 10), "hydra-core": (1, 3, 8), "pillow": (12, 3)}  # below them are holes that are mended since


def test_packages_with_known_holes_cannot_be_installed() -> None:
    lines = (TESTS.parent / "requirements.txt").read_text().splitlines()
    lowest = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines if ">=" in line)  # type: ignore[union-attr]
    for name, floor in FLOORS.items():
        assert tuple(map(int, lowest[name].split("."))) >= floor, name
