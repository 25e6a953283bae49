"""Signals, generators, threads and devices."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.run import machine
from trainer.run.environment import _git_commit, provenance, rounding
from trainer.run.seeds import restore_rng, rng_state, seed_everything
from trainer.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture
def threads_put_back() -> Iterator[None]:
    yield
    torch.set_num_threads(machine.TORCH_THREADS)


def set_up(name: str = "cpu", **changes: Any) -> machine.Machine:
    return machine.set_up(name, **({"num_threads": 1, "precision": "fp32", "channels_last": False} | changes))


def test_generators_go_on_from_a_saved_state() -> None:
    dropout = torch.nn.Dropout(0.5)
    seed_everything(3)
    torch.rand(5)
    random.gauss(0, 1)  # keeps the second number of a pair back, as NumPy's does
    np.random.standard_normal()
    state = rng_state(CPU)
    draw = lambda: [torch.rand(4), torch.randn(3), dropout(torch.ones(20)), torch.randperm(9)]  # noqa: E731
    draw_others = lambda: [random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.random()]  # noqa: E731
    expected, others = draw(), draw_others()
    seed_everything(4)
    restore_rng(state, CPU)
    assert all(torch.equal(a, b) for a, b in zip(draw(), expected, strict=True))
    assert draw_others() == others


def test_a_saved_state_does_not_move_with_the_generator() -> None:
    state = rng_state(CPU)
    kept = state["cpu"].clone()
    torch.rand(1000)
    assert torch.equal(state["cpu"], kept)
    assert state["cuda"] is None


def test_a_seed_settles_every_generator() -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        seed_everything(seed)
        return random.random(), float(np.random.random()), torch.rand(()).item()

    assert draws(1) == draws(1)
    assert all(a != b for a, b in zip(draws(1), draws(2), strict=True))


@pytest.mark.usefixtures("threads_put_back")
def test_threads_are_set_and_zero_goes_back_to_torchs_own() -> None:
    set_up(num_threads=3)
    assert torch.get_num_threads() == 3
    set_up(num_threads=0)
    assert torch.get_num_threads() == machine.TORCH_THREADS
    set_up(num_threads=1)
    assert torch.get_num_threads() == 1


def test_deterministic_kernels_are_asked_for_and_given_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    try:
        set_up(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert rounding(machine.Machine(CPU))["deterministic"] is True
    finally:
        set_up()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("threads_put_back")
@pytest.mark.parametrize(
    ("precision", "dtype", "to"),
    [
        ("fp32", torch.float32, None),
        ("fp64", torch.float64, None),
        ("bf16", torch.float32, torch.bfloat16),
        ("fp16", torch.float32, torch.float16),
    ],
)
def test_precision_settles_type_and_autocast(precision: str, dtype: torch.dtype, to: torch.dtype | None) -> None:
    machine = set_up(precision=precision, channels_last=True)
    assert (machine.device, machine.dtype, machine.autocast_to, machine.channels_last) == (CPU, dtype, to, True)
    with machine.autocast():
        product = torch.ones(2, 2, dtype=dtype) @ torch.ones(2, 2, dtype=dtype)
    assert product.dtype == (to or dtype)


@pytest.mark.parametrize(
    ("count", "index", "message"),
    [
        (0, 0, r"device=cuda:0: no CUDA GPU is visible\. Allowed here: device=cpu, device=auto"),
        (2, 7, r"device=cuda:7: the GPUs are numbered 0 to 1\."),
        (2, 2, r"device=cuda:2"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    count: int, index: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    before = torch.get_num_threads()
    with pytest.raises(ConfigError, match=message):
        set_up("cuda", index=index, num_threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("threads_put_back")
@pytest.mark.parametrize(
    ("name", "count", "device"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 2, "cuda:1")],
)
def test_only_auto_chooses(name: str, count: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert set_up(name, index=int(device[-1]) if ":" in device else 0).device == torch.device(device)


def test_the_description_of_a_run_is_plain_and_complete() -> None:
    found = provenance(machine.Machine(CPU))
    versions, hardware = {"versions", "platform"}, {"cpu", "cpu_capability", "threads", "device", "gpu"}
    assert set(found) == versions | hardware | {"git", "command"}
    assert json.loads(json.dumps(found)) == found
    assert (found["versions"]["torch"], found["device"], found["gpu"]) == (torch.__version__, "cpu", None)
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads()
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True, check=True)
        assert found["git"]["commit"] == head.stdout.strip()
        assert isinstance(found["git"]["dirty"], bool)


def test_an_apple_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no Apple GPU"):
        set_up("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="fp64"):
        set_up("mps", precision="fp64")


def test_only_a_cuda_gpu_is_asked_for_its_name() -> None:
    assert machine.gpu_name(CPU) is None
    assert rounding(machine.Machine(torch.device("mps")))["device"] == "mps"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert _git_commit.__wrapped__() is None  # not what an earlier call found
