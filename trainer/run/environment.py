"""What is written down about the machine: versions, hardware, commit, and what rounding depends on."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from trainer.run.machine import Machine, cpu_name, gpu_name

with suppress(ImportError):  # Windows
    import resource


def provenance(machine: Machine) -> dict[str, Any]:
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
    """Bytes that this process held at its peak: of GPU memory where it used a GPU, else of main memory; 0: unknown."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if "resource" not in globals():
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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


def rounding(machine: Machine) -> dict[str, Any]:
    """What rounding depends on besides the settings."""
    capability = torch.backends.cpu.get_cpu_capability()
    device = gpu_name(machine.device) or machine.device.type
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cpu": capability,
        "device": device,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": machine.matmul,
        "stack": machine.stack,
    }
