"""The machine: device, threads, seeds, and what to write down about them. The only place with global state."""

import contextlib
import os
import platform
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from trainer.utils.errors import ConfigError

mkldnn: Any = torch.backends.mkldnn  # torch puts an object in the place of this module, which mypy does not know
TORCH_THREADS = torch.get_num_threads()  # what torch decided itself; device.num_threads=0 goes back to it


@dataclass(frozen=True)
class Machine:
    """Where and how the numbers are computed."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    autocast_to: torch.dtype | None = None
    channels_last: bool = False
    matmul: str = "torch"  # as it came out: onednn and tf32 are left out where they are not to be had
    compile: bool = False
    stack: int = 1  # runs whose numbers are computed together

    def autocast(self) -> AbstractContextManager[object]:
        """The context of one forward pass."""
        if self.autocast_to is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_to)


PRECISIONS = {  # type of weights and inputs, and type of the matrix products where that is another
    "fp32": (torch.float32, None),
    "fp64": (torch.float64, None),
    "bf16": (torch.float32, torch.bfloat16),
    "fp16": (torch.float32, torch.float16),
}


def find_device(name: str, index: int = 0) -> torch.device:
    """The device of a choice.

    Raises:
        ConfigError: a GPU was asked for that is not there. Only device=auto chooses by itself.
    """
    count = torch.cuda.device_count() if name in ("auto", "cuda") else 0
    if (name == "cuda" or count) and index >= count:
        there = f"the GPUs are numbered 0 to {count - 1}" if count else "no CUDA GPU is visible"
        raise ConfigError(f"device=cuda:{index}: {there}. Allowed here: device=cpu, device=auto.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: no Apple GPU is visible. Allowed here: device=cpu, device=auto.")
    return torch.device("mps") if name == "mps" else torch.device("cuda", index) if count else torch.device("cpu")


def set_up(
    name: str,
    *,
    num_threads: int = 0,
    precision: str = "fp32",
    channels_last: bool = False,
    matmul: str = "torch",
    compile: bool = False,
    deterministic: bool = False,
    index: int = 0,
) -> Machine:
    """Choose the device and how it computes; what concerns the whole process is set here and nowhere else.

    Args: those of configs/device, without `auto` (trainer/device.py says what that stands for).
    Raises:
        ConfigError: a GPU was asked for that is not there, or fp64 of an Apple GPU.
    """
    device = find_device(name, index)
    if device.type == "mps" and precision == "fp64":
        raise ConfigError("device.precision=fp64 is not to be had with device=mps. Allowed: fp32, bf16, fp16.")
    torch.set_num_threads(num_threads or TORCH_THREADS)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before the first matrix product on the GPU
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the setter imports the compiler: a second
        torch.use_deterministic_algorithms(deterministic)
    if not matmul_is_there(matmul, device):
        matmul = "torch"
    mkldnn.matmul.fp32_precision = "bf16" if matmul == "onednn" else "none"
    cuda_precision = "tf32" if matmul == "tf32" else "none"
    if torch.backends.cuda.matmul.fp32_precision != cuda_precision:  # untouched where nobody asks for it
        torch.backends.cuda.matmul.fp32_precision = cuda_precision
    dtype, autocast_to = PRECISIONS[precision]
    return Machine(device, dtype, autocast_to, channels_last, matmul, compile)


def set_up_numpy() -> None:
    """NumPy computes with as many threads as torch, and is silent where numbers overflow: the loop looks for that."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threadpool_limits(torch.get_num_threads(), user_api="blas")
    np.seterr(all="ignore")


def matmul_is_there(matmul: str, device: torch.device) -> bool:
    """Whether a way to multiply float32 matrices can be had on a device."""
    if matmul == "onednn":
        return device.type == "cpu" and mkldnn.is_available() and onednn_is_exact()
    if matmul == "tf32":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return True


def onednn_is_exact() -> bool:
    """Whether oneDNN's products of float32 matrices have float32's accuracy on this CPU.

    torch lets oneDNN multiply them only under the name of bf16. CPUs without instructions for that compute in float32
    all the same; those that have them (AMX) would round to 8 bits, which the product of this trial shows.
    """
    a, b = (torch.rand(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    before = mkldnn.matmul.fp32_precision
    mkldnn.matmul.fp32_precision = "bf16"
    try:
        product = a @ b
    finally:
        mkldnn.matmul.fp32_precision = before
    exact = a.double() @ b.double()
    return bool(((product - exact).abs() <= 1e-5 * exact).all())  # float32: 1e-7, bf16: 1e-3


def cpu_can(instructions: str) -> bool:
    """Whether the CPU has the instructions of this name, one of torch.cpu.get_capabilities()."""
    return bool(torch.cpu.get_capabilities().get(instructions))


def seed_everything(seed: int) -> None:
    """Seed the global generators: initial weights and dropout draw from torch's; the others are for user code."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of the process's generators, as tensors and plain types.

    Training itself draws from torch's; Python's and NumPy's are for models and data sets that use them.
    """
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.copy()), *rest],
    }


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back to a state that rng_state returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))


def describe(machine: Machine) -> dict[str, Any]:
    """Versions, hardware and commit, for config.json."""
    packages = ("torchvision", "hydra-core", "omegaconf", "numpy", "pillow")
    return {
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)}
        | {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(machine.device),
        "gpu": gpu_name(machine.device),
        "git": _git_commit(),
        "command": [os.path.basename(sys.orig_argv[0]), *sys.orig_argv[1:]],
    }


def peak_memory() -> int:
    """Bytes that this process held at its peak: of GPU memory where it used a GPU, else of main memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gpu_name(device: torch.device) -> str | None:
    """The model of a CUDA GPU; None for any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def cpu_name() -> str:
    """The model of the CPU, as the kernel knows it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@cache
def _version(package: str) -> str:
    return version(package)  # 1 ms, in each run of a sweep


@cache  # as of the start of the process, which also took the code from there
def _git_commit() -> dict[str, Any] | None:
    here = os.path.dirname(os.path.abspath(__file__))
    run: Callable[..., str] = lambda *args: subprocess.run(  # noqa: E731
        ["git", "-C", here, *args], capture_output=True, text=True, check=True, timeout=5
    ).stdout.strip()
    try:
        return {"commit": run("rev-parse", "HEAD"), "dirty": bool(run("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or not a checkout
