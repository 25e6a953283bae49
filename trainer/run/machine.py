"""What `auto` stands for among the settings of a device: precision, memory layout, matrix products.

It is a rule by model and machine, and not a trial in each run: the same command on the same machine has to end in the
same bits, and a stopwatch does not repeat. For CPUs it rests on measurements, for GPUs on torch's own guide
(docs/speed.md). What it chose is stored with the run's settings: a run keeps it when it is resumed or evaluated, on
another machine too.
"""

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from trainer.config.fit import shape_of
from trainer.config.schema import Choice, Config
from trainer.utils.errors import ConfigError

mkldnn: Any = torch.backends.mkldnn  # torch puts an object in the place of this module, which mypy does not know
TORCH_THREADS = torch.get_num_threads()  # what torch decided itself; device.num_threads=0 goes back to it


OF_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Machine:
    """Where and how the numbers are computed."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    autocast_to: torch.dtype | None = None
    channels_last: bool = False
    matmul: str = "torch"  # as it came out: torch where onednn or tf32 is not available
    compile: bool = False
    stack: int = 1  # runs whose numbers are computed together
    chosen: tuple[str, ...] = field(default=(), compare=False)  # settings of the device that were `auto`

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

    Args: those of configs/device, without `auto` (resolve_auto replaces it).
    Raises:
        ConfigError: a GPU was asked for that is not there, or fp64 of an Apple GPU.
    """
    device = find_device(name, index)
    if device.type == "mps" and precision == "fp64":
        raise ConfigError("device=mps does not support fp64. Allowed: device.precision: fp32, bf16, fp16.")
    torch.set_num_threads(num_threads or TORCH_THREADS)
    if deterministic:
        os.environ[OF_CUBLAS] = ":4096:8"  # before the first matrix product on the GPU
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


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Put back what set_up and set_up_numpy change in the whole process, at the end of the block."""
    from threadpoolctl import threadpool_limits

    threads, cpu, gpu = torch.get_num_threads(), mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    deterministic, workspace = torch.are_deterministic_algorithms_enabled(), os.environ.get(OF_CUBLAS)
    with threadpool_limits(user_api="blas"), np.errstate():  # they put back what is set inside
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            mkldnn.matmul.fp32_precision = cpu
            if torch.backends.cuda.matmul.fp32_precision != gpu:
                torch.backends.cuda.matmul.fp32_precision = gpu
            if torch.are_deterministic_algorithms_enabled() != deterministic:
                torch.use_deterministic_algorithms(deterministic)
            if workspace is None:
                os.environ.pop(OF_CUBLAS, None)


@contextlib.contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Let torch compute as where nothing was switched on or off: a caller may be within no_grad() or autocast()."""
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as held:
        for each in (torch.inference_mode(False), torch.enable_grad()):
            held.enter_context(each)
        for kind in ("cpu", "cuda"):
            held.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            held.enter_context(torch.device("cpu"))
        held.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


def matmul_is_there(matmul: str, device: torch.device) -> bool:
    """Whether a device has a way to multiply float32 matrices."""
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


def gpu_name(device: torch.device) -> str | None:
    """The model of a CUDA GPU; None for any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def cpu_name() -> str:
    """The model of the CPU, as the kernel knows it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


WIDE = ("resnet18", "resnet34", "cifarnet")  # networks of wide convolutions
SMALL = 64  # pixels; from there on a ResNet begins with its stem for ImageNet


def resolve_auto(config: Config, local: int | None = None) -> tuple[Config, Machine]:
    """The config with a value in the place of each `auto`, and the machine set up as it says.

    Args:
        local: the GPU of a process that is one of several, which the config does not know of.
    Raises:
        ConfigError: the device is not there, or cannot do what was typed.
    """
    options = dict(config.device.options)
    impls = config.impls()
    has_numpy = "numpy" in impls.values()
    name = "cpu" if config.device.name == "auto" and has_numpy else config.device.name
    index = options.get("index", 0) if local is None else local
    device = find_device(name, index)
    chosen = fastest(config, device)
    if set(impls.values()) != {"concise"}:
        chosen["precision"] = "fp32"
    if impls["model"] != "concise":  # also where the run that is evaluated had another layout
        chosen["channels_last"] = options["channels_last"] = False
    if impls["model"] == "numpy":
        options["matmul"] = "torch"
    options |= {key: chosen[key] for key in chosen if options[key] == "auto"}
    machine = set_up(name, **(options | {"index": index}))
    if local is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    if has_numpy:
        set_up_numpy()
    if "device.matmul" in config.typed and options["matmul"] != "torch":
        refuse_matmul(options, machine)
    chosen_here = tuple(key for key, value in config.device.options.items() if value == "auto")
    return replace(config, device=Choice(config.device.name, options)), replace(machine, chosen=chosen_here)


def refuse_matmul(options: Mapping[str, Any], machine: Machine) -> None:
    """Refuse a typed way of multiplying that would do nothing."""
    needs = {"onednn": "is for the CPU", "tf32": "needs an NVIDIA GPU of compute capability 8.0 or more"}
    reason = ""
    if options["precision"] != "fp32":
        reason = f"is for device.precision=fp32, which is {options['precision']} here"
    elif machine.matmul != options["matmul"]:
        on_cpu = options["matmul"] == "onednn" and machine.device.type == "cpu"
        reason = "would round on this CPU" if on_cpu else needs[options["matmul"]]
    if reason:
        raise ConfigError(f"device.matmul={options['matmul']} {reason}. Allowed: auto, torch.")


def fastest(config: Config, device: torch.device) -> dict[str, Any]:
    """What is fastest for a model on a device, among what leaves its accuracy as it is."""
    model, is_wide = config.model.name, config.model.name in WIDE
    plain = {"precision": "fp32", "channels_last": False, "matmul": "torch"}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and is_wide:
        return plain | {"precision": "bf16", "channels_last": True}
    if device.type != "cpu":
        return plain
    if is_wide:
        has_bf16 = cpu_can("avx512_bf16") or cpu_can("amx_bf16")
        precision = "bf16" if has_bf16 else "fp32"
        _, size, _ = shape_of(config.data) or (0, SMALL, SMALL)
        stem = config.model.options.get("stem", "cifar")  # cifarnet has no other
        small = stem == "cifar" or (stem == "auto" and size <= SMALL)
        return plain | {"precision": precision, "channels_last": small}
    if model in ("lenet", "convnet"):
        return plain | {"channels_last": True}
    pinned = config.device["precision"] not in ("auto", "fp32")
    is_amd = cpu_can("avx512_f") and cpu_name().startswith("AMD")
    if model in ("softmax", "mlp") and is_amd and not pinned:
        # the library that torch multiplies with, MKL, uses AVX-512 on Intel's CPUs only
        return plain | {"matmul": "onednn" if matmul_is_there("onednn", device) else "torch"}
    return plain
