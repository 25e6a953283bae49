"""What `auto` stands for among the settings of a device: precision, memory layout, matrix products.

It is a rule by model and machine, and not a trial in each run: the same command on the same machine has to end in the
same bits, and a stopwatch does not repeat. For CPUs it rests on measurements, for GPUs on torch's own guide
(docs/speed.md). What it chose is stored with the run's settings: a run keeps it when it is resumed or evaluated, on
another machine too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from trainer.config import Choice, Config
from trainer.utils import runtime
from trainer.utils.errors import ConfigError
from trainer.utils.runtime import Machine

RESNETS = ("resnet18", "resnet34")
SMALL = 64  # pixels; from there on a ResNet begins with its stem for ImageNet


def settle(config: Config, local: int | None = None) -> tuple[Config, Machine]:
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
    device = runtime.find_device(name, index)
    chosen = rule(config, device)
    if set(impls.values()) != {"concise"}:
        chosen["precision"] = "fp32"
    if impls["model"] != "concise":  # also where the run that is evaluated had another layout
        chosen["channels_last"] = options["channels_last"] = False
    if impls["model"] == "numpy":
        options["matmul"] = "torch"
    options |= {key: chosen[key] for key in chosen if options[key] == "auto"}
    machine = runtime.set_up(name, **(options | {"index": index}))
    if local is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    if has_numpy:
        runtime.set_up_numpy()
    if "device.matmul" in config.typed and options["matmul"] != "torch":
        refuse_matmul(options, machine)
    return replace(config, device=Choice(config.device.name, options)), machine


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


def rule(config: Config, device: torch.device) -> dict[str, Any]:
    """What is fastest for a model on a device, among what leaves its accuracy as it is."""
    model, is_resnet = config.model.name, config.model.name in RESNETS
    plain = {"precision": "fp32", "channels_last": False, "matmul": "torch"}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and is_resnet:
        return plain | {"precision": "bf16", "channels_last": True}
    if device.type != "cpu":
        return plain
    if is_resnet:
        has_bf16 = runtime.cpu_can("avx512_bf16") or runtime.cpu_can("amx_bf16")
        precision = "bf16" if has_bf16 else "fp32"
        size = config.data.options.get("size", SMALL)
        stem = config.model["stem"]
        small = stem == "cifar" or (stem == "auto" and size <= SMALL)
        return plain | {"precision": precision, "channels_last": small}
    if model == "lenet":
        return plain | {"channels_last": True}
    pinned = config.device["precision"] not in ("auto", "fp32")
    is_amd = runtime.cpu_can("avx512_f") and runtime.cpu_name().startswith("AMD")
    if model in ("softmax", "mlp") and is_amd and not pinned:
        # the library that torch multiplies with, MKL, uses AVX-512 on Intel's CPUs only
        return plain | {"matmul": "onednn" if runtime.matmul_is_there("onednn", device) else "torch"}
    return plain
